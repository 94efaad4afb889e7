"""Which node a fault is put down to, and when a node is left out."""

import json
import logging

import pytest
from ray.exceptions import ActorDiedError, RayActorError
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError

from fmray.core.artifact import write_json
from fmray.core.errors import DataError
from fmray.train.faults import LEFT_OUT, PLACES, Told, accuse, figures, over_limit, put_down, read_faults, room_outside
from fmray.train.watchdog import HANGS, VERDICT

DEAD = WorkerHealthCheckFailedError("poll failed", ActorDiedError())
COLLECTIVE = RuntimeError("Connection closed by peer")


@pytest.fixture
def folder(tmp_path):
    """Three workers on two nodes."""
    (tmp_path / PLACES).mkdir()
    for rank, node in enumerate(("aa", "bb", "bb")):
        write_json(tmp_path / PLACES / f"rank-{rank}.json", {"node": node, "host": f"host-{node}"})
    return tmp_path


def told(folder):
    return [(fault.node, fault.rank, fault.kind) for fault in read_faults(folder)]


def test_who_died_is_to_blame_and_not_those_who_lost_their_peer(folder):
    accuse(folder, {0: COLLECTIVE, 1: DEAD, 2: COLLECTIVE})
    assert told(folder) == [("bb", 1, "lost")]
    accuse(folder, {1: DEAD, 2: DEAD})
    assert told(folder) == [("bb", 1, "lost"), ("bb", 1, "lost"), ("bb", 2, "lost")]


def test_an_error_of_one_worker_alone_is_its_nodes_and_one_of_all_is_nobodys(folder):
    accuse(folder, {0: COLLECTIVE, 1: COLLECTIVE})
    accuse(folder, {0: DataError("a shard is damaged")})
    assert told(folder) == []
    accuse(folder, {0: RuntimeError("CUDA error: uncorrectable ECC error\nsee the log")})
    assert told(folder) == [("aa", 0, "failed")]


def test_a_machine_that_was_taken_back_is_no_fault(folder):
    accuse(folder, {1: WorkerHealthCheckFailedError("poll failed", RayActorError(preempted=True))})
    assert told(folder) == []


def test_a_hang_is_put_down_once_to_the_rank_that_hung_though_others_died_of_it(folder):
    hang = folder / HANGS / "001"
    hang.mkdir(parents=True)
    write_json(hang / VERDICT, {"verdict": "without a sign, so frozen or lost: rank 0", "ranks": [0], "step": 4, "limit_s": 3.0})
    accuse(folder, {1: DEAD, 2: DEAD})
    assert told(folder) == [("aa", 0, "hung")]
    accuse(folder, {1: DEAD})
    assert told(folder) == [("aa", 0, "hung"), ("bb", 1, "lost")]


def test_nodes_are_counted(folder):
    put_down(folder, [1], "lost", "gone")
    put_down(folder, [2, 0], "no_number", "the loss is nan")
    assert over_limit(read_faults(folder), 2) == ["bb"]
    assert over_limit(read_faults(folder), 1) == ["aa", "bb"]
    assert over_limit(read_faults(folder), 3) == []
    assert figures(folder) == {"train/faults": 3.0, "train/nodes_left_out": 0.0}
    write_json(folder / LEFT_OUT, {"nodes": ["bb"]})
    assert figures(folder)["train/nodes_left_out"] == 1.0
    assert figures(folder / "another") == {}


def test_room_is_that_of_living_nodes_that_are_not_left_out():
    nodes = [{"NodeID": node, "Alive": alive, "Resources": resources} for node, alive, resources in (
        ("aa", True, {"CPU": 9.0, "GPU": 2.0}), ("bb", True, {"CPU": 8.0, "GPU": 4.0}), ("cc", False, {"CPU": 8.0, "GPU": 4.0}), ("dd", True, {"CPU": 64.0}),
    )]  # fmt: skip
    assert room_outside(nodes, ["bb"], {"CPU": 4.0, "GPU": 1.0}) == 2
    assert room_outside(nodes, [], {"CPU": 4.0, "GPU": 1.0}) == 4
    assert room_outside(nodes, ["aa", "bb"], {"CPU": 4.0, "GPU": 1.0}) == 0
    assert room_outside(nodes, [], {"CPU": 4.0}) == 2 + 2 + 16


def test_the_driver_says_once_what_is_left_out(folder, caplog):
    say = Told(folder)
    with caplog.at_level(logging.WARNING):
        say()
        write_json(folder / LEFT_OUT, {"nodes": ["bb"], "kept": [], "faults": 3, "room_elsewhere": 2, "num_workers": 2})
        say()
        say()
        write_json(folder / LEFT_OUT, {"nodes": [], "kept": ["bb"], "faults": 3, "room_elsewhere": 1, "num_workers": 2})
        say()
    assert [record.getMessage() for record in caplog.records] == [
        "3 faults or more came from bb: no worker of this run is started there again",
        "3 faults or more came from bb, which stay in use: the other nodes have room for 1 of 2 workers",
    ]


def test_a_fault_keeps_what_is_known_of_it(folder):
    put_down(folder, [2], "failed", "RuntimeError: no kernel", hang="")
    (path,) = (folder / "faults").glob("*.json")
    kept = json.loads(path.read_text())
    assert (kept["node"], kept["host"], kept["rank"], kept["what"]) == ("bb", "host-bb", 2, "RuntimeError: no kernel")
