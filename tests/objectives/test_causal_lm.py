"""Causal language modelling on packed rows: labels, and that no document sees another."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from fmray.model.architectures.decoder import Decoder
from fmray.objectives.causal_lm import IGNORED, CausalLM
from tests.train.rows import VOCAB, packed_rows

SHAPE = Decoder(num_hidden_layers=2, hidden_size=48, num_attention_heads=2, intermediate_size=96)
OBJECTIVE = CausalLM()


def model(attention="sdpa"):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(SHAPE.hf_config(VOCAB, 32), attn_implementation=attention)


def test_labels_are_the_next_tokens_of_the_same_document():
    rows = {
        "row_ids_B": np.array([7]),
        "input_ids_BT": np.array([[1, 10, 2, 1, 11, 12, 2, 0]]),
        "segment_ids_BT": np.array([[1, 1, 1, 2, 2, 2, 2, 0]]),
        "position_ids_BT": np.array([[0, 1, 2, 0, 1, 2, 3, 0]]),
    }
    batch = OBJECTIVE.collate(rows)
    assert batch["labels_BT"].tolist() == [[10, 2, IGNORED, 11, 12, 2, IGNORED, IGNORED]]
    assert OBJECTIVE.count(batch) == 5
    assert "attention_mask" not in batch


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("training", [True, False])
def test_changing_one_document_leaves_the_others_logits_unchanged(attention, training):
    rows = packed_rows(2, 32)
    changed = {k: v.copy() for k, v in rows.items()}
    first = rows["segment_ids_BT"] == 1
    changed["input_ids_BT"][first] = (rows["input_ids_BT"][first] + 9) % VOCAB
    network = model(attention).train(training)
    seen = []

    def watched(**inputs):
        assert inputs.get("attention_mask") is None
        seen.append(network(**inputs))
        return seen[-1]

    for each in (rows, changed):
        OBJECTIVE.loss(watched, OBJECTIVE.collate(each))
    a, b = (out.logits.detach() for out in seen)
    inside = torch.as_tensor(first)
    assert torch.equal(a[~inside], b[~inside])
    assert (a[inside] - b[inside]).abs().max() > 1e-3


def test_a_packed_row_has_the_loss_of_its_documents_alone():
    rows, network = packed_rows(1, 32, seed=3), model()
    packed = OBJECTIVE.loss(network, OBJECTIVE.collate(rows))
    total, count = 0.0, 0
    for segment in range(1, rows["segment_ids_BT"].max() + 1):
        ids = torch.as_tensor(rows["input_ids_BT"][rows["segment_ids_BT"] == segment])[None]
        total += network(input_ids=ids, labels=ids).loss.item() * (ids.shape[1] - 1)
        count += ids.shape[1] - 1
    assert int(packed.count) == count
    assert packed.sum.item() == pytest.approx(total, rel=1e-5)
