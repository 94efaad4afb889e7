"""The loss of a task as an engine learns from it, and the batches that it is computed on. Shapes: B rows, T positions, K labels."""

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fmray.objectives import Batch, Forward, LossParts
from fmray.tasks import Task
from fmray.tasks.classifier import Rows, trim

if TYPE_CHECKING:
    import torch


class TaskLoss:
    """A task's loss as sum and count, of a model with `hf_config`; `weights_K` weighs each label's targets and leaves the count as it is."""

    def __init__(self, task: Task, weights_K: NDArray[np.float64] | None, device: "torch.device", hf_config: Any) -> None:
        import torch

        self._task, self._hf_config = task, hf_config
        self._weights_K: Any = None if weights_K is None else torch.tensor(weights_K, dtype=torch.float32, device=device)

    def count(self, batch: Batch) -> int:
        """The number of targets."""
        return self._task.n_targets(batch)

    def loss(self, model: Forward, batch: Batch) -> LossParts:
        """The summed loss in nats, in float32 whatever the model computes in."""
        outputs = self._task.forward(model, batch, self._hf_config)
        return LossParts(self._task.loss_sum(outputs, batch, self._weights_K), self.count(batch))


def collate(rows: Rows) -> Batch:
    """Host tensors of a batch; its positions are cut to the longest row of this very batch.

    Rows are padded on the right; columns that are padding in every row would cost time and change nothing.
    """
    import torch

    return {name: torch.from_numpy(np.ascontiguousarray(column, dtype=np.int64)) for name, column in trim(rows).items()}
