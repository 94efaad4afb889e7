"""First pass of prepare: read, normalise, and lay documents down sorted by the key that shuffles them.

The key of a document is a keyed bijection of its 64-bit hash. Sorting by it shuffles the corpus in a way that depends on the
texts and the seed alone, brings exact duplicates side by side wherever they came from, and lets the second pass take any range
of keys on its own: memory is bounded by the range, never by the corpus.
"""

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fmray.data.flow import each
from fmray.data.order import mix
from fmray.data.sources import Counts, Partition
from fmray.data.text import document_hash, normalise

if TYPE_CHECKING:
    import pyarrow as pa

SPILL_BYTES = 16 * 1024**2
GROUP_ROWS = 4096
LAST_KEY = 2**64 - 1


@dataclass
class Ingested:
    """What the first pass laid down; `task_s` is the time that its tasks took, one CPU each."""

    n_documents: int = 0
    n_bytes: int = 0
    task_s: float = 0.0
    counts: Counts = field(default_factory=Counts)

    def add(self, other: "Ingested") -> None:
        """Adds another part's figures."""
        self.n_documents += other.n_documents
        self.n_bytes += other.n_bytes
        self.task_s += other.task_s
        self.counts.removed.update(other.counts.removed)
        self.counts.notes.update(other.counts.notes)


def ingest(
    partitions: Sequence[Partition], folder: Path, order_key: int, watch: Callable[[int, Ingested], None]
) -> Ingested:
    """Reads all partitions into key-sorted Parquet files below `folder`.

    Args:
        watch: told how many partitions are done, and the figures so far.

    Raises:
        DataError: a source's own, naming file and place.
    """
    total = Ingested()
    for n, part in enumerate(each(partial(_ingest_part, folder, order_key), list(enumerate(partitions))), start=1):
        total.add(part)
        watch(n, total)
    return total


def _ingest_part(folder: Path, order_key: int, numbered: tuple[int, Partition]) -> Ingested:
    started = time.monotonic()
    part, partition = numbered
    done = Ingested()
    texts: list[str] = []
    pending, first = 0, 0
    for document in partition.read(done.counts):
        text = normalise(document["text"])
        if not text:
            done.counts.removed["empty"] += 1
            continue
        texts.append(text)
        pending += len(text)
        if pending >= SPILL_BYTES:
            done.n_bytes += _spill(folder, order_key, part, first, texts)
            first, texts, pending = first + len(texts), [], 0
    if texts:
        done.n_bytes += _spill(folder, order_key, part, first, texts)
    done.n_documents = first + len(texts)
    done.task_s = time.monotonic() - started
    return done


def _spill(folder: Path, order_key: int, part: int, first: int, texts: list[str]) -> int:
    """Writes documents `first`... of a part, sorted by key, and gives their size in UTF-8 bytes."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    column = pa.array(texts, pa.large_string())
    table = documents_table(column, np.array([document_hash(t) for t in texts], np.uint64), order_key, part, first)
    name = f"part-{part:06d}-{first:012d}.parquet"
    hidden = folder / f".{name}"
    pq.write_table(table.sort_by("key"), hidden, row_group_size=GROUP_ROWS, compression="zstd", use_dictionary=False)
    hidden.rename(folder / name)
    return int(column.nbytes - 8 * (len(column) + 1))


def documents_table(texts: "pa.Array", hashes: np.ndarray, order_key: int, part: int, first: int) -> "pa.Table":
    """Documents as a table of text, hash, key, part and ordinal (their place in the part)."""
    import pyarrow as pa

    n = len(texts)
    return pa.table(
        {
            "text": texts,
            "hash": hashes,
            "key": mix(hashes, order_key),
            "part": pa.array(np.full(n, part, np.int32)),
            "ordinal": pa.array(np.arange(first, first + n)),
        }
    )


def key_ranges(n: int) -> list[tuple[int, int]]:
    """The 64-bit keys in `n` ranges of the same width, first and last key of each."""
    edges = [i * (LAST_KEY + 1) // n for i in range(n + 1)]
    return [(low, high - 1) for low, high in itertools.pairwise(edges)]


def documents_between(folder: Path, low: int, high: int) -> "pa.Table":
    """The documents whose key lies from `low` to `high`, sorted by key; duplicates stand side by side, first read first."""
    import pyarrow as pa
    import pyarrow.dataset as pads

    files = sorted(str(p) for p in folder.glob("part-*.parquet"))
    key = pads.field("key")
    wanted = (key >= pa.scalar(low, pa.uint64())) & (key <= pa.scalar(high, pa.uint64()))
    table = pads.dataset(files, format="parquet").to_table(filter=wanted, use_threads=False)
    return table.sort_by([("key", "ascending"), ("part", "ascending"), ("ordinal", "ascending")])


def first_of_each(table: "pa.Table") -> "pa.Table":
    """Documents sorted by key without those that repeat the one before."""
    keys = table["key"].to_numpy()
    return table.filter(np.concatenate([np.ones(min(1, len(keys)), np.bool_), keys[1:] != keys[:-1]]))


def text_batches(column: "pa.ChunkedArray", batch_bytes: int) -> Iterator[list[str]]:
    """A text column as lists of about `batch_bytes` of text."""
    batch: list[str] = []
    size = 0
    for chunk in column.iterchunks():
        for at in range(0, len(chunk), 1024):
            for text in chunk.slice(at, 1024).to_pylist():
                batch.append(text)
                size += len(text)
                if size >= batch_bytes:
                    yield batch
                    batch, size = [], 0
    if batch:
        yield batch
