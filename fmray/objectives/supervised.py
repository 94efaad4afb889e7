"""Supervised classification. Shapes: B rows, T positions, K labels."""

from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np

from fmray.model.checkpoint import Head
from fmray.objectives import ALONE, Batch, Forward, LossParts, Objective, Rows, Setting

if TYPE_CHECKING:
    from torch import Tensor


class Supervised(Objective):
    """Cross-entropy of one label a row, read at the position that the architecture's classification head looks at."""

    type: Literal["supervised"] = "supervised"
    head: ClassVar[Head] = "sequence_classification"
    auto_class: ClassVar[str] = "AutoModelForSequenceClassification"

    def collate(self, rows: Rows, setting: Setting = ALONE) -> Batch:
        """`row_ids_B`, `labels_B`, and `input_ids_BT` with `attention_mask_BT`, cut to the longest row of this very batch.

        Rows are padded on the right; columns that are padding in every row would cost time and change nothing.
        """
        import torch

        width = max(1, int(np.asarray(rows["attention_mask_BT"], dtype=np.int64).sum(axis=1).max()))
        batch: dict[str, Tensor] = {name: torch.from_numpy(np.asarray(rows[name], dtype=np.int64)) for name in ("row_ids_B", "labels_B")}
        for name in ("input_ids_BT", "attention_mask_BT"):
            batch[name] = torch.from_numpy(np.ascontiguousarray(rows[name][:, :width], dtype=np.int64))
        return batch

    def count(self, batch: Batch) -> int:
        """The number of rows."""
        return int(batch["labels_B"].numel())

    def loss(self, model: Forward, batch: Batch) -> LossParts:
        """Summed cross-entropy in nats, in float32 whatever the model computes in."""
        import torch.nn.functional as F

        logits_BK = model(input_ids=batch["input_ids_BT"], attention_mask=batch["attention_mask_BT"]).logits
        total = F.cross_entropy(logits_BK.float(), batch["labels_B"], reduction="sum")
        return LossParts(total, self.count(batch))
