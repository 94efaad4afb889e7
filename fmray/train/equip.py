"""How a model's passes are carried out, which changes none of its weights and nothing that it computes but rounding."""

from typing import Any

from fmray.model.attention import Implementation, tell_bounds
from fmray.model.target_loss import can_fuse, fuse_head


def equip(model: Any, *, fused_loss: bool, activation_checkpointing: bool, attention: Implementation = "sdpa") -> Any:
    """The same model, told to take the loss inside of its output head where it can, or to compute activations again instead of keeping them.

    Args:
        attention: what the model was built with; flash attention is told where documents begin.
    """
    if attention.startswith("flash_attention"):
        tell_bounds(model)
    if activation_checkpointing:
        # Reentrant recomputing would run without the hooks by which ZeRO stage 3 brings weights in.
        model.gradient_checkpointing_enable({"use_reentrant": False})
    if fused_loss and can_fuse(model):
        fuse_head(model)
    return model
