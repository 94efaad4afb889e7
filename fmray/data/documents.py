"""The document store of prepare: texts laid down sorted by the key that shuffles them, and taken up again by ranges of keys.

The key of a document is a keyed bijection of its 64-bit hash. Sorting by it shuffles the corpus in a way that depends on the
texts and the seed alone, brings exact duplicates side by side wherever they came from, and lets every range of keys be worked on
alone: memory is bounded by the range, never by the corpus. A further copy of a document has its place a fixed step further on,
far from the first and yet in a range of keys, too.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fmray.data.order import mix
from fmray.data.text import by_length

if TYPE_CHECKING:
    import pyarrow as pa

GROUP_BYTES = 4 * 1024**2
GROUP_ROWS = 4096
LAST_KEY = 2**64 - 1
COPY_STEP = 0x9E3779B97F4A7C15
"""2^64 divided by the golden ratio: its multiples, wrapped around, lie as far apart as can be."""

Range = tuple[int, int]


@dataclass(frozen=True)
class Place:
    """Where documents came from: the number of their source, and of the part of it that was read in one task."""

    source: int
    part: int
    first: int = 0


def documents_table(texts: Sequence[str], hashes: NDArray[np.uint64], order_key: int, place: Place) -> "pa.Table":
    """Documents as a table of text, n_bytes (UTF-8), hash, key, source, part and ordinal (their number in the part)."""
    import pyarrow as pa
    import pyarrow.compute as pc

    n = len(texts)
    column = pa.array(texts, pa.large_string())
    return pa.table(
        {
            "text": column,
            "n_bytes": pc.binary_length(column),
            "hash": hashes,
            "key": mix(hashes, order_key),
            "source": pa.array(np.full(n, place.source, np.int16)),
            "part": pa.array(np.full(n, place.part, np.int32)),
            "ordinal": pa.array(np.arange(place.first, place.first + n)),
        }
    )


def lay_down(table: "pa.Table", folder: Path, place: Place) -> None:
    """Writes documents sorted by key, whole or not at all."""
    import pyarrow.parquet as pq

    name = f"part-{place.source:04d}-{place.part:06d}-{place.first:012d}.parquet"
    rows = max(16, min(GROUP_ROWS, len(table) * GROUP_BYTES // max(1, table.nbytes)))
    hidden = folder / f".{name}"
    pq.write_table(table.sort_by("key"), hidden, row_group_size=rows, compression="zstd", use_dictionary=False)
    hidden.rename(folder / name)


def key_ranges(n: int) -> list[Range]:
    """The 64-bit keys in `n` ranges of the same width, first and last key of each."""
    edges = [i * (LAST_KEY + 1) // n for i in range(n + 1)]
    return [(low, high - 1) for low, high in itertools.pairwise(edges)]


def documents_between(folder: Path, low: int, high: int, copy: int = 0, columns: Sequence[str] | None = None) -> "pa.Table":
    """The documents whose key lies from `low` to `high`, sorted by key; duplicates stand side by side, first read first.

    Args:
        copy: which copy of the documents is meant; the key of the result is that copy's, and `first_key` the document's own.
        columns: those wanted, by default all; must hold key, source, part and ordinal.
    """
    import pyarrow as pa
    import pyarrow.dataset as pads

    field = pads.field("key")
    wanted = [(field >= pa.scalar(a, pa.uint64())) & (field <= pa.scalar(b, pa.uint64())) for a, b in _unshifted(low, high, copy)]
    files = sorted(str(p) for p in folder.glob("part-*.parquet"))
    dataset = pads.dataset(files, format="parquet")
    # One batch at a time: read-ahead would hold row groups of many files at once.
    tables = [
        dataset.scanner(filter=w, columns=list(columns) if columns else None, use_threads=False, batch_readahead=1, fragment_readahead=1).to_table()
        for w in wanted
    ]
    table = pa.concat_tables(tables)
    if copy:
        with np.errstate(over="ignore"):
            moved = table["key"].to_numpy() + np.uint64(_step(copy))
        table = table.append_column("first_key", table["key"])
        table = table.set_column(table.schema.get_field_index("key"), "key", pa.array(moved, pa.uint64()))
    return sorted_documents(table)


def sorted_documents(table: "pa.Table") -> "pa.Table":
    """A table of documents sorted by key, duplicates in the order in which they were read."""
    return table.sort_by([(name, "ascending") for name in ("key", "source", "part", "ordinal")])


def _step(copy: int) -> int:
    return copy * COPY_STEP % (LAST_KEY + 1)


def _unshifted(low: int, high: int, copy: int) -> list[Range]:
    """The ranges of first keys whose copies lie from `low` to `high`."""
    a, b = ((edge - _step(copy)) % (LAST_KEY + 1) for edge in (low, high))
    return [(a, b)] if a <= b else [(a, LAST_KEY), (0, b)]


def first_of_each(table: "pa.Table") -> "pa.Table":
    """Documents sorted by key without those that repeat the one before."""
    keys = table["key"].to_numpy()
    return table.filter(np.concatenate([np.ones(min(1, len(keys)), np.bool_), keys[1:] != keys[:-1]]))


def text_batches(column: "pa.ChunkedArray", characters: int) -> Iterator[list[str]]:
    """A text column as lists of about `characters` of text."""
    few = (chunk.slice(at, 1024).to_pylist() for chunk in column.iterchunks() for at in range(0, len(chunk), 1024))
    return by_length(itertools.chain.from_iterable(few), characters)
