"""Opens a model of any head with its tokenizer: no code in its directory is run and no pickle is read."""

from pathlib import Path
from typing import Any

from fmray.core.errors import ArtifactError
from fmray.model.checkpoint import read_hf_config
from fmray.model.positions import position_offset
from fmray.serve.engine import RequestError


def opened(auto: str, path: Path, device: str, threads: int) -> tuple[Any, Any]:
    """Model (float32, in evaluation mode) and tokenizer.

    Args:
        auto: the name of the class of transformers that opens it, such as `AutoModelForMaskedLM`.

    Raises:
        ArtifactError: transformers cannot open the directory so.
    """
    read_hf_config(path)
    import torch
    import transformers

    # More threads than the replica's CPUs make small models several times slower: they spin against each other.
    torch.set_num_threads(threads)
    safely = {"local_files_only": True, "trust_remote_code": False}
    try:
        model = getattr(transformers, auto).from_pretrained(path, dtype=torch.float32, use_safetensors=True, **safely)
        tokenizer = transformers.AutoTokenizer.from_pretrained(path, **safely)
    except (OSError, ValueError, RuntimeError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ArtifactError(f"cannot be opened as {auto} ({first})", where=str(path)) from error
    return model.to(device).eval(), tokenizer


def positions(model: Any) -> int | None:
    """How many tokens have a position in a model; None where positions are told by distance, as T5's are."""
    config = model.config.get_text_config()
    limit = getattr(config, "max_position_embeddings", None)
    return None if limit is None else int(limit) - position_offset(config.to_dict())


def longest(model: Any, tokenizer: Any) -> int:
    """The number of tokens that a model takes: its positions, or fewer where its tokenizer says so."""
    # A tokenizer that knows no limit has a number of thirty digits.
    return int(min(positions(model) or tokenizer.model_max_length, tokenizer.model_max_length, 2**20))


def refusal(length: int, limit: int, truncate: bool, param: str = "input") -> RequestError | None:
    """The error for a text of `length` tokens, or None when the model can take it."""
    if length == 0:
        return RequestError(400, f"the {param} holds no token", param=param)
    if length > limit and not truncate:
        message = f'this model takes {limit} tokens and the {param} has {length}: shorten it, or send "truncate": true'
        return RequestError(400, message, param=param, code="context_length_exceeded")
    return None
