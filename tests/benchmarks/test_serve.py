"""The serving benchmark compares all ways on a tiny model, and every server's answers are `generate`'s."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.serve.client import Stream
from benchmarks.serve.watching import Memory
from benchmarks.serve.work import ANSWER_TOKENS, NAMES, PROMPT_TOKENS, requests


@pytest.mark.parametrize("size", NAMES)
def test_requests_are_mixed_and_the_same_in_every_process(size: str) -> None:
    asked = requests(size, 32)
    assert asked == requests(size, 32)
    lengths = [len(one.text.split()) for one in asked]
    assert len(set(lengths)) > 10
    assert all(PROMPT_TOKENS[0] <= length <= PROMPT_TOKENS[1] for length in lengths)
    assert all(ANSWER_TOKENS[0] <= one.max_tokens <= ANSWER_TOKENS[1] for one in asked)


def test_a_stream_tells_its_first_piece_and_the_gaps() -> None:
    stream = Stream((0.5, 0.75, 1.5))
    assert (stream.ttft_s, stream.gaps_s) == (0.5, [0.25, 0.75])


def test_memory_that_grows_behind_the_warm_up_has_a_slope_and_memory_that_does_not_has_none() -> None:
    # The first fifth of 60 samples, five seconds apart, is what a process takes while it warms up.
    grown = Memory([5.0 * i for i in range(60)], [{"flat": 100.0 if i >= 12 else 8.0 * i, "leak": 100 + i / 12} for i in range(60)])
    assert grown.slope_mb_per_min("flat")[0] == pytest.approx(0.0, abs=1e-9)
    assert grown.slope_mb_per_min("leak")[0] == pytest.approx(1.0)
    assert grown.ends("flat") == (100.0, 100.0, 100.0)


@pytest.mark.slow
def test_a_tiny_run(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    command = [
        sys.executable, "-m", "benchmarks.serve", "--size", "tiny", "--requests", "6", "--shrink", "4", "--repeats", "1",
        "--parts", "speed", "--write", str(tmp_path / "r.md"),
    ]  # fmt: skip
    done = subprocess.run(command, cwd=root, env=os.environ | {"PYTHONPATH": str(root)}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    lines = (tmp_path / "r.md").read_text().splitlines()
    for way in ("fmray over HTTP", "FastAPI + `generate`", "`transformers serve`"):
        assert next(line for line in lines if line.startswith(f"| {way}") and "of 6" in line).endswith("| 6 of 6 |"), way
