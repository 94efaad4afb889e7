"""The engine's own products and attention on a CPU, against torch's and against plain `generate` of every kind of decoder."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GPT2Config, LlamaConfig, MistralConfig, PreTrainedConfig, Qwen2Config

from fmray.serve.engine import Sampling
from fmray.serve.engines.cpu import Packed
from tests.serve.conftest import MAX_LEN, save_tokenizer
from tests.serve.test_continuous import PROMPTS, greedy_reference, make, together

SHAPE: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": MAX_LEN,
    "initializer_range": 0.6, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2, "vocab_size": 320,
}  # fmt: skip
KINDS: dict[str, PreTrainedConfig] = {
    "grouped": LlamaConfig(**SHAPE, num_key_value_heads=2),
    "biased": Qwen2Config(**SHAPE, num_key_value_heads=4),
    "window": MistralConfig(**SHAPE, num_key_value_heads=2, sliding_window=8),
    "gpt2": GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=MAX_LEN, initializer_range=0.6, bos_token_id=0, eos_token_id=1, pad_token_id=2, vocab_size=320),
}


@pytest.mark.parametrize("kind", list(KINDS))
def test_a_mixed_batch_is_generates_own(kind: str, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    save_tokenizer(tmp_path)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(KINDS[kind]).save_pretrained(tmp_path)
    expected = greedy_reference(tmp_path, PROMPTS, 24)
    engine = make(tmp_path)
    try:
        assert asyncio.run(together(engine, PROMPTS, Sampling(max_tokens=24, temperature=0))) == expected
    finally:
        engine.close()
    assert len(set(expected)) > 3


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rows", [1, 5, 33])
def test_a_packed_product_is_the_layers_own(rows: int, bias: bool) -> None:
    layer, inputs = torch.nn.Linear(48, 96, bias=bias), torch.randn(1, rows, 48)
    with torch.no_grad():
        expected = layer(inputs)
        layer.forward = Packed(layer)  # type: ignore[method-assign]
        torch.testing.assert_close(layer(inputs), expected, rtol=1e-5, atol=1e-6)
