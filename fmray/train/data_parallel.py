"""Several workers with the whole model each, in plain torch: what fine-tunings on more than one worker train with."""

from typing import TYPE_CHECKING, TypeVar

from fmray.train.engine import LrAt, Precision, TorchEngine
from fmray.train.optim import Optim

if TYPE_CHECKING:
    import torch

T = TypeVar("T")


class DataParallelEngine(TorchEngine):
    """One of the workers of a process group. Gradients, losses and counts are added up over the workers, so that each makes the same update.

    A worker's part of a global batch may have any number of micro-batches, also none. Every worker holds all of weights and optimizer
    state: one of them saves it for all, and each loads what any layout of workers saved.
    """

    def __init__(self, model: "torch.nn.Module", optim: Optim, lr_at: LrAt, *, precision: Precision, device: str = "cpu") -> None:
        import torch

        super().__init__(model, optim, lr_at, precision=precision, device=device)
        for parameter in self.module.parameters():
            if parameter.requires_grad:
                torch.distributed.broadcast(parameter.detach(), src=0)

    def _over_workers(self, *numbers: float) -> list[float]:
        import torch

        summed = torch.tensor(numbers, dtype=torch.float64, device=self.device)
        torch.distributed.all_reduce(summed)
        return [float(number) for number in summed.tolist()]

    def _add_gradients(self) -> None:
        import torch

        gradients = [parameter.grad for parameter in self.module.parameters() if parameter.grad is not None]
        # One exchange of all of them: a model has hundreds of tensors, most of them small.
        flat = torch.nn.utils.parameters_to_vector(gradients)
        torch.distributed.all_reduce(flat)
        torch.nn.utils.vector_to_parameters(flat, gradients)


def from_first(value: T, world_size: int) -> T:
    """The value that rank 0 gives, on every worker; with one worker its own."""
    import torch

    told = [value]
    if world_size > 1:
        torch.distributed.broadcast_object_list(told, src=0)
    return told[0]
