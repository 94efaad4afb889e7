"""Packed rows without a dataset: documents of an arithmetic language that a tiny model can learn."""

import numpy as np

VOCAB = 64
BOS, EOS, PAD = 1, 2, 0


def packed_rows(n_rows: int, seq_len: int, seed: int = 0, longest: int = 20) -> dict[str, np.ndarray]:
    """Rows of whole documents `<bos> a, a+d, a+2d, ... <eos>` (d is 1 or 2, modulo the vocabulary), padded at the end with segment 0."""
    draw = np.random.default_rng(seed)
    ids = np.full((n_rows, seq_len), PAD, np.int64)
    segments, positions = np.zeros_like(ids), np.zeros_like(ids)
    for row in range(n_rows):
        start, segment = 0, 0
        while seq_len - start >= 4:
            length = int(draw.integers(4, min(longest, seq_len - start) + 1))
            first, step = draw.integers(0, VOCAB - 3), draw.integers(1, 3)
            words = 3 + (first + step * np.arange(length - 2)) % (VOCAB - 3)
            segment += 1
            ids[row, start : start + length] = [BOS, *words, EOS]
            segments[row, start : start + length] = segment
            positions[row, start : start + length] = np.arange(length)
            start += length
    return {"row_ids_B": np.arange(n_rows), "input_ids_BT": ids, "segment_ids_BT": segments, "position_ids_BT": positions}
