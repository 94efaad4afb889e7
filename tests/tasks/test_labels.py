"""Pairs of texts, several labels a text, and the figures of labels: against scikit-learn, and what is refused in one line."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, f1_score, precision_score, recall_score

from fmray.core.errors import ConfigError, DataError
from fmray.tasks import Predictions
from fmray.tasks.classifier import Classifier
from fmray.tasks.multi_label_classification import indicators
from fmray.tasks.scores import calibration_error
from tests.models import minilm
from tests.tasks.made import pairs, several, task, text
from tests.train import tiny


def multi(folder: Path, *rows: dict[str, Any], **fields: Any) -> Any:
    (folder / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return task(type="multi_label_classification", source={"type": "jsonl", "path": str(folder / "m.jsonl")}, **fields)


def test_both_texts_of_a_pair_are_read_apart(tmp_path: Path) -> None:
    found = task(**pairs(tmp_path))
    data = found.load()
    model = Classifier.start(minilm(), data.labels, seed=0)
    rows = found.encode(model.tokenizer, data.splits["test"], 64, 2)
    first, second = data.splits["test"].inputs[0]
    theirs = model.tokenizer(first, second)
    n = len(theirs["input_ids"])
    assert rows["input_ids_BT"][0, :n].tolist() == theirs["input_ids"]
    assert rows["token_type_ids_BT"][0, :n].tolist() == theirs["token_type_ids"]
    assert rows["token_type_ids_BT"].max() == 1
    swapped = {**rows, "token_type_ids_BT": 1 - rows["token_type_ids_BT"]}
    assert not np.allclose(model.logits(rows), model.logits(swapped), atol=1e-4), "which text a token is of must reach the model"


def test_several_labels_from_columns_of_zero_and_one_are_those_of_a_list(tmp_path: Path) -> None:
    fields = several(tmp_path)
    listed = task(**fields).load()
    lines = [json.loads(line) for line in (tmp_path / "several.jsonl").read_text().splitlines()]
    with (tmp_path / "columns.csv").open("w", newline="") as file:
        out = csv.writer(file)
        out.writerow(["text", *listed.labels])
        out.writerows([line["text"], *(int(label in line["labels"]) for label in listed.labels)] for line in lines)
    columns = task(type="multi_label_classification", source={"type": "csv", "path": str(tmp_path / "columns.csv")}, label=list(listed.labels)).load()
    assert columns.digest == listed.digest


def test_multi_label_figures_are_those_of_scikit_learn(tmp_path: Path) -> None:
    found, draw = task(**several(tmp_path)), np.random.default_rng(0)
    truth, said = (draw.integers(0, 2, (60, 4)) * [1, 1, 1, side] for side in (0, 1))
    ours = found.metrics("abcd", [np.flatnonzero(row).tolist() for row in truth], Predictions([np.flatnonzero(row).tolist() for row in said]))
    assert ours["accuracy"] == pytest.approx(accuracy_score(truth, said))
    for average in ("micro", "macro", "weighted"):
        assert ours[f"{average}_f1"] == pytest.approx(f1_score(truth, said, average=average, zero_division=0)), average
    for average in ("micro", "macro"):
        assert ours[f"{average}_precision"] == pytest.approx(precision_score(truth, said, average=average, zero_division=0))
        assert ours[f"{average}_recall"] == pytest.approx(recall_score(truth, said, average=average, zero_division=0))
    assert indicators([[0, 3], []], 4).tolist() == [[1, 0, 0, 1], [0, 0, 0, 0]]


def test_calibration_is_the_gap_of_confidence_and_accuracy() -> None:
    ones = np.ones((1, 4))
    sure = np.full(4, 0.9)
    assert calibration_error(np.array([True] * 4), sure, ones)[0] == pytest.approx(0.1)
    assert calibration_error(np.array([True, False] * 2), sure, ones)[0] == pytest.approx(0.4)
    # Two bins, each half of the examples: (0.1 + 0.6) / 2.
    assert calibration_error(np.array([True, True, False, False]), np.array([0.9, 0.9, 0.6, 0.6]), ones)[0] == pytest.approx(0.35)
    with pytest.raises(DataError, match="no number from 0 to 1"):
        calibration_error(np.array([True]), np.array([1.5]), np.ones((1, 1)))


def test_labels_that_training_lacks_are_refused(tmp_path: Path) -> None:
    path = tiny.write_csv(tmp_path / "test.csv", [("some rain", "wether")])
    with pytest.raises(DataError) as caught:
        task(**text(tmp_path), test={"type": "csv", "path": str(path)}).load()
    assert "the test rows bear the label 'wether', did you mean 'weather'?, which no training row does; labels: cooking, sailing, weather" in str(caught.value)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("rows", "fields", "message"),
    [
        ([{"text": "a", "labels": ["x"]}, {"text": "b", "labels": ["x"]}], {}, "the rows bear 1 labels: x; two or more are needed"),
        ([{"text": "a", "labels": 3}], {}, "the column 'labels' holds 3, which is no list of labels"),
        ([{"text": "a", "labels": "[x"}], {}, "holds '[x', which is no JSON list"),
        ([{"text": " ", "labels": ["x"]}], {}, "of 1 rows 1 without 'text'"),
        ([{"text": "a", "x": 1, "y": 2}], {"label": ["x", "y"]}, "the column 'y' holds 2, which is neither 0 nor 1"),
        ([{"text": "a", "x": 1}], {"label": ["x", "z"]}, "the source has no column 'z'"),
        ([{"text": f"text number {n} of all", "x": 1, "y": 0} for n in range(30)], {"label": ["x", "y"]}, "the train split has no row of 'y'"),
        ([{"text": "a", "labels": ["x", "y"]}], {}, "split is empty; bring more rows"),
    ],
)
def test_labels_that_cannot_be_learnt_are_refused(tmp_path: Path, rows: list[dict[str, Any]], fields: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError) as caught:
        multi(tmp_path, *rows, **fields).load()
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


def test_a_pair_without_its_second_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no column 'sentence3', did you mean 'sentence2'"):
        task(**pairs(tmp_path) | {"second": "sentence3"}).load()


def test_two_wrong_words_in_a_task_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown task 'token_classificaton', did you mean 'token_classification'"):
        task(type="token_classificaton")
    with pytest.raises(ConfigError, match="unknown key 'tag', did you mean 'tags'"):
        task(type="token_classification", source={"type": "conll", "path": "x"}, tag="ner")
