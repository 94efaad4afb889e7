"""Input that cannot be read: under `fail` one line that names the file and the place, under `skip` counted, listed and passed over."""

import bz2
import gzip
import lzma
import os
import random
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zstandard

from fmray.core.errors import ConfigError, DataError
from fmray.data.sources import LISTED_BAD, Counts
from tests.data.reading import assert_refused, one_line, read, skipped, source

RANDOM = random.Random(0)
NOISE = "\n\n".join(RANDOM.randbytes(30).hex() for _ in range(20_000)).encode()
PACK: dict[str, Callable[[bytes], bytes]] = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress, "zst": zstandard.compress}
NAMES = {"gz": "gzip", "bz2": "bzip2", "xz": "xz", "zst": "zstd"}


# --- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", PACK)
@pytest.mark.parametrize("damage", ["cut", "no data of the kind"])
def test_damaged_compressed_files(tmp_path: Path, ending: str, damage: str) -> None:
    whole = PACK[ending](NOISE)
    (tmp_path / f"a.txt.{ending}").write_bytes(whole[: len(whole) // 2] if damage == "cut" else b"none of it")
    (tmp_path / "b.txt").write_text("good")
    made = source(type="text", path=str(tmp_path))
    line = assert_refused(made, f"a.txt.{ending}", f"is not whole {NAMES[ending]} data", "bytes of text)")
    documents = skipped(made, f"a.txt.{ending}", NAMES[ending])
    assert documents[-1]["text"] == "good"
    # What stands in front of the place where it breaks off is read, but for a block that the decompressor still held.
    offset = int(line.split("(after ")[1].split()[0])
    assert offset - 64 <= sum(len(d["text"]) + 2 for d in documents[:-1]) <= offset
    assert offset > (len(NOISE) // 4 if damage == "cut" and ending in ("gz", "xz") else -1)


@pytest.mark.parametrize("ending", PACK)
def test_compressed_files_with_a_byte_changed(tmp_path: Path, ending: str) -> None:
    # zstd knows only with a checksum. Sums stand behind what they cover, so that some of it may be read before it is known.
    whole = bytearray(zstandard.ZstdCompressor(write_checksum=True).compress(NOISE) if ending == "zst" else PACK[ending](NOISE))
    whole[len(whole) // 2] ^= 255
    (tmp_path / f"a.txt.{ending}").write_bytes(whole)
    (tmp_path / "b.txt").write_text("good")
    made = source(type="text", path=str(tmp_path))
    assert_refused(made, f"a.txt.{ending}")
    documents, counts = read(source(type="text", path=str(tmp_path), on_error="skip"))
    assert documents[-1]["text"] == "good"
    assert any(f"is not whole {NAMES[ending]} data" in line for line in counts.bad)


def test_empty_files_and_files_of_blank_lines_hold_no_documents(tmp_path: Path) -> None:
    for name in ("a.txt", "b.jsonl", "c.csv", "d.json", "e.fa"):
        (tmp_path / name).write_bytes(b"")
        (tmp_path / f"blank-{name}").write_bytes(b"\r\n  \n\n")
        (tmp_path / f"packed-{name}.gz").write_bytes(gzip.compress(b""))
    for fields in ({"type": "text"}, {"type": "text", "documents": "file"}, {"type": "jsonl"}, {"type": "csv"}, {"type": "fasta", "alphabet": "dna"}):
        assert read(source(path=str(tmp_path), **fields)) == ([], Counts())


def test_a_file_of_nothing_is_no_parquet(tmp_path: Path) -> None:
    (tmp_path / "x.parquet").write_bytes(b"")
    assert_refused(source(type="parquet", path=str(tmp_path)), "x.parquet", "no whole Parquet file")


@pytest.mark.parametrize("pattern", ["*.nothing", "no/such/folder/*.txt", "**/*.xyz", "[a-b]*.txt"])
def test_a_glob_that_matches_nothing(tmp_path: Path, pattern: str) -> None:
    (tmp_path / "x.txt").write_text("text")
    assert_refused(source(type="text", path=str(tmp_path / pattern)), str(tmp_path), "matches no file")


def unreadable(path: Path) -> str:
    """Makes a file that nobody may read, root neither: a link to itself."""
    if os.geteuid() == 0:
        path.symlink_to(path)
        return "Too many levels of symbolic links"
    path.write_text("secret")
    path.chmod(0)
    return "Permission denied"


@pytest.mark.parametrize("kind", ["text", "jsonl", "csv", "fasta", "image_folder", "parquet", "parquet_images"])
def test_a_file_that_may_not_be_read(tmp_path: Path, kind: str) -> None:
    ending = {"text": "txt", "fasta": "fa", "image_folder": "png"}.get(kind, "parquet" if "parquet" in kind else kind)
    reason = unreadable(tmp_path / f"a.{ending}")
    fields = {"type": kind, "path": str(tmp_path), **({"alphabet": "dna"} if kind == "fasta" else {})}
    made = source(**fields)
    assert_refused(made, f"a.{ending}", "cannot be read", reason)
    assert skipped(made, f"a.{ending}", reason) == []
    with pytest.raises(DataError, match="cannot be read"):
        made.identity()
    assert source(**fields, on_error="skip").identity()["files"]["n_files"] == 1


@pytest.mark.skipif(os.geteuid() == 0, reason="root may list everything")
def test_a_folder_that_may_not_be_listed(tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0)
    assert_refused(source(type="text", path=str(tmp_path)), "closed", "Permission denied")


def test_a_file_that_vanishes_between_listing_and_reading(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.txt").write_text(name)
    for on_error in ("skip", "fail"):
        parts = source(type="text", path=str(tmp_path), on_error=on_error).partitions()
        (tmp_path / "a.txt").unlink()
        counts = Counts()
        if on_error == "fail":
            with pytest.raises(DataError, match=r"a\.txt: cannot be read \(there is no such file"):
                list(parts[0].read(counts))
        else:
            assert [d["text"] for part in parts for d in part.read(counts)] == ["b"]
            assert counts.n_bad == 1
        (tmp_path / "a.txt").write_text("a")


# --- documents --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [b"caf\xe9 \x81\x8d\xff", b"nul\0l", b"\x81\x8d\x8f\x90\x9d" * 9])
def test_bytes_that_are_no_text_are_left_out_alone(tmp_path: Path, bad: bytes) -> None:
    (tmp_path / "x.txt").write_bytes("eins\n\nzwölf\n\n".encode() + bad + b"\n\nthree\n")
    made = source(type="text", path=str(tmp_path))
    assert_refused(made, "x.txt", "is not", "at offset")
    assert [d["text"] for d in skipped(made, "x.txt", "at offset")] == ["eins", "zwölf", "three"]
    (tmp_path / "x.csv").write_bytes("text,n\neins,1\nzwölf,2\n".encode() + bad + b",3\nlast,4\n")
    made = source(type="csv", path=str(tmp_path))
    assert_refused(made, "x.csv", "at offset")
    assert [d["id"] for d in skipped(made, "x.csv", "at offset")] == ["x.csv:2", "x.csv:3", "x.csv:5"]


def test_a_tar_file_named_txt_and_utf16_without_a_mark(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_bytes(b"member\0\0\0\0ustar" + os.urandom(2000))
    assert_refused(source(type="text", path=str(tmp_path), documents="file"), "x.txt", "offset 6 (null byte)")
    (tmp_path / "x.txt").write_bytes("hello".encode("utf-16-le"))
    assert_refused(source(type="text", path=str(tmp_path)), "x.txt", "offset 1 (null byte)")
    (tmp_path / "x.txt").write_bytes("hello".encode("utf-16") + b"\x00\xd8a")
    assert_refused(source(type="text", path=str(tmp_path)), "x.txt", "is not utf-16", "offset 12")


@pytest.mark.parametrize(
    ("content", "rest", "message"),
    [
        ('{"text": "good"}\n{"text": "cut\n{"text": "last"}\n', ["good", "last"], "x.jsonl at offset 17: is not JSON"),
        ('{"text": "good"}\n[1]\n{"text": "last"}', ["good", "last"], "holds a JSON list"),
        ('{"text": 5}\n{"text": "last"}', ["last"], "field 'text' is int, not text"),
        ('{"text": null}\n{"text": "last"}', ["last"], "field 'text' is NoneType"),
        ('{"text": ["a", 1]}\n{"text": "last"}', ["last"], "field 'text' is list of int, not text"),
        ('{"body": 1, "label": 2}\n{"text": "last"}', ["last"], "no field 'text'; it has: body, label"),
        ("[" * 100_000 + '\n{"text": "last"}', ["last"], "is not JSON"),
    ],
)
def test_bad_json_lines(tmp_path: Path, content: str, rest: list[str], message: str) -> None:
    (tmp_path / "x.jsonl").write_text(content)
    made = source(type="jsonl", path=str(tmp_path))
    assert_refused(made, "x.jsonl at offset", message)
    assert [d["text"] for d in skipped(made, message)] == rest


@pytest.mark.parametrize(
    ("content", "rest", "message"),
    [
        ('[{"text": "good"}, {"text": ', ["good"], "is not JSON at element 1"),
        ('[{"text": "good"}, 5, {"text": "last"}]', ["good", "last"], "at element 1: holds a JSON int"),
        ('[{"text": "good"}', ["good"], "the array does not end"),
        ('[{"text": "good"}] {', ["good"], "has more behind its end at offset 19"),
        ('{"text": "good"} oops', ["good"], "is not JSON at element 1"),
        ('[{"text": "good"}, \0]', [], "null byte"),
    ],
)
def test_bad_json_arrays(tmp_path: Path, content: str, rest: list[str], message: str) -> None:
    (tmp_path / "x.json").write_text(content)
    made = source(type="jsonl", path=str(tmp_path))
    assert_refused(made, "x.json", message)
    assert [d["text"] for d in skipped(made, message)] == rest


@pytest.mark.parametrize(
    ("content", "rest", "message"),
    [
        ("text,label\nx,y\nz\nlast,y\n", ["x", "last"], "line 3 has 1 columns, the header 2"),
        ('text,label\nx,y\n"a"b,y\nlast,y\n', ["x", "last"], "line 3 is not CSV"),
        ('text,label\nx,y\n"never closed,y\n', ["x"], "is not CSV (unexpected end of data)"),
        ("body,label\nx,y\n", [], "no column 'text'; it has: body, label"),
    ],
)
def test_bad_csv(tmp_path: Path, content: str, rest: list[str], message: str) -> None:
    (tmp_path / "x.csv").write_text(content)
    made = source(type="csv", path=str(tmp_path))
    assert_refused(made, "x.csv", message)
    assert [d["text"] for d in skipped(made, message)] == rest


@pytest.mark.parametrize(
    ("content", "rest", "message"),
    [
        (">a\nACGT\n>bad\nAC\nGJT\n>c\nAC\n", ["a", "c"], "record 'bad' has the letter 'J' in line 5"),
        (">a\nACGT\n>bad\n\n>c\nAC\n", ["a", "c"], "at line 3: record 'bad' has no sequence"),
        (">a\nACGT\n>\nAC\n", ["a"], "has no id"),
        ("ACGT\n>c\nAC\n", ["c"], "does not begin with '>'"),
        (">a\nAC\xe9\n>c\nAC\n", ["c"], "has the letter"),
    ],
)
def test_bad_fasta(tmp_path: Path, content: str, rest: list[str], message: str) -> None:
    (tmp_path / "x.fa").write_text(content, encoding="latin-1")
    made = source(type="fasta", path=str(tmp_path), alphabet="dna")
    assert_refused(made, "x.fa", message)
    assert [d["id"] for d in skipped(made, message)] == rest


@pytest.mark.parametrize(
    ("content", "message"),
    [("@a\nAC\n+\nII\n@b\nAC\n", "cut off in the record at line 5"), ("@a\nAC\n+\nII\n@b\nAC\n+\nI\n@c\nAC\n+\nII\n", "lines 5 to 8 are no FASTQ record")],
)
def test_bad_fastq(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "x.fq").write_text(content)
    made = source(type="fasta", path=str(tmp_path), alphabet="dna")
    assert_refused(made, "x.fq", message)
    assert [d["id"] for d in skipped(made, message)] == ["a"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["text", "jsonl", "csv"])
def test_a_single_line_of_200_mb_is_never_held(tmp_path: Path, kind: str) -> None:
    long, rest = b'"' + b"x" * 999_999, b"\n\n"
    path = tmp_path / f"x.{'txt' if kind == 'text' else kind}"
    with path.open("wb") as file:
        file.write({"text": b"first\n\n", "jsonl": b'{"text": "first"}\n', "csv": b"text\nfirst\n"}[kind])
        for _ in range(200):
            file.write(long if kind != "csv" else long[1:])
        file.write(rest + {"text": b"last", "jsonl": b'{"text": "last"}', "csv": b"last"}[kind])
    made = source(type=kind, path=str(path))
    assert_refused(made, path.name, "more than 64 MB at offset")
    tracemalloc.start()
    assert [d["text"] for d in skipped(made, path.name, "more than 64 MB")] == ["first", "last"]
    # The tail that is kept, the step that is read, and the two together: about four times the limit, whatever the line's length.
    assert tracemalloc.get_traced_memory()[1] < 300e6
    tracemalloc.stop()


# --- how much is borne, and configs -----------------------------------------------------------------------------------


def test_more_bad_inputs_than_are_borne_end_a_task_that_reads_them(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text('{"text": "a"}\n' * 9 + "[]\n")
    fields = {"type": "jsonl", "path": str(tmp_path), "on_error": "skip"}
    assert len(list(source(**fields, max_bad_fraction=0.1).iter_documents())) == 9
    with pytest.raises(DataError, match=r"1 of 10 inputs cannot be read, the first: .*offset 126") as error:
        list(source(**fields).iter_documents())
    one_line(error)


def test_so_many_are_listed_and_all_counted(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text("[]\n" * 250)
    _, counts = read(source(type="jsonl", path=str(tmp_path), on_error="skip"))
    assert (counts.n_bad, len(counts.bad)) == (250, LISTED_BAD)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"type": "text", "path": ""}, "path"),
        ({"type": "text", "path": "x", "encoding": "utf-99"}, "no text encoding"),
        ({"type": "text", "path": "x", "encoding": "base64"}, "no text encoding"),
        ({"type": "text", "path": "x", "max_document_mb": 0}, "max_document_mb"),
        ({"type": "fasta", "path": "x"}, "alphabet"),
        ({"type": "jsonl", "path": "x", "text": []}, "text"),
        ({"type": "text", "path": "x", "on_error": "ignore"}, "on_error"),
        ({"type": "image_folder", "path": "x", "channels": 2}, "channels"),
    ],
)
def test_configs_that_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        source(**fields)
    one_line(error)
