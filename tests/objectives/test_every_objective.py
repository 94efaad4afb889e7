"""One harness over every registered objective that packs rows: what holds for any loss of sums and counts."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from fmray.model.architectures.decoder import Decoder
from fmray.objectives import Objective
from tests.train.rows import VOCAB, packed_rows

SHAPE = Decoder(num_hidden_layers=2, hidden_size=48, num_attention_heads=2, intermediate_size=96)
PACKED = [cls for cls in Objective.members().values() if cls.head == "causal_lm"]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(SHAPE.hf_config(VOCAB, 32))


@pytest.mark.parametrize("cls", PACKED, ids=lambda cls: cls.__name__)
def test_splitting_a_batch_changes_nothing(cls, model):
    objective, rows = cls(), packed_rows(6, 32)
    whole = objective.loss(model, objective.collate(rows))
    parts = [objective.loss(model, objective.collate({k: v[i : i + 2] for k, v in rows.items()})) for i in (0, 2, 4)]
    assert int(whole.count) == sum(int(p.count) for p in parts) == objective.count(objective.collate(rows)) > 0
    assert whole.sum.item() == pytest.approx(sum(p.sum.item() for p in parts), rel=1e-5)


@pytest.mark.parametrize("cls", PACKED, ids=lambda cls: cls.__name__)
def test_a_fresh_model_is_as_good_as_chance(cls, model):
    objective = cls()
    loss = objective.loss(model, objective.collate(packed_rows(8, 32)))
    assert loss.sum.item() / int(loss.count) == pytest.approx(np.log(VOCAB), rel=0.05)


@pytest.mark.parametrize("cls", PACKED, ids=lambda cls: cls.__name__)
def test_the_gradient_reaches_every_parameter(cls, model):
    objective = cls()
    model.zero_grad()
    objective.loss(model, objective.collate(packed_rows(8, 32))).sum.backward()
    assert not [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]


@pytest.mark.parametrize("cls", PACKED, ids=lambda cls: cls.__name__)
def test_collate_is_deterministic_and_keeps_the_row_ids(cls):
    objective, rows = cls(), packed_rows(4, 32)
    one, two = objective.collate(rows), objective.collate(rows)
    assert one.keys() == two.keys()
    assert all(torch.equal(one[key], two[key]) and len(one[key]) == 4 for key in one)
    assert one["row_ids_B"].tolist() == rows["row_ids_B"].tolist()
