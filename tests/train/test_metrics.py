"""metrics.jsonl: what is written is read, a resumed run overwrites what it trains again, a line being written is not read."""

import pytest

from fmray.train.engine import StepStats
from fmray.train.metrics import MetricsLog, loss_points, read_metrics


def stats(step):
    return StepStats(loss_sum=10.0 * step, count=10, grad_norm=1.0, lr=0.1)


def test_lines_come_back_and_a_resumed_run_drops_what_it_repeats(tmp_path):
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path, from_step=0, tokens_per_step=1024)
    for step in range(1, 8):
        log.write(step, stats(step))
    with path.open("a") as file:
        file.write('{"step": 8, "lo')
    assert [line["step"] for line in read_metrics(path)] == list(range(1, 8))
    resumed = MetricsLog(path, from_step=4, tokens_per_step=1024)
    resumed.write(5, stats(50))
    lines = read_metrics(path)
    assert [(line["step"], line["loss"]) for line in lines] == [(1, 1), (2, 2), (3, 3), (4, 4), (5, 50)]
    assert all(line["tokens_per_s"] > 0 for line in lines)


def test_the_tail_of_a_long_file_is_whole_lines(tmp_path):
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path, from_step=0, tokens_per_step=1)
    for step in range(1, 1001):
        log.write(step, stats(step))
    tail = read_metrics(path, tail=True)
    assert 10 < len(tail) < 1000
    assert tail == read_metrics(path)[-len(tail) :]
    assert read_metrics(tmp_path / "none") == []


@pytest.mark.parametrize("n", [1, 3, 199, 200, 201, 1400])
def test_the_curve_has_at_most_200_points_and_keeps_its_mean(n):
    lines = [{"step": i + 1, "loss": float(i % 7), "n_targets": 10 + i % 3} for i in range(n)]
    points = loss_points(lines)
    assert len(points) <= 200
    assert points[-1].step == n
    size = -(-n // 200)
    counts = [sum(line["n_targets"] for line in lines[i : i + size]) for i in range(0, n, size)]
    mean = sum(line["loss"] * line["n_targets"] for line in lines) / sum(counts)
    assert sum(p.loss * c for p, c in zip(points, counts, strict=True)) / sum(counts) == pytest.approx(mean)
