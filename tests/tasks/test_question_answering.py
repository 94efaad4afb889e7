"""Answers in passages: windows, the rules of SQuAD, and what is refused in one line."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fmray.core.errors import DataError
from fmray.evaluate.downstream import task_metrics
from fmray.tasks import Predictions, Split, TaskData
from fmray.tasks.classifier import Classifier
from fmray.tasks.question_answering import QuestionAnswering, units
from tests.models import minilm
from tests.tasks.made import questions, task


def written(folder: Path, *asked: dict[str, Any], context: str = "The harbour of Rostock lies on the Warnow.") -> dict[str, Any]:
    (folder / "q.json").write_text(json.dumps({"data": [{"paragraphs": [{"context": context, "qas": list(asked)}]}]}))
    return {"type": "question_answering", "source": {"type": "squad", "path": str(folder / "q.json")}}


def answered(text: str, start: int) -> dict[str, Any]:
    return {"id": "1", "question": "Which river?", "answers": [{"text": text, "answer_start": start}]}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> QuestionAnswering:
    found = task(**questions(tmp_path_factory.mktemp("q")))
    assert isinstance(found, QuestionAnswering)
    return found


def test_the_gold_positions_of_every_window_give_the_answer_back(made: QuestionAnswering) -> None:
    tokenizer = Classifier.start(minilm(), (), seed=0, head="question_answering", problem=None).tokenizer
    passage = " ".join(f"word{n}" for n in range(120)) + " Rostock! " + " ".join(f"more{n}" for n in range(120))
    start = passage.index("Rostock")
    split = Split(({"question": "Where?", "context": passage},), ([[start, "Rostock!"]],))
    rows = made.encode(tokenizer, split, 64, 0)
    assert len(rows["example_B"]) > 5
    assert set(rows["example_B"].tolist()) == {0}
    found = np.flatnonzero(rows["end_B"])
    assert 1 <= len(found) < len(rows["example_B"]), "the answer lies in a few windows alone"
    for row in found:
        assert passage[rows["from_BT"][row, rows["start_B"][row]] : rows["to_BT"][row, rows["end_B"][row]]] == "Rostock!"
    outputs = tuple(np.eye(rows["input_ids_BT"].shape[1], dtype=np.float32)[rows[name]] * 9 for name in ("start_B", "end_B"))
    assert made.predict(outputs, rows, split).values == ["Rostock!"]


def test_no_answer_is_said_where_the_first_position_is_surest(made: QuestionAnswering) -> None:
    tokenizer = Classifier.start(minilm(), (), seed=0, head="question_answering", problem=None).tokenizer
    split = Split(({"question": "Where?", "context": "In Rostock."},), ([],))
    open_ended = made.model_copy(update={"no_answer": True})
    rows = open_ended.encode(tokenizer, split, 32, 0)
    assert (rows["start_B"].tolist(), rows["end_B"].tolist()) == ([0], [0])
    logits = np.zeros(rows["input_ids_BT"].shape, np.float32)
    logits[0, 0] = 1.0
    assert open_ended.predict((logits, logits), rows, split).values == [""]
    assert made.predict((logits, logits), rows, split).values != [""]


def test_intervals_resample_passages(made: QuestionAnswering) -> None:
    inputs = tuple({"question": f"q{n}", "context": f"passage {n // 5}"} for n in range(40))
    targets = tuple([[0, "passage"]] for _ in inputs)
    said = Predictions(["passage" if n // 5 % 2 else "" for n in range(40)])
    data = TaskData((), {"test": Split(inputs, targets)}, "")
    assert made.units(data.splits["test"]).tolist() == [n // 5 for n in range(40)]
    metrics = {metric.name: metric for metric in task_metrics(made, data, {"model": said}, {}, np.zeros(40), 0)}
    figure = metrics["eval/answers/f1"]
    assert (figure.value, figure.n) == (0.5, 8)
    assert figure.note == "40 examples in 8 groups, which are resampled whole"
    assert figure.stderr == pytest.approx(0.5 / 8**0.5, rel=0.15), "as of eight passages, and not of forty questions"
    assert metrics["eval/answers/pretraining_overlap"].n == 8


@pytest.mark.parametrize(
    ("said", "right", "exact", "f1"),
    [
        ("the Warnow", ["Warnow."], 1.0, 1.0),
        ("river Warnow", ["Warnow"], 0.0, 2 / 3),
        ("Rostock", ["Warnow", "Rostock"], 1.0, 1.0),
        ("", [], 1.0, 1.0),
        ("Warnow", [], 0.0, 0.0),
        ("", ["Warnow"], 0.0, 0.0),
        ("a a b", ["a b b"], 0.0, 2 / 3),
    ],
)
def test_the_rules_of_squad(made: QuestionAnswering, said: str, right: list[str], exact: float, f1: float) -> None:
    if said == "a a b":  # 'a' is an article
        said, right = "x x b", ["x b b"]
    assert made.score(said, right) == (exact, pytest.approx(f1))


def test_chinese_is_counted_by_character(made: QuestionAnswering) -> None:
    assert units("《欧洲》ABC 12", True) == ["欧", "洲", "abc", "12"]
    by_character = made.model_copy(update={"by_character": True})
    assert by_character.score("德国学者", ["德国"]) == (0.0, pytest.approx(2 / 3))
    assert made.score("德国学者", ["德国"]) == (0.0, 0.0)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (answered("Warnow", 3), "the answer 'Warnow' does not stand at 3 of the passage, where ' harbo' does"),
        (answered("Warnow", -1), "does not stand at -1"),
        ({"id": "1", "question": "Which?", "answers": []}, "the question has no answer; set task.no_answer to true"),
        ({"id": "1", "question": " ", "answers": [{"text": "The", "answer_start": 0}]}, "has no question, or no passage"),
        ({"id": "1", "answers": []}, "has no question, or no passage"),
        ({"id": "1", "question": "Which?", "answers": [{"text": "The"}]}, "has an answer without text or answer_start"),
        ({"id": "1", "question": "Which?", "answers": None}, "the question has no answer; set task.no_answer to true"),
        ({"id": "1", "question": "Which?", "answers": ["The"]}, "has answers that are no list of text and answer_start"),
        ({"id": "1", "question": "Which?", "answers": {"text": "The"}}, "has answers that are no list of text and answer_start"),
    ],
)
def test_what_cannot_be_learnt_from_is_refused(tmp_path: Path, asked: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError) as caught:
        task(**written(tmp_path, asked)).load()
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


def flat(folder: Path, *rows: dict[str, Any], **fields: Any) -> Any:
    (folder / "q.jsonl").write_text("".join(json.dumps({"question": "Which?", **row}) + "\n" for row in rows))
    return task(type="question_answering", source={"type": "jsonl", "path": str(folder / "q.jsonl"), "text": "question"}, context="context", question="text", **fields)


def test_squad_as_hugging_face_keeps_it_is_read(tmp_path: Path) -> None:
    found = flat(
        tmp_path, {"context": "On the Warnow.", "answers": {"text": ["Warnow", "the Warnow"], "answer_start": [7, 3]}}, {"context": "Nowhere.", "answers": {"text": [], "answer_start": []}},
        {"context": "No.", "answers": None}, no_answer=True,
    )  # fmt: skip
    assert [example.target for example in found.examples(found.source)] == [[[7, "Warnow"], [3, "the Warnow"]], [], []]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"context": "The Warnow", "answers": {"text": ["Warnow"], "answer_start": [3]}}, "the answer 'Warnow' does not stand at 3 of the passage; mend the offsets"),
        ({"context": "The Warnow", "answers": [{"text": "no", "answer_start": -3}]}, "the answer 'no' does not stand at -3 of the passage"),
        ({"context": "The Warnow", "answers": {"text": ["Warnow"], "answer_start": []}}, "the column 'answers' holds no list of answers with text and answer_start"),
        ({"context": "The Warnow", "answers": [{"text": "Warnow", "answer_start": None}]}, "holds no list of answers with text and answer_start"),
        ({"context": "The Warnow", "answers": "Warnow"}, "holds no list of answers with text and answer_start"),
        ({"context": None, "answers": [{"text": "Warnow", "answer_start": 4}]}, "of 1 rows 1 without 'context'"),
        ({"context": ["The Warnow"], "answers": [{"text": "Warnow", "answer_start": 4}]}, "the column 'context' holds list, which is no text"),
    ],
)
def test_answers_of_any_source_that_do_not_stand_in_the_passage_are_refused(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError) as caught:
        flat(tmp_path, row).load()
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


def test_other_json_and_too_long_questions_are_refused(tmp_path: Path, made: QuestionAnswering) -> None:
    (tmp_path / "q.json").write_text('{"rows": []}')
    with pytest.raises(DataError, match=r"is no SQuAD JSON \(KeyError: 'data'\)"):
        task(type="question_answering", source={"type": "squad", "path": str(tmp_path)}).load()
    tokenizer = Classifier.start(minilm(), (), seed=0, head="question_answering", problem=None).tokenizer
    split = Split(({"question": "where " * 40, "context": "In Rostock."},), ([[3, "Rostock"]],))
    with pytest.raises(DataError, match="a question has 42 tokens, more than half of max_length 64"):
        made.encode(tokenizer, split, 64, 0)
