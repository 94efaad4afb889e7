"""The encoder family: counts against the built model, FLOPs against torch's counter, bad dimensions."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForMaskedLM

from fmray.core.config import load_config
from fmray.core.errors import ConfigError
from fmray.model.architectures.encoder import SIZES, Encoder
from fmray.model.flops import flops_per_token
from fmray.model.positions import position_offset
from tests.model.test_decoder import Holder

VARIANTS = ["bert", "roberta", "modernbert", "esm"]


def config_of(encoder: Encoder, vocab_size: int, seq_len: int):
    config = encoder.hf_config(vocab_size, seq_len)
    config.pad_token_id = 0
    config.max_position_embeddings += position_offset(config.to_dict())
    return config


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("size", SIZES)
def test_every_size_counts_its_parameters_exactly(size, variant):
    encoder = Encoder(size=size, variant=variant)
    with torch.device("meta"):
        model = AutoModelForMaskedLM.from_config(config_of(encoder, 8192, 256))
    assert encoder.count_params(8192, 256) == sum(p.numel() for p in model.parameters())


def test_base_and_large_are_those_of_bert():
    # BERT's published 110 M and 340 M hold its 30,522 words, 512 positions and a pooler that masked language modelling has not.
    assert 0.108e9 < Encoder(size="base").count_params(30522, 512) < 0.111e9
    assert 0.33e9 < Encoder(size="large").count_params(30522, 512) < 0.341e9


@pytest.mark.parametrize("variant", VARIANTS)
def test_flops_agree_with_torchs_counter(variant):
    encoder = Encoder(variant=variant)
    # Eager attention, for the counter does not know the CPU's fused kernel.
    model = AutoModelForMaskedLM.from_config(config_of(encoder, 512, 128), attn_implementation="eager")
    with FlopCounterMode(display=False) as counter:
        model(torch.ones(2, 128, dtype=torch.long)).logits.sum().backward()
    counted = counter.get_total_flops() / (2 * 128)
    assert encoder.flops_per_token(512, 128) == pytest.approx(counted, rel=0.05)
    assert flops_per_token(model.config.to_dict(), encoder.count_params(512, 128), 128) == pytest.approx(counted, rel=0.05)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"hidden_size": 100, "num_attention_heads": 3}, "hidden_size 100 must be a multiple of 2 x num_attention_heads 3"),
        ({"variant": "electra"}, "variant"),
        ({"size": "125m"}, "size"),
    ],
)
def test_bad_dimensions_are_named(fields, said):
    with pytest.raises(ConfigError, match=said) as error:
        load_config(Holder, {"model": {"type": "encoder", **fields}}, "base")
    assert str(error.value).startswith("base.model")
