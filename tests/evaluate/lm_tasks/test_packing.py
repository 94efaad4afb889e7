"""Rows without padding: every token that is asked for sees its own context and nothing else, wherever it lies."""

import random

import numpy as np
import pytest

from fmray.evaluate.lm_tasks.packing import SHORTEST_PREFIX, Request, plan_rows


def requests(seed: int, shared: int) -> list[Request]:
    draw = random.Random(seed)
    front = [draw.randrange(9) for _ in range(shared)]
    made = []
    for group in range(draw.randint(2, 9)):
        context = [*front, *(draw.randrange(9) for _ in range(draw.randint(1, 12)))]
        for _ in range(draw.randint(1, 4)):
            own = [*context, *(draw.randrange(3) for _ in range(draw.randint(0, 3)))]
            made.append(Request(group, own, [draw.randrange(3) for _ in range(draw.randint(1, 6))]))
    return made


@pytest.mark.parametrize("shares", [True, False])
@pytest.mark.parametrize("shared", [0, 30])
@pytest.mark.parametrize("seed", range(8))
def test_every_target_sees_its_context_at_its_positions(seed, shared, shares):
    asked = requests(seed, shared)
    plan = plan_rows(asked, 1000, 40, shares=shares)
    assert (len(plan.prefix) >= SHORTEST_PREFIX) == (shares and shared > 0)
    found = {}
    for row in plan.rows:
        sees_TT, ids, position = row.sees_TT(), np.array(row.ids_T), np.array(row.position_T)
        for query, target, request in zip(row.query_Q, row.target_Q, row.request_Q, strict=True):
            seen = sees_TT[query]
            assert position[seen].tolist() == list(range(len(plan.prefix), len(plan.prefix) + seen.sum()))
            found.setdefault(request, []).append(([*plan.prefix, *ids[seen].tolist()], target))
    for i, request in enumerate(asked):
        told = [*request.context]
        for token, (context, target) in zip(request.continuation, found[i], strict=True):
            assert (context, target) == (told, token)
            told.append(token)


def test_what_choices_share_is_read_once():
    question = list(range(100, 140))
    asked = [Request(0, question, [choice, choice + 1]) for choice in (1, 3, 5, 7)]
    (row,) = plan_rows(asked, 1000, 512, shares=True).rows
    assert len(row.ids_T) == 40 + 4, "the question once, and all of each choice but its last token"
    assert sum(len(row.ids_T) for row in plan_rows(asked, 1000, 512, shares=False).rows) == 4 * 41


def test_a_context_longer_than_the_model_loses_its_beginning_and_is_told():
    asked = [Request(0, list(range(10)), [50]), Request(1, list(range(30)), [51, 52])]
    plan = plan_rows(asked, 20, 512, shares=True)
    assert plan.truncated == {1}
    assert plan.rows[0].ids_T[-20:] == [*range(11, 30), 51]
