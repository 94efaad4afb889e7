"""Cross-entropy of told tokens, where it can be straight from hidden states: the table of [positions, vocabulary] logits is never whole.

A table of 4,096 positions and 8,192 tokens takes 134 MB in float32, is written, read and turned back several times, and outgrows every
cache. A fused head multiplies some positions at a time, takes their loss and, where gradients are wanted, turns back at once, so that
nothing of the size of the vocabulary is kept (as Hsu et al. 2024 do on GPUs, https://arxiv.org/abs/2410.10989, section 3.2). Positions
without a target are left out. Shapes: N positions, D hidden width, V vocabulary.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from fmray.model.activations import ELEMENT_BYTES, Precision

if TYPE_CHECKING:
    import torch
    from torch import Tensor

IGNORED = -100
# transformers' models whose logits are the output head's product and nothing besides: no scale, no cap, no bias added later.
FUSED_TYPES = ("llama", "mistral", "qwen2", "qwen3", "gpt2", "bert", "roberta", "modernbert", "t5")
# Logits of so many bytes at a time, in float32: on a CPU what its second cache holds, on a GPU what fills it.
CHUNK_BYTES = {"cpu": 4 << 20, "cuda": 256 << 20}

_labels: ContextVar[Tensor | None] = ContextVar("labels", default=None)


def target_loss(model: Callable[..., Any], labels: Tensor, **inputs: Any) -> Tensor:
    """Summed cross-entropy in nats, in float32 whatever the model computes in: a scalar with its graph.

    Args:
        model: a model with an output head over the vocabulary, or what runs its forward pass; fused or not.
        labels: the token to be told at each position, [..., positions], -100 for none.
        inputs: of the model's forward pass.
    """
    import torch.nn.functional as F

    token = _labels.set(labels)
    try:
        found: Tensor = model(**inputs).logits
    finally:
        _labels.reset(token)
    # A fused head gives the loss itself in place of its logits.
    return found if found.ndim == 0 else F.cross_entropy(found.float().flatten(0, -2), labels.flatten(), ignore_index=IGNORED, reduction="sum")


def can_fuse(model: Any) -> bool:
    """Whether the model's logits are the plain product of its output head, so that the loss can be taken inside of it."""
    import torch

    head = model.get_output_embeddings()
    return model.config.model_type in FUSED_TYPES and type(head) is torch.nn.Linear


def fuse_head(model: Any) -> None:
    """Lets the model's output head tell `target_loss` its loss. Called in any other way the model gives logits as before."""
    import torch

    head = model.get_output_embeddings()
    plain, chunked = head.forward, torch.compiler.disable(_chunked())

    def forward(hidden: Tensor) -> Tensor:
        labels = _labels.get()
        if labels is None or labels.shape != hidden.shape[:-1]:
            return plain(hidden)
        return chunked(hidden, head.weight, head.bias, labels)

    head.forward = forward


def chunk_rows(vocab_size: int, device: str) -> int:
    """Positions of which logits are made at a time."""
    return max(1, CHUNK_BYTES.get(device, CHUNK_BYTES["cuda"]) // (4 * vocab_size))


def fused_bytes(positions: int, vocab_size: int, width: int, *, precision: Precision, device: str) -> float:
    """The most bytes that a fused head holds at once for a loss of so many positions, besides what the rest of the model holds for them.

    Of three moments: in a chunk there are its logits in float32 and its logits' gradients in the model's precision, the positions that
    were picked out and their gradients, the weight's gradient so far and what the chunk adds to it; on the way back these gradients
    are scaled, first those of positions, then those of the weight, in float32 and then in the model's precision.
    """
    size, cast = ELEMENT_BYTES[precision], 0 if precision == "fp32" else ELEMENT_BYTES[precision]
    hidden, weight = positions * width, vocab_size * width
    chunk = min(positions, chunk_rows(vocab_size, device)) * vocab_size * (4 + cast)
    scaled_hidden = hidden * (size + 4 + (4 if cast else 0)) + 4 * weight
    return float(max(2 * size * hidden + (4 + size) * weight + chunk, scaled_hidden, 2 * size * hidden + (8 + cast) * weight))


def _compute_dtype(weight: Tensor) -> torch.dtype:
    import torch

    device = weight.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype


@functools.cache
def _chunked() -> Callable[[Tensor, Tensor, Tensor | None, Tensor], Tensor]:
    """The loss as a function of hidden states [..., D], weight [V, D], bias [V] and labels [...]. Made here, for torch is imported late."""
    import torch
    import torch.nn.functional as F

    class ChunkedLoss(torch.autograd.Function):
        """Gradients are found along with the loss; backward only scales them."""

        @staticmethod
        def forward(ctx: Any, hidden_ND: Tensor, weight_VD: Tensor, bias_V: Tensor | None, labels_N: Tensor, wanted: bool) -> Tensor:
            turns = wanted and any(ctx.needs_input_grad)
            total = torch.zeros((), dtype=torch.float32, device=hidden_ND.device)
            grad_ND = torch.empty_like(hidden_ND) if turns else None
            grad_VD = torch.zeros(weight_VD.shape, dtype=torch.float32, device=hidden_ND.device) if turns else None
            grad_V = torch.zeros(bias_V.shape, dtype=torch.float32, device=hidden_ND.device) if turns and bias_V is not None else None
            size = chunk_rows(weight_VD.shape[0], hidden_ND.device.type)
            for at in range(0, len(labels_N), size):
                some_CD, told_C1 = hidden_ND[at : at + size], labels_N[at : at + size, None]
                logits_CV = F.linear(some_CD, weight_VD, bias_V).float()
                # Not the logarithm of a chance, which may be too small for a number to hold.
                logits_CV -= logits_CV.amax(1, keepdim=True)
                told_logits_C1 = logits_CV.gather(1, told_C1)
                sums_C1 = logits_CV.exp_().sum(1, keepdim=True)
                total += (sums_C1.log() - told_logits_C1).sum()
                if grad_ND is None or grad_VD is None:
                    continue
                off_CV = logits_CV.div_(sums_C1).scatter_add_(1, told_C1, torch.full_like(sums_C1, -1)).to(hidden_ND.dtype)
                torch.mm(off_CV, weight_VD, out=grad_ND[at : at + size])
                grad_VD += off_CV.t() @ some_CD
                if grad_V is not None:
                    grad_V += off_CV.sum(0, dtype=torch.float32)
            ctx.save_for_backward(grad_ND, grad_VD, grad_V)
            ctx.dtypes = hidden_ND.dtype, weight_VD.dtype
            return total

        @staticmethod
        def backward(ctx: Any, *grads: Tensor) -> Any:
            grad_ND, grad_VD, grad_V = ctx.saved_tensors
            hidden, weight = ctx.dtypes
            return (grads[0] * grad_ND.float()).to(hidden), (grads[0] * grad_VD).to(weight), None if grad_V is None else (grads[0] * grad_V).to(weight), None, None

    def loss(hidden: Tensor, weight_VD: Tensor, bias_V: Tensor | None, labels: Tensor) -> Tensor:
        dtype = _compute_dtype(weight_VD)
        hidden_ND, labels_N = hidden.flatten(0, -2), labels.flatten()
        told_M = (labels_N != IGNORED).nonzero().squeeze(1)
        if len(told_M) < len(labels_N):
            hidden_ND, labels_N = hidden_ND[told_M], labels_N[told_M]
        with torch.autocast(hidden.device.type, enabled=False):
            found: Tensor = ChunkedLoss.apply(hidden_ND.to(dtype), weight_VD.to(dtype), None if bias_V is None else bias_V.to(dtype), labels_N, torch.is_grad_enabled())
        return found

    return loss
