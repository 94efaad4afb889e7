"""What every audit shares: the family, what an audit looks at, and what it brings back."""

import abc
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from fmray.core.artifact import Artifact
from fmray.core.config import Component
from fmray.core.errors import ConfigError
from fmray.core.report import Finding, Metric
from fmray.data.dataset import TokenDataset
from fmray.model.checkpoint import Checkpoint
from fmray.model.language_model import LanguageModel


@dataclass(frozen=True)
class Subject:
    """The checkpoint under audit, the dataset that it was trained on when that is given, and where to run it."""

    checkpoint: Artifact[Checkpoint]
    dataset: Artifact[TokenDataset] | None
    device: str
    micro_batch_size: int

    @cached_property
    def model(self) -> LanguageModel:
        """The model in fp32, opened once for all audits: differences between two sentences drown in bf16's rounding."""
        return LanguageModel.load(self.checkpoint.path, device=self.device, dtype="float32")

    def twin(self, seed: int) -> LanguageModel:
        """An untrained model of the same shape, in fp32: the control."""
        twin = LanguageModel.random_twin(self.checkpoint.path, seed, device=self.device)
        twin.model.float()
        return twin


@dataclass(frozen=True)
class Result:
    """What one audit found; `examples` are plain JSON rows for the report's per-example file."""

    metrics: list[Metric]
    findings: list[Finding] = field(default_factory=list)
    examples: list[dict[str, Any]] = field(default_factory=list)


class Audit(Component, package="fmray.audit"):
    """One question asked of a checkpoint. Its metric keys begin with `audit/<type>/`."""

    type: str

    def check(self, checkpoint: Artifact[Checkpoint], dataset: Artifact[TokenDataset] | None) -> None:
        """Refuses what cannot be audited before any work starts.

        Raises:
            ConfigError: the checkpoint or the dataset lacks what this audit needs.
        """

    @abc.abstractmethod
    def run(self, subject: Subject) -> Result:
        """Measures, with its control, inside a worker process."""


def need_language_model(audit: str, checkpoint: Artifact[Checkpoint]) -> None:
    """Refuses a checkpoint that gives no likelihood of text.

    Raises:
        ConfigError: its head is not causal_lm.
    """
    if checkpoint.payload.head != "causal_lm":
        raise ConfigError(
            f"the {audit} audit needs a causal_lm checkpoint and {checkpoint.name} has the head {checkpoint.payload.head}",
            where=str(checkpoint.path), todo=f"audit the model that it was tuned from, or leave {audit} out",
        )  # fmt: skip
