"""The GPT-2 family: counts against the built model and those published, FLOPs against torch's counter, bad dimensions."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM

from fmray.core.config import load_config
from fmray.core.errors import ConfigError
from fmray.model.architectures.gpt2 import SIZES, Gpt2
from fmray.model.flops import flops_per_token
from tests.model.test_decoder import Holder


@pytest.mark.parametrize("size", SIZES)
def test_every_size_counts_its_parameters_exactly(size):
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(Gpt2(size=size).hf_config(8192, 256))
    assert Gpt2(size=size).count_params(8192, 256) == sum(p.numel() for p in model.parameters())


def test_sizes_are_those_that_were_published():
    published = {"125m": 124_439_808, "350m": 354_823_168, "774m": 774_030_080, "1.5b": 1_557_611_200}
    assert {size: Gpt2(size=size).count_params(50257, 1024) for size in published} == published
    assert Gpt2(size="7b").count_params(50257, 2048) == pytest.approx(6.7e9, rel=0.01)


@pytest.mark.parametrize("shape", [Gpt2(), Gpt2(hidden_size=128, num_attention_heads=2, intermediate_size=300)], ids=["nano", "overridden"])
@pytest.mark.parametrize("seq_len", [64, 256])
def test_flops_agree_with_torchs_counter(shape, seq_len):
    model = AutoModelForCausalLM.from_config(shape.hf_config(512, seq_len), attn_implementation="eager")
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(2, seq_len, dtype=torch.long), use_cache=False).logits.sum().backward()
    counted = counter.get_total_flops() / (2 * seq_len)
    assert shape.flops_per_token(512, seq_len) == pytest.approx(counted, rel=0.05)
    # By the config alone biases and norms are counted too, and the table of positions, which is looked up, is not.
    told = flops_per_token(model.config.to_dict(), shape.count_params(512, seq_len), seq_len)
    assert told == pytest.approx(counted, rel=0.05)
    assert told > shape.flops_per_token(512, seq_len)


def test_dropout_is_everywhere_or_nowhere():
    for dropout in (0.0, 0.1):
        config = Gpt2(dropout=dropout).hf_config(512, 64)
        assert {config.resid_pdrop, config.embd_pdrop, config.attn_pdrop} == {dropout}


def test_bad_dimensions_are_named():
    with pytest.raises(ConfigError, match="hidden_size 100 must be a multiple of num_attention_heads 3") as error:
        load_config(Holder, {"model": {"type": "gpt2", "hidden_size": 100}}, "base")
    assert str(error.value).startswith("base.model")
