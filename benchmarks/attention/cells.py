"""What is measured and what it should take: shapes, masks, FLOPs and memory by arithmetic alone. No torch here.

B rows, H heads, T positions, D head dimension.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np

MASKS = ("causal", "full", "packed")
# What a mask's name means in the result file.
MEANING = {
    "causal": "each position sees itself and those before it",
    "full": "each position sees all",
    "packed": "documents of 512 positions on average share a row; each position sees those before it in its own document",
}
ELEMENT_BYTES = {"fp32": 4, "bf16": 2}
DOCUMENT_POSITIONS = 512
# transformers' names; behind the colon the backend of torch's scaled_dot_product_attention that is forced, else torch chooses.
IMPLEMENTATIONS = ("eager", "sdpa", "sdpa:math", "sdpa:flash", "sdpa:efficient", "sdpa:cudnn", "flex_attention", "flash_attention_2", "flash_attention_3")
# Bytes an implementation holds of every score (a query and a key of a head) at its worst moment. eager keeps the softmax in float32 (and
# in bf16 a copy that multiplies the values), and in its backward pass as much again and its gradient; torch's math backend does
# all of it in float32. The others never hold the scores.
SCORE_BYTES = {"eager": {"fp32": 12.0, "bf16": 14.0}, "sdpa:math": {"fp32": 16.0, "bf16": 16.0}}
# q, k, v, the output as made and as laid out for the next layer, the gradients of all five.
TENSORS = 10


@dataclass(frozen=True)
class Cell:
    """One implementation on one shape."""

    implementation: str
    mask: str
    dtype: str
    rows: int
    heads: int
    seq_len: int
    head_dim: int

    @property
    def tokens(self) -> int:
        """Positions of all rows."""
        return self.rows * self.seq_len

    @property
    def family(self) -> tuple[str, str, str, int]:
        """What a cell shares with those of other lengths."""
        return self.implementation, self.mask, self.dtype, self.head_dim


def grid(implementations: list[str], masks: list[str], dtypes: list[str], seq_lens: list[int], head_dims: list[int], *, tokens: int, width: int) -> list[Cell]:
    """All cells of at least `tokens` positions and `width` = heads x head dimension, short rows first. Implementations alternate on
    each shape, so that a slow minute of the machine falls on all of them.
    """
    return [
        Cell(implementation, mask, dtype, max(1, tokens // seq_len), max(1, width // head_dim), seq_len, head_dim)
        for seq_len in sorted(seq_lens)
        for dtype in dtypes
        for head_dim in head_dims
        for mask in masks
        for implementation in implementations
    ]


@cache
def documents(rows: int, seq_len: int) -> tuple[tuple[int, ...], ...]:
    """The lengths of the documents of each row, which fill it: exponential about 512 positions, or a quarter of a shorter row."""
    draw = np.random.default_rng([rows, seq_len])
    mean = min(DOCUMENT_POSITIONS, max(1, seq_len // 4))
    made = []
    for _ in range(rows):
        lengths: list[int] = []
        left = seq_len
        while left > 0:
            lengths.append(min(left, 1 + int(draw.exponential(mean))))
            left -= lengths[-1]
        made.append(tuple(lengths))
    return tuple(made)


def pairs(cell: Cell) -> int:
    """(query, key) pairs of all rows that the mask lets see each other, for one head."""
    if cell.mask == "full":
        return cell.rows * cell.seq_len**2
    lengths = [(cell.seq_len,)] * cell.rows if cell.mask == "causal" else documents(cell.rows, cell.seq_len)
    return sum(length * (length + 1) // 2 for row in lengths for length in row)


def flops(cell: Cell) -> tuple[float, float]:
    """Floating-point operations that the mask asks for, of the forward and of the backward pass.

    Forward: scores and their product with the values, 2 D operations each for a pair and head. Backward: the gradients of q, k, v and
    of the scores, twice as many. (Dao 2023, https://arxiv.org/abs/2307.08691, counts 2.5 times, because his backward pass computes the
    scores anew.) What an implementation computes beyond this, such as pairs that the mask hides, is its own loss.
    """
    forward = 4.0 * cell.head_dim * cell.heads * pairs(cell)
    return forward, 2 * forward


def memory_bytes(cell: Cell) -> float:
    """The most that forward and backward should hold at once: tensors, scores where the implementation keeps them, and its mask."""
    element = ELEMENT_BYTES[cell.dtype]
    tensors = TENSORS * cell.tokens * cell.heads * cell.head_dim * element
    scores = cell.rows * cell.heads * cell.seq_len**2 * SCORE_BYTES.get(cell.implementation, {}).get(cell.dtype, 0.0)
    return tensors + scores + _mask_bytes(cell, element)


def _mask_bytes(cell: Cell, element: int) -> float:
    square, name = cell.seq_len**2, cell.implementation.split(":", maxsplit=1)[0]
    if name == "eager":
        return 0.0 if cell.mask == "full" else float(square * element * (cell.rows if cell.mask == "packed" else 1))
    if name == "sdpa" and cell.mask == "packed":
        # Given as truth values; torch makes numbers of them.
        return float(cell.rows * square * (1 + element))
    if cell.implementation == "sdpa:math" and cell.mask == "causal":
        return float(square * (1 + element))
    return 0.0
