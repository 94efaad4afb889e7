"""Second pass of prepare: each range of keys becomes one shard of each split, on its own and always the same."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fmray.core.artifact import sha256_file
from fmray.data import tokenizer as tokenizers_
from fmray.data.canaries import Planted
from fmray.data.dataset import BLOCK_ROWS, COLUMNS, SPLITS, TOKENIZER, Shard, Split
from fmray.data.ingest import documents_between, documents_table, first_of_each, text_batches
from fmray.data.order import unit
from fmray.data.packing import Packer, Rows
from fmray.data.text import document_hash

if TYPE_CHECKING:
    import pyarrow as pa

ENCODE_BYTES = 1024**2
PLANTED_PART = -1


@dataclass(frozen=True)
class ShardJob:
    """What one task of the second pass does: the keys from `low` to `high`, cleaned of duplicates, with canaries among them."""

    index: int
    low: int
    high: int
    planted: tuple[Planted, ...]
    documents: Path
    hashes: Path
    root: Path
    seq_len: int
    split_key: int
    validation_fraction: float


@dataclass(frozen=True)
class SplitPart:
    """One split's part of a range. `shard` is None when no document fell into it."""

    n_documents: int
    n_tokens: int
    n_bytes: int
    shard: Shard | None


@dataclass(frozen=True)
class ShardPart:
    """What one task of the second pass made."""

    index: int
    splits: dict[Split, SplitPart]
    n_words: int
    n_duplicates: int
    task_s: float


def write_shard(job: ShardJob) -> ShardPart:
    """Removes duplicates, plants canaries, splits, tokenizes, packs and writes; the same job writes the same bytes."""
    started = time.monotonic()
    found = documents_between(job.documents, job.low, job.high)
    documents = first_of_each(found)
    is_validation = in_validation(documents, job.split_key, job.validation_fraction)
    tables = {
        "train": _with_planted(documents.filter(~is_validation), job.planted),
        "validation": documents.filter(is_validation),
    }
    np.save(job.hashes / f"part-{job.index:05d}.npy", np.unique(tables["train"]["hash"].to_numpy()))
    splits = {split: _write_split(job, split, tables[split]) for split in SPLITS}
    return ShardPart(
        index=job.index,
        splits=splits,
        n_words=sum(len(text.split()) for batch in text_batches(documents["text"], ENCODE_BYTES) for text in batch),
        n_duplicates=len(found) - len(documents),
        task_s=time.monotonic() - started,
    )


def in_validation(documents: "pa.Table", split_key: int, fraction: float) -> NDArray[np.bool_]:
    """Which documents the validation split takes: by hash, so that the same text always falls on the same side."""
    return unit(documents["hash"].to_numpy(), split_key) < fraction


def _with_planted(documents: "pa.Table", planted: Sequence[Planted]) -> "pa.Table":
    import pyarrow as pa

    if not planted:
        return documents
    texts = [text for _, text in planted]
    extra = documents_table(
        pa.array(texts, pa.large_string()), np.array([document_hash(t) for t in texts], np.uint64), 0, PLANTED_PART, 0
    )
    extra = extra.set_column(
        extra.schema.get_field_index("key"), "key", pa.array([key for key, _ in planted], pa.uint64())
    )
    return pa.concat_tables([documents, extra]).sort_by(
        [("key", "ascending"), ("part", "ascending"), ("ordinal", "ascending")]
    )


def _write_split(job: ShardJob, split: Split, documents: "pa.Table") -> SplitPart:
    if not len(documents):
        return SplitPart(0, 0, 0, None)
    tokenizer, special = tokenizers_.load(job.root / TOKENIZER)
    packer = Packer(job.seq_len, special.pad)
    name = f"{split}/part-{job.index:05d}.parquet"
    n_tokens = n_bytes = 0
    with ShardWriter(job.root / name, job.seq_len) as writer:
        for texts in text_batches(documents["text"], ENCODE_BYTES):
            ids = list(tokenizers_.encode(tokenizer, special, texts))
            n_tokens += sum(map(len, ids))
            n_bytes += sum(len(text.encode()) for text in texts)
            writer.write(packer.add(ids))
        writer.write(packer.finish())
    return SplitPart(
        len(documents),
        n_tokens,
        n_bytes,
        Shard(split=split, name=name, rows=writer.rows, sha256=sha256_file(job.root / name)),
    )


class ShardWriter:
    """Writes rows in row groups of exactly BLOCK_ROWS (the last may be shorter); the file appears under its name when complete."""

    def __init__(self, path: Path, seq_len: int) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        self.rows = 0
        self._path, self._hidden = path, path.with_name(f".{path.name}")
        self._type = pa.list_(pa.int32(), seq_len)
        self._writer = pq.ParquetWriter(
            self._hidden, pa.schema([(name, self._type) for name in COLUMNS]), compression="zstd"
        )
        self._pending = [np.empty((0, seq_len), np.int32)] * len(COLUMNS)

    def write(self, rows: Rows) -> None:
        """Takes rows; writes those that fill row groups."""
        columns = (rows.input_ids_NT, rows.segment_ids_NT, rows.position_ids_NT)
        self._pending = [np.concatenate(pair) for pair in zip(self._pending, columns, strict=True)]
        while len(self._pending[0]) >= BLOCK_ROWS:
            self._flush(BLOCK_ROWS)

    def _flush(self, n: int) -> None:
        import pyarrow as pa

        arrays = [
            pa.FixedSizeListArray.from_arrays(pa.array(c[:n].reshape(-1)), type=self._type) for c in self._pending
        ]
        self._writer.write_table(pa.table(arrays, names=list(COLUMNS)), row_group_size=BLOCK_ROWS)
        self._pending = [column[n:] for column in self._pending]
        self.rows += n

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None and len(self._pending[0]):
            self._flush(len(self._pending[0]))
        self._writer.close()
        if kind is None:
            self._hidden.rename(self._path)


def sample(
    documents: Path, ranges: Sequence[tuple[int, int]], split_key: int, fraction: float, sample_bytes: int
) -> Iterator[list[str]]:
    """Distinct train documents in shuffled order, about `sample_bytes` of them: what a tokenizer is trained on."""
    seen = 0
    for low, high in ranges:
        table = first_of_each(documents_between(documents, low, high))
        table = table.filter(~in_validation(table, split_key, fraction))
        for texts in text_batches(table["text"], ENCODE_BYTES):
            yield texts
            seen += sum(map(len, texts))
            if seen >= sample_bytes:
                return
