"""Parquet files and saved datasets that are damaged, lack something, or would run code: refused in one line, or left out and counted."""

import json
import os
import pickle
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.data.reading import assert_refused, skipped, source


@pytest.fixture
def parquet(tmp_path: Path) -> Path:
    path = tmp_path / "x.parquet"
    noise = random.Random(0)
    pq.write_table(pa.table({"text": [noise.randbytes(50).hex() for _ in range(3000)]}), path, row_group_size=1000, use_dictionary=False)
    return path


def test_a_damaged_row_group_is_left_out_and_the_next_one_read(parquet: Path) -> None:
    place = pq.read_metadata(parquet).row_group(1).column(0).data_page_offset
    raw = bytearray(parquet.read_bytes())
    raw[place : place + 60] = os.urandom(60)
    parquet.write_bytes(raw)
    made = source(type="parquet", path=str(parquet))
    assert_refused(made, "x.parquet", "row group 1 is damaged")
    documents = skipped(made, "row group 1 is damaged")
    assert [d["id"] for d in documents] == [f"x.parquet#{n}" for n in (*range(1000), *range(2000, 3000))]


@pytest.mark.parametrize("damage", ["cut", "no footer", "footer of noise"])
def test_parquet_without_a_footer(parquet: Path, damage: str) -> None:
    raw = parquet.read_bytes()
    parquet.write_bytes({"cut": raw[:1000], "no footer": b"text", "footer of noise": raw[:-200] + os.urandom(150) + raw[-50:]}[damage])
    (parquet.parent / "y.parquet").write_bytes(raw)
    made = source(type="parquet", path=str(parquet.parent))
    assert_refused(made, "x.parquet", "footer is damaged" if damage == "footer of noise" else "no whole Parquet file")
    assert len(skipped(made, "x.parquet")) == 3000


@pytest.mark.parametrize("fields", [{"text": "body"}, {"id": "key"}, {"columns": ["label"]}])
def test_a_missing_column_of_parquet_names_those_present(parquet: Path, fields: dict[str, Any]) -> None:
    made = source(type="parquet", path=str(parquet), **fields)
    assert_refused(made, "x.parquet", "it has: text")
    assert skipped(made, "it has: text") == []


def test_rows_of_parquet_that_hold_no_text(tmp_path: Path) -> None:
    latin = pa.Array.from_buffers(pa.string(), 3, pa.array([b"a", b"\xff", b"c"]).buffers())
    pq.write_table(pa.table({"text": latin}), tmp_path / "x.parquet")
    made = source(type="parquet", path=str(tmp_path))
    assert_refused(made, "x.parquet at row 1", "not UTF-8")
    assert [d["text"] for d in skipped(made, "at row 1")] == ["a", "c"]
    pq.write_table(pa.table({"text": ["a", None, "c"]}), tmp_path / "x.parquet")
    assert [d["text"] for d in skipped(made, "at row 1", "is NoneType")] == ["a", "c"]
    pq.write_table(pa.table({"text": [1, 2]}), tmp_path / "x.parquet")
    assert_refused(made, "x.parquet at row 0", "is int, not text")
    pq.write_table(pa.table({"text": ["a", "b" * 20_000, "c"]}), tmp_path / "x.parquet")
    made = source(type="parquet", path=str(tmp_path), max_document_mb=0.01)
    assert [d["text"] for d in skipped(made, "at row 1", "more than 0.01 MB")] == ["a", "c"]


UNPICKLED: list[str] = []


def explode(name: str) -> str:
    UNPICKLED.append(name)
    return name


class Bomb:
    """Runs code when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return explode, ("unpickled",)


class Pickled(pa.ExtensionType):
    """An extension type that unpickles what the file holds, as some libraries have had."""

    def __init__(self) -> None:
        super().__init__(pa.string(), "tests.pickled")

    def __arrow_ext_serialize__(self) -> bytes:
        return pickle.dumps(Bomb())

    @classmethod
    def __arrow_ext_deserialize__(cls, storage_type: pa.DataType, serialized: bytes) -> "Pickled":
        pickle.loads(serialized)
        return cls()


@pytest.fixture
def hostile(tmp_path: Path) -> Iterator[Path]:
    """A Parquet file and a saved dataset with a column of such a type, whose class is registered where they are read."""
    pa.register_extension_type(Pickled())
    rows = pa.table({"text": ["fine"], "trap": pa.ExtensionArray.from_storage(Pickled(), pa.array(["x"]))})
    pq.write_table(rows, tmp_path / "x.parquet")
    (tmp_path / "saved").mkdir()
    with pa.OSFile(str(tmp_path / "saved" / "data.arrow"), "wb") as out, pa.ipc.new_stream(out, rows.schema) as writer:
        writer.write_table(rows)
    (tmp_path / "saved" / "state.json").write_text('{"_data_files": [{"filename": "data.arrow"}]}')
    UNPICKLED.clear()
    yield tmp_path
    pa.unregister_extension_type("tests.pickled")


def test_nothing_in_a_file_is_ever_unpickled(hostile: Path) -> None:
    pq.read_table(hostile / "x.parquet", columns=["text"])
    assert UNPICKLED, "the trap does not work"
    UNPICKLED.clear()
    for fields in ({"type": "parquet", "path": str(hostile / "x.parquet")}, {"type": "hf_dataset", "path": str(hostile / "saved")}):
        made = source(**fields)
        assert_refused(made, "Arrow extension type")
        assert skipped(made, "Arrow extension type") == []
        assert made.identity()
    assert not UNPICKLED


@pytest.mark.parametrize("name", ["../x.arrow", "/etc/passwd", "..", 7])
def test_a_saved_dataset_that_names_files_elsewhere(tmp_path: Path, name: object) -> None:
    (tmp_path / "state.json").write_text(json.dumps({"_data_files": [{"filename": name}]}))
    assert_refused(source(type="hf_dataset", path=str(tmp_path)), "outside its folder")
    (tmp_path / "dataset_dict.json").write_text(json.dumps({"splits": [name]}))
    assert_refused(source(type="hf_dataset", path=str(tmp_path), split=str(name)), "does not name its splits")


def test_a_saved_dataset_that_is_cut_off(tmp_path: Path) -> None:
    rows = pa.table({"text": [f"row {n}" for n in range(3000)]})
    with pa.OSFile(str(tmp_path / "data.arrow"), "wb") as out, pa.ipc.new_stream(out, rows.schema) as writer:
        writer.write_table(rows, max_chunksize=1000)
    (tmp_path / "state.json").write_text('{"_data_files": [{"filename": "data.arrow"}]}')
    raw = (tmp_path / "data.arrow").read_bytes()
    made = source(type="hf_dataset", path=str(tmp_path))
    for cut, n in ((len(raw) * 2 // 3 - 500, 1000), (50, 0), (0, 0)):
        (tmp_path / "data.arrow").write_bytes(raw[:cut])
        assert_refused(made, "data.arrow", "is damaged")
        assert len(skipped(made, "data.arrow", "is damaged")) == n
    (tmp_path / "state.json").write_text("{")
    assert_refused(made, "state.json: is not JSON")
