"""What is looked at before a task's head is put on a model: its directory, its architecture, its tokenizer, its weights."""

from pathlib import Path
from typing import Any

from fmray.core.errors import ArtifactError
from fmray.model.checkpoint import Head, read_hf_config

SAFELY = {"local_files_only": True, "trust_remote_code": False, "use_safetensors": True}


def spelled(head: Head) -> str:
    """A head in words."""
    return head.replace("_", " ")


def head_class(config: Any, auto: Any, head: Head) -> Any:
    """The class of transformers that bears a head on the architecture of `config`; None where there is none that could do its work.

    transformers also lists encoders among the causal models, which then see what they are to predict, and the halves of
    encoder-decoders; neither is what a task means by that head.

    Args:
        auto: the Auto class of the head.
    """
    from transformers import AutoModelForMaskedLM

    encodes = type(config) in AutoModelForMaskedLM._model_mapping and not getattr(config, "is_decoder", False)
    if head in ("causal_lm", "encoder") and (config.is_encoder_decoder or (head == "causal_lm" and encodes)):
        return None
    if type(config) not in auto._model_mapping:
        return None
    found = auto._model_mapping[type(config)]
    return found[0] if isinstance(found, tuple) else found


def open_model(path: Path) -> tuple[Any, Any]:
    """The config and the tokenizer of a directory.

    Raises:
        ArtifactError: it is no model directory, or rows of its tokenizer cannot be padded.
    """
    read_hf_config(path)
    from transformers import AutoConfig, AutoTokenizer

    try:
        config = AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False)
        tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ArtifactError(f"is not a Hugging Face model directory ({first})", where=str(path), todo="check the path") from None
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token is None:
            raise ArtifactError("its tokenizer has neither a padding nor an end token, so rows cannot be batched", where=str(path))
        tokenizer.pad_token = tokenizer.eos_token
    return config, tokenizer


def frame_as_in_pretraining(tokenizer: Any) -> None:
    """Makes a tokenizer that puts nothing behind a text put the document's end there (and its beginning in front), as pretraining did.

    The head of a decoder reads the last position: of a whole document that is the end token, where nothing was predicted, so
    that tuning is free to gather the document there. What the tokenizer puts in front by itself stays as it is, so that nothing
    comes twice; one that puts something behind is an encoder's and left alone.
    """
    text = "a"
    framed, plain = tokenizer(text)["input_ids"], tokenizer(text, add_special_tokens=False)["input_ids"]
    at = next((i for i in range(len(framed)) if framed[i : i + len(plain)] == plain), None)
    if at is None or len(framed) > at + len(plain):
        return
    from tokenizers.processors import TemplateProcessing

    front = tokenizer.convert_ids_to_tokens(framed[:at]) or [token for token in (tokenizer.bos_token,) if token is not None]
    behind = [token for token in (tokenizer.eos_token,) if token is not None]
    special = [(token, tokenizer.convert_tokens_to_ids(token)) for token in {*front, *behind}]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=" ".join([*front, "$A", *behind]), pair=" ".join([*front, "$A", *behind, "$B", *behind]), special_tokens=special
    )


def require_fit(config: Any, tokenizer: Any, path: Path) -> None:
    """A tokenizer with more tokens than the model has embeddings would fail deep inside torch, or read another model's words.

    Raises:
        ArtifactError: it has; or an encoder-decoder does not say what its answers begin with.
    """
    vocab_size = getattr(config.get_text_config(), "vocab_size", None)
    if vocab_size is not None and len(tokenizer) > vocab_size:
        raise ArtifactError(
            f"its tokenizer has {len(tokenizer)} tokens and the model embeddings for {vocab_size}: they do not fit", where=str(path),
            todo="save the model's own tokenizer beside it",
        )  # fmt: skip
    if config.is_encoder_decoder and getattr(config, "decoder_start_token_id", None) is None:
        raise ArtifactError("its config.json names no decoder_start_token_id, so nothing can be written", where=str(path), todo="add the one that it was pretrained with")


def require_body(model: Any, missing: set[str], path: Path) -> frozenset[str]:
    """Sees that the weights below the head are those in `path`, and names those of them that are not there, such as a masked model's pooler.

    Some architectures hold their body under another name with one head than with another (a Llama's under `transformer` with that of
    questions, else under `model`). transformers then finds none of its weights and leaves it random, with no more than a warning.

    Raises:
        ArtifactError: there are no weights for the body.
    """
    prefix = f"{model.base_model_prefix}."
    # A model without a head is all body.
    named = {name for name in model.state_dict() if name.startswith(prefix)} or set(model.state_dict())
    if not named <= missing:
        return frozenset(named & missing)
    import torch
    from transformers import AutoModel

    body, told = AutoModel.from_pretrained(path, dtype=torch.float32, output_loading_info=True, **SAFELY)
    if len(told["missing_keys"]) == len(body.state_dict()):
        raise ArtifactError(f"holds no weights of a {type(body).__name__}", where=str(path), todo="check its config.json")
    model.base_model.load_state_dict(body.state_dict())
    return frozenset(f"{prefix}{name}" for name in told["missing_keys"])
