"""Formats of text sources: compression, encodings, JSON arrays, Parquet, saved datasets, sequences, sizes of parts."""

import bz2
import codecs
import gzip
import json
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from fmray.core.errors import DataError
from fmray.data.sources import Counts
from fmray.data.sources import _blocks as blocks_
from fmray.data.sources._blocks import BLANK_LINE, LINE, RECORD, Boundary, blocks, lines_in, paragraphs_in
from fmray.data.sources._encoding import detect
from fmray.data.sources._files import Part, part_bytes
from fmray.data.sources._spans import spans
from fmray.data.sources._store import File
from fmray.data.sources.fasta import Records
from tests.data.reading import SHARED, needs_shared, read, skipped, source, texts

PACK: dict[str, Callable[[bytes], bytes]] = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress, ".zst": zstandard.compress}
CLASSICS = "却说刘姥姥进了大观园，众人见他形容可笑，都笑起来。\n\n宝玉听了，忙问道：妹妹可曾读书？黛玉道：不曾读，只上了一年学。\n\n" * 3


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(PACK[path.suffix](content) if path.suffix in PACK else content)
    return path


# --- compression ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", PACK)
def test_every_compression_gives_what_the_plain_file_gives(tmp_path: Path, ending: str) -> None:
    content = "".join(json.dumps({"text": f"the {n}th", "n": n}) + "\n" for n in range(5000)).encode()
    for name in ("x.jsonl", "y.txt", "z.csv", "w.fa"):
        plain, packed = tmp_path / name, tmp_path / f"{name}{ending}"
        plain.write_bytes(content if name != "z.csv" else b"text,n\n" + b"a b,1\n" * 3000)
        if name == "w.fa":
            plain.write_bytes(b">r1 first\nACGT\n>r2\nAC\nGT\n" * 1)
        written(packed, plain.read_bytes())
        kind: dict[str, Any] = {"x": {"type": "jsonl"}, "y": {"type": "text"}, "z": {"type": "csv"}, "w": {"type": "fasta", "alphabet": "dna"}}[name[0]]
        expected = texts(source(path=str(plain), **kind))
        assert len(expected) >= 1
        assert texts(source(path=str(packed), **kind)) == expected


@pytest.mark.parametrize("ending", PACK)
def test_members_that_follow_each_other_are_one_text(tmp_path: Path, ending: str) -> None:
    (tmp_path / f"x.txt{ending}").write_bytes(PACK[ending](b"one\n\ntw") + PACK[ending](b"o\n\nthree"))
    assert texts(source(type="text", path=str(tmp_path))) == ["one", "two", "three"]


# --- encodings --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("raw", "encoding"),
    [
        (b"plain", "utf-8"),
        (b"", "utf-8"),
        ("déjà".encode(), "utf-8"),
        ("déjà".encode() * 50_000, "utf-8"),
        (codecs.BOM_UTF8 + b"x", "utf-8-sig"),
        ("x".encode("utf-16"), "utf-16"),
        (codecs.BOM_UTF16_BE + "x".encode("utf-16-be"), "utf-16"),
        ("x".encode("utf-32"), "utf-32"),
        (codecs.BOM_UTF32_BE + "x".encode("utf-32-be"), "utf-32"),
        ("Le café était fermé à l'aube, “déjà” dit-il.".encode("cp1252"), "cp1252"),
        ("Die Größe der Straße überrascht die Bürger.".encode("cp1252"), "cp1252"),
        (CLASSICS.encode("gb18030"), "gb18030"),
        (("A line of English first.\n" * 99 + CLASSICS).encode("gb18030"), "gb18030"),
        (b"\x00\x01\xff\xfe\x81", "utf-8"),
    ],
)
def test_the_beginning_of_a_file_tells_its_encoding(raw: bytes, encoding: str) -> None:
    # A head that ends within a character is no other encoding.
    assert detect(raw[: 256 * 1024 - 1]) == encoding


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32", "gb18030"])
@pytest.mark.parametrize("ending", ["", ".gz"])
def test_chinese_in_each_encoding_reads_the_same(tmp_path: Path, encoding: str, ending: str) -> None:
    path = written(tmp_path / f"x.txt{ending}", CLASSICS.replace("\n", "\r\n").encode(encoding))
    documents, counts = read(source(type="text", path=str(path)))
    assert [d["text"] for d in documents] == CLASSICS.split("\n\n")[:-1]
    assert counts.notes == ({"decoded_as_gb18030": 6} if encoding == "gb18030" else {})


def test_the_encoding_does_not_depend_on_where_a_file_is_cut(tmp_path: Path) -> None:
    # Alone, the short lines behind the beginning could be either.
    content = (CLASSICS + "\n\n".join(["却", "说", "刘"] * 400)).encode("gb18030")
    path = tmp_path / "x.txt"
    path.write_bytes(content)
    made = source(type="text", path=str(path))
    (whole,) = made.partitions()
    assert isinstance(whole, Part)
    files = [File(str(path), "x.txt", len(content))]
    cut = Part(tuple(spans(files, BLANK_LINE, 300)), whole.reader, "fail")
    assert len(cut.pieces) > 5
    counts_cut, counts_whole = Counts(), Counts()
    assert list(cut.read(counts_cut)) == list(whole.read(counts_whole))
    assert counts_cut.notes == counts_whole.notes


def test_an_encoding_can_be_named(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_bytes("Привет, мир".encode("koi8-r"))
    assert texts(source(type="text", path=str(tmp_path), encoding="koi8-r")) == ["Привет, мир"]
    (tmp_path / "x.txt").write_bytes("日本語の文\n\n次".encode("utf-16-le"))
    assert texts(source(type="text", path=str(tmp_path), encoding="utf-16-le")) == ["日本語の文", "次"]


# --- JSON -------------------------------------------------------------------------------------------------------------


def test_a_json_array_with_lists_of_paragraphs(tmp_path: Path) -> None:
    poems = [{"title": "一", "paragraphs": ["春眠", "不觉晓"]}, {"title": "二", "content": "一句"}, {"title": "三", "paragraphs": []}]
    (tmp_path / "a.json").write_text(json.dumps(poems, ensure_ascii=False, indent=2), encoding="utf-8")
    (tmp_path / "b.json").write_text(json.dumps(poems[1]), encoding="utf-8")
    (tmp_path / "c.json").write_text("\n".join(map(json.dumps, poems)), encoding="utf-8")
    (tmp_path / "d.json").write_text(" [ ] ")
    documents, _ = read(source(type="jsonl", path=str(tmp_path), text=["paragraphs", "content"]))
    assert [d["text"] for d in documents] == ["春眠\n不觉晓", "一句", "", "一句", "春眠\n不觉晓", "一句", ""]
    assert [d["id"] for d in documents][:4] == ["a.json#0", "a.json#1", "a.json#2", "b.json#0"]
    assert documents[0]["title"] == "一"


def test_dotted_fields_go_into_records_and_lists(tmp_path: Path) -> None:
    row = {"meta": {"key": 7}, "messages": [{"content": "hello"}, {"content": "world"}], "a.b": "x"}
    (tmp_path / "x.jsonl").write_text(json.dumps(row))
    (document,) = read(source(type="jsonl", path=str(tmp_path), text="messages.content", id="meta.key"))[0]
    assert (document["text"], document["id"]) == ("hello\nworld", "7")
    assert texts(source(type="jsonl", path=str(tmp_path), text="a.b")) == ["x"]
    nested = {"data": [{"paragraphs": [{"context": "one"}, {"context": "two"}]}, {"paragraphs": [{"context": "three"}]}]}
    (tmp_path / "x.jsonl").write_text(json.dumps(nested))
    assert texts(source(type="jsonl", path=str(tmp_path), text="data.paragraphs.context")) == ["one\ntwo\nthree"]


json_values = st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda v: st.lists(v, max_size=3) | st.dictionaries(st.text(), v, max_size=3), max_leaves=5)


@given(st.lists(st.dictionaries(st.text(max_size=3), json_values, max_size=3), max_size=6), st.sampled_from([None, 1]), st.integers(1, 9), st.booleans())
def test_arrays_read_in_small_steps_are_whole(tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]], indent: int | None, step: int, ascii_only: bool) -> None:
    path = tmp_path_factory.mktemp("json") / "x.json"
    rows = [{**row, "text": f"t{n}"} for n, row in enumerate(rows)]
    path.write_text(json.dumps(rows, indent=indent, ensure_ascii=ascii_only), encoding="utf-8", errors="replace")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fmray.data.sources.jsonl.BLOCK", step)
        assert texts(source(type="jsonl", path=str(path))) == [row["text"] for row in rows]


@needs_shared
def test_chinese_poetry_and_peps_of_the_shared_data() -> None:
    poems, counts = read(source(type="jsonl", path=str(SHARED / "pretrain/zh/chinese_poetry"), text=["paragraphs", "content"]))
    assert len(poems) > 20_000
    assert not counts.n_bad
    assert sum(c >= "\u4e00" for p in poems[:100] for c in p["text"]) > 3000
    assert len(read(source(type="jsonl", path=str(SHARED / "pretrain/en/python_peps.jsonl.gz"), id="id"))[0]) == 246


# --- CSV --------------------------------------------------------------------------------------------------------------


def test_tsv_without_quoting(tmp_path: Path) -> None:
    (tmp_path / "x.tsv").write_text('text\tlabel\n"never closed\ta\nsecond\tb\n')
    assert texts(source(type="csv", path=str(tmp_path), quoting=False)) == ['"never closed', "second"]


def test_a_byte_order_mark_behind_a_blank_line(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_bytes("\r\n\ufefftext,n\r\na,1\r\n".encode())
    assert texts(source(type="csv", path=str(tmp_path))) == ["a"]


@needs_shared
@pytest.mark.parametrize(
    ("name", "column", "n"),
    [("remote_homology.train", "seq", 12_312), ("signalP_binary.train", "seq", 16_606), ("stability.train", "seq", 53_614), ("moleculenet_HIV", "smiles", 41_913)],
)
def test_a_sequence_a_row_in_whichever_column(name: str, column: str, n: int) -> None:
    documents, _ = read(source(type="csv", path=str(SHARED / f"pretrain/bio/{name}.csv.gz"), text=column))
    assert len(documents) == n
    assert all(d["text"] for d in documents)


# --- Parquet and saved datasets ---------------------------------------------------------------------------------------


def table(n: int) -> pa.Table:
    return pa.table(
        {
            "body": [f"text {i}" for i in range(n)],
            "label": list(range(n)),
            "parts": [["a", f"{i}"] for i in range(n)],
            "meta": [{"key": f"k{i}"} for i in range(n)],
            "unread": [b"\xff" * 100] * n,
        }
    )


def test_parquet_reads_named_columns_with_row_numbers(tmp_path: Path) -> None:
    pq.write_table(table(1000), tmp_path / "x.parquet", row_group_size=300)
    documents, _ = read(source(type="parquet", path=str(tmp_path), text="body", columns=["label"]))
    assert documents[999] == {"text": "text 999", "label": 999, "id": "x.parquet#999"}
    assert set(documents[0]) == {"text", "label", "id"}
    documents, _ = read(source(type="parquet", path=str(tmp_path), text="parts", id="meta.key"))
    assert (documents[5]["text"], documents[5]["id"]) == ("a\n5", "k5")


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())])
def test_parquet_of_each_kind_of_string(tmp_path: Path, kind: pa.DataType) -> None:
    column = pa.array(["a", "b", "a"]).cast(kind) if kind != pa.dictionary(pa.int32(), pa.string()) else pa.array(["a", "b", "a"]).dictionary_encode()
    pq.write_table(pa.table({"text": column}), tmp_path / "x.parquet")
    assert texts(source(type="parquet", path=str(tmp_path))) == ["a", "b", "a"]


def test_large_parquet_files_are_cut_by_row_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pq.write_table(table(1000), tmp_path / "x.parquet", row_group_size=50)
    made = source(type="parquet", path=str(tmp_path), text="body")
    (whole,) = made.partitions()
    monkeypatch.setattr("fmray.data.sources._files.SMALLEST_PART", 2000)
    parts = made.partitions()
    assert 3 < len(parts) <= 20
    assert [d for part in parts for d in part.read(Counts())] == list(whole.read(Counts()))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset in three files, and a dictionary of splits, as the library saves them."""
    datasets = pytest.importorskip("datasets")
    folder = tmp_path_factory.mktemp("saved")
    rows = datasets.Dataset.from_dict({"text": [f"row {i}" for i in range(2500)], "label": [i % 3 for i in range(2500)]})
    rows.save_to_disk(folder / "one", num_shards=3)
    datasets.DatasetDict({"train": rows, "test": rows.select(range(10, 20))}).save_to_disk(folder / "splits")
    return folder


def test_a_saved_dataset_and_a_split_of_one(saved: Path) -> None:
    documents, _ = read(source(type="hf_dataset", path=str(saved / "one"), columns=["label"]))
    assert [d["text"] for d in documents] == [f"row {i}" for i in range(2500)]
    assert documents[4]["label"] == 1
    assert documents[2499]["id"] == "data-00002-of-00003.arrow#832"
    # Selected rows are saved as they were selected, not as an index into the whole.
    assert texts(source(type="hf_dataset", path=str(saved / "splits"), split="test")) == [f"row {i}" for i in range(10, 20)]


@pytest.mark.parametrize(
    ("folder", "split", "message"),
    [
        ("splits", None, "has the splits train, test"),
        ("splits", "tset", "no split 'tset', did you mean 'test'"),
        ("one", "train", "without splits"),
        ("", None, "no saved dataset"),
    ],
)
def test_a_split_that_is_not_there(saved: Path, folder: str, split: str | None, message: str) -> None:
    with pytest.raises(DataError, match=message):
        source(type="hf_dataset", path=str(saved / folder), split=split).partitions()


# --- sequences --------------------------------------------------------------------------------------------------------


def test_fasta_records_in_upper_case_by_first_word(tmp_path: Path) -> None:
    (tmp_path / "x.fa").write_bytes(b">sp|P1|A_B first protein\r\nMKV \r\nlla*\r\n\r\n>second\nMK\n")
    documents, _ = read(source(type="fasta", path=str(tmp_path), alphabet="protein"))
    assert documents == [{"text": "MKVLLA*", "id": "sp|P1|A_B", "description": "first protein"}, {"text": "MK", "id": "second", "description": ""}]


def test_fastq_with_qualities_that_look_like_headers(tmp_path: Path) -> None:
    (tmp_path / "x.fastq").write_bytes(b"@r1 x\nACGT\n+\n@@@@\n@r2\nac\n+r2\n>@\n")
    documents, _ = read(source(type="fasta", path=str(tmp_path), alphabet="dna"))
    assert [(d["id"], d["text"]) for d in documents] == [("r1", "ACGT"), ("r2", "AC")]


def test_a_cut_fasta_file_gives_the_same_records_and_lines(tmp_path: Path) -> None:
    path = tmp_path / "x.fa"
    path.write_bytes(b"".join(b">r%d\n%s\n" % (i, b"ACGT\nACG" if i != 70 else b"ACG!T\nA") for i in range(100)))
    files = [File(str(path), "x.fa", path.stat().st_size)]
    found = []
    for size in (10**6, 50):
        pieces, counts = spans(files, RECORD, size), Counts()
        found.append((list(Part(tuple(pieces), Records("dna", 10**6), "skip").read(counts)), counts.bad))
    assert len(pieces) > 20
    assert found[0] == found[1]
    assert len(found[0][0]) == 99
    assert f"record 'r70' has the letter '!' in line {70 * 3 + 2}" in found[0][1][0]


@needs_shared
def test_the_proteome_and_the_genome_of_the_shared_data() -> None:
    proteins, _ = read(source(type="fasta", path=str(SHARED / "pretrain/bio/ecoli_k12_UP000000625.fasta.gz"), alphabet="protein"))
    assert len(proteins) == 4352
    assert proteins[0]["id"] == "sp|A0A385XJ53|INSA9_ECOLI"
    first, second = read(source(type="fasta", path=str(SHARED / "pretrain/bio/hg38_fragment.fa.gz"), alphabet="dna"))[0]
    assert (first["id"], len(second["text"])) == ("chr13:75549820-75605809", 41_263_290 - 41_257_605)


# --- blocks and parts -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("boundary", [LINE, BLANK_LINE, RECORD], ids=["line", "blank_line", "record"])
@given(data=st.lists(st.sampled_from([b"a\n", b"bb\n", b"\n", b" \n", b"\r\n", b">c\n", b"d"]), max_size=40).map(b"".join), step=st.integers(1, 7))
def test_blocks_give_every_byte_once_and_end_at_boundaries(boundary: Boundary, data: bytes, step: int) -> None:
    def reader() -> Callable[[int], bytes]:
        left = [data]

        def take(size: int) -> bytes:
            taken, left[0] = left[0][: min(size, step)], left[0][min(size, step) :]
            return taken

        return take

    found = list(blocks(reader(), 0, boundary, 10**6, "x", pytest.fail))
    assert b"".join(block for _, block in found) == data
    assert all(data[offset : offset + len(block)] == block for offset, block in found)
    for cut, one_block in [(lines_in, LINE), (paragraphs_in, BLANK_LINE)]:
        if boundary is one_block:
            assert [(o + at, p) for o, b in found for at, p in cut(b)] == list(cut(data))


def test_parts_follow_the_size_of_the_corpus() -> None:
    assert part_bytes([File("x", "x", 300_000_000)]) == 4 * 1024**2
    assert part_bytes([File("x", "x", 10 * 1024**3)]) == 80 * 1024**2
    assert part_bytes([File("x", "x", 10**12)] * 3) == 128 * 1024**2


def test_very_many_small_files_share_parts(tmp_path: Path) -> None:
    for n in range(2000):
        (tmp_path / f"{n:04d}.txt").write_text(f"text {n} " * 20)
    made = source(type="text", path=str(tmp_path), documents="file")
    assert 128 <= len(made.partitions()) <= 300
    assert [d["id"] for d in read(made)[0]] == [f"{n:04d}.txt" for n in range(2000)]


def test_a_document_beyond_the_limit_is_read_over_without_being_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks_, "BLOCK", 1000)
    (tmp_path / "x.txt").write_text("first\n\n" + "long " * 4000 + "\n\nlast")
    for unit, expected in [("paragraph", ["first", "last"]), ("line", ["first", "last"])]:
        made = source(type="text", path=str(tmp_path), documents=unit, max_document_mb=0.01)
        assert [d["text"] for d in skipped(made, "x.txt", "more than 0.01 MB at offset 7")] == expected
    assert skipped(source(type="text", path=str(tmp_path), documents="file", max_document_mb=0.01), "more than 0.01 MB") == []
