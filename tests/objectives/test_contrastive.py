"""Contrastive learning: SimCSE's loss by hand, two readings that differ by dropout alone, and what is refused."""

import dataclasses
from types import SimpleNamespace

import pytest
import torch

from fmray.core.errors import ConfigError
from fmray.model.architectures.encoder import Encoder
from fmray.objectives import Setting
from fmray.objectives.contrastive import Contrastive
from tests.objectives.cases import CASES, SEQ_LEN, SMALL, Case, lone_rows, vocabulary

MINE = [case for case in CASES if isinstance(case.objective, Contrastive)]
SETTING = Setting(vocabulary=vocabulary(), one_a_row=True)


@pytest.mark.parametrize("case", MINE, ids=lambda case: case.name)
def test_the_loss_is_that_of_the_paper(case):
    """Equation 1 with two readings that differ, over what stands over the first token or the mean of a text's tokens alone."""
    model, batch = case.model(), case.objective.collate(lone_rows(5), SETTING)
    torch.manual_seed(3)
    model.train()
    parts = case.objective.loss(model, batch)
    torch.manual_seed(3)
    twice = {name: torch.cat([batch[f"{name}_BT"]] * 2) for name in ("input_ids", "attention_mask")}
    output = model(**twice)
    pooled = []
    for row, hidden_TD in enumerate(output.last_hidden_state):
        own = hidden_TD[: int(twice["attention_mask"][row].sum())].mean(dim=0) if case.objective.pooling == "mean" else output.pooler_output[row]
        pooled.append(own)
    wanted = 0.0
    for i in range(5):
        scores = torch.stack([torch.cosine_similarity(pooled[i], pooled[5 + j], dim=0) / 0.05 for j in range(5)])
        wanted -= torch.log_softmax(scores, dim=0)[i].item()
    assert parts.sum.item() == pytest.approx(wanted, rel=1e-4)
    assert int(parts.count) == case.objective.count(batch) == 5


@pytest.mark.parametrize("case", MINE, ids=lambda case: case.name)
def test_two_readings_differ_by_dropout_alone(case):
    model, batch = case.model(), case.objective.collate(lone_rows(5), SETTING)
    first, second = case.objective.readings(model, batch)
    torch.testing.assert_close(first, second, rtol=0, atol=1e-6)
    torch.testing.assert_close(first.norm(dim=1), torch.ones(5))
    first, second = case.objective.readings(model.train(), batch)
    assert ((first - second).norm(dim=1) > 1e-3).all()


def test_the_objective_decides_the_dropout():
    for case in MINE:
        set_to = dataclasses.replace(case, objective=Contrastive(dropout=0.25)).model()
        assert {module.p for module in set_to.modules() if isinstance(module, torch.nn.Dropout)} == {0.25}
    with pytest.raises(ConfigError, match="a mamba model has no dropout by which two readings of a text would differ"):
        Contrastive().configure(SimpleNamespace(model_type="mamba"))


def test_it_learns_to_tell_rows_apart():
    case = Case(Contrastive(), Encoder(**SMALL), lone_rows)
    model, batch = case.model().train(), case.objective.collate(lone_rows(16), SETTING)
    optimizer, losses = torch.optim.AdamW(model.parameters(), lr=1e-3), []
    for _ in range(25):
        loss = case.objective.loss(model, batch).sum / 16
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] > 1.0
    assert sum(losses[-5:]) / 5 < 0.5 * losses[0]


def test_it_wants_one_document_a_row():
    Contrastive().check(SETTING, SEQ_LEN)
    with pytest.raises(ConfigError, match="trains on rows of one document each; prepare the dataset with packing") as error:
        Contrastive().check(dataclasses.replace(SETTING, one_a_row=False), SEQ_LEN)
    assert "\n" not in str(error.value)
