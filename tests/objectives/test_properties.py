"""One harness over every registered objective: what holds for any loss of sums and counts."""

from typing import Any

import numpy as np
import pytest
import torch

from fmray.model.architectures.t5 import T5
from fmray.objectives import Batch, Objective, Rows
from fmray.objectives.causal_lm import CausalLM
from fmray.objectives.contrastive import Contrastive
from tests.objectives.cases import CASES, ELSEWHERE, SIZE, Case

pytestmark = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
MODELS: dict[str, Any] = {}


def model_of(case: Case) -> Any:
    if case.name not in MODELS:
        MODELS[case.name] = case.model()
    return MODELS[case.name]


def collate(case: Case, rows: Rows, seed: int = 0) -> Batch:
    return case.objective.collate(rows, case.setting(model_of(case), seed))


def part(rows: Rows, which: Any) -> Rows:
    return {name: values[which] for name, values in rows.items()}


def test_splitting_a_batch_changes_nothing(case: Case) -> None:
    model, objective, rows = model_of(case), case.objective, case.rows(6)
    with torch.no_grad():
        whole = objective.loss(model, collate(case, rows))
        parts = [objective.loss(model, collate(case, part(rows, slice(i, i + 2)))) for i in (0, 2, 4)]
    assert int(whole.count) == sum(int(p.count) for p in parts) == objective.count(collate(case, rows)) > 0
    if not objective.adds_up:
        # In a smaller batch there are fewer rows to be told from: that is why its gradients are not accumulated.
        assert whole.sum.item() > 1.1 * sum(p.sum.item() for p in parts)
        return
    assert whole.sum.item() == pytest.approx(sum(p.sum.item() for p in parts), rel=1e-5)


def test_a_fresh_model_is_as_good_as_chance(case: Case) -> None:
    with torch.no_grad():
        loss = case.objective.loss(model_of(case), collate(case, case.rows(8)))
    if isinstance(case.objective, Contrastive):
        # Without dropout both readings are the same: no other row can be nearer, so the loss is between 0 and that of chance.
        assert 0 < loss.sum.item() / int(loss.count) <= np.log(8)
        return
    # Of images: patches of even noise have variance 1 normalised and 1/3 as they are, and a fresh decoder says about 0.
    chance = (1.0 if getattr(case.objective, "normalised", False) else 1 / 3) if case.image_shape else np.log(model_of(case).config.vocab_size)
    if isinstance(case.architecture, T5):
        # T5 begins with scores of variance 1, and the mean of exp is then e^(1/2).
        chance += 0.5
    assert loss.sum.item() / int(loss.count) == pytest.approx(chance, rel=0.1)


def test_no_table_of_a_fresh_model_is_empty(case: Case) -> None:
    # Single rows are tokens of their own kind, which may begin at zero.
    empty = [n for n, p in model_of(case).named_parameters() if p.squeeze().ndim >= 2 and not p.any()]
    assert empty == []


def test_the_gradient_reaches_every_parameter(case: Case) -> None:
    model = model_of(case)
    model.zero_grad()
    case.objective.loss(model, collate(case, case.rows(8))).sum.backward()
    # ESM's contact head is trained apart, from attention maps.
    left = [n for n, p in model.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.abs().sum() > 0)]
    assert [name for name in left if "contact_head" not in name] == []
    model.zero_grad()


def test_batches_depend_on_seed_row_and_epoch_alone(case: Case) -> None:
    rows = dict(case.rows(6)) | {"epochs_B": np.array([0, 0, 1, 1, 2, 2])}
    whole, again = collate(case, rows), collate(case, rows)
    assert whole.keys() == again.keys()
    assert all(torch.equal(whole[key], again[key]) and len(whole[key]) == 6 for key in whole)
    assert whole["row_ids_B"].tolist() == np.asarray(rows["row_ids_B"]).tolist()
    order = np.array([4, 1, 5])
    few = collate(case, part(rows, order))
    for key, values in whole.items():
        width = few[key].shape[1] if few[key].ndim > 1 else None
        assert torch.equal(few[key], values[order] if width is None else values[order][:, :width]), key
    other = collate(case, rows, seed=1), collate(case, dict(rows) | {"epochs_B": np.full(6, 9)})
    drawn = not isinstance(case.objective, (CausalLM, Contrastive))
    for changed in other:
        assert drawn == any(whole[key].shape != changed[key].shape or not torch.equal(whole[key], changed[key]) for key in whole)


def test_padding_contributes_nothing(case: Case) -> None:
    if case.image_shape:
        pytest.skip("an image has no padding")
    rows, model = case.rows(6), model_of(case)
    garbled = {name: values.copy() for name, values in rows.items()}
    padding = rows["segment_ids_BT"] == 0
    assert padding.any()
    garbled["input_ids_BT"][padding] = 7
    with torch.no_grad():
        one, other = (case.objective.loss(model, collate(case, each)) for each in (rows, garbled))
    assert int(one.count) == int(other.count)
    assert one.sum.item() == pytest.approx(other.sum.item(), rel=1e-6)


def test_every_objective_is_here(case: Case) -> None:
    assert {type(c.objective) for c in CASES} | set(ELSEWHERE) == {found for found in Objective.members().values() if found.__module__.startswith("fmray.")}
    assert SIZE == 80
