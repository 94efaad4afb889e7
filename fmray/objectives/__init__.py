"""Training objectives: how rows become a batch and a batch becomes a loss. One file each."""

import abc
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from fmray.core.config import Component

if TYPE_CHECKING:
    from torch import Tensor

Rows = Mapping[str, NDArray[np.generic]]
Batch = Mapping[str, "Tensor"]
# Anything that runs a model's forward pass: the module itself, or an engine that wraps it.
Forward = Callable[..., Any]


@dataclass(frozen=True)
class LossParts:
    """A loss as the sum over its targets and their count, never a mean.

    Means of means are wrong when micro-batches or workers hold different numbers of targets; sums and counts add up.
    `sum` is a float32 scalar with its graph; `count` may be a tensor, so that it need not be read back from the device.
    """

    sum: "Tensor"
    count: "Tensor | int"


class Objective(Component, package="fmray.objectives"):
    """An objective. `head` is what a checkpoint trained with it bears; `auto_class` the transformers class that holds the head."""

    head: ClassVar[str]
    auto_class: ClassVar[str]

    @abc.abstractmethod
    def collate(self, rows: Rows) -> Batch:
        """Host tensors of a batch, first axis B, from columns of the same names, `row_ids_B` among them."""

    @abc.abstractmethod
    def count(self, batch: Batch) -> int:
        """The number of targets in a batch. It is known before the forward pass, so that gradients can be scaled exactly."""

    @abc.abstractmethod
    def loss(self, model: Forward, batch: Batch) -> LossParts:
        """The summed loss over the targets of a batch; its count equals `count(batch)`. `batch` lies on the model's device."""
