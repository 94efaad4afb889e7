"""Tags on words: where they stand among pieces, which spans they are, and what is refused in one line."""

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from seqeval.metrics import f1_score, precision_score, recall_score

from fmray.core.errors import ArtifactError, DataError
from fmray.tasks import Predictions, Split, Task, TaskData
from fmray.tasks.classifier import Classifier
from fmray.tasks.token_classification import TokenClassification
from tests.models import minilm
from tests.tasks.made import tagged, task, words
from tests.train import tiny

UNER = """# sent_id = 1
# text = where is Tampa Bay ?
1\twhere\tO\t-\t-
2\tis\tO\t-\t-
3\tTampa\tB-LOC\t-\tstephen
4\tBay\tI-LOC\t-\tstephen
5\t#hash\tO\t-\t-
"""


def of(path: Path, **more: Any) -> Task:
    return task(type="token_classification", source={"type": "conll", "path": str(path), **more})


def test_five_columns_and_comments_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.iob2").write_text(UNER)
    found = of(tmp_path, word=1, tag=2)
    assert isinstance(found, TokenClassification)
    (example,) = found.examples(found.source)
    assert example.input == ["where", "is", "Tampa", "Bay", "#hash"]
    assert example.target == ["O", "O", "B-LOC", "I-LOC", "O"]


def test_span_figures_are_those_of_seqeval(tmp_path: Path) -> None:
    found = task(**words(tmp_path))
    data, draw = found.load(), random.Random(0)
    truth = data.splits["train"].targets
    said = [[tag if draw.random() < 0.7 else draw.randrange(len(data.labels)) for tag in tags] for tags in truth]
    ours = found.metrics(data.labels, truth, Predictions(said))
    theirs = [[[data.labels[tag] for tag in tags] for tags in side] for side in (truth, said)]
    assert ours["span_f1"] == pytest.approx(f1_score(*theirs))
    assert ours["span_precision"] == pytest.approx(precision_score(*theirs))
    assert ours["span_recall"] == pytest.approx(recall_score(*theirs))
    assert ours["span_macro_f1"] == pytest.approx(f1_score(*theirs, average="macro"))
    assert 0.1 < ours["span_f1"] < 0.9


@pytest.mark.parametrize("joiner", [" ", ""])
def test_each_word_has_its_tag_at_its_first_piece(tmp_path: Path, joiner: str) -> None:
    tiny.save_decoder(tmp_path)
    sentences = [["unbelievably", "Tampa", "🙂", "Zürich", "新加坡"], ["x"]] if joiner else [["新加坡", "在", "亚洲", "。"], ["在"]]
    tags = tuple([n % 3 for n in range(len(words))] for words in sentences)
    split = Split(tuple(sentences), tags)
    for path in (minilm(), tmp_path):
        tokenizer = Classifier.start(path, "abc", seed=0, head="token_classification", problem=None).tokenizer
        found = task(**words(tmp_path)).model_copy(update={"joiner": joiner})
        rows = found.encode(tokenizer, split, 64, 3)
        for row, held in enumerate(sentences):
            at = np.flatnonzero(rows["words_BT"][row] >= 0)
            assert rows["words_BT"][row, at].tolist() == list(range(len(held))), path
            assert rows["labels_BT"][row, at].tolist() == tags[row]
            pieces = tokenizer.convert_ids_to_tokens(rows["input_ids_BT"][row].tolist())
            if joiner:
                assert held[0].startswith(tokenizer.decode(rows["input_ids_BT"][row, at[0]]).strip()), pieces
            assert len(pieces) > len(held) + (row == 0)


def test_words_behind_the_cut_are_outside(tmp_path: Path) -> None:
    found = task(**words(tmp_path))
    tokenizer = Classifier.start(minilm(), "abc", seed=0, head="token_classification", problem=None).tokenizer
    split = Split((["rain"] * 30,), ([1] * 30,))
    rows = found.encode(tokenizer, split, 12, 3)
    said = found.predict((np.full((*rows["input_ids_BT"].shape, 3), [0.0, 1.0, 0.0], np.float32),), rows, split).values
    assert said == [[1] * 10 + [0] * 20]


def test_a_tokenizer_without_offsets_is_refused(tmp_path: Path) -> None:
    class Slow:
        is_fast = False

    with pytest.raises(ArtifactError, match="tells no offsets"):
        task(**words(tmp_path)).encode(Slow(), Split((), ()), 8, 3)


def test_a_test_source_keeps_its_rows_and_takes_them_out_of_training(tmp_path: Path) -> None:
    fields = words(tmp_path)
    lines = (tmp_path / "words.conll").read_text().split("\n\n")
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "test.conll").write_text("\n\n".join([*lines[:12], lines[0]]))
    data: TaskData = task(**fields, test={"type": "conll", "path": str(tmp_path / "own")}).load()
    assert len(data.splits["test"]) == 13
    assert data.removed["in_validation_or_test"] == 12
    assert not set(data.splits["test"].texts) & {*data.splits["train"].texts, *data.splits["validation"].texts}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a\tO\nb\tI-LOC\n", "word 2, 'b', goes on with a span by 'I-LOC' behind 'O'"),
        ("a\tB-PER\nb\tI-LOC\n", "goes on with a span by 'I-LOC' behind 'B-PER'"),
        ("a\tO\nb\tLOC\n", "word 2, 'b', has the tag 'LOC', which is not O, B-type or I-type"),
        ("a\tO\nb\n", "no word in column 0 with a tag in column 1: 'b'"),
        ("a\tO\n \tO\n", "no word in column 0"),
        ("a\tO\n\nb\tO\n", "all words bear one tag, 'O'"),
        ("# nothing\n", "the source holds no rows"),
    ],
)
def test_tags_that_are_not_sound_are_refused(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "a.conll").write_text(content)
    with pytest.raises(DataError) as caught:
        of(tmp_path).load()
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


def test_types_that_training_lacks_are_refused(tmp_path: Path) -> None:
    fields = words(tmp_path)
    (tmp_path / "t").mkdir()
    (tmp_path / "t" / "a.conll").write_text("Rome\tB-SEI\n")
    with pytest.raises(DataError, match="the test rows bear the label 'B-SEI', did you mean 'B-SAI'\\?, which no training row does; labels: B-COO, B-SAI"):
        task(**fields, test={"type": "conll", "path": str(tmp_path / "t")}).load()


def test_types_that_the_split_leaves_to_the_test_rows_alone_are_refused(tmp_path: Path) -> None:
    plain = "\n".join("".join(f"{w}\t{t}\n" for w, t in sentence) for sentence in tagged(40))
    (tmp_path / "train").mkdir()
    (tmp_path / "test").mkdir()
    # The one sentence with a rare type stands in the test source too, so that nothing of it is left to learn from.
    rare = "the\tO\nmayor\tO\nof\tO\nRostock\tB-CITY\nspoke\tO\n"
    (tmp_path / "train" / "a.conll").write_text(f"{plain}\n{rare}")
    (tmp_path / "test" / "a.conll").write_text(rare)
    with pytest.raises(DataError, match="the test split has spans of type 'CITY', and the train split has none to learn it from; bring more rows of that type") as caught:
        task(type="token_classification", source={"type": "conll", "path": str(tmp_path / "train")}, test={"type": "conll", "path": str(tmp_path / "test")}).load()
    assert caught.value.exit_code == 2


def test_as_many_tags_as_words_are_wanted(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "x", "words": ["a", "b"], "tags": ["O"]}) + "\n")
    with pytest.raises(DataError, match="has 2 words and 1 tags") as caught:
        task(type="token_classification", source={"type": "jsonl", "path": str(tmp_path / "a.jsonl")}).load()
    assert caught.value.exit_code == 2


def test_a_source_of_texts_is_no_source_of_words(tmp_path: Path) -> None:
    path = tiny.write_csv(tmp_path / "t.csv", tiny.labelled(5))
    wrong = task(type="token_classification", source={"type": "csv", "path": str(path)})
    with pytest.raises(DataError, match="no column 'words'; it has: label, text, id"):
        wrong.load()
    with pytest.raises(DataError, match="the column 'text' holds no list of texts"):
        wrong.model_copy(update={"words": "text", "tags": "label"}).read_data()
    assert len(tagged(5)) == 5
