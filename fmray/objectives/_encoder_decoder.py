"""What the objectives of encoder-decoders share. Shapes: B rows, T positions of the input, U positions of the target, V vocabulary."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fmray.model.target_loss import IGNORED, target_loss
from fmray.objectives import Batch, Forward, LossParts, Rows

if TYPE_CHECKING:
    from torch import Tensor

Ints = NDArray[np.int64]


def batch_of(rows: Rows, pairs: Sequence[tuple[Ints, Ints]], *, pad: int, start: int) -> Batch:
    """The batch of an input and a target for each row.

    Returns:
        `row_ids_B`, `input_ids_BT` with `attention_mask_BT`, `decoder_input_ids_BT` (the target one place later, `start` in front) and
        `labels_BT` (-100: none), padded on the right and cut to the longest input and the longest target.
    """
    import torch

    inputs_BT, read_BT = padded([pair[0] for pair in pairs], pad)
    targets_BU, told_BU = padded([pair[1] for pair in pairs], pad)
    begun_BU = np.roll(targets_BU, 1, axis=1)
    begun_BU[:, 0] = start
    batch: dict[str, Tensor] = {"row_ids_B": torch.from_numpy(np.asarray(rows["row_ids_B"], dtype=np.int64))}
    arrays = {"input_ids_BT": inputs_BT, "attention_mask_BT": read_BT.astype(np.int64), "decoder_input_ids_BT": begun_BU, "labels_BT": np.where(told_BU, targets_BU, IGNORED)}
    return batch | {name: torch.from_numpy(np.ascontiguousarray(values)) for name, values in arrays.items()}


def padded(rows: Sequence[Ints], pad: int) -> tuple[Ints, NDArray[np.bool_]]:
    """Rows filled up on the right to the longest, and which positions are theirs."""
    lengths = np.array([len(row) for row in rows])
    mask_BT = np.arange(max(1, lengths.max())) < lengths[:, None]
    filled_BT = np.full(mask_BT.shape, pad, dtype=np.int64)
    filled_BT[mask_BT] = np.concatenate(rows)
    return filled_BT, mask_BT


def count_targets(batch: Batch) -> int:
    """The number of target tokens."""
    return int((batch["labels_BT"] != IGNORED).sum())


def cross_entropy(model: Forward, batch: Batch) -> LossParts:
    """Summed cross-entropy of the targets in nats, in float32 whatever the model computes in."""
    labels_BU = batch["labels_BT"]
    total = target_loss(
        model, labels_BU, input_ids=batch["input_ids_BT"], attention_mask=batch["attention_mask_BT"], decoder_input_ids=batch["decoder_input_ids_BT"], use_cache=False
    )  # fmt: skip
    return LossParts(total, (labels_BU != IGNORED).sum())
