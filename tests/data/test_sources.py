"""Sources: what they read, what they call their documents, what identifies them, and every way of being wrong in one line."""

import gzip
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fmray.core.errors import ConfigError, DataError
from fmray.data.sources import Counts, Document
from fmray.data.sources._blocks import BLANK_LINE
from fmray.data.sources._files import Part, find
from fmray.data.sources._spans import spans
from fmray.data.sources._store import File
from fmray.data.sources.python_docs import MIN_WORDS, library, modules
from fmray.data.sources.text import Pieces
from fmray.data.text import document_hash, overlap
from tests.data.corpora import docstrings
from tests.data.reading import one_line, read, source, texts


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "deep").mkdir()
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone\r\ntwo\r\n\r\n\r\nthree\r\n")
    (tmp_path / "deep" / "b.md.gz").write_bytes(gzip.compress("four\n \t\nfünf".encode()))
    (tmp_path / "deep" / "picture.png").write_bytes(b"\x89PNG\0")
    (tmp_path / ".hidden.txt").write_text("not this")
    return tmp_path


# --- text -------------------------------------------------------------------------------------------------------------


def test_text_reads_paragraphs_of_a_folder_in_the_order_of_names(folder: Path) -> None:
    documents, counts = read(source(type="text", path=str(folder)))
    assert [d["text"] for d in documents] == ["one\r\ntwo", "three", "four", "fünf"]
    assert [d["id"] for d in documents] == ["a.txt@3", "a.txt@17", "deep/b.md.gz@0", "deep/b.md.gz@8"]
    assert not counts.notes


def test_text_reads_whole_files(folder: Path) -> None:
    documents, _ = read(source(type="text", path=str(folder), documents="file"))
    assert [(d["id"], d["text"][:3]) for d in documents] == [("a.txt", "one"), ("deep/b.md.gz", "fou")]


def test_text_takes_a_file_of_any_name_and_a_glob(folder: Path) -> None:
    (folder / "notes").write_text("plain")
    assert texts(source(type="text", path=str(folder / "notes"))) == ["plain"]
    assert texts(source(type="text", path=str(folder / "d*" / "*.gz"))) == ["four", "fünf"]


def test_windows_1252_is_read_and_counted(tmp_path: Path) -> None:
    (tmp_path / "old.txt").write_bytes(b"caf\xe9 \x93quoted\x94\n\nplain\n\nd\xe9j\xe0")
    documents, counts = read(source(type="text", path=str(tmp_path)))
    assert [d["text"] for d in documents] == ["café “quoted”", "plain", "déjà"]
    assert counts.notes == {"decoded_as_cp1252": 2}


@given(st.lists(st.sampled_from(["a\n", "bb b\n", "\n", " \n", "c"]), max_size=40), st.integers(1, 30))
def test_spans_of_a_big_file_give_the_same_paragraphs(
    tmp_path_factory: pytest.TempPathFactory, lines: list[str], part_bytes: int
) -> None:
    path = tmp_path_factory.mktemp("cut") / "x.txt"
    path.write_text("".join(lines))
    files = [File(str(path), "x.txt", path.stat().st_size)]

    def paragraphs(size: int) -> list[Document]:
        cut = spans(files, BLANK_LINE, size)
        return list(Part(tuple(cut), Pieces("paragraph", None, 10**6), "fail").read(Counts()))

    assert paragraphs(part_bytes) == paragraphs(10**9)


def test_a_big_file_is_read_in_several_parts(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("one line\n\n" * 100)
    assert len(spans(find(str(tmp_path), [".txt"]), BLANK_LINE, 100)) == 10


def test_identity_follows_content_and_relative_names_but_not_the_place(
    folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    other = tmp_path_factory.mktemp("elsewhere") / "copy"
    os.system(f"cp -r {folder} {other}")
    identity = source(type="text", path=str(folder)).identity()
    assert source(type="text", path=str(other)).identity() == identity
    assert str(folder) not in json.dumps(identity)
    assert source(type="text", path=str(folder), documents="file").identity() != identity
    (other / "a.txt").write_text("one other text")
    changed = source(type="text", path=str(other)).identity()
    assert changed != identity
    (other / "a.txt").rename(other / "c.txt")
    assert source(type="text", path=str(other)).identity() not in (identity, changed)


# --- jsonl and csv ----------------------------------------------------------------------------------------------------


def test_jsonl_keeps_metadata_and_names_documents(tmp_path: Path) -> None:
    rows = [{"body": "first", "n": 1, "key": "k1"}, {"body": "second", "n": 2, "key": 7}]
    (tmp_path / "x.jsonl.gz").write_bytes(gzip.compress("\n\n".join(map(json.dumps, rows)).encode()))
    documents, _ = read(source(type="jsonl", path=str(tmp_path), text="body", id="key"))
    assert documents == [
        {"text": "first", "n": 1, "key": "k1", "id": "k1"},
        {"text": "second", "n": 2, "key": 7, "id": "7"},
    ]
    assert [d["id"] for d in source(type="jsonl", path=str(tmp_path), text="body").iter_documents()] == [
        "x.jsonl.gz@0",
        "x.jsonl.gz@40",
    ]


def test_csv_and_tsv_with_quotes_line_ends_and_encodings(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes('\ufefftext,label\r\n"two\r\nlines, ""quoted""",x\r\n\r\nplain,y\r\n'.encode())
    (tmp_path / "b.tsv").write_bytes(b"text\tlabel\ncaf\xe9\tz\n")
    documents, counts = read(source(type="csv", path=str(tmp_path)))
    assert [(d["text"], d["label"]) for d in documents] == [
        ('two\r\nlines, "quoted"', "x"),
        ("plain", "y"),
        ("café", "z"),
    ]
    assert counts.notes == {"decoded_as_cp1252": 1}
    assert [d["id"] for d in documents] == ["a.csv:3", "a.csv:5", "b.tsv:2"]


def test_csv_without_a_header_line(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("0;good\n1;bad\n")
    made = source(type="csv", path=str(tmp_path / "a.csv"), header=["label", "text"], delimiter=";")
    assert [(d["text"], d["label"]) for d in made.iter_documents()] == [("good", "0"), ("bad", "1")]


# --- python_docs ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def prose() -> tuple[list[Document], Counts, set[str]]:
    """The paragraphs of `python_docs`, what was counted, and the modules that reading them imported."""
    before = set(sys.modules)
    documents, counts = read(source(type="python_docs"))
    return documents, counts, set(sys.modules) - before


def test_python_docs_is_the_prose_of_the_standard_library_and_imports_none_of_it(
    prose: tuple[list[Document], Counts, set[str]],
) -> None:
    documents, counts, imported = prose
    assert not {"idlelib", "tkinter", "turtle", "antigravity", "pydoc_data"} & imported
    distinct = {d["text"] for d in documents}
    assert 200_000 < sum(len(t.split()) for t in distinct) < 400_000
    assert len({d["id"] for d in documents}) == len(documents)
    assert all(len(t.split()) >= MIN_WORDS and ">>>" not in t and "\n" not in t for t in distinct)
    assert {"asyncio", "logging", "datetime", "pydoc_data"} <= {d["package"] for d in documents}
    assert all(d["module"].split(".")[0] == d["package"] for d in documents)
    assert not any("test" in d["module"].split(".") for d in documents)
    assert set(counts.removed) == {"interpreter_session", "fewer_than_8_words", "not_prose"}


def test_python_docs_gives_tasks_whole_docstrings_of_the_same_prose(
    prose: tuple[list[Document], Counts, set[str]],
) -> None:
    assert {p for d in docstrings() for p in d["text"].split("\n\n")} == {d["text"] for d in prose[0]}
    (cancel,) = [d for d in docstrings() if d["id"].startswith("asyncio.tasks:Task.cancel:")]
    assert (cancel["package"], cancel["module"]) == ("asyncio", "asyncio.tasks")
    assert "CancelledError" in cancel["text"]


def test_a_task_over_the_corpus_it_was_pretrained_on_overlaps_it_wholly(
    prose: tuple[list[Document], Counts, set[str]],
) -> None:
    known = np.unique(np.array([document_hash(d["text"]) for d in prose[0]], np.uint64))
    assert all(overlap(d["text"], known) == 1 for d in docstrings()[:1000])
    assert overlap(docstrings()[0]["text"], known[::2][:10]) < 1


def test_python_docs_parts_cover_the_library_in_similar_sizes() -> None:
    sizes = dict(modules(library()))
    parts: Sequence[Any] = source(type="python_docs").partitions()
    assert sorted(name for part in parts for name in part.modules) == sorted(sizes)
    shares = [sum(sizes[name] for name in part.modules) / sum(sizes.values()) for part in parts]
    assert max(shares) < 2 / len(parts)


def test_python_docs_identity_names_python_and_is_quick_to_make() -> None:
    identity = source(type="python_docs").identity()
    assert identity["python"] == ".".join(map(str, sys.version_info[:3]))
    assert identity == source(type="python_docs").identity()


# --- bad input --------------------------------------------------------------------------------------------------------


def test_a_missing_path_an_empty_folder_and_an_empty_glob(tmp_path: Path) -> None:
    for path, message in [("nowhere.txt", "no such file"), ("", "holds no .txt or"), ("*.md", "matches no file")]:
        made = source(type="text", path=str(tmp_path / path))
        with pytest.raises(DataError, match=message) as error:
            made.identity()
        assert str(tmp_path) in one_line(error)
        with pytest.raises(DataError, match=message):
            made.partitions()


@pytest.mark.parametrize(
    "content",
    [b"abc\n\nde\x81\xff", b"abc\n\nde\0p\xffq", "abc\n\nde\ud800".encode("utf-8", "surrogatepass") + b"\x81"],
)
def test_bytes_that_are_no_text_name_file_and_offset(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.txt").write_bytes(content)
    with pytest.raises(DataError, match=r"x\.txt.*at offset 7") as error:
        read(source(type="text", path=str(tmp_path)))
    one_line(error)


@pytest.mark.parametrize("damage", ["cut", "header"])
def test_damaged_gzip_names_the_file(tmp_path: Path, damage: str) -> None:
    whole = gzip.compress(os.urandom(10_000).hex().encode())
    (tmp_path / "x.txt.gz").write_bytes(whole[: len(whole) // 2] if damage == "cut" else b"no gzip")
    with pytest.raises(DataError, match=r"x\.txt\.gz: is not whole gzip data") as error:
        read(source(type="text", path=str(tmp_path)))
    one_line(error)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": "cut', "is not JSON"),
        ("[1]", "holds a JSON list"),
        ('{"body": 1, "label": 2}', "no field 'text'; it has: body, label"),
        ('{"text": 5}', "field 'text' is int"),
    ],
)
def test_bad_jsonl_names_file_and_offset(tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "x.jsonl").write_text('{"text": "good"}\n' + line)
    with pytest.raises(DataError, match=message) as error:
        read(source(type="jsonl", path=str(tmp_path)))
    assert "x.jsonl at offset 17" in one_line(error)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("body,label\nx,y\n", "no column 'text'; it has: body, label"),
        ("text,label\nx,y\nz\n", "line 3 has 1 columns, the header 2"),
        ('text,label\n"never closed,y\n', "is not CSV"),
    ],
)
def test_bad_csv_names_file_and_line(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "x.csv").write_text(content)
    with pytest.raises(DataError, match=message) as error:
        read(source(type="csv", path=str(tmp_path)))
    assert "x.csv" in one_line(error)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"type": "txt", "path": "x"}, "unknown source 'txt', did you mean 'text'"),
        ({"type": "text"}, "path.*is required"),
        ({"type": "text", "path": "x", "document": "file"}, "unknown key 'document', did you mean 'documents'"),
        ({"type": "text", "path": 5}, "path"),
        ({"type": "csv", "path": "x", "delimiter": "||"}, "delimiter"),
    ],
)
def test_bad_configs_are_one_line(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        source(**fields)
    one_line(error)
