"""Which of transformers' attention implementations a training runs, and whether it keeps documents that share a row apart.

Decoders are given no mask: their documents are told by positions that restart. sdpa and eager make a mask of pairs of them, flex_attention a
mask of blocks, which it need not compute. Flash attention takes no mask: transformers 5.23 finds the documents' bounds in the positions where
a batch has one row, and with several rows silently lets each document see those before it; `tell_bounds` gives it the bounds of any batch.

Encoders over packed rows are given a mask of pairs, true where one position sees another. sdpa alone reads it so: eager and flex_attention
would add it to the scores, and flash attention takes none.
"""

import functools
import importlib
import importlib.util
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from fmray.core.errors import ConfigError
from fmray.model.activations import Precision
from fmray.model.architectures import Family

if TYPE_CHECKING:
    from torch import Tensor

Implementation = Literal["sdpa", "eager", "flash_attention_2", "flex_attention"]
Attention = Literal["auto", "sdpa", "eager", "flash_attention_2", "flex_attention"]
FLASH, FLEX = "flash_attention_2", "flex_attention"
# Gemma 2 caps its scores, which sdpa cannot; GPT-2 has no flex_attention in transformers.
NO_SDPA, NO_FLEX = ("gemma2",), ("gpt2",)
# What configs call the share of attention weights that are dropped.
DROPOUTS = ("attention_dropout", "attn_pdrop")


def implementation(asked: Attention, *, family: Family, model_type: str, precision: Precision, use_gpu: bool) -> Implementation:
    """What is asked for, and of `auto` the fastest that is right for the masks of the family.

    On a CPU that is sdpa: by benchmarks/attention it is the fastest of those with a backward pass, or close to it, and holds no scores. On a
    GPU it is flash attention for decoders in half precision, where its package works: it computes the pairs within documents alone, while
    sdpa with a mask computes all, and by none of its flash kernels. flex_attention skips other documents too, but compiles for every shape
    and drops no attention weights: it is there to be asked for. Encoders and models of images keep sdpa, whose masks are read right.
    """
    if asked != "auto":
        return asked
    if use_gpu and family == "decoder" and precision != "fp32" and flash_works():
        return "flash_attention_2"
    return "eager" if model_type in NO_SDPA else "sdpa"


def attention_fault(asked: Attention, *, family: Family, precision: Precision, use_gpu: bool, autocast: bool) -> str | None:
    """Why a training cannot run this implementation, whatever its model; None when it can. `autocast`: whether float32 weights compute in bf16."""
    if asked not in (FLASH, FLEX):
        return None
    if family != "decoder":
        return f"attention {asked} is for decoders, whose documents are told apart by positions, not for the family {family}: leave it out"
    if not use_gpu:
        why = "has no backward pass on CPUs" if asked == FLEX else "runs on GPUs only"
        return f"attention {asked} {why}: set use_gpu: true, or leave it out"
    if asked == FLASH and precision == "fp32":
        return f"attention {FLASH} computes in bf16 or fp16, and precision is fp32: set one of these, or leave it out"
    if asked == FLEX and autocast:
        return f"attention {FLEX} wants queries, keys and values of one precision, which autocast does not give: take engine deepspeed and zero.stage 1, 2 or 3"
    return None


def check_attention(asked: Attention, told: Mapping[str, Any], where: str) -> None:
    """Refuses an implementation that models of this type lack.

    Args:
        told: of the model's Hugging Face config, `model_type` and what it says of dropout.

    Raises:
        ConfigError: they lack it.
    """
    kind, why = told.get("model_type"), None
    dropped = [f"{name} {told[name]:g}" for name in DROPOUTS if told.get(name)]
    if asked == "sdpa" and kind in NO_SDPA:
        why = f"models of the type {kind} cap their scores, which sdpa cannot"
    elif asked == FLEX and kind in NO_FLEX:
        why = f"models of the type {kind} have no flex_attention in transformers"
    elif asked == FLEX and dropped:
        why = f"flex_attention drops no attention weights, and the model asks for {dropped[0]}"
    if why is not None:
        raise ConfigError(why, where=f"{where}.attention", todo="leave it out")


@functools.cache
def flash_works() -> bool:
    """Whether flash attention runs here: its package is there, was built for this torch, and there is a GPU."""
    if importlib.util.find_spec("flash_attn") is None:
        return False
    try:
        importlib.import_module("flash_attn")
    except (ImportError, OSError):
        return False
    from transformers.utils import is_flash_attn_2_available

    return bool(is_flash_attn_2_available())


def require_flash() -> None:
    """Refuses flash attention where it does not run; a worker asks, for the driver may have no GPU.

    Raises:
        ConfigError: it does not run here.
    """
    if not flash_works():
        raise ConfigError(f"{FLASH} needs a GPU and the package flash-attn, built for this torch, on every worker", where="attention", todo="install it there, or leave attention out")


def tell_bounds(model: Any) -> Any:
    """The same model, which tells flash attention at every pass where documents begin and end, if its positions do and it is given no mask."""
    import torch

    bounds = torch.compiler.disable(document_bounds)

    def with_bounds(module: Any, args: Any, inputs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        if inputs.get("position_ids") is None or inputs.get("attention_mask") is not None:
            return args, inputs
        return args, inputs | bounds(inputs["position_ids"])

    model.register_forward_pre_hook(with_bounds, with_kwargs=True)
    return model


def document_bounds(position_ids_BT: "Tensor") -> "dict[str, Tensor | int]":
    """Where documents begin among all positions of a batch, its rows end to end, and behind the last: transformers' arguments for flash attention.

    A document begins with each row, and where a position is not the one that follows. Each position of padding stands for itself.
    """
    import torch

    begins_BT = torch.ones_like(position_ids_BT, dtype=torch.bool)
    begins_BT[:, 1:] = position_ids_BT[:, 1:] != position_ids_BT[:, :-1] + 1
    bounds = torch.nn.functional.pad(begins_BT.flatten().nonzero().flatten(), (0, 1), value=begins_BT.numel()).to(torch.int32)
    longest = int(bounds.diff().max())
    return {"cu_seq_lens_q": bounds, "cu_seq_lens_k": bounds, "max_length_q": longest, "max_length_k": longest}
