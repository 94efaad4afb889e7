"""A hang is found, whatever holds the process; every rank leaves its stacks; a slow step, a slow save and the first step are no hangs."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from fmray.train.watchdog import VERDICT, last_hang, verdict

# Trains three short steps as rank argv[1] of argv[2], with argv[3] as hang_after_s, then does argv[4] in the fourth.
SCRIPT = """
import ctypes, sys, time
from pathlib import Path
from fmray.train.watchdog import Watchdog

rank, world_size, after, deed = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]), sys.argv[4]

def stuck_here():
    while True:
        time.sleep(0.1)

def batches():
    for step in range(1, 7):
        if step == 5 and deed == "no_data":
            stuck_here()
        yield [], None


with Watchdog(Path(sys.argv[5]), rank=rank, world_size=world_size, hang_after_s=after) as watchdog:
    time.sleep(2 * after if deed == "slow" else 0)
    for step, _ in enumerate(watchdog.watched(batches()), start=1):
        time.sleep(0.2)
        if step == 5:
            if deed == "hang":
                stuck_here()
            elif deed == "hold_the_lock":
                ctypes.PyDLL(None).sleep(60)
            elif deed == "slow":
                time.sleep(1.2)
                with watchdog.saving():
                    time.sleep(4)
        watchdog.finished(step)
"""


def start(folder: Path, rank: int, world_size: int, after: float, deed: str) -> subprocess.Popen:
    arguments = [str(rank), str(world_size), str(after), deed, str(folder)]
    return subprocess.Popen([sys.executable, "-c", SCRIPT, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def test_hangs_of_every_kind_are_found_and_slowness_is_none(tmp_path):
    """In processes side by side. A step takes 0.2 s, so ten medians are 2 s."""
    alone, starved, frozen, slow = (tmp_path / name / "001" for name in ("alone", "starved", "frozen", "slow"))
    pair = tmp_path / "pair" / "001"
    running = {
        "alone": start(alone, 0, 1, 0.5, "hang"), "starved": start(starved, 0, 1, 0.5, "no_data"), "frozen": start(frozen, 0, 1, 0.5, "hold_the_lock"),
        "slow": start(slow, 0, 1, 0.5, "slow"), "first": start(pair, 0, 2, 0.5, "hang"), "called": start(pair, 1, 2, 500.0, "hang"),
    }  # fmt: skip
    said = {name: process.communicate(timeout=60)[0] for name, process in running.items()}
    codes = {name: process.returncode for name, process in running.items()}
    assert codes == {"alone": 1, "starved": 1, "frozen": 1, "slow": 0, "first": 1, "called": 1}, said

    assert "stuck_here" in (alone / "rank-0.txt").read_text()
    told = json.loads((alone / VERDICT).read_text())
    assert told["step"] == 4
    assert 2.0 <= told["limit_s"] < 4.0
    assert "in stuck_here" in told["verdict"]
    assert last_hang(alone.parent) == f"{told['verdict']}; stacks in {alone}"
    assert "waiting for data: rank 0" in json.loads((starved / VERDICT).read_text())["verdict"]
    # Only code without the interpreter could write this.
    assert "<string>" in (frozen.parent / "001-frozen-rank-0.txt").read_text()
    assert last_hang(frozen.parent) == f"stacks in {frozen.parent}"
    # Rank 1 would have waited for minutes.
    assert all("stuck_here" in (pair / f"rank-{rank}.txt").read_text() for rank in (0, 1))
    assert list(slow.parent.iterdir()) == []
    assert last_hang(slow.parent) == ""


def report(rank, step=7, phase="computing", in_collective=True):
    return {"rank": rank, "step": step, "phase": phase, "in_collective": in_collective, "at": "model.py:3 in forward"}


@pytest.mark.parametrize(
    ("reports", "expected"),
    [
        ([report(0), report(2)], "without a sign, so frozen or lost: rank 1"),
        ([report(0), report(1, step=6), report(2)], "behind by a step: rank 1, at model.py:3 in forward"),
        ([report(0), report(1), report(2, phase="reading")], "waiting for data: rank 2, at model.py:3 in forward"),
        ([report(0, in_collective=False), report(1, in_collective=False), report(2)], "waiting for no other rank: ranks 0, 1, at model.py:3 in forward"),
        ([report(0), report(1), report(2)], "which rank is behind cannot be told: all of them do the same"),
    ],
)
def test_the_rank_that_is_behind_is_named_where_it_can_be_told(reports, expected):
    assert verdict(reports, 3) == expected
