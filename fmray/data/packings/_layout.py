"""From token ids of documents to rows, by whole arrays. Shapes: N rows, T positions, P pieces of documents, K tokens."""

from array import array
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fmray.data.packings import I32, Rows

I64 = NDArray[np.int64]


def flat(documents: Sequence[Sequence[int]]) -> tuple[I32, I64]:
    """The ids of all documents one behind the other [K], and the length of each.

    Documents that are arrays of C ints, as `encode` makes them, are joined as they are; of others each id is converted.
    """
    parts = [ids if isinstance(ids, array) and ids.typecode == "i" else array("i", ids) for ids in documents]
    return np.frombuffer(b"".join(parts), np.int32), np.fromiter(map(len, parts), np.int64, len(parts))


def cut(lengths: I64, seq_len: int) -> tuple[I64, I64]:
    """Documents cut into pieces of `seq_len` and a rest.

    Returns:
        The document and the length of each piece [P], in order.
    """
    n_pieces = -(-lengths // seq_len)
    document_P = np.repeat(np.arange(len(lengths)), n_pieces)
    length_P = np.full(len(document_P), seq_len, np.int64)
    ends = np.cumsum(n_pieces)[n_pieces > 0] - 1
    length_P[ends] = (lengths - (n_pieces - 1) * seq_len)[n_pieces > 0]
    return document_P, length_P


def lay(ids_K: I32, begin_P: I64, length_P: I64, row_P: I64, n_rows: int, seq_len: int, pad_id: int) -> Rows:
    """Rows of pieces, each a stretch of `ids_K`.

    Args:
        begin_P: where each piece begins in `ids_K`.
        row_P: the row of each piece, rising; the pieces of a row stand in it in their order, from its first position on.
    """
    order_P = np.arange(len(row_P))
    first_P = np.searchsorted(row_P, row_P, side="left")
    taken_P = np.cumsum(length_P) - length_P
    place_P = row_P * seq_len + taken_P - taken_P[first_P]
    token_K = np.arange(int(length_P.sum()))
    to_K = token_K + np.repeat(place_P - taken_P, length_P)
    ids, segments, positions = (np.full(n_rows * seq_len, fill, np.int32) for fill in (pad_id, 0, 0))
    ids[to_K] = ids_K[token_K + np.repeat(begin_P - taken_P, length_P)]
    segments[to_K] = np.repeat((order_P - first_P + 1).astype(np.int32), length_P)
    positions[to_K] = token_K - np.repeat(taken_P, length_P)
    shape = (n_rows, seq_len)
    return Rows(ids.reshape(shape), segments.reshape(shape), positions.reshape(shape))


def no_rows(seq_len: int) -> Rows:
    """Zero rows."""
    none = np.empty((0, seq_len), np.int32)
    return Rows(none, none, none)
