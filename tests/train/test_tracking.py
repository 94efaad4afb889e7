"""Trackers show each step once, whatever was killed, and end no training."""

import json
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fmray.core.config import load_config
from fmray.core.errors import ConfigError
from fmray.train.config import PretrainConfig
from fmray.train.trackers import Point, Sink, TrackedRun, Tracker, check_trackers
from fmray.train.trackers.mlflow import Mlflow
from fmray.train.trackers.tensorboard import Tensorboard, events
from fmray.train.trackers.wandb import Wandb
from fmray.train.tracking import Tracking, point

MODEL = {"type": "decoder", "size": "nano"}


def config(**changes):
    return load_config(PretrainConfig, {"model": MODEL, "global_batch_size": 8, "max_steps": 3} | changes, "base")


def line(step, **more):
    return {"step": step, "loss": 1.0 / step, "lr": 0.1, "grad_norm": 1.0, "tokens_per_s": 10.0, "time": 1.7e9 + step, "num_workers": 2, "mfu": None} | more


def tracked(folder: Path) -> TrackedRun:
    return TrackedRun("quick", "base", folder, {"optim": {"lr": 0.1}, "seed": 0})


def write(path: Path, steps) -> None:
    with path.open("a") as file:
        for step in steps:
            file.write(json.dumps(line(step)) + "\n")


def scalars(folder: Path) -> list[tuple[int, str, float]]:
    return [(event.step, value.tag, value.simple_value) for event in events(folder / "tensorboard") for value in event.summary.value if value.HasField("simple_value")]


def test_the_registry_and_the_default():
    assert list(Tracker.members()) == ["mlflow", "tensorboard", "wandb"]
    assert config().trackers == (Tensorboard(),)
    assert config(trackers=["mlflow", {"type": "wandb", "mode": "offline"}]).trackers == (Mlflow(), Wandb(mode="offline"))
    assert "trackers" not in config().identity()
    with pytest.raises(ConfigError, match=r"base.trackers.*unknown tracker 'tensorbord', did you mean 'tensorboard'"):
        config(trackers=["tensorbord"])
    with pytest.raises(ConfigError, match="trackers names tensorboard twice"):
        config(trackers=["tensorboard", "tensorboard"])


def test_a_missing_library_is_refused_with_the_extra_that_brings_it():
    class Absent:
        type, needs = "absent", ("fmray_has_no_such_library", "fmray[absent]")

    check_trackers([Tensorboard()])
    with pytest.raises(ConfigError, match=r"^trackers: tracker absent needs fmray_has_no_such_library.*pip install 'fmray\[absent\]'"):
        check_trackers([Absent()])


def test_a_point_has_the_finite_figures_of_a_line():
    found = point(line(3, eval_loss=0.5, note="x", eta_s=4.0, data_wait_s=float("inf")))
    assert found.figures == {
        "train/loss": 1 / 3, "train/lr": 0.1, "train/grad_norm": 1.0, "eval/loss": 0.5, "perf/tokens_per_s": 10.0, "perf/num_workers": 2.0,
    }  # fmt: skip
    assert (found.step, found.time) == (3, 1.7e9 + 3)


def test_tensorboard_has_every_step_once_over_attempts_that_were_killed(tmp_path):
    metrics = tmp_path / "metrics.jsonl"
    write(metrics, range(1, 6))
    with Tracking([Tensorboard()], tracked(tmp_path), metrics) as tracking:
        pass
    # The next attempt goes on from step 3: its lines 4 and 5 were shown, and a torn event of the killed one is no step.
    (newest,) = (tmp_path / "tensorboard").glob("events*")
    newest.write_bytes(newest.read_bytes() + b"\x20\x00\x00\x00\x00\x00\x00\x00torn")
    metrics.write_text("")
    write(metrics, range(1, 4))
    time.sleep(1.1)  # a file of events is named by its second
    with Tracking([Tensorboard()], tracked(tmp_path), metrics):
        write(metrics, range(4, 9))
    shown = [(step, value) for step, tag, value in scalars(tmp_path) if tag == "train/loss"]
    assert shown == [(step, pytest.approx(1 / step)) for step in range(1, 9)]
    assert tracking.notes == []


def test_a_long_file_is_shown_whole_to_a_tracker_that_comes_late(tmp_path):
    metrics = tmp_path / "metrics.jsonl"
    write(metrics, range(1, 1001))
    with Tracking([Tensorboard()], tracked(tmp_path), metrics):
        pass
    assert [step for step, tag, _ in scalars(tmp_path) if tag == "train/loss"] == list(range(1, 1001))


def test_mlflow_goes_on_with_its_run(tmp_path):
    pytest.importorskip("mlflow")
    from mlflow.tracking import MlflowClient

    metrics = tmp_path / "metrics.jsonl"
    for steps in (range(1, 6), range(6, 9)):
        write(metrics, steps)
        with Tracking([Mlflow()], tracked(tmp_path), metrics) as tracking:
            pass
        assert tracking.notes == []
    client = MlflowClient(tracking_uri=(tmp_path / "mlflow").absolute().as_uri())
    (run,) = client.search_runs([client.get_experiment_by_name("quick").experiment_id])
    assert (run.info.run_name, run.info.status, run.data.params) == ("base", "FINISHED", {"optim.lr": "0.1", "seed": "0"})
    assert sorted(m.step for m in client.get_metric_history(run.info.run_id, "train/loss")) == list(range(1, 9))


def leveldb_records(data: bytes) -> Iterator[bytes]:
    """The records of a .wandb file: a header of 7 bytes, then LevelDB's log in blocks of 32 KiB (checksum 4, length 2, kind 1: whole, first, middle, last)."""
    at, parts = 7, b""
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        length, kind = struct.unpack_from("<HB", data, at + 4)
        parts += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            yield parts
            parts = b""


def test_wandb_offline_goes_on_with_its_run(tmp_path):
    wandb = pytest.importorskip("wandb")
    from wandb.proto.wandb_internal_pb2 import Record

    metrics = tmp_path / "metrics.jsonl"
    for steps in (range(1, 6), range(6, 9)):
        write(metrics, steps)
        with Tracking([Wandb(mode="offline")], tracked(tmp_path), metrics) as tracking:
            pass
        assert tracking.notes == []
    # A finished offline run is in the hands of wandb's own process, which ends, all written, with the process that trains.
    wandb.teardown()
    steps, ids = [], set()
    for path in sorted((tmp_path / "wandb").glob("offline-run-*/*.wandb")):
        for data in leveldb_records(path.read_bytes()):
            record = Record.FromString(data)
            if record.HasField("history"):
                items = {item.key or "/".join(item.nested_key): item.value_json for item in record.history.item}
                steps.append((int(items["_step"]), float(items["train/loss"])))
            if record.HasField("run"):
                ids.add(record.run.run_id)
    assert steps == [(step, pytest.approx(1 / step)) for step in range(1, 9)]
    assert len(ids) == 1


class Broken(Sink):
    """Shows one step and then its disk is full."""

    last_step = 0
    shown = threading.Event()

    def log(self, points):
        if points[-1].step > 1:
            raise OSError("No space left on device\nat some place")
        self.shown.set()

    def close(self):
        raise AssertionError("it had failed before")


class Failing:
    type = "failing"

    def open(self, run):
        return Broken()


def test_a_tracker_that_fails_is_told_once_and_the_others_go_on(tmp_path, caplog):
    metrics = tmp_path / "metrics.jsonl"
    write(metrics, [1])
    with Tracking([Failing(), Tensorboard()], tracked(tmp_path), metrics) as tracking:
        assert Broken.shown.wait(60)
        write(metrics, [2, 3])
        deadline = time.monotonic() + 60
        while not tracking.notes and time.monotonic() < deadline:
            time.sleep(0.05)
        write(metrics, [4])
    assert tracking.notes == ["tracker failing failed after step 1 and shows no more: OSError: No space left on device"]
    assert [record.getMessage() for record in caplog.records if record.name == "fmray.train.tracking"] == tracking.notes
    assert [step for step, tag, _ in scalars(tmp_path) if tag == "train/loss"] == [1, 2, 3, 4]


def test_a_run_that_never_began_leaves_no_trace(tmp_path):
    with Tracking([Tensorboard()], tracked(tmp_path), tmp_path / "metrics.jsonl"):
        pass
    assert list(tmp_path.iterdir()) == []
    assert Point(1, 0.0, {}).figures == {}
