"""Text classification: what goes into which split, and what is refused in one line."""

import json
import random
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef, precision_score, recall_score

from fmray.core.config import Config, load_config
from fmray.core.errors import ConfigError, DataError
from fmray.data.split import near_duplicate_groups
from fmray.tasks import Predictions, Task, TaskData, task_from
from fmray.tasks.text_classification import WORD, TextClassification, tfidf
from tests.train import tiny


class Holder(Config):
    task: Task


def load_task(path: Path, **changes: Any) -> Task:
    return load_config(Holder, {"task": tiny.task(path, **changes)}).task


def test_every_label_is_in_every_split_in_like_shares(tmp_path: Path) -> None:
    data = load_task(tiny.write_csv(tmp_path / "t.csv", tiny.labelled(50))).load()
    assert data.labels == ("cooking", "sailing", "weather")
    for split, wanted in (("train", 30), ("validation", 10), ("test", 10)):
        assert all(abs(n - wanted) <= 2 for n in data.counts()[split].values()), data.counts()


def test_near_duplicates_never_cross(tmp_path: Path) -> None:
    rows = tiny.labelled(40)
    alike = [(f"{text} {extra}", label) for text, label in rows[::2] for extra in ("indeed", "truly")]
    data = load_task(tiny.write_csv(tmp_path / "t.csv", rows + alike)).load()
    texts = [(text, name) for name, split in data.splits.items() for text in split.texts]
    assert len(texts) == len(rows) + len(alike)
    groups = near_duplicate_groups([text for text, _ in texts])
    assert len(set(groups.tolist())) < len(texts) - len(alike) // 2, "the texts made alike must form groups, or this test proves nothing"
    homes: dict[int, set[str]] = {}
    for group, (_, name) in zip(groups, texts, strict=True):
        homes.setdefault(int(group), set()).add(name)
    assert all(len(names) == 1 for names in homes.values())


def test_near_duplicates_of_splits_with_a_source_of_their_own_are_left_out(tmp_path: Path) -> None:
    rows, others = tiny.labelled(30), tiny.labelled(24, seed=1)
    paths = {name: tiny.write_csv(tmp_path / f"{name}.csv", part) for name, part in (
        ("train", [*rows, *((f"{text} indeed", label) for text, label in others[::2])]),
        ("validation", [*others[1::2], *((f"{text} truly", label) for text, label in others[:6:2])]),
        ("test", others[::2]),
    )}  # fmt: skip
    sources = {name: {"type": "csv", "path": str(path)} for name, path in paths.items()}
    data = load_task(paths["train"], validation=sources["validation"], test=sources["test"]).load()
    assert {name: data.removed[name] for name in ("in_validation_or_test", "validation_in_test")} == {"in_validation_or_test": len(others[::2]), "validation_in_test": 3}
    assert {name: len(split) for name, split in data.splits.items()} == {"train": len(rows), "validation": len(others[1::2]), "test": len(others[::2])}
    texts = [(text, name) for name, split in data.splits.items() for text in split.texts]
    homes: dict[int, set[str]] = {}
    for group, (_, name) in zip(near_duplicate_groups([text for text, _ in texts]), texts, strict=True):
        homes.setdefault(int(group), set()).add(name)
    assert all(len(names) == 1 for names in homes.values())


def test_the_order_of_rows_changes_nothing_and_the_seed_does(tmp_path: Path) -> None:
    rows = tiny.labelled(30)
    shuffled = random.Random(1).sample(rows, len(rows))
    one = load_task(tiny.write_csv(tmp_path / "a.csv", rows), max_examples_per_class=20).load()
    two = load_task(tiny.write_csv(tmp_path / "b.csv", shuffled), max_examples_per_class=20).load()
    other = load_task(tmp_path / "a.csv", max_examples_per_class=20, seed=1).load()
    assert one.digest == two.digest != other.digest
    assert sum(len(split) for split in one.splits.values()) == 60
    assert one.removed["over_max_examples_per_class"] == 30


def test_duplicates_and_texts_under_two_labels_are_left_out_and_counted(tmp_path: Path) -> None:
    rows = tiny.labelled(30)
    doubled = [*rows, rows[0], (rows[1][0], "sailing"), (f"  {rows[2][0]}\r\n", rows[2][1])]
    data = load_task(tiny.write_csv(tmp_path / "t.csv", doubled)).load()
    assert (data.removed["duplicate"], data.removed["under_several_labels"]) == (2, 2)
    assert rows[1][0] not in [text for split in data.splits.values() for text in split.texts]


def test_changed_data_under_the_same_path_are_read_again(tmp_path: Path) -> None:
    path = tiny.write_csv(tmp_path / "t.csv", tiny.labelled(30))
    before = load_task(path).load()
    tiny.write_csv(path, tiny.labelled(30, seed=1))
    assert load_task(path).load().digest != before.digest


def test_the_most_frequent_classes_or_those_named(tmp_path: Path) -> None:
    rows = tiny.labelled(30)
    rows = [row for i, row in enumerate(rows) if row[1] != "cooking" or i % 2]
    path = tiny.write_csv(tmp_path / "t.csv", rows)
    two = load_task(path, classes=2).load()
    assert two.labels == ("sailing", "weather")
    assert two.removed["of_other_classes"] == 15
    assert load_task(path, classes=["cooking", "sailing"]).load().labels == ("cooking", "sailing")


def test_all_classes_are_kept_unless_told_otherwise(tmp_path: Path) -> None:
    rows = [(f"{text} {number}", f"{label}{number}") for number in range(4) for text, label in tiny.labelled(12, seed=number)]
    source = {"type": "csv", "path": str(tiny.write_csv(tmp_path / "t.csv", rows))}
    data = load_config(Holder, {"task": {"type": "text_classification", "source": source, "label": "label"}}).task.load()
    assert len(data.labels) == 12, "more than the classes of the demonstration"
    assert "of_other_classes" not in data.removed
    assert sum(len(split) for split in data.splits.values()) == len(rows)


def test_saved_without_test_split_holds_no_test_text(tmp_path: Path) -> None:
    data = load_task(tiny.write_csv(tmp_path / "t.csv", tiny.labelled(30))).load()
    data.save(tmp_path / "data.json", ("train", "validation"))
    text = (tmp_path / "data.json").read_text()
    assert not any(t in text for t in data.splits["test"].texts)
    again = TaskData.read(tmp_path / "data.json")
    assert set(again.splits) == {"train", "validation"}
    assert again.splits["train"].texts == data.splits["train"].texts
    assert np.array_equal(again.splits["train"].labels_N, data.splits["train"].labels_N)


def test_metrics_are_those_of_scikit_learn(tmp_path: Path) -> None:
    task = load_task(tiny.write_csv(tmp_path / "t.csv", tiny.labelled(30)))
    draw = np.random.default_rng(0)
    truth, predicted = draw.integers(0, 3, 200), draw.integers(0, 3, 200)
    found = task.metrics("abc", truth.tolist(), Predictions(predicted.tolist()))
    assert found["accuracy"] == pytest.approx(accuracy_score(truth, predicted))
    assert found["mcc"] == pytest.approx(matthews_corrcoef(truth, predicted))
    for average in ("macro", "weighted"):
        for name, by in (("f1", f1_score), ("precision", precision_score), ("recall", recall_score)):
            assert found[f"{average}_{name}"] == pytest.approx(by(truth, predicted, average=average))
    assert set(found) == set(task.metric_names)


def test_the_words_of_tf_idf_are_scikit_learns_but_for_scripts_without_spaces() -> None:
    text = "A naïve re-read of x_1, 42 and Ωmega: don't!"
    assert re.findall(WORD, text) == re.findall(r"(?u)\b\w\w+\b", text)
    assert re.findall(WORD, "我爱GPU，カナ a 好") == ["我", "爱", "GPU", "カ", "ナ", "好"]
    draw = random.Random(0)
    rows = [("".join([*draw.choices("天地玄黄宇宙洪荒", k=8), sign, *draw.choices("日月盈昃", k=4)]), number) for _ in range(60) for number, sign in enumerate("好坏")]
    texts, labels = zip(*rows, strict=True)
    assert tfidf(0).fit(texts[:80], labels[:80]).score(texts[80:], labels[80:]) == 1.0


def test_a_task_comes_back_from_its_dump(tmp_path: Path) -> None:
    from fmray.core.config import dump

    task = load_task(tiny.write_csv(tmp_path / "t.csv", tiny.labelled(30)), classes=["cooking", "sailing"])
    assert task_from(json.loads(json.dumps(dump(task))), "here") == task
    with pytest.raises(DataError, match="names no task"):
        task_from(None, "here")


def test_the_default_task_of_the_demonstration_corpus() -> None:
    task = load_config(Holder, {"task": {"type": "text_classification", "source": {"type": "python_docs"}, "classes": 8}}).task
    assert isinstance(task, TextClassification)
    data = task.load()
    counts = Counter(sum((Counter(split) for split in data.counts().values()), Counter()))
    assert len(data.labels) == task.classes
    assert {"tkinter", "asyncio", "email"} <= set(data.labels)
    assert min(counts.values()) >= 100
    assert min(data.counts()["test"].values()) >= 20


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"label": "lable"}, "no column 'lable', did you mean 'label'?; it has: label, text, id"),
        ({"classes": 4}, "4 classes are asked for and the source has 3: cooking, sailing, weather"),
        ({"classes": ["cooking", "wether"]}, "no row bears the label 'wether', did you mean 'weather'?; labels: cooking, sailing, weather"),
    ],
)
def test_wrong_columns_and_classes_are_named(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    task = load_task(tiny.write_csv(tmp_path / "t.csv", tiny.labelled(20)), **changes)
    with pytest.raises(DataError) as caught:
        task.load()
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([(text, "one") for text, _ in tiny.labelled(10)], "all rows bear one label, 'one'"),
        ([*tiny.labelled(10), ("   ", "cooking"), ("", "sailing")], "of 32 rows 2 without 'text'"),
        ([*tiny.labelled(10), ("storm and rain", "")], "of 31 rows 1 without 'label'"),
        ([*[r for r in tiny.labelled(20) if r[1] != "cooking"], ("salt and pepper", "cooking")], "has no row of 'cooking': too few distinct rows"),
        ([], "the source holds no rows"),
    ],
)
def test_data_that_cannot_be_learnt_from_are_refused(tmp_path: Path, rows: list[tuple[str, str]], message: str) -> None:
    task = load_task(tiny.write_csv(tmp_path / "t.csv", rows), classes=3)
    with pytest.raises(DataError) as caught:
        task.load()
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"classes": 1}, "at least 2 different labels"),
        ({"classes": ["a", "b", "a"]}, "a label stands twice"),
        ({"split": [0.5, 0.1, 0.1]}, "three positive shares that add up to 1"),
        ({"name": "a/b"}, "task.name"),
        ({"labels": "x"}, "unknown key 'labels', did you mean 'label'?"),
    ],
)
def test_wrong_configs_are_refused_at_load_time(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_task(tmp_path / "t.csv", **changes)
    assert message in str(caught.value)
