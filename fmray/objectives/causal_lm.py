"""Causal language modelling on packed rows. Shapes: B rows, T positions, V vocabulary."""

from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np

from fmray.model.architectures import Family
from fmray.model.checkpoint import Head
from fmray.model.target_loss import IGNORED, target_loss
from fmray.objectives import ALONE, Batch, Forward, LossParts, Objective, Rows, Setting

if TYPE_CHECKING:
    from torch import Tensor


class CausalLM(Objective):
    """Predict each token from those before it in its own document.

    Documents packed into one row never see each other: position ids restart with every document and no attention mask is
    given, from which transformers derives a block-diagonal causal mask. (Any mask, all ones included, would switch that off.)
    """

    type: Literal["causal_lm"] = "causal_lm"
    head: ClassVar[Head] = "causal_lm"
    auto_class: ClassVar[str] = "AutoModelForCausalLM"
    family: ClassVar[Family | None] = "decoder"

    def collate(self, rows: Rows, setting: Setting = ALONE) -> Batch:
        """`row_ids_B`, `input_ids_BT`, `position_ids_BT` and `labels_BT`: the next token of the same document, else -100.

        Labels stand at the position that predicts them. Segment 0 is padding.
        """
        import torch

        ids_BT, segments_BT = np.asarray(rows["input_ids_BT"]), np.asarray(rows["segment_ids_BT"])
        labels_BT = np.full(ids_BT.shape, IGNORED, dtype=np.int64)
        same_BT = (segments_BT[:, 1:] == segments_BT[:, :-1]) & (segments_BT[:, 1:] != 0)
        labels_BT[:, :-1][same_BT] = ids_BT[:, 1:][same_BT]
        batch: dict[str, Tensor] = {"labels_BT": torch.from_numpy(labels_BT)}
        for name in ("row_ids_B", "input_ids_BT", "position_ids_BT"):
            batch[name] = torch.from_numpy(np.asarray(rows[name], dtype=np.int64))
        return batch

    def count(self, batch: Batch) -> int:
        """The number of predicted tokens."""
        return int((batch["labels_BT"] != IGNORED).sum())

    def loss(self, model: Forward, batch: Batch) -> LossParts:
        """Summed cross-entropy in nats, in float32 whatever the model computes in."""
        labels_BT = batch["labels_BT"]
        total = target_loss(model, labels_BT, input_ids=batch["input_ids_BT"], position_ids=batch["position_ids_BT"], use_cache=False)
        return LossParts(total, (labels_BT != IGNORED).sum())
