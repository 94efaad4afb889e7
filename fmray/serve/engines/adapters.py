"""Several low-rank adapters on one model in memory: every token of a batch is computed with its own request's adapter, or with none.

peft puts one adapter on a whole batch, or one on each row of it. Continuous batching has one row, in which the tokens of all requests
lie behind each other, so the choice must be made by token, as S-LoRA (https://arxiv.org/abs/2311.03285) makes it.

Legend: N tokens of a batch, D features in, R rank, O features out.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fmray.core.errors import ArtifactError
from fmray.model.adapter import Adapter

if TYPE_CHECKING:
    import torch


class Routes:
    """Which tokens of the pass under way go through which adapter. One model has one of it: passes of a model follow each other.

    `groups` names an adapter with the tokens of its requests, None for all of them; tokens in no group are the base's own.
    """

    def __init__(self) -> None:
        self.groups: tuple[tuple[str, torch.Tensor | None], ...] = ()

    def all_through(self, adapter: str | None) -> None:
        """The next passes are one adapter's, or with None the base's."""
        self.groups = () if adapter is None else ((adapter, None),)

    def by_request(self, asked: Sequence[tuple[str | None, int]], device: Any) -> None:
        """The next pass holds the tokens of these requests in order: the adapter of each, and how many tokens it has."""
        import torch

        named = {adapter for adapter, _ in asked}
        if len(named) == 1:
            self.all_through(named.pop())
            return
        places: dict[str, list[int]] = {}
        start = 0
        for adapter, length in asked:
            if adapter is not None:
                places.setdefault(adapter, []).extend(range(start, start + length))
            start += length
        self.groups = tuple((name, torch.tensor(places_N, device=device)) for name, places_N in places.items())


class Sum:
    """A hook on a linear layer: adds s B A x to its output for the tokens of each adapter that has the layer."""

    def __init__(self, routes: Routes) -> None:
        self.routes = routes
        self.weights: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}

    def __call__(self, layer: Any, inputs: tuple[Any, ...], output: Any) -> Any:
        """The layer's output with what the adapters add; see `torch.nn.Module.register_forward_hook`."""
        from torch.nn.functional import linear

        for name, places_N in self.routes.groups:
            if name not in self.weights:
                continue
            down_RD, up_OR = self.weights[name]
            if places_N is None:
                output = output + linear(linear(inputs[0], down_RD), up_OR)
            else:
                rows_ND = inputs[0].reshape(-1, inputs[0].shape[-1])[places_N]
                added_NO = linear(linear(rows_ND, down_RD), up_OR)
                output = output.reshape(-1, output.shape[-1]).index_add(0, places_N, added_NO).view_as(output)
        return output


def attach(model: Any, adapters: Mapping[str, Adapter]) -> Routes:
    """Puts adapters on a model beside its weights, which stay as they are.

    Raises:
        ArtifactError: an adapter does not fit the model.
    """
    routes, sums = Routes(), dict[str, Sum]()
    for name, adapter in adapters.items():
        for path, (down_RD, up_OR) in adapter.weights().items():
            layer = _layer(model, path, adapter, (down_RD.shape[1], up_OR.shape[0]))
            if path not in sums:
                sums[path] = Sum(routes)
                layer.register_forward_hook(sums[path])
            like = layer.weight
            sums[path].weights[name] = down_RD.to(like), (up_OR.float() * adapter.scaling(path)).to(like)
    return routes


def tensors_of(model: Any) -> "list[torch.Tensor]":
    """The adapters' weights on a model, which a twin of it shares as it shares the model's own."""
    hooks = [hook for layer in model.modules() for hook in layer._forward_hooks.values() if isinstance(hook, Sum)]
    return [tensor for hook in hooks for pair in hook.weights.values() for tensor in pair]


def _layer(model: Any, path: str, adapter: Adapter, features: tuple[int, int]) -> Any:
    """The linear layer of a path, with `features` in and out."""
    try:
        layer = model.get_submodule(path)
    except AttributeError:
        layer = None
    shape = tuple(getattr(getattr(layer, "weight", None), "shape", ()))
    # transformers' Conv1D keeps its weight transposed.
    held = shape[::-1] if type(layer).__name__ == "Linear" else shape
    if held != features or layer is model.get_output_embeddings():
        raise ArtifactError(f"does not fit the model: {path} is no layer of its body from {features[0]} to {features[1]} features", where=str(adapter.folder))
    return layer
