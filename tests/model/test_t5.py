"""The T5 family: counts against the built model, FLOPs against torch's counter."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForSeq2SeqLM

from fmray.model.architectures.t5 import DECODED, ENCODED, SIZES, T5


@pytest.mark.parametrize("size", SIZES)
def test_every_size_counts_its_parameters_exactly(size):
    with torch.device("meta"):
        model = AutoModelForSeq2SeqLM.from_config(T5(size=size).hf_config(8192, 256))
    assert T5(size=size).count_params(8192) == sum(p.numel() for p in model.parameters())


def test_flops_agree_with_torchs_counter():
    shape, seq_len = T5(), 200
    model = AutoModelForSeq2SeqLM.from_config(shape.hf_config(512, seq_len), attn_implementation="eager")
    read, written = (torch.ones(2, int(part * seq_len), dtype=torch.long) for part in (ENCODED, DECODED))
    with FlopCounterMode(display=False) as counter:
        model(input_ids=read, decoder_input_ids=written, use_cache=False).logits.sum().backward()
    assert shape.flops_per_token(512, seq_len) == pytest.approx(counter.get_total_flops() / (2 * seq_len), rel=0.05)
