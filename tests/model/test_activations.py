"""What forward and backward hold by the formulas, against what they are measured to hold: within a quarter, for every architecture."""

import numpy as np
import pytest
import torch

from fmray.model.architectures import Architecture
from fmray.model.architectures.decoder import Decoder
from fmray.model.architectures.encoder import Encoder
from fmray.model.architectures.gpt2 import Gpt2
from fmray.model.architectures.qwen import Qwen
from fmray.model.architectures.t5 import T5
from fmray.model.architectures.vit_mae import VitMae
from fmray.model.target_loss import can_fuse, fuse_head, fused_bytes
from fmray.objectives.causal_lm import CausalLM
from fmray.objectives.contrastive import Contrastive
from fmray.objectives.masked_image import MaskedImage
from fmray.objectives.masked_lm import MaskedLM
from fmray.objectives.span_corruption import SpanCorruption
from tests.model.peak import PeakMemory, peak_bytes
from tests.objectives import cases
from tests.objectives.cases import IMAGE, SIZE, Case, image_rows
from tests.train.rows import packed_rows

FACTOR = 1.25
N_ROWS, SEQ_LEN = 4, 256
GROUPED = Decoder(num_hidden_layers=2, hidden_size=256, num_attention_heads=4, num_key_value_heads=2, intermediate_size=700)


def whole_rows(n_rows, seed=0):
    """One document fills each row."""
    rows = packed_rows(n_rows, SEQ_LEN, seed)
    return rows | {"segment_ids_BT": np.ones_like(rows["segment_ids_BT"]), "position_ids_BT": np.tile(np.arange(SEQ_LEN), (n_rows, 1))}


CASES = [
    Case(CausalLM(), Decoder()),
    Case(CausalLM(), GROUPED),
    Case(CausalLM(), Gpt2()),
    Case(CausalLM(), Qwen(variant="qwen2")),
    Case(CausalLM(), Qwen(variant="qwen3", head_dim=128)),
    *(Case(MaskedLM(), Encoder(variant=variant)) for variant in ("bert", "roberta", "modernbert")),
    Case(MaskedLM(), Encoder(variant="esm"), whole_rows),
    Case(SpanCorruption(), T5(), whole_rows),
    Case(MaskedImage(), VitMae(), image_rows, IMAGE),
]


def measured(case, precision, monkeypatch, *, vocab_size=SIZE, fused=False):
    """The peak of a forward and backward pass over all rows."""
    monkeypatch.setattr(cases, "SEQ_LEN", SEQ_LEN)
    monkeypatch.setattr(cases, "SIZE", vocab_size)
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    model = case.model().to(dtype)
    if fused:
        fuse_head(model)
    batch = case.objective.collate(case.rows(N_ROWS), case.setting(model))
    batch = {name: value.to(dtype) if value.is_floating_point() else value for name, value in batch.items()}
    return peak_bytes(model, lambda: case.objective.loss(model, batch).sum, batch.values())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_what_is_foretold_is_what_is_held(case, precision, monkeypatch):
    peak = measured(case, precision, monkeypatch) / N_ROWS
    architecture = case.architecture.fit(case.image_shape)
    vocab_size, positions = (0, architecture.positions(0)) if case.image_shape else (SIZE, SEQ_LEN)
    foretold = architecture.activation_bytes(vocab_size, positions, precision=precision, attention="sdpa")
    assert peak / FACTOR < foretold < peak * FACTOR


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("case", [Case(CausalLM(), Decoder()), Case(CausalLM(), Gpt2()), Case(MaskedLM(), Encoder()), Case(SpanCorruption(), T5(), whole_rows)], ids=lambda case: case.name)
def test_what_a_fused_loss_holds_is_foretold(case, precision, monkeypatch):
    vocab_size, counted = 8192, case.architecture
    peak = measured(case, precision, monkeypatch, vocab_size=vocab_size, fused=True)
    told = {"precision": precision, "attention": "sdpa"}
    rest = N_ROWS * counted.activation_bytes(0, SEQ_LEN, **told)
    foretold = rest + fused_bytes(N_ROWS * SEQ_LEN, vocab_size, counted.fused_width, precision=precision, device="cpu")
    assert peak / FACTOR < foretold < peak * FACTOR
    # All logits would take more.
    assert peak < N_ROWS * counted.activation_bytes(vocab_size, SEQ_LEN, **told)


def test_a_loss_is_counted_as_fused_where_it_can_be():
    for case in cases.CASES:
        if not isinstance(case.objective, Contrastive):
            assert bool(case.architecture.fused_width) == can_fuse(case.model()), case.name


def test_the_measure_counts_what_lives_at_once():
    known = torch.ones(1000)
    with PeakMemory([known]) as watched:
        first = known * 2
        view = first[10:]
        del first
        second = view + 1
        del view, second
        known * 3
    assert watched.peak == 4000 + 3960


def test_an_architecture_that_does_not_count_says_so():
    assert Architecture.activation_bytes(Decoder(), 64, 8, precision="bf16", attention="sdpa") is None
