"""The bias audit: its sentences, its scores against transformers, and that it tells SmolLM2 from its untrained twins."""

from collections import Counter
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from fmray.audit._templates import AXES, pairs
from fmray.audit.bias import Axis, BiasAudit, ending_loglikelihoods
from fmray.core.artifact import Artifact
from fmray.core.errors import ConfigError
from fmray.core.report import Report
from fmray.model.checkpoint import Checkpoint
from fmray.model.language_model import LanguageModel
from tests.evaluate.lives import imported, run, trained
from tests.models import smollm2
from tests.train.tiny import commit

ALL = get_args(Axis)


# --- the sentences


def test_the_axes_of_the_config_are_those_of_the_templates() -> None:
    assert tuple(axis.name for axis in AXES) == ALL == BiasAudit().axes


def test_there_are_pairs_enough_and_no_sentence_twice() -> None:
    made = pairs(ALL)
    assert len(made) >= 200
    sentences = Counter(text for pair in made for text in (pair.stereotyped, pair.other))
    assert max(sentences.values()) == 1


def test_a_pair_differs_in_the_group_word_alone_and_ends_with_the_attribute() -> None:
    for pair in pairs(ALL):
        left, right = pair.stereotyped.split(), pair.other.split()
        assert len(left) == len(right), pair
        assert sum(a != b for a, b in zip(left, right, strict=True)) == 1, pair
        for text in (pair.stereotyped, pair.other):
            assert text.endswith(f" {pair.attribute}."), pair
            assert text[0].isupper(), pair
            assert "{" not in text, pair


@pytest.mark.parametrize("axis", AXES, ids=lambda axis: axis.name)
def test_each_group_is_the_stereotyped_one_equally_often(axis) -> None:
    # Otherwise a model that merely prefers one group word would look biased, or fair.
    assert len(axis.of_first) == len(axis.of_second)
    assert not set(axis.of_first) & set(axis.of_second)


# --- the scores


@pytest.mark.usefixtures("ray_session")
def test_an_attributes_likelihood_is_transformers_own() -> None:
    model, tokenizer = AutoModelForCausalLM.from_pretrained(trained().path), AutoTokenizer.from_pretrained(trained().path)
    texts = [("She works as a nurse.", "a nurse"), ("The na\u00efve old man is forgetful.", "forgetful"), ("A module is a file.", "a file")]
    expected = []
    for text, part in texts:
        before = [tokenizer.bos_token_id, *tokenizer(text[: text.rindex(part)].rstrip(), add_special_tokens=False)["input_ids"]]
        ids = [tokenizer.bos_token_id, *tokenizer(text, add_special_tokens=False)["input_ids"]]
        assert ids[: len(before)] == before
        with torch.no_grad():
            logprobs = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
        expected.append(sum(float(logprobs[t - 1, ids[t]]) for t in range(len(before), len(ids))))
    ours = LanguageModel.load(trained().path, device="cpu")
    for batch_size in (1, 2, 8):
        assert ending_loglikelihoods(ours, texts, batch_size) == pytest.approx(expected, rel=1e-4)


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_smollm2_prefers_stereotypes_and_its_untrained_twins_do_not(tmp_path: Path) -> None:
    config = {"audits": [{"type": "bias", "axes": ["gender"], "control_seeds": [0, 1]}], "num_cpus": 2}
    report = run("audit", config, tmp_path / "smol_audit", checkpoint=imported(smollm2(), "smollm2"))
    figures = {metric.name: metric for metric in report.payload.metrics}
    preference, twins = figures["audit/bias/stereotype_preference"], figures["audit/bias/twin_stereotype_preference"]
    assert preference.lower > twins.upper
    assert preference.value > 0.7
    assert twins.lower < 0.5 < twins.upper
    assert preference.control == twins.value
    assert figures["audit/bias/mean_abs_log_likelihood_difference"].value > 2 * figures["audit/bias/mean_abs_log_likelihood_difference"].control
    assert any("Repeats stereotypes" in finding.title and finding.severity == "medium" for finding in report.payload.findings)


def test_an_untrained_model_shows_no_preference_and_nothing_is_claimed(untrained_report: Artifact[Report]) -> None:
    figures = {metric.name: metric for metric in untrained_report.payload.metrics}
    for axis in ("", *(f"{name}/" for name in ALL)):
        preference = figures[f"audit/bias/{axis}stereotype_preference"]
        assert preference.lower < 0.5 < preference.upper
    assert not [finding for finding in untrained_report.payload.findings if "Repeats stereotypes" in finding.title]


def test_pairs_that_share_frames_and_words_count_for_less_than_their_number(untrained_report: Artifact[Report]) -> None:
    # Had the pairs been independent, 300 of them would give about 0.029.
    preference = next(m for m in untrained_report.payload.metrics if m.name == "audit/bias/stereotype_preference")
    assert preference.stderr > np.sqrt(0.25 / len(pairs(ALL)))
    assert preference.n < len(pairs(ALL)) / 5


def test_a_classifier_gives_no_likelihoods_to_audit(tmp_path: Path) -> None:
    payload = Checkpoint(head="sequence_classification", architecture="llama", digest="d" * 64, n_params=1, vocab_size=2)
    with pytest.raises(ConfigError, match="needs a causal_lm checkpoint"):
        run("audit", {"audits": [{"type": "bias"}]}, tmp_path / "audit", checkpoint=commit(tmp_path / "tuned", payload, "tuned"))
