"""Packings: how the tokens of documents become rows of a fixed length. One file a member; a new one needs `packer`.

Shapes: N rows, T positions of a row.
"""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from fmray.core.config import Component

I32 = NDArray[np.int32]


@dataclass(frozen=True)
class Rows:
    """Packed rows. Segment 0 is padding; the documents of a row count 1, 2, 3...; positions restart at 0 with each segment."""

    input_ids_NT: I32
    segment_ids_NT: I32
    position_ids_NT: I32

    def __len__(self) -> int:
        return len(self.input_ids_NT)


class Packer(Protocol):
    """Packs one stream of documents. The same documents in the same order give the same rows, however `add` is fed."""

    n_truncated: int
    """Tokens that found no place so far: none, where a packing conserves them."""

    def add(self, documents: Sequence[Sequence[int]]) -> Rows:
        """Takes token ids of whole documents and gives the rows that are complete by now, perhaps none."""

    def finish(self) -> Rows:
        """The rows that were still open, filled up with padding."""


class Packing(Component, package="fmray.data.packings"):
    """How documents share rows."""

    @abstractmethod
    def packer(self, seq_len: int, pad_id: int) -> Packer:
        """An empty packer for rows of `seq_len` tokens."""
