"""Where a model's Hugging Face config says how it numbers positions and cuts images."""

from collections.abc import Mapping
from typing import Any

# These count positions from behind the padding token's id, which takes the first rows of their table for itself.
OFFSET_TYPES = ("roberta", "xlm-roberta", "camembert")


def position_offset(hf_config: Mapping[str, Any]) -> int:
    """What stands between a position and its row in the table of positions: pad_token_id + 1 for RoBERTa's kin, else 0."""
    return int(hf_config.get("pad_token_id") or 0) + 1 if hf_config.get("model_type") in OFFSET_TYPES else 0


def max_positions(hf_config: Mapping[str, Any]) -> int | None:
    """The longest row that a model has positions for: its table less the rows before the first one. None where its config names no limit, or
    one that its relative positions do not have.
    """
    if hf_config.get("model_type") == "t5":
        return None
    found = next((hf_config[name] for name in ("max_position_embeddings", "n_positions") if hf_config.get(name) is not None), None)
    return None if found is None else int(found) - position_offset(hf_config)


def n_positions(config: Any) -> int | None:
    """The most tokens that a text model reads at once, by its config of transformers; see `max_positions`."""
    told: dict[str, Any] = config.get_text_config().to_dict()
    return max_positions(told)


def patch_size(hf_config: Mapping[str, Any]) -> int:
    """The side of the square patches of an image model, 0 for text."""
    return int(hf_config.get("patch_size") or 0)
