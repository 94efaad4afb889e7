"""FLOPs of a model that is known by its Hugging Face config alone."""

from collections.abc import Mapping
from typing import Any

# A GPT-2 config says layers and width in words of its own.
GPT2_NAMES = {"num_hidden_layers": "n_layer", "hidden_size": "n_embd"}
# What is read here of the config of a model with one half.
READ = ("num_hidden_layers", "hidden_size", "vocab_size", "tie_word_embeddings", "num_attention_heads", "head_dim", "n_positions", "n_embd")


def flops_per_token(config: Mapping[str, Any], n_params: int, seq_len: int) -> float | None:
    """6 N + 12 L d T for forward and backward of one position, as `Architecture.flops_per_token`; None when the config lacks the sizes.

    None for encoder-decoders too: how much of a row either half reads is not in the config.

    N are the parameters that multiply: an input embedding that is not tied to the head is only looked up, and so is GPT-2's table of
    positions. d is the width of attention: of all heads together where the config tells their dimension, else the hidden size.
    """
    sizes = [config.get(key, config.get(GPT2_NAMES.get(key, key))) for key in ("num_hidden_layers", "hidden_size", "vocab_size")]
    if None in sizes or config.get("is_encoder_decoder"):
        return None
    layers, hidden, vocab_size = (int(size) for size in sizes if size is not None)
    lookups = (0 if config.get("tie_word_embeddings") else vocab_size * hidden) + int(config.get("n_positions") or 0) * int(config.get("n_embd") or 0)
    width = int(config.get("num_attention_heads") or 0) * int(config.get("head_dim") or 0) or hidden
    return 6.0 * (n_params - lookups) + 12.0 * layers * width * seq_len
