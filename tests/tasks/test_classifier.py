"""The classifier's face: what it feeds a model, and that what it saves is all that others need."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from fmray.core.errors import ArtifactError, ConfigError
from fmray.data.tokenizer import encode, load
from fmray.model.checkpoint import Head, read_hf_config
from fmray.tasks.classifier import AUTO_CLASSES, Classifier
from tests.models import minilm
from tests.train import tiny

LABELS = ("cooking", "sailing", "weather")
TEXTS = ["rain", "a storm and then very much snow over the harbour", "butter and flour in the oven"]


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("decoder")
    tiny.save_decoder(folder)
    return folder


@pytest.fixture(scope="module")
def started(decoder: Path) -> Classifier:
    return Classifier.start(decoder, LABELS, seed=3)


def test_the_saved_directory_is_all_that_anyone_needs(started: Classifier, tmp_path: Path) -> None:
    started.longest(20)
    started.save(tmp_path)
    ours = Classifier.load(tmp_path)
    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    with torch.inference_mode():
        theirs = model(**tokenizer(TEXTS, padding=True, truncation=True, return_tensors="pt")).logits.numpy()
    np.testing.assert_allclose(ours.logits(ours.encode(TEXTS, 20)), theirs, atol=1e-6)
    assert ours.labels == LABELS
    assert model.config.label2id == {"cooking": 0, "sailing": 1, "weather": 2}
    assert tokenizer.model_max_length == 20


def test_the_pretrained_weights_are_taken_over_and_only_the_head_is_new(decoder: Path, started: Classifier) -> None:
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(decoder, dtype=torch.float32).model.state_dict()
    assert all(torch.equal(value, started.model.model.state_dict()[name]) for name, value in base.items())
    control = Classifier.start(decoder, LABELS, seed=3, from_scratch=True)
    same = [name for name, value in base.items() if value.ndim > 1 and torch.equal(value, control.model.model.state_dict()[name])]
    assert same == []


@pytest.mark.parametrize("head", [head for head in AUTO_CLASSES if head != "seq2seq_lm"])
def test_every_head_stands_on_the_pretrained_weights(decoder: Path, tmp_path: Path, head: Head) -> None:
    from transformers import AutoModel

    # Encoders write no text, decoders look behind no mask, and neither has two halves (see the test of heads).
    for path in {"causal_lm": (decoder,), "masked_lm": (minilm(),)}.get(head, (decoder, minilm())):
        body = AutoModel.from_pretrained(path, dtype=torch.float32).state_dict()
        model = Classifier.start(path, LABELS if "classification" in head else (), seed=3, head=head, problem=None)
        found = model.model.base_model.state_dict()
        assert found.keys() <= body.keys()
        assert all(torch.equal(value, body[name]) for name, value in found.items()), path
        model.save(tmp_path / head / path.name)
        again = Classifier.load(tmp_path / head / path.name, head=head)
        assert all(torch.equal(value, found[name]) for name, value in again.model.base_model.state_dict().items()), path


def test_the_same_seed_gives_the_same_head(decoder: Path, started: Classifier) -> None:
    again, other = (Classifier.start(decoder, LABELS, seed=seed) for seed in (3, 4))
    assert torch.equal(again.model.score.weight, started.model.score.weight)
    assert not torch.equal(other.model.score.weight, started.model.score.weight)


def test_a_document_is_framed_as_in_pretraining_and_nothing_comes_twice(started: Classifier, decoder: Path, tmp_path: Path) -> None:
    tokenizer, special = load(decoder)
    rows = [ids.tolist() for ids in encode(tokenizer, special, TEXTS)]
    started.save(tmp_path)
    for opened in (started, Classifier.load(tmp_path)):
        assert opened.tokenizer(TEXTS)["input_ids"] == rows


@pytest.mark.parametrize(("single", "framed"), [(None, "<|bos|> a <|eos|>"), ("<|eos|> $A", "<|eos|> a <|eos|>"), ("$A <|eos|>", "a <|eos|>")])
def test_a_tokenizer_that_frames_by_itself_keeps_what_it_puts(decoder: Path, tmp_path: Path, single: str | None, framed: str) -> None:
    shutil.copytree(decoder, tmp_path, dirs_exist_ok=True)
    raw = Tokenizer.from_file(str(decoder / "tokenizer.json"))
    raw.post_processor = TemplateProcessing(single=single or "$A", special_tokens=[("<|eos|>", raw.token_to_id("<|eos|>"))])
    raw.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Classifier.start(tmp_path, LABELS, seed=0).tokenizer
    assert tokenizer.convert_ids_to_tokens(tokenizer("a")["input_ids"]) == framed.split()


def test_rows_are_cut_and_padded(started: Classifier) -> None:
    rows = started.encode(TEXTS, 8)
    assert (rows["input_ids_BT"][:, 0] == started.tokenizer.bos_token_id).all()
    assert rows["attention_mask_BT"].sum(axis=1).max() == 8
    assert (rows["input_ids_BT"][rows["attention_mask_BT"] == 0] == started.tokenizer.pad_token_id).all()


def test_neither_padding_nor_company_changes_a_row(started: Classifier) -> None:
    together = started.logits(started.encode(TEXTS, 60), batch_size=3)
    alone = np.concatenate([started.logits(started.encode([text], 60)) for text in TEXTS])
    in_pairs = started.logits(started.encode(TEXTS, 60), batch_size=2)
    np.testing.assert_allclose(together, alone, atol=1e-5)
    np.testing.assert_allclose(together, in_pairs, atol=1e-5)


def test_an_encoder_starts_and_answers_as_well(tmp_path: Path) -> None:
    encoder = Classifier.start(minilm(), LABELS, seed=0)
    encoder.longest(32)
    rows = encoder.encode(TEXTS, 32)
    assert encoder.tokenizer.convert_ids_to_tokens(rows["input_ids_BT"][0].tolist())[:3] == ["[CLS]", "rain", "[SEP]"]
    encoder.model.train()
    first = encoder.logits(rows)
    assert np.array_equal(first, encoder.logits(rows)), "dropout must be off while it answers"
    assert encoder.model.training, "and on again after that"
    encoder.save(tmp_path)
    np.testing.assert_allclose(Classifier.load(tmp_path).logits(rows), first, atol=1e-6)


def test_a_table_of_positions_with_rows_before_the_first_is_not_overrun(tmp_path: Path) -> None:
    from fmray.evaluate.lm_tasks.asking import positions
    from fmray.serve.engine import Scores, Text
    from fmray.serve.engines.classification import Classification

    tiny.save_roberta(tmp_path / "base")
    model = Classifier.start(tmp_path / "base", LABELS, seed=0)
    limit = 64 - model.tokenizer.pad_token_id - 1
    with pytest.raises(ConfigError, match=f"is {limit + 1}, but the model has {limit} positions"):
        model.longest(limit + 1)
    assert model.longest(None) == limit
    rows = model.encode(["rain and snow " * 60], limit)
    assert rows["input_ids_BT"].shape[1] == limit
    assert np.isfinite(model.logits(rows)).all()
    model.save(tmp_path / "tuned")
    engine = Classification(tmp_path / "tuned", device="cpu", threads=1)
    (answer,) = engine.answer([Text("rain and snow " * 60, truncate=True)])
    assert isinstance(answer, Scores)
    assert (engine.max_model_len, answer.n_tokens) == (limit, limit)
    model.tokenizer.model_max_length = 10**30
    assert positions(read_hf_config(tmp_path / "base"), model.tokenizer, masked=True) == limit


def test_what_is_no_classifier_is_refused(decoder: Path, tmp_path: Path, started: Classifier) -> None:
    with pytest.raises(ArtifactError, match="has no sequence classification head"):
        Classifier.load(decoder)
    with pytest.raises(ArtifactError, match="is not a model checkpoint"):
        Classifier.start(tmp_path, LABELS, seed=0)
    with pytest.raises(ConfigError, match="is 65, but the model has 64 positions; use at most 64"):
        started.longest(65)
    assert started.longest(None) == 64
