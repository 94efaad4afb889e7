"""One document a row: for privacy counted by record, and for whatever must not share a row."""

from collections.abc import Sequence
from typing import Literal

import numpy as np

from fmray.data.packings import Packer, Packing, Rows
from fmray.data.packings._layout import flat, lay


class Unpacked(Packing):
    """Each document stands alone in its row; what is longer than the row is left out and counted, the end token with it."""

    type: Literal["unpacked"] = "unpacked"

    def packer(self, seq_len: int, pad_id: int) -> Packer:
        """See `Packing.packer`."""
        return _Unpacking(seq_len, pad_id)


class _Unpacking:
    def __init__(self, seq_len: int, pad_id: int) -> None:
        self.n_truncated = 0
        self._seq_len, self._pad_id = seq_len, pad_id

    def add(self, documents: Sequence[Sequence[int]]) -> Rows:
        """See `Packer.add`."""
        ids, lengths = flat(documents)
        begin, kept = np.cumsum(lengths) - lengths, np.minimum(lengths, self._seq_len)
        self.n_truncated += int((lengths - kept).sum())
        begin, kept = begin[kept > 0], kept[kept > 0]
        return lay(ids, begin, kept, np.arange(len(kept)), len(kept), self._seq_len, self._pad_id)

    def finish(self) -> Rows:
        """See `Packer.finish`."""
        return self.add([])
