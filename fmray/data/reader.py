"""Reads the rows of a TokenDataset in a global order that does not know how many workers there are.

Shapes: B rows of a batch, T positions; of images H height, W width, C channels. Needs numpy and pyarrow alone.
"""

import math
from collections import OrderedDict
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fmray.core.artifact import load
from fmray.core.cursor import Cursor
from fmray.core.errors import ArtifactError, ConfigError, DataError
from fmray.data.dataset import Shard, TokenDataset
from fmray.data.order import I64, GlobalOrder

if TYPE_CHECKING:
    import pyarrow.parquet as pq

Array = NDArray[Any]
Batch = dict[str, Array]

MAX_LANES = 64
BLOCKS_PER_LANE = 4
"""A split is cut into no more lanes than leave each so many blocks: a block that two lanes share is fetched for both."""
LIVE_BLOCKS = 2
"""Blocks held of each lane and source: a batch in which a lane goes on into its next block needs both."""
LIVE_BYTES = 128 * 1024**2
"""What they may take on a worker that reads all lanes; of W workers each holds a W-th."""
OPEN_FILES = 64


class TokenReader:
    """The rows of one split, in batches of `global_batch_size` along the global order (see `fmray.data.order`).

    A block is a row group of a shard. Documents were shuffled before packing, so neighbours in a block are strangers. A batch is the
    next `global_batch_size` positions and goes on into the next epoch; rank r of W takes its positions r, r + W, r + 2W...: any
    world size that divides it sees the same batches, and one that divides the lanes too fetches only its own part of the blocks.
    """

    def __init__(self, path: Path, split: str, seed: int, global_batch_size: int) -> None:
        """Opens a dataset without reading any of its rows.

        Raises:
            ArtifactError: `path` is no TokenDataset.
            DataError: it has no such split, or the split holds fewer rows than one global batch.
        """
        artifact = load(path, TokenDataset)
        payload = artifact.payload
        shards = [shard for shard in payload.shards if shard.split == split and shard.rows]
        if not shards:
            raise DataError(f"has no {split} split; it has: {', '.join(payload.splits)}", where=str(path))
        self.root, self.split, self.seed = artifact.path, split, seed
        self.global_batch_size, self.seq_len = global_batch_size, payload.seq_len
        self._layout = _layout(payload)
        self._files = [artifact.path / shard.name for shard in shards]
        sources = {name: i for i, name in enumerate(dict.fromkeys(shard.source for shard in shards))}
        self._file_of, self._group_of, sizes = _blocks(shards, payload.block_rows)
        block_bytes = payload.block_rows * sum(math.prod(shape) * np.dtype(dtype).itemsize for _, shape, dtype in self._layout.values())
        self.n_lanes = n_lanes(global_batch_size, len(sizes), len(sources), block_bytes)
        self._order = GlobalOrder(sizes, np.array([sources[shards[f].source] for f in self._file_of]), seed, self.n_lanes)
        if not 1 <= global_batch_size <= self.n_rows:
            raise DataError(
                f"the {split} split has {self.n_rows} rows, fewer than one global batch of {global_batch_size}",
                where=str(path),
                todo="lower global_batch_size or seq_len, or prepare more text",
            )
        self._n_sources = len(sources)
        self._held: OrderedDict[int, tuple[Array, ...]] = OrderedDict()
        self._n_held = 0
        self.blocks_read = 0
        """How many blocks were fetched from storage so far; one that was let go counts again when it comes back."""
        self._opened = lru_cache(OPEN_FILES)(_open)

    @property
    def n_rows(self) -> int:
        """Rows of the split, which is the positions of an epoch."""
        return self._order.n_rows

    @property
    def n_blocks(self) -> int:
        """Blocks of the split."""
        return len(self._file_of)

    def order(self, epoch: int) -> I64:
        """The row ids of a whole epoch in the order in which they are read."""
        return self._order.row_ids(epoch, np.arange(self.n_rows))

    def batch(self, cursor: Cursor, rank: int = 0, world_size: int = 1) -> Batch:
        """This rank's rows of the global batch that starts at `cursor`.

        Returns:
            row_ids_B with input_ids_BT, segment_ids_BT and position_ids_BT, all int64; or, of images, with pixels_BHWC (uint8) and
            labels_B (int64); B = global_batch_size / world_size.

        Raises:
            ConfigError: the batch does not divide among the ranks.
            DataError: the cursor lies outside of this split.
        """
        self._n_held = LIVE_BLOCKS * self._n_sources * (self.n_lanes // math.gcd(self.n_lanes, world_size))
        return self._fetch(np.concatenate([row_ids for _, row_ids in self.places(cursor, rank, world_size)]))

    def places(self, cursor: Cursor, rank: int = 0, world_size: int = 1) -> list[tuple[int, I64]]:
        """Epoch and row ids of the rows of `batch`, in its order; two entries when it goes on into the next epoch.

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
        positions = cursor.row + np.arange(rank, self.global_batch_size, world_size)
        epochs = positions // self.n_rows
        return [
            (cursor.epoch + int(ahead), self._order.row_ids(cursor.epoch + int(ahead), positions[epochs == ahead] % self.n_rows))
            for ahead in np.unique(epochs)
        ]

    def advance(self, cursor: Cursor) -> Cursor:
        """The cursor behind the batch that starts at `cursor`."""
        row = cursor.row + self.global_batch_size
        return Cursor(epoch=cursor.epoch + row // self.n_rows, row=row % self.n_rows)

    def rows(self, start: int, stop: int) -> Batch:
        """The rows with ids from `start` up to `stop` (exclusive, cut at the end of the split) in storage order, as in `batch`."""
        return self._fetch(np.arange(max(0, start), min(stop, self.n_rows)))

    def _fetch(self, row_ids: I64) -> Batch:
        found = {name: np.empty((len(row_ids), *shape), np.int64 if dtype == np.int32 else dtype) for name, shape, dtype in self._layout.values()}
        blocks = np.searchsorted(self._order.firsts, row_ids, side="right") - 1
        for block in np.unique(blocks):
            mine = np.flatnonzero(blocks == block)
            inside = row_ids[mine] - self._order.firsts[block]
            for values, stored in zip(found.values(), self._block(int(block)), strict=True):
                values[mine] = stored[inside]
        return {"row_ids_B": row_ids, **found}

    def _block(self, block: int) -> tuple[Array, ...]:
        """The columns of a block, fetched unless it is among those that were used last."""
        if block not in self._held:
            while len(self._held) > self._n_held:
                self._held.popitem(last=False)
            self._held[block] = self._fetch_block(block)
            self.blocks_read += 1
        self._held.move_to_end(block)
        return self._held[block]

    def _fetch_block(self, block: int) -> tuple[Array, ...]:
        import pyarrow as pa

        path = self._files[self._file_of[block]]
        size = int(self._order.firsts[block + 1] - self._order.firsts[block])
        try:
            group = int(self._group_of[block])
            table = self._opened(path).read_row_group(group, columns=list(self._layout), use_threads=False)
            return tuple(_values(table[name], (size, *shape)) for name, (_, shape, _) in self._layout.items())
        except (OSError, pa.ArrowException, KeyError, ValueError) as error:
            raise ArtifactError(
                f"cannot be read as a shard of this dataset ({str(error).splitlines()[0]})",
                where=str(path),
                todo="prepare it again",
            ) from None


def n_lanes(global_batch_size: int, n_blocks: int, n_sources: int, block_bytes: int) -> int:
    """Into how many lanes the global order is dealt: the largest divisor of the batch that blocks and memory allow.

    A divisor of the batch, because every number of workers is one: each of those that divide the lanes too reads only its part.
    """
    most = max(1, min(MAX_LANES, n_blocks // (BLOCKS_PER_LANE * n_sources), LIVE_BYTES // (LIVE_BLOCKS * block_bytes * n_sources)))
    return next(lanes for lanes in range(most, 0, -1) if global_batch_size % lanes == 0)


def _layout(payload: TokenDataset) -> dict[str, tuple[str, tuple[int, ...], Any]]:
    """Each column of the shards: its name in a batch, the shape of a row, and the type it is stored in."""
    if payload.image_shape is not None:
        return {"pixels": ("pixels_BHWC", payload.image_shape, np.uint8), "labels": ("labels_B", (), np.int64)}
    return {name: (f"{name}_BT", (payload.seq_len,), np.int32) for name in payload.columns}


def _blocks(shards: Sequence[Shard], block_rows: int) -> tuple[I64, I64, I64]:
    """Every block in storage order: the number of its shard, of its row group therein, and its rows."""
    rows = np.array([shard.rows for shard in shards], np.int64)
    n_groups = -(-rows // block_rows)
    file_of = np.repeat(np.arange(len(shards)), n_groups)
    group_of = np.arange(len(file_of)) - np.repeat(np.cumsum(n_groups) - n_groups, n_groups)
    return file_of, group_of, np.minimum(block_rows, rows[file_of] - group_of * block_rows)


def _values(column: Any, shape: tuple[int, ...]) -> Array:
    """A column as an array; the elements of fixed-size lists follow one another in storage."""
    whole = column.combine_chunks()
    values: Array = (whole if len(shape) == 1 else whole.flatten()).to_numpy(zero_copy_only=False).reshape(shape)
    return values


def _open(path: Path) -> "pq.ParquetFile":
    import pyarrow.parquet as pq

    return pq.ParquetFile(path)
