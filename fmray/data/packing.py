"""Packing: documents laid end to end and chopped into rows of a fixed length, with nothing lost.

Shapes: N rows, T positions of a row.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

I32 = NDArray[np.int32]


@dataclass(frozen=True)
class Rows:
    """Packed rows. Segment 0 is padding; the documents of a row count 1, 2, 3...; positions restart at 0 with each segment."""

    input_ids_NT: I32
    segment_ids_NT: I32
    position_ids_NT: I32

    def __len__(self) -> int:
        return len(self.input_ids_NT)


class Packer:
    """Concatenates documents and chops the stream into rows of `seq_len`.

    A document that does not end with its row goes on in the next one as a new segment, so no token attends across a row
    and none is dropped; only the last row of a stream holds padding.
    """

    def __init__(self, seq_len: int, pad_id: int) -> None:
        self.seq_len, self.pad_id = seq_len, pad_id
        self._ids = np.empty(0, np.int32)
        self._starts = np.empty(0, np.bool_)

    def add(self, documents: Sequence[Sequence[int]]) -> Rows:
        """Takes token ids of whole documents and gives the rows that are full by now."""
        lengths = np.array([len(d) for d in documents], np.int64)
        ids = np.fromiter(itertools.chain.from_iterable(documents), np.int32, int(lengths.sum()))
        starts = np.zeros(len(ids), np.bool_)
        starts[(np.cumsum(lengths) - lengths)[lengths > 0]] = True
        ids, starts = np.concatenate([self._ids, ids]), np.concatenate([self._starts, starts])
        full = len(ids) // self.seq_len * self.seq_len
        self._ids, self._starts = ids[full:], starts[full:]
        return self._rows(ids[:full], starts[:full], full)

    def finish(self) -> Rows:
        """The last row, filled up with padding; none when the stream ended with its row."""
        used = len(self._ids)
        ids = np.full(self.seq_len if used else 0, self.pad_id, np.int32)
        starts = np.zeros(len(ids), np.bool_)
        ids[:used], starts[:used] = self._ids, self._starts
        self._ids, self._starts = self._ids[:0], self._starts[:0]
        return self._rows(ids, starts, used)

    def _rows(self, ids: I32, starts: NDArray[np.bool_], used: int) -> Rows:
        shape = (-1, self.seq_len)
        starts_NT = starts.reshape(shape).copy()
        starts_NT[:, 0] = True
        here_T = np.arange(self.seq_len, dtype=np.int32)
        begin_NT = np.maximum.accumulate(np.where(starts_NT, here_T, 0), axis=1)
        segments_NT = np.cumsum(starts_NT, axis=1, dtype=np.int32)
        positions_NT = (here_T - begin_NT).astype(np.int32)
        segments_NT.reshape(-1)[used:] = 0
        positions_NT.reshape(-1)[used:] = 0
        return Rows(ids.reshape(shape), segments_NT, positions_NT)
