"""Documents laid end to end and chopped into rows, with nothing lost."""

from collections.abc import Sequence
from typing import Literal

import numpy as np

from fmray.data.packings import Packer, Packing, Rows
from fmray.data.packings._layout import flat, lay


class Concatenate(Packing):
    """Concatenates documents and chops the stream: every row but the last is full, and most rows cut a document in two.

    A document that does not end with its row goes on in the next one as a new segment, so that no token attends across a row.
    """

    type: Literal["concatenate"] = "concatenate"

    def packer(self, seq_len: int, pad_id: int) -> Packer:
        """See `Packing.packer`."""
        return _Concatenating(seq_len, pad_id)


class _Concatenating:
    def __init__(self, seq_len: int, pad_id: int) -> None:
        self.n_truncated = 0
        self._seq_len, self._pad_id = seq_len, pad_id
        self._ids, self._starts = np.empty(0, np.int32), np.empty(0, np.int64)

    def add(self, documents: Sequence[Sequence[int]]) -> Rows:
        """See `Packer.add`."""
        ids, lengths = flat(documents)
        starts = (np.cumsum(lengths) - lengths)[lengths > 0] + len(self._ids)
        self._ids, self._starts = np.concatenate([self._ids, ids]), np.concatenate([self._starts, starts])
        return self._take(len(self._ids) // self._seq_len * self._seq_len)

    def finish(self) -> Rows:
        """See `Packer.finish`."""
        return self._take(len(self._ids))

    def _take(self, n: int) -> Rows:
        """The first `n` waiting tokens as rows."""
        n_rows = -(-n // self._seq_len)
        edges = np.arange(n_rows) * self._seq_len
        begin = np.union1d(self._starts[self._starts < n], edges)
        length = np.diff(begin, append=n)
        rows = lay(self._ids[:n], begin, length, begin // self._seq_len, n_rows, self._seq_len, self._pad_id)
        self._ids, self._starts = self._ids[n:], self._starts[self._starts >= n] - n
        return rows
