"""Best-fit packing (Ding et al. 2024, "Fewer Truncations Improve Language Modeling"): no document is cut that fits into a row."""

import bisect
from collections.abc import Sequence
from typing import Literal

import numpy as np
from pydantic import Field

from fmray.data.packings import I32, Packer, Packing, Rows
from fmray.data.packings._layout import I64, cut, flat, lay, no_rows


class BestFit(Packing):
    """Puts each document, longest first, into the fullest row that has room for it.

    Only documents longer than a row are cut, into whole rows and a rest. Rows stand in the order in which their last document
    came, so that the pieces of a document keep their order and long documents do not gather.

    Attributes:
        buffer_tokens: documents of about so many tokens are packed together; held in memory (4 bytes a token, and as much again
            some times while rows are made). More fills rows better: short documents are needed to fill the gaps of long ones.
    """

    type: Literal["best_fit"] = "best_fit"
    buffer_tokens: int = Field(1_048_576, ge=1, le=1_073_741_824)

    def packer(self, seq_len: int, pad_id: int) -> Packer:
        """See `Packing.packer`."""
        return _BestFitting(seq_len, pad_id, self.buffer_tokens)


class _BestFitting:
    def __init__(self, seq_len: int, pad_id: int, buffer_tokens: int) -> None:
        self.n_truncated = 0
        self._seq_len, self._pad_id, self._buffer_tokens = seq_len, pad_id, buffer_tokens
        self._ids: list[I32] = []
        self._lengths: list[int] = []
        self._held = 0

    def add(self, documents: Sequence[Sequence[int]]) -> Rows:
        """See `Packer.add`. The buffer is emptied behind the document that fills it, wherever that stands in `documents`."""
        ids, lengths = flat(documents)
        made, begin = [], 0
        ends = np.cumsum(lengths)
        first = 0
        while first < len(lengths):
            # The first document with which the buffer holds enough.
            last = int(np.searchsorted(ends, begin + self._buffer_tokens - self._held))
            full = last < len(lengths)
            until = last + 1 if full else len(lengths)
            end = int(ends[until - 1])
            self._ids.append(ids[begin:end])
            self._lengths += lengths[first:until].tolist()
            self._held += end - begin
            first, begin = until, end
            if full:
                made.append(self._pack())
        return _joined(made, self._seq_len)

    def finish(self) -> Rows:
        """See `Packer.finish`."""
        return self._pack() if self._held else no_rows(self._seq_len)

    def _pack(self) -> Rows:
        """The documents of the buffer as rows; the buffer is empty after that."""
        ids, lengths = np.concatenate(self._ids), np.array(self._lengths, np.int64)
        self._ids, self._lengths, self._held = [], [], 0
        document, length = cut(lengths, self._seq_len)
        begin = np.cumsum(length) - length
        bin_ = best_fit(length, self._seq_len)
        n_bins = int(bin_.max()) + 1
        # Bins by their last document; a bin that is filled by a piece of it alone comes before the one with its rest.
        last = np.zeros(n_bins, np.int64)
        np.maximum.at(last, bin_, np.arange(len(document)))
        row_of_bin = np.empty(n_bins, np.int64)
        row_of_bin[np.argsort(last)] = np.arange(n_bins)
        row = row_of_bin[bin_]
        order = np.argsort(row, kind="stable")
        return lay(ids, begin[order], length[order], row[order], n_bins, self._seq_len, self._pad_id)


def best_fit(length_P: I64, seq_len: int) -> I64:
    """The bin of each piece: best-fit decreasing, ties in order. O(log of the different room left) for each piece."""
    bin_P = np.empty(len(length_P), np.int64)
    order = np.argsort(-length_P, kind="stable")
    rooms: list[int] = []
    bins_with: dict[int, list[int]] = {}
    placed = []
    n_bins = 0
    for length in length_P[order].tolist():
        at = bisect.bisect_left(rooms, length)
        if at == len(rooms):
            number, room = n_bins, seq_len
            n_bins += 1
        else:
            room = rooms[at]
            waiting = bins_with[room]
            number = waiting.pop()
            if not waiting:
                del rooms[at], bins_with[room]
        placed.append(number)
        if left := room - length:
            if left not in bins_with:
                bisect.insort(rooms, left)
                bins_with[left] = []
            bins_with[left].append(number)
    bin_P[order] = placed
    return bin_P


def _joined(made: Sequence[Rows], seq_len: int) -> Rows:
    if not made:
        return no_rows(seq_len)
    columns = ("input_ids_NT", "segment_ids_NT", "position_ids_NT")
    return Rows(*(np.concatenate([getattr(rows, name) for rows in made]) for name in columns))
