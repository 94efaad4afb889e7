"""Hidden words: which are hidden, how they are counted, and what is refused."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForMaskedLM, AutoTokenizer

from fmray.core.errors import ArtifactError, DataError
from fmray.tasks import Predictions
from fmray.tasks.classifier import Classifier
from fmray.tasks.fill_mask import FillMask, words_of
from fmray.tasks.generative import IGNORED
from tests.models import minilm
from tests.tasks.made import masks, task
from tests.train import tiny


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> FillMask:
    found = task(**masks(tmp_path_factory.mktemp("m")))
    assert isinstance(found, FillMask)
    return found


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("encoder")
    tiny.save_encoder(folder)
    return folder


def test_chinese_characters_and_runs_of_letters_are_words() -> None:
    text = "今天, the storm's over (3.5)"
    assert [text[a:b] for a, b in words_of(text)] == ["今", "天", "the", "storm", "s", "over", "3", "5"]


@pytest.mark.parametrize("uncased", [False, True])
def test_every_token_of_a_hidden_word_is_hidden_and_no_other(made: FillMask, encoder: Path, uncased: bool) -> None:
    tokenizer = AutoTokenizer.from_pretrained(minilm() if uncased else encoder)
    split = made.load().splits["train"]
    rows = made.encode(tokenizer, split, 48, 0)
    for row, (text, target) in enumerate(zip(split.inputs, split.targets, strict=True)):
        words = words_of(text)
        assert len(target) == max(1, round(0.15 * len(words)))
        assert all(text[slice(*words[number])] == word for number, word in target)
        hidden = rows["labels_BT"][row] != IGNORED
        assert (rows["input_ids_BT"][row][hidden] == tokenizer.mask_token_id).all()
        assert (rows["input_ids_BT"][row] == rows["plain_BT"][row])[~hidden].all()
        assert "".join(tokenizer.decode(rows["labels_BT"][row][hidden]).split()) == "".join(word for _, word in target)


def test_other_words_are_hidden_in_each_epoch_by_seed_and_epoch_alone(made: FillMask, encoder: Path) -> None:
    rows = made.encode(AutoTokenizer.from_pretrained(encoder), made.load().splits["train"], 48, 0)
    one, again, other = made.of_epoch(rows, 0, 1), made.of_epoch(rows, 0, 1), made.of_epoch(rows, 0, 2)
    assert np.array_equal(one["input_ids_BT"], again["input_ids_BT"])
    assert not np.array_equal(one["input_ids_BT"], other["input_ids_BT"])
    assert np.array_equal(np.where(one["labels_BT"] != IGNORED, one["labels_BT"], one["input_ids_BT"]), rows["plain_BT"])


def test_ranks_are_those_of_the_models_logits(made: FillMask, encoder: Path) -> None:
    opened = Classifier.start(encoder, (), seed=0, head="masked_lm", problem=None)
    split = made.load().splits["test"]
    rows = made.encode(opened.tokenizer, split, 48, 0)
    said = made.predict(made.outputs(opened, rows, 4), rows, split)
    model = AutoModelForMaskedLM.from_pretrained(encoder, dtype=torch.float32).eval()
    for row in range(3):
        with torch.inference_mode():
            logits = model(input_ids=torch.from_numpy(rows["input_ids_BT"][row : row + 1]), attention_mask=torch.from_numpy(rows["attention_mask_BT"][row : row + 1])).logits[0]
        for (number, _), (_, rank) in zip(split.targets[row], said.values[row], strict=True):
            at = np.flatnonzero(rows["words_BT"][row] == number)
            assert rank == max(1 + int((logits[t] > logits[t, rows["plain_BT"][row, t]]).sum()) for t in at)


def test_a_word_counts_by_its_rank_and_one_behind_the_cut_not_at_all(made: FillMask) -> None:
    figures = made.metrics((), [[[0, "a"], [3, "b"]], [[1, "c"]]], Predictions([[["a", 1], ["x", 4]], [["", 0]]]))
    assert figures == {"accuracy_at_1": pytest.approx(1 / 3), "accuracy_at_5": pytest.approx(2 / 3)}


def test_what_cannot_be_hidden_is_refused(made: FillMask, encoder: Path, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(encoder)
    tokenizer.mask_token = None
    with pytest.raises(ArtifactError, match="its tokenizer has no mask token, so words cannot be hidden"):
        made.encode(tokenizer, made.load().splits["test"], 48, 0)
    (tmp_path / "m.jsonl").write_text(json.dumps({"text": "..."}) + "\n")
    with pytest.raises(DataError, match="of 1 rows 1 without 'text'"):
        task(type="fill_mask", source={"type": "jsonl", "path": str(tmp_path / "m.jsonl")}).load()
