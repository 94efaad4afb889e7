"""What turns batches into weight updates: one small face, and plain torch behind it. DeepSpeed stands in its own file."""

import abc
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from fmray.core.errors import RunError
from fmray.objectives import Batch, Forward, LossParts
from fmray.train.layout import Held, Part, held_whole, kept_buffers, part_of, rank_file, read_held, write_part
from fmray.train.optim import Optim, adamw
from fmray.train.storage import persist

if TYPE_CHECKING:
    import torch

Precision = Literal["bf16", "fp16", "fp32"]
# The learning rate of the update that follows so many finished steps.
LrAt = Callable[[int], float]


class Learnt(Protocol):
    """What an engine learns from: an objective of pretraining, or the loss of a task."""

    def count(self, batch: Batch) -> int:
        """See `Objective`."""

    def loss(self, model: Forward, batch: Batch) -> LossParts:
        """See `Objective`."""


@dataclass(frozen=True)
class StepStats:
    """One optimizer step: the summed loss (nats) and the number of targets over the whole global batch, and what was applied.

    `grad_norm` is the norm before clipping. `stop` says whether any worker had been asked to stop by the end of the step.
    """

    loss_sum: float
    count: int
    grad_norm: float
    lr: float
    stop: bool = False

    @property
    def loss(self) -> float:
        """The mean loss of a target."""
        return self.loss_sum / self.count

    @property
    def fault(self) -> str:
        """Which of loss and gradient norm is no finite number, in words; empty where both are."""
        if not math.isfinite(self.loss_sum):
            return f"the loss is {self.loss}"
        # A library's norm of something infinite may be told as -1.
        return "" if math.isfinite(self.grad_norm) and self.grad_norm >= 0 else f"the gradient norm is {self.grad_norm}"

    @property
    def applied(self) -> bool:
        """Whether the weights were updated, which no loss and no gradient may do that is no finite number."""
        return not self.fault


def never() -> bool:
    """Nobody asks to stop."""
    return False


class Engine(abc.ABC):
    """Holds the module, the optimizer and the number of finished steps.

    Gradients are those of the mean over all targets of the global batch: every micro-batch's summed loss is divided by
    the global count, so neither accumulation nor the number of workers changes them. Of the `step` finished steps, `skipped`
    were not applied because loss or gradient norm was no finite number; the schedule stands still over them.
    """

    module: "torch.nn.Module"
    device: "torch.device"
    step: int
    skipped: int

    @abc.abstractmethod
    def forward(self, **inputs: Any) -> Any:
        """The module's output, computed in this engine's precision; at ZeRO stage 3 every worker calls it equally often."""

    @abc.abstractmethod
    def train_batch(self, micro_batches: Sequence[Batch], objective: Learnt, stop_asked: Callable[[], bool] = never) -> StepStats:
        """One optimizer step over this worker's part of a global batch, given as host tensors.

        Where the loss or the gradient norm of the whole global batch is no finite number, no worker's weights and optimizer change.
        `stop_asked` is asked once, late in the step; all workers are told together when any was asked.

        Raises:
            RunError: the global batch holds no target.
        """

    def save(self, folder: Path) -> None:
        """Writes this worker's part of weights and optimizer state below `folder`; every worker calls it with the same one.

        Raises:
            RunError: the optimizer keeps something that fmray cannot save, or the storage refuses it for longer than `persist` waits.
        """
        part = self.part()
        persist(lambda: write_part(folder, part), folder / rank_file(part.rank))

    def part(self) -> Part:
        """This worker's part of weights and optimizer state: the tensors that the next step changes.

        Raises:
            RunError: the optimizer keeps something that fmray cannot save.
        """
        return part_of(self._held(), self._counts())

    def load(self, folder: Path) -> None:
        """Reads what any layout of workers saved; the next step equals that of the uninterrupted run, to the bit on the same layout.

        Raises:
            ArtifactError: it is the state of another model, or not whole.
        """
        self._recount(read_held(folder, self._held()))
        self._loaded()

    def _counts(self) -> dict[str, int]:
        """What is the same on every worker and goes on in a resumed run."""
        return {"step": self.step, "skipped": self.skipped}

    def begin_round(self) -> None:
        """A round begins from another's state: its schedule and its bound of skipped updates begin anew."""
        self.skipped = 0

    def _recount(self, counts: Mapping[str, int]) -> None:
        """Takes up what `_counts` told, of this engine or of another."""
        self.step, self.skipped = counts["step"], counts["skipped"]

    @abc.abstractmethod
    def _held(self) -> Held:
        """What this worker holds of weights and optimizer state."""

    def _loaded(self) -> None:
        """Brings what is computed from the float32 weights up to date."""

    def trained_shapes(self) -> dict[str, tuple[int, ...]]:
        """The whole shapes of the weights that a state holds; those that are shared are named once."""
        named = self.module.named_parameters()
        return {name: tuple(getattr(parameter, "ds_shape", parameter.shape)) for name, parameter in named if parameter.requires_grad}

    def fixed_state_dict(self) -> "dict[str, torch.Tensor]":
        """What a checkpoint of the model has and training does not change, on the host: weights in float32, and buffers. Every worker calls it."""
        import torch

        named = {name: self._whole(parameter) for name, parameter in self.module.named_parameters() if not parameter.requires_grad}
        return {name: value.to("cpu", torch.float32) for name, value in named.items()} | {name: value.cpu() for name, value in kept_buffers(self.module).items()}

    def _whole(self, parameter: "torch.nn.Parameter") -> "torch.Tensor":
        """A parameter that training does not change."""
        return parameter.detach()


class TorchEngine(Engine):
    """One process, plain torch: for one device, for searches and as the yardstick of the other engine.

    bf16 is autocast over float32 weights.
    """

    def __init__(self, model: "torch.nn.Module", optim: Optim, lr_at: LrAt, *, precision: Precision, device: str = "cpu", compile: bool = False) -> None:
        import torch

        self.device = torch.device(device)
        self.module = model.to(self.device, torch.float32)
        self.step = self.skipped = 0
        self._optim, self._lr_at, self._precision = optim, lr_at, precision
        self._optimizer = adamw(self.module, optim)
        self._run: Any = torch.compile(self.module) if compile else self.module

    def forward(self, **inputs: Any) -> Any:
        """See `Engine`."""
        import torch

        with torch.autocast(self.device.type, torch.bfloat16, enabled=self._precision == "bf16"):
            return self._run(**inputs)

    def train_batch(self, micro_batches: Sequence[Batch], objective: Learnt, stop_asked: Callable[[], bool] = never) -> StepStats:
        """See `Engine`."""
        import torch

        (n_targets,) = self._over_workers(sum(objective.count(batch) for batch in micro_batches))
        count = checked_count(int(n_targets), self.step)
        self.module.train()
        loss_sum = torch.zeros((), device=self.device)
        for batch in micro_batches:
            part = objective.loss(self.forward, to_device(batch, self.device)).sum
            (part / count).backward()
            loss_sum += part.detach()
        # As DeepSpeed does: what no loss reaches (a pooler that is not asked) has a gradient of zero, and so a state like all others.
        for parameter in self.module.parameters():
            if parameter.requires_grad and parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        self._add_gradients()
        norm = torch.nn.utils.clip_grad_norm_(self.module.parameters(), self._optim.max_grad_norm)
        lr = set_lr(self._optimizer, self._lr_at(self.step - self.skipped))
        loss, askers = self._over_workers(loss_sum.item(), float(stop_asked()))
        stats = StepStats(loss, count, norm.item(), lr, askers > 0)
        if stats.applied:
            self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self.step += 1
        self.skipped += not stats.applied
        return stats

    def _over_workers(self, *numbers: float) -> list[float]:
        """Each number added up over all workers; here there is one."""
        return list(numbers)

    def _add_gradients(self) -> None:
        """Adds the gradients up over all workers; here there is one."""

    def _held(self) -> Held:
        return held_whole(self.module, self._optimizer)


def to_device(batch: Batch, device: "torch.device") -> Batch:
    """The batch with every tensor on `device`."""
    return {name: value.to(device, non_blocking=True) for name, value in batch.items()}


def set_lr(optimizer: Any, lr: float) -> float:
    """Sets the learning rate of every parameter group and returns it."""
    for group in optimizer.param_groups:
        group["lr"] = lr
    return lr


def checked_count(count: int, step: int) -> int:
    """The count itself.

    Raises:
        RunError: it is zero: there is nothing to learn from, and dividing by it would poison the weights.
    """
    if count == 0:
        raise RunError(f"the global batch after step {step} holds no target", todo="raise global_batch_size or look at the dataset")
    return count
