"""Writing rows: documents of one split and one source become one Parquet shard of fixed rows."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fmray.core.artifact import sha256_file
from fmray.data import tokenizer as tokenizers_
from fmray.data.dataset import BLOCK_ROWS, COLUMNS, TOKENIZER, Shard, Split
from fmray.data.packings import Packer, Packing, Rows

if TYPE_CHECKING:
    import pyarrow as pa
    from tokenizers import Tokenizer

ENCODE_BYTES = 1024**2
BLOCK_BYTES = 1024**2
SMALLEST_BLOCK = 8


def block_rows(row_bytes: int) -> int:
    """Rows of a row group: a power of two that takes about 1 MiB, at least 8 and at most 256."""
    wanted = max(1, BLOCK_BYTES // max(1, row_bytes))
    return min(BLOCK_ROWS, max(SMALLEST_BLOCK, 1 << (wanted.bit_length() - 1)))


@dataclass(frozen=True)
class Layout:
    """What all shards of a text dataset share; `sources` are the names of the mixture's parts, which number the documents."""

    root: Path
    seq_len: int
    packing: Packing
    sources: tuple[str, ...]

    @property
    def block_rows(self) -> int:
        """Rows of a row group."""
        return block_rows(4 * len(COLUMNS) * self.seq_len)


@dataclass(frozen=True)
class SplitPart:
    """What one writer made. `shard` is None when no document came. `lengths` counts documents by floor(log2(tokens))."""

    split: Split
    source: str
    n_documents: int = 0
    n_tokens: int = 0
    n_bytes: int = 0
    n_truncated: int = 0
    lengths: Counter[int] = field(default_factory=Counter)
    shard: Shard | None = None


class SplitWriter:
    """Tokenizes, packs and writes documents; used as a context, so that a failure leaves nothing under the shard's name."""

    def __init__(self, layout: Layout, split: Split, source: int, index: int) -> None:
        self._layout, self._split, self._source = layout, split, layout.sources[source]
        self._name = f"{split}/part-{index:05d}{f'-{self._source}' if len(layout.sources) > 1 else ''}.parquet"
        self._n_documents = self._n_tokens = self._n_bytes = 0
        self._lengths: Counter[int] = Counter()
        self._rows: ShardWriter | None = None
        self._packer: Packer | None = None

    def add(self, texts: Sequence[str]) -> None:
        """Takes whole documents."""
        if not texts:
            return
        tokenizer, special = _opened(self._layout.root / TOKENIZER)
        if self._rows is None or self._packer is None:
            self._packer = self._layout.packing.packer(self._layout.seq_len, special.pad)
            self._rows = ShardWriter(self._layout.root / self._name, token_schema(self._layout.seq_len), self._layout.block_rows)
        ids = list(tokenizers_.encode(tokenizer, special, texts))
        lengths = np.fromiter(map(len, ids), np.int64, len(ids))
        self._lengths.update(floor_log2(lengths).tolist())
        self._n_documents += len(ids)
        self._n_tokens += int(lengths.sum())
        self._n_bytes += len("".join(texts).encode())
        self._rows.write(_columns(self._packer.add(ids)))

    def finish(self) -> SplitPart:
        """Writes what is open and gives the figures."""
        if self._rows is None or self._packer is None:
            return SplitPart(self._split, self._source)
        self._rows.write(_columns(self._packer.finish()))
        shard = sealed(self._rows, self._layout.root, self._split, self._name, self._source)
        return SplitPart(
            self._split, self._source, self._n_documents, self._n_tokens, self._n_bytes, self._packer.n_truncated, self._lengths, shard
        )

    def __enter__(self) -> "SplitWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._rows is not None:
            self._rows.abandon()


def _opened(folder: Path) -> "tuple[Tokenizer, tokenizers_.Special]":
    """The tokenizer of a dataset, loaded once a process."""
    return _load(folder, (folder / tokenizers_.FILE).stat().st_mtime_ns)


@lru_cache(4)
def _load(folder: Path, mtime_ns: int) -> "tuple[Tokenizer, tokenizers_.Special]":
    return tokenizers_.load(folder)


def sealed(writer: "ShardWriter", root: Path, split: Split, name: str, source: str) -> Shard:
    """Completes a shard and says what it is."""
    writer.close()
    return Shard(split=split, name=name, rows=writer.rows, sha256=sha256_file(root / name), source=source)


def floor_log2(lengths_N: NDArray[np.int64]) -> NDArray[np.int64]:
    """floor(log2(n)) of positive numbers."""
    return (np.frexp(lengths_N.astype(np.float64))[1] - 1).astype(np.int64)


def _columns(rows: Rows) -> tuple[NDArray[np.int32], ...]:
    return rows.input_ids_NT, rows.segment_ids_NT, rows.position_ids_NT


def token_schema(seq_len: int) -> "pa.Schema":
    """The columns of a shard of packed tokens."""
    import pyarrow as pa

    return pa.schema([(name, pa.list_(pa.int32(), seq_len)) for name in COLUMNS])


class ShardWriter:
    """Writes rows in row groups of exactly `block_rows` (the last may be shorter); the file appears under its name when closed."""

    def __init__(self, path: Path, schema: "pa.Schema", block_rows: int) -> None:
        import pyarrow.parquet as pq

        self.rows = 0
        self._path, self._hidden, self._schema, self._block_rows = path, path.with_name(f".{path.name}"), schema, block_rows
        # Token ids hardly repeat within a block: a dictionary costs half of the writing time and saves nothing.
        self._writer = pq.ParquetWriter(self._hidden, schema, compression="zstd", compression_level=1, use_dictionary=False)
        self._pending: list[tuple[NDArray[np.generic], ...]] = []
        self._n_pending = 0

    def write(self, columns: tuple[NDArray[np.generic], ...]) -> None:
        """Takes a column array each, with one entry (of one or more axes) a row; writes those that fill row groups."""
        if len(columns[0]):
            self._pending.append(columns)
            self._n_pending += len(columns[0])
        if self._n_pending >= self._block_rows:
            self._flush(self._n_pending // self._block_rows * self._block_rows)

    def _flush(self, n: int) -> None:
        import pyarrow as pa

        whole = [np.concatenate(column) for column in zip(*self._pending, strict=True)]
        arrays = []
        for column, field_ in zip(whole, self._schema, strict=True):
            values = pa.array(column[:n].reshape(-1))
            arrays.append(pa.FixedSizeListArray.from_arrays(values, type=field_.type) if pa.types.is_fixed_size_list(field_.type) else values)
        self._writer.write_table(pa.Table.from_arrays(arrays, schema=self._schema), row_group_size=self._block_rows)
        self._pending = [tuple(column[n:] for column in whole)] if n < self._n_pending else []
        self._n_pending -= n
        self.rows += n

    def close(self) -> None:
        """Writes the rest and gives the file its name."""
        if self._n_pending:
            self._flush(self._n_pending)
        self._writer.close()
        self._hidden.rename(self._path)

    def abandon(self) -> None:
        """Ends an unfinished file, which stays hidden until it is written anew; nothing after `close`."""
        self._writer.close()
