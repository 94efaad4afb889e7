"""What happens when a loss or a gradient is no number: the batch is kept for whoever looks into it, and the run stops or goes on without it."""

import logging
import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from fmray.core.artifact import write_json
from fmray.core.config import Config
from fmray.core.cursor import Cursor
from fmray.core.errors import RunError
from fmray.objectives import Batch, Forward, LossParts
from fmray.train.engine import Engine, Learnt, StepStats
from fmray.train.faults import put_down
from fmray.train.fp16 import Fp16Engine

logger = logging.getLogger(__name__)

BATCH = "batch.json"


class Nonfinite(Config):
    """What a run does after a step whose loss or gradient norm is not a finite number. Such an update is never applied.

    It is no part of the identity: a run that stopped leaves no artifact, so every artifact is the one that skipping gives.

    Attributes:
        action: `stop` ends the run, `skip` goes on with the next batch; weights, optimizer and schedule stand where they stood.
        max_skipped: so many updates may be skipped in all; the next one stops the run.
    """

    action: Literal["stop", "skip"] = "stop"
    max_skipped: int = Field(10, ge=1)


class Heard:
    """An objective, and what its latest losses were on this worker alone, before they were added up over all."""

    def __init__(self, objective: Learnt, passes: int) -> None:
        """`passes`: forward passes of a step."""
        self._objective, self._sums = objective, deque[Any](maxlen=passes)

    def count(self, batch: Batch) -> int:
        """See `Objective`."""
        return self._objective.count(batch)

    def loss(self, model: Forward, batch: Batch) -> LossParts:
        """See `Objective`."""
        parts = self._objective.loss(model, batch)
        self._sums.append(parts.sum.detach())
        return parts

    def wrong(self) -> bool:
        """Whether a loss of this worker's latest step is no finite number."""
        return not all(math.isfinite(value.item()) for value in self._sums)

    def wrong_ranks(self) -> list[int]:
        """The workers that say so. Every worker calls it."""
        import torch

        if not torch.distributed.is_available() or not torch.distributed.is_initialized():
            return [0] if self.wrong() else []
        told: list[Any] = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(told, self.wrong())
        return [rank for rank, wrong in enumerate(told) if wrong]


@dataclass(frozen=True)
class NonfiniteGuard:
    """Holds a run to its rule. Every worker asks it about the same steps, so all go on or stop together.

    `folder` gets a folder a step: `rank-N.safetensors` holds that worker's tensors as `<micro-batch>.<name>` (row ids among them), and
    `batch.json` where the batch stands. With `heard`, workers that alone had no number are put down in the run's faults (see `faults`).
    """

    rule: Nonfinite
    engine: Engine
    folder: Path
    rank: int
    heard: Heard | None = None

    def __call__(self, stats: StepStats, micro_batches: Sequence[Batch], behind: Cursor) -> None:
        """Keeps the batch of the engine's latest step, and returns when the run may go on.

        Raises:
            RunError: it may not.
        """
        step = self.engine.step
        rescales = 0
        if isinstance(self.engine, Fp16Engine):
            rescales = self.engine.rescales
            if self.engine.rescaled:
                logger.info("step %d is not applied: its loss was scaled too far for float16, and the next one less", step)
                return
        kept = self._keep(step, stats, micro_batches, behind)
        if self.heard is not None:
            self._blame(self.heard.wrong_ranks(), f"{stats.fault} at step {step}")
        if self.rule.action == "skip" and self.engine.skipped - rescales <= self.rule.max_skipped:
            logger.warning("step %d is skipped: %s; %s", step, stats.fault, kept)
            return
        more = f", after {self.rule.max_skipped} updates that were skipped" if self.rule.action == "skip" else ""
        other = "" if self.rule.action == "skip" else " (nonfinite.action=skip goes on without it)"
        raise RunError(f"{stats.fault} at step {step}{more}; {kept}", todo=f"look at the data, lower optim.lr or raise optim.warmup_steps{other}")

    def _blame(self, ranks: Sequence[int], what: str) -> None:
        """Puts the fault down to the nodes of those ranks, unless all have it: then it is the model's."""
        import torch

        if self.rank == 0 and 0 < len(ranks) < torch.distributed.get_world_size():
            try:
                put_down(self.folder.parent, ranks, "no_number", what)
            except OSError as error:
                logger.warning("which node it came from could not be put down (%s)", error)

    def _keep(self, step: int, stats: StepStats, micro_batches: Sequence[Batch], behind: Cursor) -> str:
        from safetensors import SafetensorError
        from safetensors.torch import save_file

        place = self.folder / f"step-{step:09d}"
        tensors = {f"{index}.{name}": value.contiguous() for index, batch in enumerate(micro_batches) for name, value in batch.items()}
        try:
            place.mkdir(parents=True, exist_ok=True)
            save_file(tensors, place / f"rank-{self.rank}.safetensors")
            if self.rank == 0:
                figures = {"loss": str(stats.loss), "grad_norm": str(stats.grad_norm), "lr": stats.lr, "n_targets": stats.count}
                write_json(place / BATCH, {"step": step, "cursor_behind": behind.model_dump(mode="json"), **figures})
        except (OSError, SafetensorError) as error:
            # The fault of the numbers is what must be told, even where the storage fails as well.
            return f"its batch could not be saved ({error})"
        return f"its batch is saved in {place}"
