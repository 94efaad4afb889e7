"""The decoder family: counts against the built model, FLOPs against torch's counter, bad dimensions."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM

from fmray.core.config import Config, load_config
from fmray.core.errors import ConfigError
from fmray.model.architectures import Architecture, padded_vocab_size
from fmray.model.architectures.decoder import SIZES, Decoder
from fmray.model.flops import flops_per_token

SHAPES = [
    Decoder(),
    Decoder(tie_word_embeddings=False),
    Decoder(num_hidden_layers=2, hidden_size=128, num_attention_heads=4, num_key_value_heads=2, intermediate_size=300),
]


@pytest.mark.parametrize("size", SIZES)
def test_every_size_counts_its_parameters_exactly(size):
    decoder = Decoder(size=size)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(decoder.hf_config(32000, 2048))
    assert decoder.count_params(32000) == sum(p.numel() for p in model.parameters())


def test_sizes_are_what_their_names_say():
    assert 0.11e9 < Decoder(size="125m").count_params(50304) < 0.14e9
    assert 0.30e9 < Decoder(size="350m").count_params(32000) < 0.40e9
    assert 0.9e9 < Decoder(size="1b").count_params(32000) < 1.3e9
    assert 6.5e9 < Decoder(size="7b").count_params(32000) < 7.2e9


@pytest.mark.parametrize("decoder", SHAPES, ids=["tied", "untied", "grouped"])
@pytest.mark.parametrize("seq_len", [64, 256])
def test_flops_agree_with_torchs_counter(decoder, seq_len):
    # Eager attention, for the counter does not know the CPU's fused kernel.
    model = AutoModelForCausalLM.from_config(decoder.hf_config(512, seq_len), attn_implementation="eager")
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(2, seq_len, dtype=torch.long), use_cache=False).logits.sum().backward()
    counted = counter.get_total_flops() / (2 * seq_len)
    assert decoder.flops_per_token(512, seq_len) == pytest.approx(counted, rel=0.05)
    n_params = decoder.count_params(512)
    assert flops_per_token(model.config.to_dict(), n_params, seq_len) == pytest.approx(counted, rel=0.05)


def test_unknown_sizes_give_unknown_flops():
    assert flops_per_token({"model_type": "odd", "vocab_size": 10}, 100, 8) is None


def test_vocabulary_is_padded_to_64():
    assert [padded_vocab_size(n) for n in (1, 64, 65, 1000)] == [64, 64, 128, 1024]


class Holder(Config):
    """Holds a model as the stage's config does."""

    model: Architecture


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"hidden_size": 100, "num_attention_heads": 3}, "hidden_size 100 must be a multiple of 2 x num_attention_heads 3"),
        ({"num_attention_heads": 4, "hidden_size": 256, "num_key_value_heads": 3}, "must be a multiple of num_key_value_heads 3"),
        ({"size": "13b"}, "size"),
        ({"layers": 3}, "unknown key 'layers'"),
    ],
)
def test_bad_dimensions_are_named(fields, said):
    with pytest.raises(ConfigError, match=said) as error:
        load_config(Holder, {"model": {"type": "decoder", **fields}}, "base")
    assert str(error.value).startswith("base.model")


def test_unknown_architecture_is_named():
    with pytest.raises(ConfigError, match="unknown architecture 'decodr', did you mean 'decoder'"):
        load_config(Holder, {"model": {"type": "decodr"}})
