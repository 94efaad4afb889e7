"""Sources behind URIs, on a real S3 API on loopback: finding, identifying, reading, and what goes wrong with a store."""

import gzip
import json
import pickle
import subprocess
import sys
import time
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fmray.core.errors import DataError
from fmray.data.sources import Counts
from tests.data.reading import assert_refused, one_line, read, skipped, source, texts
from tests.s3 import Bucket, at

LINES = [json.dumps({"text": f"document {n}"}) + "\n" for n in range(200)]


def parquet(n: int) -> bytes:
    out = BytesIO()
    pq.write_table(pa.table({"text": [f"row {i}" for i in range(n)]}), out, row_group_size=10)
    return out.getvalue()


@pytest.fixture
def store(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    at(s3_server, monkeypatch)
    made = Bucket(s3_server, "corpus")
    made.put("run/a.jsonl", "".join(LINES[:100]).encode())
    made.put("run/deep/b.jsonl.gz", gzip.compress("".join(LINES[100:]).encode()))
    made.put("run/.hidden/c.jsonl", b"{}")
    made.put("run/rows.parquet", parquet(50))
    made.put("run/notes with space.txt", b"one\n\ntwo")
    yield made
    made.remove()


ALL = [json.loads(line)["text"] for line in LINES]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("run", ALL),
        ("run/", ALL),
        ("run/*.jsonl", ALL[:100]),
        ("run/**/*.jsonl*", ALL[:100] + ALL[100:]),
        ("r?n/*/b.jsonl.gz", ALL[100:]),
        ("run/deep/b.jsonl.gz", ALL[100:]),
        ("*/a.jsonl", ALL[:100]),
    ],
)
def test_prefixes_globs_and_objects(store: Bucket, pattern: str, expected: list[str]) -> None:
    assert texts(source(type="jsonl", path=f"s3://corpus/{pattern}")) == expected


def test_a_whole_bucket_parquet_and_keys_with_spaces(store: Bucket) -> None:
    assert texts(source(type="jsonl", path="s3://corpus")) == ALL
    assert texts(source(type="parquet", path="s3://corpus/run")) == [f"row {n}" for n in range(50)]
    assert texts(source(type="text", path="s3://corpus/run/notes with space.txt")) == ["one", "two"]
    assert texts(source(type="text", path="s3://corpus/run", documents="file")) == ["one\n\ntwo"]


def test_large_objects_are_read_in_parts(store: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fmray.data.sources._files.SMALLEST_PART", 1000)
    made = source(type="jsonl", path="s3://corpus/run/a.jsonl")
    assert len(made.partitions()) > 2
    assert texts(made) == ALL[:100]
    store.put("large/rows.parquet", parquet(500))
    assert len(source(type="parquet", path="s3://corpus/large").partitions()) > 2
    assert texts(source(type="parquet", path="s3://corpus/large")) == [f"row {n}" for n in range(500)]


def test_pictures_and_saved_datasets(store: Bucket) -> None:
    import numpy as np
    from PIL import Image

    out = BytesIO()
    Image.fromarray(np.zeros((2, 3), np.uint8)).save(out, "PNG")
    store.put("pictures/cat/1.png", out.getvalue())
    (document,) = read(source(type="image_folder", path="s3://corpus/pictures"))[0]
    assert (document["image"].shape, document["label_name"]) == ((2, 3, 1), "cat")
    rows = pa.table({"text": ["a", "b"]})
    sink = BytesIO()
    with pa.ipc.new_stream(sink, rows.schema) as writer:
        writer.write_table(rows)
    store.put("saved/data.arrow", sink.getvalue())
    store.put("saved/state.json", b'{"_data_files": [{"filename": "data.arrow"}]}')
    assert texts(source(type="hf_dataset", path="s3://corpus/saved")) == ["a", "b"]


def test_identity_is_the_stores_content_tag_without_its_place(store: Bucket) -> None:
    made = source(type="jsonl", path="s3://corpus/run")
    before = made.identity()
    assert "corpus" not in json.dumps(before)
    store.client.create_bucket(Bucket="other")
    for key in ("a.jsonl", "deep/b.jsonl.gz"):
        store.client.copy_object(Bucket="other", Key=f"elsewhere/{key}", CopySource={"Bucket": "corpus", "Key": f"run/{key}"})
    assert source(type="jsonl", path="s3://other/elsewhere").identity() == before
    store.put("run/a.jsonl", b"changed")
    assert made.identity() != before


def test_partitions_are_small_and_read_in_another_process(store: Bucket, tmp_path: Path) -> None:
    parts = source(type="jsonl", path="s3://corpus/run").partitions()
    assert max(len(pickle.dumps(part)) for part in parts) < 2000
    (tmp_path / "parts").write_bytes(pickle.dumps(parts))
    code = "import pickle, sys; from fmray.data.sources import Counts; print(sum(1 for p in pickle.load(open(sys.argv[1], 'rb')) for _ in p.read(Counts())))"
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "parts")], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "200"


def test_a_file_uri_is_a_path(tmp_path: Path) -> None:
    (tmp_path / "a b.txt").write_text("text")
    assert texts(source(type="text", path=f"file://{tmp_path}/a%20b.txt")) == ["text"]
    assert source(type="text", path=f"file://{tmp_path}").identity() == source(type="text", path=str(tmp_path)).identity()


# --- what goes wrong --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("s3://corpus/run/missing.jsonl", "no such object or prefix"),
        ("s3://corpus/run/*.csv", "matches no object"),
        ("s3://corpus/run/deep", "holds no .txt or"),
        ("s3://nowhere/run", "bucket does not exist"),
        ("s3://nowhere/run/*.txt", "bucket does not exist"),
        ("s3://nowhere", "bucket does not exist"),
        ("s4://corpus/run", "cannot be opened"),
        ("https://example.org/x.txt", "cannot be opened"),
    ],
)
def test_what_is_not_there_is_one_line_at_once(store: Bucket, uri: str, message: str) -> None:
    started = time.monotonic()
    line = assert_refused(source(type="text", path=uri), message)
    assert uri.split("/")[2] in line
    assert time.monotonic() - started < 10


def test_credentials_in_a_uri_are_refused_and_not_repeated() -> None:
    line = assert_refused(source(type="text", path="s3://key:secret@bucket/x"), "holds credentials")
    assert "secret" not in line


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_a_key_that_vanishes_between_listing_and_reading(store: Bucket, kind: str) -> None:
    name = "a.jsonl" if kind == "jsonl" else "rows.parquet"
    store.put(f"run/z-{name}", b'{"text": "last"}' if kind == "jsonl" else parquet(1))
    made = source(type=kind, path="s3://corpus/run")
    parts = made.partitions()
    store.delete(f"run/{name}")
    with pytest.raises(DataError, match=f"s3://corpus/run/{name}: cannot be read") as error:
        [list(part.read(Counts())) for part in parts]
    one_line(error)
    store.put(f"run/{name}", b"" if kind == "jsonl" else parquet(1))
    parts = made.model_copy(update={"on_error": "skip"}).partitions()
    store.delete(f"run/{name}")
    counts = Counts()
    documents = [d for part in parts for d in part.read(counts)]
    assert counts.n_bad == 1
    assert name in counts.bad[0]
    assert documents[-1]["text"] == ("last" if kind == "jsonl" else "row 0")


def test_damaged_objects_are_told_from_a_store_that_fails(store: Bucket) -> None:
    store.put("run/bad.jsonl.gz", gzip.compress("".join(LINES).encode())[:200])
    line = assert_refused(source(type="jsonl", path="s3://corpus/run"), "s3://corpus/run/bad.jsonl.gz", "is not whole gzip data")
    assert "cannot be read" not in line
    assert [d["text"] for d in skipped(source(type="jsonl", path="s3://corpus/run"), "bad.jsonl.gz")][-1] == "document 199"
    store.put("run/bad.parquet", parquet(50)[:-30])
    assert_refused(source(type="parquet", path="s3://corpus/run"), "bad.parquet", "no whole Parquet file")


def test_a_store_that_is_not_there_is_an_error_within_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    settings: dict[str, Any] = {"AWS_ENDPOINT_URL": "http://127.0.0.1:9", "AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s", "AWS_DEFAULT_REGION": "us-east-1"}
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    started = time.monotonic()
    assert_refused(source(type="text", path="s3://corpus/x"), "s3://corpus/x", "cannot be read")
    assert time.monotonic() - started < 20
