"""A run that is killed goes on: the same command, the same fingerprints, the same losses."""

import os
import signal
import time
from pathlib import Path

import psutil
import pytest

from fmray.train.state import latest_state
from tests.e2e.driver import QUICKSTART, SHRUNK, fmray, record, start

ARGS = ("run", str(QUICKSTART), "base", *SHRUNK, "base.max_steps=120", "base.checkpoint_every_steps=20")


def wait_for_steps(metrics_file: Path, steps: int, process: psutil.Popen, timeout_s: float = 300) -> None:
    """Until training has logged so many steps."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        assert process.poll() is None, "the run ended too early"
        if metrics_file.exists() and len(metrics_file.read_text().splitlines()) >= steps:
            return
        time.sleep(0.2)
    raise AssertionError(f"no {steps} steps within {timeout_s} s")


@pytest.fixture(scope="module")
def quiet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed run."""
    folder = tmp_path_factory.mktemp("quiet")
    assert fmray(*ARGS, cwd=folder).returncode == 0
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_run_that_was_ended_goes_on_with_the_same_command_and_the_same_losses(quiet: Path, tmp_path: Path, number: signal.Signals) -> None:
    process = start(*ARGS, cwd=tmp_path)
    base = tmp_path / "runs/quickstart/base"
    wait_for_steps(base / "metrics.jsonl", 50, process)
    descendants = psutil.Process(process.pid).children(recursive=True)
    os.kill(process.pid, number)
    said, _ = process.communicate(timeout=120)
    psutil.wait_procs(descendants, timeout=60)
    if number == signal.SIGTERM:
        reached = len((base / "metrics.jsonl").read_text().splitlines())
        assert process.returncode == 143
        assert f"fmray: ended by SIGTERM behind step {reached}, whose state is written; the same command" in said
        state = latest_state(base / "work" / "train")
        assert state is not None
        assert state[1].step == reached < 120
    done = fmray(*ARGS, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    a, b = record(quiet / "runs/quickstart", "base"), record(tmp_path / "runs/quickstart", "base")
    assert a["fingerprint"] == b["fingerprint"]
    assert a["payload"]["losses"] == b["payload"]["losses"]
    assert a["payload"]["digest"] == b["payload"]["digest"]


@pytest.mark.slow
def test_a_refusal_goes_back_trains_on_and_is_judged_anew(tmp_path: Path) -> None:
    """Round 2 goes on from the last checkpoint of round 1 and both rounds stay as artifacts."""
    first = fmray("run", str(QUICKSTART), "base_gate", *SHRUNK, cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    root = tmp_path / "runs" / "quickstart"
    loss = next(m["value"] for m in record(root, "base_eval")["payload"]["metrics"] if m["name"] == "eval/bits_per_byte")
    rule = f"base_gate.rules=['eval/bits_per_byte < {loss - 0.01}']"
    back = "base_gate.on_refusal={back_to: base, max_rounds: 2, set: {base.max_steps: 80}}"
    done = fmray("run", str(QUICKSTART), "base_gate", *SHRUNK, rule, back, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert not record(root, "base_gate")["payload"]["admitted"]
    assert record(root, "base_gate@2")["payload"]["admitted"]
    assert record(root, "base@2")["payload"]["step"] == 30 + 80
    assert record(root, "base@2")["inputs"]["previous"] == record(root, "base")["fingerprint"]
