"""Calls transformers' attention functions on made tensors, and the same in float64 to compare with. Runs in the worker.

Shapes: B rows, H heads, T positions, D head dimension.
"""

import contextlib
import importlib.util
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from benchmarks.attention.cells import Cell, documents

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
PACKAGES = {"flash_attention_2": "flash_attn", "flash_attention_3": "flash_attn_interface"}


class Layer(torch.nn.Module):
    """What transformers' attention functions ask of the layer that calls them."""

    def __init__(self, name: str, causal: bool) -> None:
        super().__init__()
        self.is_causal, self.num_key_value_groups, self.layer_idx = causal, 1, 0
        self.config = SimpleNamespace(_attn_implementation=name)


class NotHere(Exception):
    """The implementation cannot run here, and why."""


def refuse(cell: Cell, device: torch.device) -> None:
    """Says what is known without trying.

    Raises:
        NotHere: its package or its device is missing.
    """
    package = PACKAGES.get(cell.implementation)
    if package is None:
        return
    if device.type != "cuda":
        raise NotHere("runs on GPUs only")
    if importlib.util.find_spec(package) is None:
        raise NotHere(f"the package {package} is not installed")
    if cell.dtype == "fp32":
        raise NotHere("computes in bf16 and fp16 only")


def tensors(cell: Cell, device: torch.device) -> list[Tensor]:
    """q, k, v [B, H, T, D], which want gradients, and the gradient of the output [B, T, H, D]."""
    generator = torch.Generator(device).manual_seed(0)
    shape, dtype = (cell.rows, cell.heads, cell.seq_len, cell.head_dim), DTYPES[cell.dtype]
    made = [torch.randn(shape, device=device, dtype=dtype, generator=generator).requires_grad_() for _ in range(3)]
    return [*made, torch.randn((cell.rows, cell.seq_len, cell.heads, cell.head_dim), device=device, dtype=dtype, generator=generator)]


def segments(cell: Cell, device: torch.device) -> Tensor:
    """Which document each position belongs to, [B, T]."""
    lengths = documents(cell.rows, cell.seq_len)
    return torch.stack([torch.repeat_interleave(torch.arange(len(row)), torch.tensor(row)) for row in lengths]).to(device)


def seen(cell: Cell, device: torch.device) -> Tensor | None:
    """What sees what, as truth values: [1 or B, 1, T, T]; None for all."""
    if cell.mask == "full":
        return None
    at = torch.arange(cell.seq_len, device=device)
    before = at[:, None] >= at[None, :]
    if cell.mask == "causal":
        return before[None, None]
    segments_BT = segments(cell, device)
    return (before & (segments_BT[:, :, None] == segments_BT[:, None, :]))[:, None]


def prepare(cell: Cell, device: torch.device) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """The implementation with its mask made, from q, k, v to the output [B, T, H, D].

    Raises:
        NotHere: it cannot run here.
    """
    refuse(cell, device)
    name, _, backend = cell.implementation.partition(":")
    layer = Layer(name, causal=cell.mask != "full").train()
    keywords: dict[str, Any] = {"attention_mask": None, "scaling": cell.head_dim**-0.5, "dropout": 0.0}
    if name == "eager":
        keywords["attention_mask"] = _additive(seen(cell, device), DTYPES[cell.dtype])
    elif name == "flex_attention":
        keywords["attention_mask"] = _block_mask(cell, device)
    elif name == "sdpa":
        keywords |= {"attention_mask": seen(cell, device) if cell.mask == "packed" else None, "is_causal": cell.mask == "causal"}
    elif cell.mask == "packed":
        keywords |= _lengths(cell, device)
    function = _function(name)

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        with _only(backend):
            output: Tensor = function(layer, q, k, v, **keywords)[0]
        return output

    return attend


def _function(name: str) -> Callable[..., Any]:
    if name == "eager":
        from transformers.models.llama.modeling_llama import eager_attention_forward

        return eager_attention_forward
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    return ALL_ATTENTION_FUNCTIONS[name]  # type: ignore[no-any-return]


def _only(backend: str) -> contextlib.AbstractContextManager[Any]:
    if not backend:
        return contextlib.nullcontext()
    from torch.nn.attention import SDPBackend, sdpa_kernel

    names = {"math": "MATH", "flash": "FLASH_ATTENTION", "efficient": "EFFICIENT_ATTENTION", "cudnn": "CUDNN_ATTENTION"}
    return sdpa_kernel(getattr(SDPBackend, names[backend]))


def _additive(mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """The form in which transformers hands a mask to eager attention: what is hidden gets the lowest number."""
    if mask is None:
        return None
    return torch.zeros(mask.shape, device=mask.device, dtype=dtype).masked_fill_(~mask, torch.finfo(dtype).min)


def _block_mask(cell: Cell, device: torch.device) -> Any:
    if cell.mask == "full":
        return None
    from torch.nn.attention.flex_attention import create_block_mask

    segments_BT = segments(cell, device) if cell.mask == "packed" else None

    def visible(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        before = query >= key
        return before if segments_BT is None else before & (segments_BT[row, query] == segments_BT[row, key])

    # Uncompiled it would hold the whole square, which long rows on a GPU do not allow.
    make = torch.compile(create_block_mask) if device.type == "cuda" else create_block_mask
    return make(visible, cell.rows if segments_BT is not None else None, None, cell.seq_len, cell.seq_len, device=device.type)


def _lengths(cell: Cell, device: torch.device) -> dict[str, Any]:
    """Where documents begin when all rows stand behind each other, as flash attention reads them."""
    lengths = [length for row in documents(cell.rows, cell.seq_len) for length in row]
    begins = torch.tensor([0, *lengths], device=device).cumsum(0).to(torch.int32)
    return {"cu_seq_lens_q": begins, "cu_seq_lens_k": begins, "max_length_q": max(lengths), "max_length_k": max(lengths)}


def errors(cell: Cell, attend: Callable[[Tensor, Tensor, Tensor], Tensor], made: list[Tensor]) -> dict[str, float]:
    """The largest deviation of output and gradients from float64, over the largest value there; of the first and the last row and head.

    float64 starts from the same rounded inputs, so that what is told is the implementation's own error.
    """
    q, k, v, gradient = made
    output = attend(q, k, v)
    got = [output.detach().transpose(1, 2), *torch.autograd.grad(output, (q, k, v), gradient)]
    mask, worst = seen(cell, q.device), dict.fromkeys(("output", "dq", "dk", "dv"), 0.0)
    for row, head in {(0, 0), (cell.rows - 1, cell.heads - 1)}:
        exact = _exact([x.detach()[row, head] for x in (q, k, v)], gradient[row, :, head], None if mask is None else mask[row % len(mask), 0])
        for name, ours, theirs in zip(worst, got, exact, strict=True):
            deviation = ((ours[row, head].double() - theirs).abs().max() / theirs.abs().max()).item()
            # A NaN is larger than nothing to Python: it must not pass for the smaller.
            worst[name] = max(worst[name], deviation) if deviation == deviation else float("inf")  # noqa: PLR0124
    return worst


def _exact(qkv: list[Tensor], gradient_TD: Tensor, mask_TT: Tensor | None) -> list[Tensor]:
    """Output and gradients of one head of one row in float64."""
    q, k, v = (x.double().requires_grad_() for x in qkv)
    scores = q @ k.T * q.shape[-1] ** -0.5
    if mask_TT is not None:
        scores = scores.masked_fill(~mask_TT, float("-inf"))
    output = scores.softmax(-1) @ v
    return [output.detach(), *torch.autograd.grad(output, (q, k, v), gradient_TD.double())]
