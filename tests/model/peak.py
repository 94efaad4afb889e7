"""Measures what a forward and backward pass holds on a CPU: every tensor's storage from its making to its end."""

import weakref
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only


class PeakMemory(TorchDispatchMode):
    """The most bytes that storages made inside held at once, and what they hold `now`; `known` tensors (weights, inputs, gradients made before) are left out."""

    def __init__(self, known: Iterable[Tensor]) -> None:
        super().__init__()
        self.peak = self.now = 0
        self._sizes: dict[int, int] = {}
        self._known = {tensor.untyped_storage().data_ptr() for tensor in known}

    def __torch_dispatch__(self, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        made = function(*args, **(kwargs or {}))
        tree_map_only(Tensor, self._see, made)
        return made

    def _see(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        # A tensor on the device meta has a size and no memory.
        if tensor.is_meta or storage._cdata in self._sizes or storage.data_ptr() in self._known or not storage.nbytes():
            return
        self._sizes[storage._cdata] = storage.nbytes()
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._gone, storage._cdata)

    def _gone(self, key: int) -> None:
        self.now -= self._sizes.pop(key)


def peak_bytes(model: torch.nn.Module, loss: Callable[[], Tensor], inputs: Iterable[Tensor]) -> int:
    """The peak of `loss().backward()` besides weights, their gradients and `inputs`, after one pass that is not watched."""
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    loss().backward()
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    with PeakMemory([*model.parameters(), *model.buffers(), *gradients, *inputs]) as watched:
        loss().backward()
    return watched.peak
