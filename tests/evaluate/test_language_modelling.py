"""The evaluate stage on a prepared corpus, against transformers used directly and against counts by hand."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from fmray.core.artifact import Artifact
from fmray.core.errors import ConfigError
from fmray.core.report import Metric, Report
from fmray.evaluate.config import EvaluateConfig
from fmray.evaluate.language_modelling import measure, metrics, spread
from tests.evaluate.lives import corpus, imported, run, save, scratch, segments, trained, untrained


@pytest.fixture(scope="module")
def report() -> Artifact[Report]:
    return run("evaluate", {}, scratch() / "trained_eval", checkpoint=trained(), dataset=corpus())


@pytest.fixture(scope="module")
def figures(report: Artifact[Report]) -> dict[str, Metric]:
    return {metric.name: metric for metric in report.payload.metrics}


@pytest.fixture(scope="module")
def by_hand() -> tuple[float, int, int]:
    """(nats, targets, bytes) of every segment on its own, by transformers' own loss and the texts' own bytes."""
    model = AutoModelForCausalLM.from_pretrained(trained().path)
    tokenizer = AutoTokenizer.from_pretrained(corpus().path / "tokenizer")
    nats, n_targets, n_bytes = 0.0, 0, 0
    for ids in segments(corpus(), "validation"):
        if len(ids) > 1:
            row = torch.from_numpy(ids)[None]
            with torch.no_grad():
                nats += float(model(input_ids=row, labels=row).loss) * (len(ids) - 1)
            n_targets += len(ids) - 1
        # Single tokens may hold half a letter, so their bytes are counted in the byte alphabet of the vocabulary itself.
        spelled = "".join(tokenizer.convert_ids_to_tokens([i for i in ids[1:] if i > 2]))
        n_bytes += len(spelled)
        whole = tokenizer.decode(ids, skip_special_tokens=True)
        if ids[0] == tokenizer.bos_token_id and "\ufffd" not in whole:
            assert len(spelled) == len(whole.encode())
    return nats, n_targets, n_bytes


def test_loss_and_perplexity_are_transformers_own(figures: dict[str, Metric], by_hand: tuple[float, int, int]) -> None:
    nats, n_targets, _ = by_hand
    assert figures["eval/loss"].value == pytest.approx(nats / n_targets, rel=1e-5)
    assert figures["eval/perplexity"].value == pytest.approx(math.exp(nats / n_targets), rel=1e-4)


def test_bits_per_byte_is_the_count_by_hand(figures: dict[str, Metric], by_hand: tuple[float, int, int]) -> None:
    nats, _, n_bytes = by_hand
    assert figures["eval/bits_per_byte"].value == pytest.approx(nats / math.log(2) / n_bytes, rel=1e-5)


def test_every_figure_has_its_interval_and_stands_where_it_should(figures: dict[str, Metric]) -> None:
    for metric in figures.values():
        assert metric.lower < metric.value < metric.upper
        assert metric.stderr > 0
        assert (metric.n, metric.method, metric.higher_is_better) == (corpus().payload.splits["validation"], "measured", False)
    bits = figures["eval/bits_per_byte"]
    assert bits.upper < figures["eval/unigram_bits_per_byte"].value
    assert figures["eval/bigram_bits_per_byte"].value < figures["eval/unigram_bits_per_byte"].value
    # An untrained model spreads its guesses over the whole vocabulary.
    assert figures["eval/loss"].control == pytest.approx(math.log(512), rel=0.05)
    assert bits.control > 1.5 * bits.value


def test_the_report_is_about_the_checkpoint_and_keeps_every_row(report: Artifact[Report], figures: dict[str, Metric]) -> None:
    assert report.payload.subject == trained().fingerprint
    rows = [json.loads(line) for line in (report.path / str(report.payload.examples)).read_text().splitlines()]
    assert len(rows) == corpus().payload.splits["validation"]
    mean = sum(row["loss"] * row["targets"] for row in rows) / sum(row["targets"] for row in rows)
    assert mean == pytest.approx(figures["eval/loss"].value, abs=1e-3)
    assert report.record.provenance.device_hours > 0


def test_an_untrained_model_does_not_beat_its_own_control() -> None:
    scores = measure(EvaluateConfig(max_rows=20, num_cpus=1), untrained().path, corpus().path)
    loss = metrics(scores)[0]
    assert loss.value == pytest.approx(loss.control, rel=0.03)


def test_max_rows_takes_the_same_rows_spread_over_the_split() -> None:
    scores = measure(EvaluateConfig(max_rows=7, control_rows=3, num_cpus=1, micro_batch_size=2), untrained().path, corpus().path)
    n_rows = corpus().payload.splits["validation"]
    assert scores.row_ids_B.tolist() == [i * n_rows // 7 for i in range(7)]
    assert len(scores.control_nats_C) == 3
    again = measure(EvaluateConfig(max_rows=7, control_rows=3, num_cpus=1, micro_batch_size=5), untrained().path, corpus().path)
    assert np.allclose(again.nats_B, scores.nats_B, rtol=1e-5)
    assert spread(5, None).tolist() == spread(5, 9).tolist() == [0, 1, 2, 3, 4]


def test_where_bytes_are_unknown_the_figure_is_none_with_the_reason() -> None:
    scores = measure(EvaluateConfig(max_rows=3, num_cpus=1), untrained().path, corpus().path)
    scores = type(scores)(**{**vars(scores), "bytes_B": None})
    found = {metric.name: metric for metric in metrics(scores)}
    assert found["eval/bits_per_byte"].value is None
    assert "not byte-level" in found["eval/bits_per_byte"].note
    assert found["eval/loss"].value is not None


def test_a_language_model_needs_a_dataset() -> None:
    with pytest.raises(ConfigError, match="names no dataset"):
        run("evaluate", {}, scratch() / "no_dataset", checkpoint=trained())


def test_ids_of_another_tokenizer_are_refused(tmp_path: Path) -> None:
    folder = shutil.copytree(save(tmp_path / "model"), tmp_path / "other")
    state = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = state["model"]["vocab"]
    first, second = sorted(vocabulary, key=vocabulary.__getitem__)[300:302]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    (folder / "tokenizer.json").write_text(json.dumps(state))
    with pytest.raises(ConfigError, match="another tokenizer"):
        run("evaluate", {"max_rows": 2}, tmp_path / "eval", checkpoint=imported(folder, "other"), dataset=corpus())
