"""Counted memory of real workers against what `fmray check` says."""

import pytest

from benchmarks import alone, zero_memory
from benchmarks.zero_memory import PARTS, Case
from fmray.train.plan import state_bytes_per_param


@pytest.mark.slow
def test_two_workers_hold_what_the_plan_says():
    case = Case(stage=1, workers=2, accumulate=2)
    for found in alone.run(zero_memory.measure, 2, case):
        assert sum(found[part] for part in PARTS) == pytest.approx(state_bytes_per_param(1, 2, "bf16", accumulates=True), rel=0.01)
        assert found["buffers"] < 0.05
        assert found["in_step"] >= found["held"] > found["between"] > 0
