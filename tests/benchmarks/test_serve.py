"""The serving benchmark runs from end to end on a tiny model, and its answers are `generate`'s."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.serve.client import Stream
from benchmarks.serve.work import ANSWER_TOKENS, PROMPT_TOKENS, requests


def test_requests_are_mixed_and_the_same_in_every_process() -> None:
    asked = requests(32)
    assert asked == requests(32)
    assert len({len(one.ids) for one in asked}) > 10
    assert all(PROMPT_TOKENS[0] <= len(one.ids) <= PROMPT_TOKENS[1] and ANSWER_TOKENS[0] <= one.max_tokens <= ANSWER_TOKENS[1] for one in asked)


def test_a_stream_tells_its_first_piece_and_the_gaps() -> None:
    stream = Stream((0.5, 0.75, 1.5))
    assert (stream.ttft_s, stream.gaps_s) == (0.5, [0.25, 0.75])


@pytest.mark.slow
def test_a_tiny_run(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    command = [sys.executable, "-m", "benchmarks.serve", "--size", "tiny", "--requests", "6", "--shrink", "4", "--write", str(tmp_path / "r.md")]
    done = subprocess.run(command, cwd=root, env=os.environ | {"PYTHONPATH": str(root)}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    row = next(line for line in (tmp_path / "r.md").read_text().splitlines() if line.startswith("| fmray over HTTP"))
    assert row.endswith("| 6 of 6 |")
    assert re.search(r"ms added", done.stdout)
