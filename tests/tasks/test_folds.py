"""Folds of a task: every example is held out once, from models that saw neither it nor its like."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fmray.core.errors import ConfigError, DataError
from fmray.data.split import near_duplicate_groups
from fmray.evaluate.cross_validated import over_folds
from fmray.tasks import Predictions, Task
from fmray.tasks.folds import Folds, Said, cut
from fmray.train.finetune import FinetuneConfig
from tests.tasks.made import DATA, task
from tests.train import tiny

PASSAGES, ASKED = 12, 4


def about_passages(folder: Path) -> Task:
    """Several questions about each of some short passages: as texts they are not near-duplicates."""
    held = [text.split()[:6] for text, _ in tiny.labelled(PASSAGES // 3)]
    paragraphs = [
        {"context": " ".join(words), "qas": [
            {"id": f"{number}_{i}", "question": f"{' '.join(tiny.PLAIN[i::ASKED])} then {i} of {number}", "answers": [{"text": words[i], "answer_start": len(" ".join(["", *words[:i]]))}]}
            for i in range(ASKED)
        ]} for number, words in enumerate(held)
    ]  # fmt: skip
    (folder / "q.json").write_text(json.dumps({"data": [{"paragraphs": paragraphs}]}))
    return task(type="question_answering", source={"type": "squad", "path": str(folder / "q.json")})


def known(one: Any) -> str:
    return json.dumps(one, sort_keys=True)


def judged(made: Task, n: int) -> tuple[Folds, Predictions]:
    """Folds, and pooled predictions of which each is the target itself and says by its confidence which fold it came from."""
    folds = cut(made, made.load(), n)
    said = [Predictions(list(part.splits["test"].targets), np.full(len(part.splits["test"]), fold / 10)) for fold, part in enumerate(folds.parts)]
    return folds, folds.pooled(said)


@pytest.mark.parametrize("kind", ["text_classification", "question_answering", "token_classification"])
def test_every_example_is_held_out_once_and_never_tuned_on_then(tmp_path: Path, kind: str) -> None:
    made = task(**DATA[kind](tmp_path))
    data, folds = made.load(), cut(made, made.load(), 3)
    everything = Counter(known(one) for split in data.splits.values() for one in split.inputs)
    assert Counter(known(one) for part in folds.parts for one in part.splits["test"].inputs) == everything
    assert Counter(known(one) for name in ("train", "validation") for one in folds.whole.splits[name].inputs) == everything
    for part in folds.parts:
        held, tuned, validates = ({known(one) for one in part.splits[name].inputs} for name in ("test", "train", "validation"))
        assert not held & (tuned | validates)
        assert not tuned & validates
        assert len(held) == pytest.approx(len(everything) / 3, abs=3)
        assert len(validates) / (len(validates) + len(tuned)) == pytest.approx(0.25, abs=0.05)
    assert len({part.digest for part in (*folds.parts, folds.whole, data)}) == 5, "what is cut from their texts is remembered by the digest"


def test_questions_about_one_passage_stay_in_one_fold(tmp_path: Path) -> None:
    made = about_passages(tmp_path)
    folds = cut(made, made.load(), 4)
    texts = folds.whole.splits["test"].texts
    assert len(set(near_duplicate_groups(texts).tolist())) > PASSAGES, "else near-duplicates alone would keep them together"
    of_passage: dict[str, set[int]] = {}
    for one, fold in zip(folds.whole.splits["test"].inputs, folds.fold_N.tolist(), strict=True):
        of_passage.setdefault(one["context"], set()).add(fold)
    assert len(of_passage) == PASSAGES
    assert all(len(found) == 1 for found in of_passage.values())
    assert np.bincount(folds.fold_N).tolist() == [PASSAGES * ASKED // 4] * 4
    with pytest.raises(DataError, match=rf"48 examples in {PASSAGES} groups that must not be parted are too few for 13 folds"):
        cut(made, made.load(), 13)


def test_labels_are_shared_out_and_a_rare_one_is_refused(tmp_path: Path) -> None:
    made = task(**DATA["text_classification"](tmp_path))
    for part in cut(made, made.load(), 3).parts:
        assert part.occurrences("test").tolist() == pytest.approx([10, 10, 10], abs=1)
    path = tiny.write_csv(tmp_path / "rare.csv", [*tiny.labelled(12), ("a lone row of it", "rare"), ("another row altogether", "rare"), ("the third one comes here", "rare")])
    rare = task(**tiny.task(path, classes=4))
    with pytest.raises(DataError, match="split has no row of 'rare'"):
        cut(rare, rare.load(), 4)


def test_predictions_come_back_to_their_examples_and_from_the_disk(tmp_path: Path) -> None:
    made = task(**DATA["text_classification"](tmp_path))
    folds, pooled = judged(made, 3)
    assert list(pooled.values) == list(folds.whole.splits["test"].targets)
    assert pooled.confidence_N is not None
    assert pooled.confidence_N.tolist() == (folds.fold_N / 10).tolist()
    Said(3, {"model": pooled}).save(tmp_path)
    again = Said.read(tmp_path)
    assert again is not None
    assert (again.n_folds, list(again.systems["model"].values)) == (3, list(pooled.values))
    assert again.systems["model"].confidence_N is not None
    assert again.systems["model"].confidence_N.tolist() == (folds.fold_N / 10).tolist()
    assert again.systems["model"].losses_N2 is None
    assert Said.read(tmp_path.parent) is None


def test_mean_and_deviation_are_those_over_the_folds(tmp_path: Path) -> None:
    made = task(**DATA["text_classification"](tmp_path))
    folds, pooled = judged(made, 3)
    wrong = [1 - value if fold == 2 and value < 2 else value for value, fold in zip(pooled.values, folds.fold_N.tolist(), strict=True)]
    found = {metric.name: metric.value for metric in over_folds(made, folds, {"model": Predictions(wrong), "random_init": pooled}, "model")}
    third = made.metrics(folds.whole.labels, folds.parts[2].splits["test"].targets, folds.of_fold(Predictions(wrong), 2))["macro_f1"]
    assert third < 0.5
    assert found["eval/topics/macro_f1_mean"] == pytest.approx(np.mean([1, 1, third]))
    assert found["eval/topics/macro_f1_deviation"] == pytest.approx(np.std([1, 1, third], ddof=1))
    assert found["eval/topics/random_init_macro_f1_deviation"] == 0.0


def test_a_baseline_is_fitted_without_the_fold(tmp_path: Path) -> None:
    made = task(**DATA["text_classification"](tmp_path))
    folds = cut(made, made.load(), 3)
    pooled, _ = folds.baselines(made, 0)["tfidf"]
    part = folds.parts[1]
    assert list(folds.of_fold(pooled, 1).values) == list(made.baselines(part, 0)["tfidf"][0].values)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"folds": 1}, "folds: Input should be greater than or equal to 2"),
        ({"folds": 3, "seeds": 2}, "folds: mean and deviation are over the folds, so leave seeds out"),
    ],
)
def test_what_folds_cannot_be_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    from fmray.core.config import load_config

    fields = {"task": DATA["text_classification"](tmp_path)}
    with pytest.raises(ConfigError, match=message):
        load_config(FinetuneConfig, fields | changes)


def test_a_test_split_of_its_own_is_refused(tmp_path: Path) -> None:
    from fmray.core.config import load_config

    fields = DATA["text_classification"](tmp_path)
    with pytest.raises(ConfigError, match=r"folds: every example of the source is held out once, so leave task\.test out"):
        load_config(FinetuneConfig, {"task": fields | {"test": fields["source"]}, "folds": 3})
