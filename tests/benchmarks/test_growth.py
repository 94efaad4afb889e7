"""The model of communication: its arithmetic, and counted collectives of real workers against it."""

import pytest

from benchmarks import alone, growth
from benchmarks.communication import ring_bytes, sent_per_param


@pytest.mark.slow
def test_two_workers_send_what_the_model_says():
    stage = 1
    row = growth.joined(alone.run(growth.measure, 2, stage), wired=False)
    assert sum(row["sent"].values()) / row["n_params"] == pytest.approx(sent_per_param(stage, 2), rel=0.02)


def test_a_ring_sends_all_but_a_share():
    assert ring_bytes("reduce_scatter", 800, 8) == 700
    assert ring_bytes("allreduce", 800, 8) == 1400
    assert ring_bytes("allgather", 800, 1) == 0
