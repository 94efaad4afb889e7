"""How many bytes of text each token stands for, so that models with different tokenizers can be compared in bits per byte."""

import json
from typing import Any

import numpy as np
from numpy.typing import NDArray


def token_bytes(tokenizer: Any) -> NDArray[np.int64] | None:
    """UTF-8 bytes by token id; special tokens (such as the end of a document) have none.

    A byte-level vocabulary writes every byte as one character, so a token's length is its number of bytes, even where it
    holds only a part of a character.

    Returns:
        bytes_V, or None when the tokenizer is not byte-level: what a token of another kind stands for depends on its neighbours.
    """
    state = json.loads(tokenizer.backend_tokenizer.to_str()) if hasattr(tokenizer, "backend_tokenizer") else {}
    if not _is_byte_level(state.get("decoder")):
        return None
    # Added tokens are matched in the text itself, so they are spelled plainly and not by the byte alphabet.
    plain = {int(token["id"]): 0 if token["special"] else len(token["content"].encode()) for token in state.get("added_tokens", [])}
    vocabulary: dict[str, int] = tokenizer.get_vocab()
    bytes_V = np.zeros(max(vocabulary.values()) + 1, dtype=np.int64)
    for text, index in vocabulary.items():
        bytes_V[index] = plain[index] if index in plain else len(text)
    return bytes_V


def _is_byte_level(decoder: dict[str, Any] | None) -> bool:
    if decoder is None:
        return False
    parts = decoder.get("decoders", [decoder])
    return any(part.get("type") == "ByteLevel" for part in parts)
