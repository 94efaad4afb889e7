"""The attention benchmark: its arithmetic against counted masks and torch's own counter, its check against a wrong result, a small run."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.attention.attend import errors, prepare, seen, tensors
from benchmarks.attention.cells import IMPLEMENTATIONS, MASKS, Cell, documents, flops, grid, memory_bytes, pairs
from benchmarks.attention.report import TOLERANCE, cells_table, fastest_table, is_correct
from benchmarks.attention.sweep import Worker, figures, should_take, sweep

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
CELL = Cell("eager", "causal", "fp32", rows=3, heads=2, seq_len=96, head_dim=16)


@pytest.mark.parametrize("mask", MASKS)
def test_pairs_are_those_that_the_mask_shows(mask):
    cell = replace(CELL, mask=mask)
    shown = seen(cell, CPU)
    counted = cell.rows * cell.seq_len**2 if shown is None else int(shown.expand(cell.rows, -1, -1, -1).sum())
    assert pairs(cell) == counted


def test_documents_fill_their_rows_and_are_several():
    for seq_len in (64, 512, 4096):
        lengths = documents(4, seq_len)
        assert [sum(row) for row in lengths] == [seq_len] * 4
        assert all(length > 0 for row in lengths for length in row)
        assert sum(map(len, lengths)) > 8


def test_flops_are_those_that_torch_counts():
    cell = replace(CELL, mask="full")
    attend, (q, k, v, gradient) = prepare(cell, CPU), tensors(cell, CPU)
    with FlopCounterMode(display=False) as forward:
        output = attend(q, k, v)
    with FlopCounterMode(display=False) as backward:
        torch.autograd.grad(output, (q, k, v), gradient)
    assert flops(cell) == (forward.get_total_flops(), backward.get_total_flops())
    # About half of a causal square is hidden, and packing hides more.
    assert flops(replace(cell, mask="packed"))[0] < flops(replace(cell, mask="causal"))[0] < 0.51 * flops(cell)[0]


def test_memory_grows_with_the_square_only_where_scores_are_kept():
    long = replace(CELL, rows=1, seq_len=32768, head_dim=64, heads=4)
    assert memory_bytes(long) > 4 * 32768**2 * 12
    assert memory_bytes(replace(long, implementation="sdpa:flash")) == 10 * 32768 * 4 * 64 * 4
    assert memory_bytes(replace(long, implementation="sdpa", mask="packed")) > 32768**2


def test_the_grid_keeps_the_positions_and_the_width():
    cells = grid(list(IMPLEMENTATIONS), list(MASKS), ["fp32", "bf16"], [512, 32768], [64, 128], tokens=4096, width=256)
    assert len(cells) == len(set(cells)) == 9 * 3 * 2 * 2 * 2
    assert {cell.tokens for cell in cells} == {4096, 32768}
    assert {cell.heads * cell.head_dim for cell in cells} == {256}
    assert [cell.implementation for cell in cells[:9]] == list(IMPLEMENTATIONS)


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("implementation", ["eager", "sdpa", "sdpa:math", "sdpa:flash"])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_implementations_agree_with_float64(implementation, mask, dtype):
    cell = replace(CELL, implementation=implementation, mask=mask, dtype=dtype)
    found = errors(cell, prepare(cell, CPU), tensors(cell, CPU))
    assert 0 < max(found.values()) <= TOLERANCE[dtype]


def test_a_mask_that_is_not_kept_shows_as_an_error():
    packed = replace(CELL, implementation="sdpa", mask="packed", dtype="bf16")
    found = errors(packed, prepare(replace(packed, mask="causal"), CPU), tensors(packed, CPU))
    assert max(found.values()) > 3 * TOLERANCE["bf16"]
    lost = errors(packed, lambda q, k, v: prepare(packed, CPU)(q, k, v) * float("nan"), tensors(packed, CPU))
    assert max(lost.values()) == float("inf")


def test_the_fastest_is_one_that_was_right_wherever_it_was_checked():
    def row(implementation, seq_len, tokens_per_s, error):
        return {
            "implementation": implementation, "mask": "packed", "dtype": "bf16", "head_dim": 64, "seq_len": seq_len, "tokens_per_s": tokens_per_s,
            "errors": None if error is None else {"output": error}, "estimated_bytes": 1,
        }  # fmt: skip

    rows = [row("sdpa", 512, 10.0, 0.01), row("flex_attention", 512, 99.0, 0.5), row("sdpa", 4096, 5.0, None), row("flex_attention", 4096, 50.0, None)]
    assert is_correct(rows[0]) is True
    assert is_correct(rows[1]) is False
    assert is_correct(rows[2]) is None
    assert fastest_table(rows)[-1] == "| packed, bf16, head dimension 64 | sdpa 10 tokens/s | sdpa 5 tokens/s |"


def test_figures_follow_from_the_times():
    row = {"forward_s": 0.25, "backward_s": 0.75}
    made = figures(CELL, row, {"fp32": 1e9})
    assert made["tokens_per_s"] == 3 * 96
    assert made["tflops"] * 1e12 == pytest.approx(sum(flops(CELL)))
    assert made["of_peak"] == pytest.approx(sum(flops(CELL)) / 1e9)
    assert figures(CELL, {"reason": "did not run"}, {"fp32": 1e9}) == {}
    refused = {"seq_len": 96, "implementation": "eager", "reason": "a | b", "estimated_bytes": 2**30}
    assert "a \\| b" in cells_table([refused])[-1]


def test_a_cell_that_should_take_too_long_is_told_by_a_shorter_one():
    long = replace(CELL, rows=1, seq_len=CELL.seq_len * 30)
    # A third of the rows, 900 times the square, four passes.
    assert should_take(long, CELL, 0.5) == pytest.approx(4 * 0.5 * 300)
    rows = list(sweep([CELL, long], {"fp32": 1e12}, Answering(), seconds=0.0, limit_s=60.0, budget_s=60.0, memory_gb=1.0, tell=lambda text: None))
    assert rows[0]["tokens_per_s"] == 3 * 96 / 0.5
    assert rows[1]["reason"] == "not tried: should take 600 s by its time at 96 positions, and the limit is 60 s"
    (row,) = sweep([CELL], {"fp32": 1e12}, Answering(), seconds=0.0, limit_s=60.0, budget_s=-1.0, memory_gb=1.0, tell=lambda text: None)
    assert row["reason"] == "not tried: the -1 s of this run were over"


class Answering(Worker):
    """A worker whose cells take half a second by its word."""

    def __init__(self) -> None:
        super().__init__("cpu")

    def ask(self, *request, limit_s):
        return {"forward_s": 0.25, "backward_s": 0.25, "errors": None, "peak_bytes": None}


def test_a_small_run_writes_every_cell_with_its_figures_or_its_reason(tmp_path):
    command = [sys.executable, "-m", "benchmarks.attention", "--device", "cpu", "--implementations", "eager", "sdpa", "sdpa:cudnn", "flash_attention_2", "--masks", "packed"]
    command += ["--dtypes", "fp32", "--seq-lens", "64", "4096", "--head-dims", "16", "--tokens", "128", "--width", "32", "--seconds", "0.01", "--memory-gb", "0.2"]
    done = subprocess.run([*command, "--out", str(tmp_path), "--stem", "tried"], cwd=ROOT, capture_output=True, text=True, timeout=150, check=False)
    assert done.returncode == 0, done.stderr
    cells = {(cell["implementation"], cell["seq_len"]): cell for cell in json.loads((tmp_path / "tried.json").read_text())["cells"]}
    assert len(cells) == 8
    for name in ("eager", "sdpa"):
        assert cells[name, 64]["tokens_per_s"] > 0
        assert is_correct(cells[name, 64]) is True
    assert cells["eager", 4096]["reason"].startswith("not tried: should take 0.")
    assert cells["sdpa", 4096]["peak_bytes"] > 0
    assert cells["sdpa", 4096]["errors"] is None
    assert "Error" in cells["sdpa:cudnn", 64]["reason"]
    assert cells["flash_attention_2", 64]["reason"] == "runs on GPUs only"
    assert "| 64 | flash_attention_2 | runs on GPUs only |" in (tmp_path / "tried.md").read_text()
    assert "<svg" in (tmp_path / "tried.html").read_text()
