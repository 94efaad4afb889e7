"""metrics.jsonl: what is written is read, a resumed run overwrites what it trains again, a line being written is not read."""

import time

import pytest

from fmray.train.device import Device
from fmray.train.engine import StepStats
from fmray.train.metrics import Meter, MetricsLog, Waited, loss_points, read_metrics


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


def meter(**changes):
    fields = {"devices": 2, "last_step": 10, "flops_per_token": 6e6, "device": Device(peak_tflops=0.5), "memory_gb": lambda: 1.25, "waited_s": lambda: 0.0}
    return Meter(**(fields | changes))


def test_mfu_is_the_share_of_the_declared_peak_or_unknown_with_its_reason():
    # 50,000 tokens/s x 6 MFLOP = 0.3 TFLOP/s over two devices of 0.5.
    assert meter().mfu(50_000) == pytest.approx(0.3)
    assert meter().why_no_mfu is None
    assert meter(device=Device()).mfu(50_000) is None
    assert meter(device=Device()).why_no_mfu == "device.peak_tflops is not declared"
    assert meter(flops_per_token=None).why_no_mfu == "the FLOPs of this model are not known"


def test_waiting_is_told_once():
    def slowly():
        for item in range(3):
            time.sleep(0.02)
            yield item

    waited = Waited(slowly())
    assert [next(waited), next(waited)] == [0, 1]
    assert 0.04 <= waited.take_s() < 1
    assert waited.take_s() == 0
    assert list(waited) == [2]
    assert waited.take_s() >= 0.02


def test_a_watched_line_tells_where_the_time_goes(tmp_path):
    log = MetricsLog(tmp_path / "metrics.jsonl", from_step=0, tokens_per_step=1000, meter=meter(device=Device(), waited_s=lambda: 0.5))
    log.write(1, stats(1))
    time.sleep(0.05)
    log.pause()
    log.write(2, stats(2))
    log.write(3, stats(3))
    first, second, third = read_metrics(tmp_path / "metrics.jsonl")
    assert first["tokens_per_s_device"] == pytest.approx(first["tokens_per_s"] / 2, abs=0.1)
    assert (first["mfu"], first["mfu_unknown"], first["eta_s"]) == (None, "device.peak_tflops is not declared", None)
    assert "mfu_unknown" not in second
    assert (second["data_wait_s"], second["peak_gb"]) == (0.5, 1.25)
    # The checkpoint's time is in its own figure, and in no step's speed.
    assert (first["checkpoint_s"], third["checkpoint_s"]) == (0, 0)
    assert 0.05 <= second["checkpoint_s"] < 1
    assert second["tokens_per_s"] > 1000 / 0.05
    # Eight steps remain, each as long as the one before, checkpoint included.
    assert second["eta_s"] >= 8 * 0.05 - 0.1


def test_a_full_storage_is_waited_for_and_leaves_no_half_line(tmp_path, monkeypatch):
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path, from_step=0, tokens_per_step=1)
    log.write(1, stats(1))
    file = log._file

    class Full:
        seek, close = file.seek, file.close

        def write(self, content):
            file.write(content[:20])
            raise OSError(28, "No space left on device")

    log._file = Full()
    monkeypatch.setattr("fmray.train.storage.WAITS_S", (0.01,))
    log.write(2, stats(2))
    log.write(3, stats(3))
    assert [line["step"] for line in read_metrics(path)] == [1, 2, 3]
