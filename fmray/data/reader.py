"""Reads the packed rows of a TokenDataset in a global order that does not know how many workers there are.

Shapes: B rows of a batch, T positions. Needs numpy and pyarrow alone.
"""

from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fmray.core.artifact import load
from fmray.core.cursor import Cursor
from fmray.core.errors import ArtifactError, ConfigError, DataError
from fmray.data.dataset import BLOCK_ROWS, COLUMNS, TokenDataset
from fmray.data.order import key, permutation

if TYPE_CHECKING:
    import pyarrow.parquet as pq

I64 = NDArray[np.int64]
Batch = dict[str, I64]

CACHED_BLOCKS = 8
OPEN_FILES = 16


class TokenReader:
    """The rows of one split, in batches of `global_batch_size` along a block-shuffled permutation.

    A block is a row group of a shard. Each epoch shuffles the blocks and the rows within each block by (seed, epoch) alone; documents
    were shuffled before packing, so neighbours in a block are strangers. A batch is the next `global_batch_size` positions of that
    order and goes on into the next epoch; a rank takes its own contiguous part, so any world size that divides it sees the same batches.
    """

    def __init__(self, path: Path, split: str, seed: int, global_batch_size: int) -> None:
        """Opens a dataset without reading any of its rows.

        Raises:
            ArtifactError: `path` is no TokenDataset.
            DataError: it has no such split, or the split holds fewer rows than one global batch.
        """
        artifact = load(path, TokenDataset)
        shards = [shard for shard in artifact.payload.shards if shard.split == split]
        if not shards:
            raise DataError(f"has no {split} split; it has: {', '.join(artifact.payload.splits)}", where=str(path))
        self.root, self.split, self.seed = artifact.path, split, seed
        self.global_batch_size, self.seq_len = global_batch_size, artifact.payload.seq_len
        self._files = [artifact.path / shard.name for shard in shards]
        groups = [
            (f, g, min(BLOCK_ROWS, shard.rows - g * BLOCK_ROWS))
            for f, shard in enumerate(shards)
            for g in range(-(-shard.rows // BLOCK_ROWS))
        ]
        self._file_of, self._group_of, sizes = (np.array(column, np.int64) for column in zip(*groups, strict=True))
        self._begins = np.concatenate([[0], np.cumsum(sizes)])
        if not 1 <= global_batch_size <= self.n_rows:
            raise DataError(
                f"the {split} split has {self.n_rows} rows, fewer than one global batch of {global_batch_size}",
                where=str(path),
                todo="lower global_batch_size or seq_len, or prepare more text",
            )
        self._load = lru_cache(CACHED_BLOCKS)(self._load_block)
        self._opened = lru_cache(OPEN_FILES)(_open)
        self._inside = lru_cache(CACHED_BLOCKS)(self._row_order)
        self._blocks = lru_cache(2)(self._block_order)

    @property
    def n_rows(self) -> int:
        """Rows of the split, which is the positions of an epoch."""
        return int(self._begins[-1])

    @property
    def blocks_read(self) -> int:
        """How many blocks were fetched from storage so far; a block that left the cache counts again when it comes back."""
        return self._load.cache_info().misses

    def order(self, epoch: int) -> I64:
        """The row ids of a whole epoch in the order in which they are read."""
        return self._row_ids(epoch, np.arange(self.n_rows))

    def batch(self, cursor: Cursor, rank: int = 0, world_size: int = 1) -> Batch:
        """This rank's rows of the global batch that starts at `cursor`.

        Returns:
            row_ids_B, input_ids_BT, segment_ids_BT, position_ids_BT, all int64, with B = global_batch_size / world_size.

        Raises:
            ConfigError: the batch does not divide among the ranks.
            DataError: the cursor lies outside of this split.
        """
        if self.global_batch_size % world_size or not 0 <= rank < world_size:
            raise ConfigError(
                f"{self.global_batch_size} rows do not divide among {world_size} workers (rank {rank})",
                where="global_batch_size",
                todo="make it a multiple of num_workers",
            )
        if cursor.row >= self.n_rows:
            raise DataError(
                f"the cursor stands at row {cursor.row} of {self.n_rows}",
                where=str(self.root),
                todo="it belongs to another dataset",
            )
        share = self.global_batch_size // world_size
        positions = cursor.row + np.arange(rank * share, (rank + 1) * share)
        epochs = cursor.epoch + positions // self.n_rows
        parts = [self._row_ids(int(epoch), positions[epochs == epoch] % self.n_rows) for epoch in np.unique(epochs)]
        return self._fetch(np.concatenate(parts))

    def advance(self, cursor: Cursor) -> Cursor:
        """The cursor behind the batch that starts at `cursor`."""
        row = cursor.row + self.global_batch_size
        return Cursor(epoch=cursor.epoch + row // self.n_rows, row=row % self.n_rows)

    def rows(self, start: int, stop: int) -> Batch:
        """The rows with ids from `start` up to `stop` (exclusive, cut at the end of the split) in storage order, as in `batch`."""
        return self._fetch(np.arange(max(0, start), min(stop, self.n_rows)))

    def _row_ids(self, epoch: int, positions: I64) -> I64:
        blocks, ends = self._blocks(epoch)
        slots = np.searchsorted(ends, positions, side="right")
        row_ids = np.empty(len(positions), np.int64)
        for slot in np.unique(slots):
            block = int(blocks[slot])
            inside = self._inside(epoch, block)
            mine = slots == slot
            row_ids[mine] = self._begins[block] + inside[positions[mine] - (ends[slot] - len(inside))]
        return row_ids

    def _row_order(self, epoch: int, block: int) -> I64:
        return permutation(int(self._begins[block + 1] - self._begins[block]), key(self.seed, epoch, 1, block))

    def _block_order(self, epoch: int) -> tuple[I64, I64]:
        """The blocks in the epoch's order, and the position behind the last row of each."""
        blocks = permutation(len(self._begins) - 1, key(self.seed, epoch, 0))
        return blocks, np.cumsum(np.diff(self._begins)[blocks])

    def _fetch(self, row_ids: I64) -> Batch:
        found = {name: np.empty((len(row_ids), self.seq_len), np.int64) for name in COLUMNS}
        blocks = np.searchsorted(self._begins, row_ids, side="right") - 1
        for block in np.unique(blocks):
            mine = blocks == block
            inside = row_ids[mine] - self._begins[block]
            for name, stored in zip(COLUMNS, self._load(int(block)), strict=True):
                found[name][mine] = stored[inside]
        return {"row_ids_B": row_ids} | {f"{name}_BT": values for name, values in found.items()}

    def _load_block(self, block: int) -> tuple[NDArray[np.int32], ...]:
        import pyarrow as pa

        path = self._files[self._file_of[block]]
        size = int(self._begins[block + 1] - self._begins[block])
        try:
            table = self._opened(path).read_row_group(
                int(self._group_of[block]), columns=list(COLUMNS), use_threads=False
            )
            return tuple(
                table[name].combine_chunks().flatten().to_numpy().reshape(size, self.seq_len) for name in COLUMNS
            )
        except (OSError, pa.ArrowException, KeyError, ValueError) as error:
            raise ArtifactError(
                f"cannot be read as a shard of this dataset ({str(error).splitlines()[0]})",
                where=str(path),
                todo="prepare it again",
            ) from None


def _open(path: Path) -> "pq.ParquetFile":
    import pyarrow.parquet as pq

    return pq.ParquetFile(path)
