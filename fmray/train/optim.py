"""AdamW with decoupled weight decay, and the learning rate as a function of the step."""

from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import Field, model_validator

from fmray.core.config import Config, runtime
from fmray.train.schedules import Schedule
from fmray.train.schedules.cosine import Cosine

if TYPE_CHECKING:
    import torch


Implementation = Literal["auto", "fused", "foreach", "single"]


class Optim(Config):
    """AdamW (Loshchilov and Hutter 2019, https://arxiv.org/abs/1711.05101) and its schedule.

    Attributes:
        implementation: how torch carries the update out, which changes its rounding alone: in one kernel (`fused`), as operations over all
            tensors at once (`foreach`, which holds the roots of all second moments meanwhile), or a tensor after the other (`single`).
            `auto` is fused, on CPUs and GPUs alike: it reads and writes every number once.
    """

    lr: float = Field(1e-3, gt=0)
    weight_decay: float = Field(0.1, ge=0)
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = Field(1e-8, gt=0)
    max_grad_norm: float = Field(1.0, gt=0)
    schedule: Schedule = Cosine()
    warmup_steps: int = Field(0, ge=0)
    implementation: Implementation = runtime("auto")

    @model_validator(mode="after")
    def _betas_in_range(self) -> Self:
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas must lie in [0, 1), got {list(self.betas)}")
        return self

    def lr_at(self, step: int, max_steps: int) -> float:
        """The learning rate of the update that follows `step` finished ones, of `max_steps` in all.

        It rises evenly over `warmup_steps` updates, the first of which already moves, then follows the schedule.
        """
        if step < self.warmup_steps:
            return self.lr * (step + 1) / self.warmup_steps
        return self.lr * self.schedule.factor((step - self.warmup_steps) / max(1, max_steps - self.warmup_steps))


def param_groups(model: "torch.nn.Module", weight_decay: float) -> list[dict[str, Any]]:
    """Matrices decay; vectors (norms and biases) do not, for pulling them to zero changes scale, not complexity."""
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def adamw(model: "torch.nn.Module", optim: Optim) -> "torch.optim.AdamW":
    """torch's AdamW over the decay groups, carried out as the config says."""
    import torch

    kind = "fused" if optim.implementation == "auto" else optim.implementation
    groups = param_groups(model, optim.weight_decay)
    return torch.optim.AdamW(groups, lr=optim.lr, betas=optim.betas, eps=optim.eps, fused=kind == "fused", foreach=kind == "foreach")
