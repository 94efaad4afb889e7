"""The BART family: counts against the built model, FLOPs against torch's counter, bad dimensions."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForSeq2SeqLM

from fmray.core.config import load_config
from fmray.core.errors import ConfigError
from fmray.model.architectures.bart import DECODED, ENCODED, SIZES, Bart
from fmray.model.checkpoint import count_weights
from fmray.objectives.span_corruption import SpanCorruption
from tests.model.test_decoder import Holder


@pytest.mark.parametrize("size", SIZES)
def test_every_size_counts_its_parameters_exactly(size):
    with torch.device("meta"):
        model = AutoModelForSeq2SeqLM.from_config(Bart(size=size).hf_config(8192, 256))
    assert Bart(size=size).count_params(8192, 256) == sum(p.numel() for p in model.parameters())


def test_base_and_large_are_those_that_were_published():
    assert Bart(size="base").count_params(50265, 1024) == 139_420_416
    assert Bart(size="large").count_params(50265, 1024) == 406_291_456


def test_what_is_saved_counts_as_many(tmp_path):
    shape = Bart(num_layers=1, d_model=32, num_heads=2, ffn_dim=64)
    AutoModelForSeq2SeqLM.from_config(shape.hf_config(64, 16)).save_pretrained(tmp_path)
    assert count_weights(tmp_path) == shape.count_params(64, 16)


@pytest.mark.parametrize("reads", [None, SpanCorruption(share=0.4).reads], ids=["as it is trained", "spans"])
def test_flops_agree_with_torchs_counter(reads):
    shape, seq_len = Bart(), 200
    model = AutoModelForSeq2SeqLM.from_config(shape.hf_config(512, seq_len), attn_implementation="eager")
    read, written = (torch.ones(2, int(part * seq_len), dtype=torch.long) for part in reads or (ENCODED, DECODED))
    with FlopCounterMode(display=False) as counter:
        model(input_ids=read, decoder_input_ids=written, use_cache=False).logits.sum().backward()
    assert shape.flops_per_token(512, seq_len, reads) == pytest.approx(counter.get_total_flops() / (2 * seq_len), rel=0.05)


def test_bad_dimensions_are_named():
    with pytest.raises(ConfigError, match="d_model 100 must be a multiple of num_heads 3") as error:
        load_config(Holder, {"model": {"type": "bart", "d_model": 100}}, "base")
    assert str(error.value).startswith("base.model")
