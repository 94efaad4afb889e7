"""Runs `fmray` as a user does: in a process of its own, on a private Ray, in a folder of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
QUICKSTART = ROOT / "jobs" / "quickstart.yaml"
# The quickstart, shrunk by overrides alone to what a test can wait for.
SHRUNK = (
    "corpus.vocab_size=512",
    "corpus.seq_len=64",
    "corpus.canaries.candidates=255",
    "base_audit.audits=[{type: bias, axes: [gender], control_seeds: [0, 1]}, {type: privacy}, {type: cost}]",
    "base.max_steps=30",
    "base.checkpoint_every_steps=10",
    "base_gate.rules=['eval/bits_per_byte < 20']",
    "tuned.num_trials=2",
    "tuned.epochs=2",
    "tuned.task.max_examples_per_class=30",
    "tuned_gate.rules=['eval/package/macro_f1 >= 0']",
)
# Where what is audited is beside the point.
UNAUDITED = (*SHRUNK, "base_audit.audits=[{type: cost}]")


def environment() -> dict[str, str]:
    """The environment of a run: one Ray of its own, without a token file in the user's home."""
    env = {k: v for k, v in os.environ.items() if k not in ("RAY_ADDRESS", "OMP_NUM_THREADS")}
    return env | {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}


def fmray(*args: str, cwd: Path, timeout_s: float = 600, python_args: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    """`python -m fmray ARGS` to its end."""
    command = [sys.executable, *python_args, "-m", "fmray", *args]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment(), timeout=timeout_s, check=False)


def start(*args: str, cwd: Path) -> subprocess.Popen[str]:
    """`python -m fmray ARGS`, left running in a process group of its own."""
    command = [sys.executable, "-m", "fmray", *args]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=cwd, env=environment(), start_new_session=True)


def record(root: Path, step: str) -> dict[str, Any]:
    """The record of a step of a run below `root`."""
    return dict(json.loads((root / step / "record.json").read_text()))


def metrics(root: Path, step: str) -> dict[str, dict[str, Any]]:
    """The metrics of a report by name."""
    return {m["name"]: m for m in record(root, step)["payload"]["metrics"]}
