"""Where a model's Hugging Face config says how it numbers positions and cuts images."""

from collections.abc import Mapping
from typing import Any

# These count positions from behind the padding token's id, which takes the first rows of their table for itself.
OFFSET_TYPES = ("roberta", "xlm-roberta", "camembert")


def position_offset(hf_config: Mapping[str, Any]) -> int:
    """What stands between a position and its row in the table of positions: pad_token_id + 1 for RoBERTa's kin, else 0."""
    return int(hf_config.get("pad_token_id") or 0) + 1 if hf_config.get("model_type") in OFFSET_TYPES else 0


def n_positions(config: Any) -> int | None:
    """The most tokens that a text model reads at once, by its config of transformers: its table of positions less the rows before the first
    one; None where it has no such limit.
    """
    own = config.get_text_config()
    table = getattr(own, "max_position_embeddings", None)
    return None if table is None else int(table) - position_offset(own.to_dict())


def patch_size(hf_config: Mapping[str, Any]) -> int:
    """The side of the square patches of an image model, 0 for text."""
    return int(hf_config.get("patch_size") or 0)
