"""The Qwen family, both variants: counts against the built model and those published, FLOPs against torch's counter, bad dimensions."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM

from fmray.core.config import load_config
from fmray.core.errors import ConfigError
from fmray.model.architectures.qwen import SIZES, Qwen
from fmray.model.flops import flops_per_token
from tests.model.test_decoder import Holder

# Of published sizes, with the rows of their embedding tables.
PUBLISHED = {
    "0.5b": (151_936, 494_032_768), "1.5b": (151_936, 1_543_714_304), "3b": (151_936, 3_085_938_688), "7b": (152_064, 7_615_616_512),
    "0.6b": (151_936, 596_049_920), "1.7b": (151_936, 1_720_574_976), "4b": (151_936, 4_022_468_096), "8b": (151_936, 8_190_735_360),
}  # fmt: skip


@pytest.mark.parametrize("shape", [*(Qwen(size=size) for size in SIZES), Qwen(variant="qwen2"), Qwen(size="0.5b", variant="qwen3", head_dim=32, tie_word_embeddings=False)], ids=str)
def test_every_size_counts_its_parameters_exactly(shape):
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(shape.hf_config(8192, 256))
    assert model.config.model_type == shape.shape.variant
    assert shape.count_params(8192, 256) == sum(p.numel() for p in model.parameters())


def test_sizes_are_those_that_were_published():
    assert {size: (vocab_size, Qwen(size=size).count_params(vocab_size)) for size, (vocab_size, _) in PUBLISHED.items()} == PUBLISHED
    assert set(SIZES) - set(PUBLISHED) == {"nano", "micro"}


@pytest.mark.parametrize("shape", [Qwen(), Qwen(variant="qwen2", tie_word_embeddings=False), Qwen(hidden_size=128, head_dim=96)], ids=["qwen3", "qwen2 untied", "wide heads"])
def test_flops_agree_with_torchs_counter(shape):
    seq_len = 128
    model = AutoModelForCausalLM.from_config(shape.hf_config(512, seq_len), attn_implementation="eager")
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(2, seq_len, dtype=torch.long), use_cache=False).logits.sum().backward()
    counted = counter.get_total_flops() / (2 * seq_len)
    assert shape.flops_per_token(512, seq_len) == pytest.approx(counted, rel=0.05)
    assert flops_per_token(model.config.to_dict(), shape.count_params(512), seq_len) == pytest.approx(counted, rel=0.05)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"size": "7b", "head_dim": 64}, "heads of qwen2 share out hidden_size: leave head_dim out"),
        ({"variant": "qwen2", "hidden_size": 100}, "hidden_size 100 must be a multiple of 2 x num_attention_heads 3"),
        ({"head_dim": 33}, "head_dim 33 must be even"),
        ({"num_attention_heads": 3, "num_key_value_heads": 2}, "num_attention_heads 3 must be a multiple of num_key_value_heads 2"),
        ({"size": "13b"}, "size"),
    ],
)
def test_bad_dimensions_are_named(fields, said):
    with pytest.raises(ConfigError, match=said) as error:
        load_config(Holder, {"model": {"type": "qwen", **fields}}, "base")
    assert str(error.value).startswith("base.model")
