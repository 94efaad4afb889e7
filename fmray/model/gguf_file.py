"""Writes a decoder of the Llama type with its byte-level BPE tokenizer as one GGUF file, with the `gguf` library's own writer.

The format and its keys: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. What it needs to know of a model is written down in
llama.cpp's converter alone, so other types of models, scaled rotary positions and other tokenizers are refused and not guessed.
"""

import json
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fmray.core.errors import ArtifactError, ConfigError
from fmray.model.tensor_file import Entry

if TYPE_CHECKING:
    import torch

BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
DIGITS = {"type": "Digits", "individual_digits": True}
FILE_TYPES = {"float32": "ALL_F32", "float16": "MOSTLY_F16", "bfloat16": "MOSTLY_BF16"}


def check_gguf(root: Path, hf_config: Mapping[str, Any]) -> None:
    """Refuses what has no form in GGUF that fmray writes.

    Raises:
        ConfigError: the library is not installed.
        ArtifactError: the model or its tokenizer is of another type.
    """
    if find_spec("gguf") is None:
        raise ConfigError("needs the package gguf", where="--format gguf", todo="pip install 'fmray[gguf]'")
    todo = "export it as safetensors; llama.cpp's own converter knows more models"
    rope = hf_config.get("rope_parameters") or hf_config.get("rope_scaling") or {}
    wrong = [
        why
        for why, is_so in (
            (f"of the type {hf_config['model_type']}, and only llama is written", hf_config["model_type"] != "llama"),
            (f"with rotary positions of the type {rope.get('rope_type')}", rope.get("rope_type", "default") != "default"),
            ("with biases", hf_config.get("attention_bias") or hf_config.get("mlp_bias")),
            (f"with the activation {hf_config.get('hidden_act')}", hf_config.get("hidden_act", "silu") != "silu"),
            ("without its language model's head", not str((hf_config.get("architectures") or [""])[0]).endswith("ForCausalLM")),
        )
        if is_so
    ]
    if wrong:
        raise ArtifactError(f"is a model {wrong[0]}", where=str(root), todo=todo)
    _pre_tokenizer(root)


def _tokenizer(root: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads((root / "tokenizer.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ArtifactError(f"has no readable tokenizer.json ({type(error).__name__})", where=str(root), todo="save the tokenizer beside the weights") from None
    return found


def _pre_tokenizer(root: Path) -> str:
    """llama.cpp's name for how the tokenizer splits a text before it merges."""
    found = _tokenizer(root)
    kind, todo = found["model"].get("type"), "export it as safetensors"
    if kind != "BPE" or found["model"].get("byte_fallback"):
        raise ArtifactError(f"has a {kind} tokenizer, and only byte-level BPE is written", where=str(root), todo=todo)
    if found.get("normalizer"):
        raise ArtifactError(f"has a tokenizer that changes texts first ({found['normalizer'].get('type')})", where=str(root), todo=todo)
    split = found.get("pre_tokenizer") or {}
    parts = [{key: value for key, value in part.items() if key != "trim_offsets"} for part in split.get("pretokenizers", [split])]
    names = {"gpt-2": [BYTE_LEVEL], "smollm": [DIGITS, BYTE_LEVEL]}
    for name, known in names.items():
        if parts == known:
            return name
    raise ArtifactError("has a tokenizer that splits texts in a way that fmray has no name for in GGUF", where=str(root), todo=todo)


def write_gguf(path: Path, root: Path, hf_config: Mapping[str, Any], entries: Sequence[Entry]) -> None:
    """Writes the file: matrices in the precision of `entries`, norms in float32 as llama.cpp computes with them.

    Raises:
        ArtifactError: a tensor that this type of model does not have.
        OSError: the file cannot be written.
    """
    import gguf
    import numpy as np
    import torch

    heads = {"q_proj.weight": hf_config["num_attention_heads"], "k_proj.weight": hf_config.get("num_key_value_heads") or hf_config["num_attention_heads"]}
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, hf_config["num_hidden_layers"])
    kept = {torch.float32: gguf.GGMLQuantizationType.F32, torch.float16: gguf.GGMLQuantizationType.F16, torch.bfloat16: gguf.GGMLQuantizationType.BF16}
    writer = gguf.GGUFWriter(path, "llama")
    try:
        _add_model(writer, hf_config, max(entries, key=lambda entry: entry.n_bytes).dtype)
        _add_tokenizer(writer, root, int(hf_config["vocab_size"]))
        for entry in entries:
            name = names.get_name(entry.name, try_suffixes=(".weight", ".bias"))
            if name is None or entry.dtype not in kept:
                raise ArtifactError(f"holds {entry.name} ({entry.dtype}), which has no place in GGUF", where=str(root))
            dtype = _stored(entry)
            # Of what numpy has no type for, bytes are told.
            shape = (*entry.shape[:-1], entry.shape[-1] * dtype.itemsize)
            writer.add_tensor_info(name, shape, np.dtype(np.uint8), entry.n_bytes // entry.dtype.itemsize * dtype.itemsize, raw_dtype=kept[dtype])
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for entry in entries:
            tensor = _turned(entry, heads).to(_stored(entry)).contiguous()
            writer.write_tensor_data(tensor.view(torch.uint8).numpy())
    finally:
        writer.close()


def _stored(entry: Entry) -> "torch.dtype":
    import torch

    return entry.dtype if len(entry.shape) > 1 else torch.float32


def _turned(entry: Entry, heads: Mapping[str, int]) -> "torch.Tensor":
    """The tensor as GGUF stores it: of queries and keys the two halves of each rotary pair side by side, and not all first halves first."""
    tensor = entry.read()
    n = next((n for suffix, n in heads.items() if entry.name.endswith(suffix)), None)
    return tensor if n is None else tensor.unflatten(0, (n, 2, -1)).transpose(1, 2).flatten(0, 2)


def _add_model(writer: Any, hf_config: Mapping[str, Any], dtype: "torch.dtype") -> None:
    import gguf

    n_heads, width = hf_config["num_attention_heads"], hf_config["hidden_size"]
    head_dim = hf_config.get("head_dim") or width // n_heads
    rope = hf_config.get("rope_parameters") or hf_config
    writer.add_file_type(getattr(gguf.LlamaFileType, FILE_TYPES[str(dtype).removeprefix("torch.")]))
    writer.add_vocab_size(hf_config["vocab_size"])
    writer.add_context_length(hf_config["max_position_embeddings"])
    writer.add_embedding_length(width)
    writer.add_block_count(hf_config["num_hidden_layers"])
    writer.add_feed_forward_length(hf_config["intermediate_size"])
    writer.add_head_count(n_heads)
    writer.add_head_count_kv(hf_config.get("num_key_value_heads") or n_heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_dimension_count(head_dim)
    writer.add_rope_freq_base(float(rope.get("rope_theta", 10_000.0)))
    writer.add_layer_norm_rms_eps(hf_config["rms_norm_eps"])


def _add_tokenizer(writer: Any, root: Path, vocab_size: int) -> None:
    import gguf
    from tokenizers import Tokenizer

    found, config = _tokenizer(root), json.loads((root / "config.json").read_text(encoding="utf-8"))
    special = {token["id"]: token["content"] for token in found.get("added_tokens", []) if token["special"]}
    texts = {index: text for text, index in found["model"]["vocab"].items()} | {token["id"]: token["content"] for token in found.get("added_tokens", [])}
    kinds = gguf.TokenType
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(_pre_tokenizer(root))
    # The embedding is padded to a round number of rows; those of no token are named as llama.cpp's converter names them.
    writer.add_token_list([texts.get(i, f"[PAD{i}]") for i in range(vocab_size)])
    writer.add_token_types([kinds.CONTROL if i in special else kinds.NORMAL if i in texts else kinds.UNUSED for i in range(vocab_size)])
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in found["model"]["merges"]])
    ids = {name: config.get(f"{name}_token_id") for name in ("bos", "eos", "pad")}
    for name, add in (("bos", writer.add_bos_token_id), ("eos", writer.add_eos_token_id), ("pad", writer.add_pad_token_id)):
        if isinstance(ids[name], int):
            add(ids[name])
    begun = Tokenizer.from_file(str(root / "tokenizer.json")).encode("a").ids[:1]
    writer.add_add_bos_token(begun == [ids["bos"]])
