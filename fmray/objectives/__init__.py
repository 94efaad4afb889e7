"""Training objectives: how rows become a batch and a batch becomes a loss. One file each."""

import abc
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from fmray.core.config import Component, Config, load_config
from fmray.data.dataset import TOKENIZER, Modality, TokenDataset
from fmray.data.vocabulary import Vocabulary, read_vocabulary
from fmray.model.architectures import Family, Reads
from fmray.model.checkpoint import Head
from fmray.model.positions import patch_size, position_offset

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


@dataclass(frozen=True)
class Setting:
    """What an objective is told besides the rows: the seed, and what it must know of the dataset and the model.

    Attributes:
        seed: with a row's id and the epoch it decides everything that an objective draws.
        vocabulary: of the dataset's tokenizer; None for images.
        one_a_row: whether every row holds a single document.
        position_offset: what the model adds to a position in its table of positions.
        patch_size: the side of an image model's patches; 0 for text.
    """

    seed: int = 0
    vocabulary: Vocabulary | None = None
    one_a_row: bool = False
    position_offset: int = 0
    patch_size: int = 0


ALONE = Setting()
"""Of objectives that draw nothing and need to know nothing."""


class Objective(Component, package="fmray.objectives"):
    """An objective.

    `head` is what a checkpoint trained with it bears; `auto_class` the transformers class that holds the head. `modality` is that of
    the datasets and `family` that of the architectures it pretrains; a `family` of None pretrains none. `continues` are the heads, besides
    its own, of checkpoints that it can begin from. `adds_up` says whether the loss of a batch is the sum of its parts' losses: where it is
    not, gradients cannot be accumulated. `passes` is how often the model reads a row for one step.
    """

    head: ClassVar[Head]
    auto_class: ClassVar[str]
    modality: ClassVar[Modality] = "text"
    family: ClassVar[Family | None] = None
    continues: ClassVar[tuple[Head, ...]] = ()
    adds_up: ClassVar[bool] = True
    passes: ClassVar[int] = 1

    @property
    def reads(self) -> Reads | None:
        """What either half of a model with two reads of a row, as shares of its positions; None where there is one half, or it is not known."""
        return None

    @abc.abstractmethod
    def collate(self, rows: Rows, setting: Setting = ALONE) -> Batch:
        """Host tensors of a batch, first axis B, from columns of the same names, `row_ids_B` (and of a dataset `epochs_B`) among them."""

    @abc.abstractmethod
    def count(self, batch: Batch) -> int:
        """The number of targets in a batch. It is known before the forward pass, so that gradients can be scaled exactly."""

    @abc.abstractmethod
    def loss(self, model: Forward, batch: Batch) -> LossParts:
        """The summed loss over the targets of a batch; its count equals `count(batch)`. `batch` lies on the model's device."""

    def check(self, setting: Setting, seq_len: int) -> None:
        """Refuses what it could not make batches of; called before any worker starts.

        Raises:
            ConfigError: the dataset lacks something.
        """

    def configure(self, hf_config: Any) -> None:
        """Sets those fields of a model's Hugging Face config that the objective decides."""


class _Holder(Config):
    objective: Objective


def objective_from(config: Mapping[str, Any]) -> Objective:
    """The objective of a dumped config, as a checkpoint keeps it.

    Raises:
        ConfigError: it is no objective.
    """
    return load_config(_Holder, {"objective": config}).objective


def setting_for(dataset: Path, payload: TokenDataset, hf_config: Mapping[str, Any], seed: int) -> Setting:
    """The setting of a dataset and a model's `config.json`.

    Raises:
        DataError: the dataset's tokenizer cannot be read.
    """
    vocabulary = read_vocabulary(dataset / TOKENIZER) if payload.modality == "text" else None
    return Setting(seed, vocabulary, payload.packing == "unpacked", position_offset(hf_config), patch_size(hf_config))


def row_generators(rows: Rows, seed: int) -> list[np.random.Generator]:
    """A generator for each row, which depends on nothing but seed, epoch and row id; `epochs_B` left out means epoch 0."""
    ids_B = np.asarray(rows["row_ids_B"])
    epochs_B = np.asarray(rows["epochs_B"]) if "epochs_B" in rows else np.zeros(len(ids_B), dtype=np.int64)
    return [np.random.default_rng([seed, int(epoch), int(row)]) for epoch, row in zip(epochs_B, ids_B, strict=True)]
