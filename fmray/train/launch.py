"""Starts workers through Ray Train, watches them, and brings their errors back as one line."""

import json
import os
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fmray import cluster
from fmray.core.artifact import write_json
from fmray.core.errors import ArtifactError, ConfigError, DataError, FmrayError, GateRefused, ResourceError, RunError
from fmray.train.config import Workers
from fmray.train.worker import Place

Report = Callable[[int, Path], None]
Work = Callable[[Place, Report], None]

RUN = "train"
WATCH_S = 0.3
PEERS_FAIL_WITHIN_S = 5.0
# Asking an unlucky cluster for its workers this often takes a minute each time.
STARTS = 3
ERRORS: dict[str, type[FmrayError]] = {cls.__name__: cls for cls in (RunError, ConfigError, ArtifactError, DataError, ResourceError, GateRefused)}
# Faults of program or data: they come again on every attempt. A lost peer shows as RuntimeError and is worth another one.
LASTING = (FmrayError, TypeError, ValueError, LookupError, AttributeError, ImportError, AssertionError)


def launch(
    work: Work, *, folder: Path, num_workers: Workers, cpus_per_worker: int, use_gpu: bool, max_failures: int, wait_s: float, watch: Callable[[], None]
) -> None:
    """Runs `work` on every worker to its end, starting all again after one was lost; `watch` is called meanwhile.

    With a range of workers it runs on as many as the cluster has room for, and starts all again when that changes.

    Args:
        work: is told its place and how to report a checkpoint that lies below `folder/train`; it resumes by itself.
        folder: shared by all nodes.

    Raises:
        ResourceError: the cluster cannot hold the workers.
        FmrayError: what a worker raised.
        RunError: workers were lost more than `max_failures` times, or failed otherwise.
    """
    resources = {"CPU": float(cpus_per_worker)} | ({"GPU": 1.0} if use_gpu else {})
    cluster.connect()
    cluster.require([resources] * num_workers.min, wait_s)
    if cluster.is_private():
        # Nobody takes a node away from under a Ray of one's own, and each helper process costs seconds of start-up.
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    # Which state to go on from is read from the states themselves; Ray's own list may be torn by a kill.
    for stale in (folder / RUN / "checkpoint_manager_snapshot.json", *folder.glob("failed-*.json")):
        stale.unlink(missing_ok=True)
    trainer = _trainer(work, folder, num_workers, resources, use_gpu, max_failures)
    outcome: list[BaseException] = []

    def fit() -> None:
        try:
            trainer.fit()
        except BaseException as error:
            outcome.append(error)

    # In a thread of its own, so that Ctrl-C reaches the main thread and not a handler of Ray's.
    thread = threading.Thread(target=fit, daemon=True, name="fmray-fit")
    thread.start()
    while thread.is_alive():
        thread.join(WATCH_S)
        watch()
    failed = sorted(folder.glob("failed-*.json"))
    if failed:
        raise _revive(json.loads(failed[0].read_text()))
    if outcome:
        raise _as_error(outcome[0], max_failures) from outcome[0]


def _trainer(work: Work, folder: Path, num_workers: Workers, resources: dict[str, float], use_gpu: bool, max_failures: int) -> Any:
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    return TorchTrainer(
        _worker,
        train_loop_config={"work": work, "folder": str(folder)},
        torch_config=TorchConfig(backend="nccl" if use_gpu else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=num_workers.min if num_workers.fixed else (num_workers.min, num_workers.max),  # type: ignore[arg-type]
            use_gpu=use_gpu,
            resources_per_worker=resources,
            elastic_resize_monitor_interval_s=num_workers.resize_every_s,  # type: ignore[call-arg]
        ),
        run_config=RunConfig(
            name=RUN,
            storage_path=str(folder),
            failure_config=FailureConfig(max_failures=max_failures, controller_failure_limit=STARTS),  # type: ignore[call-arg]
        ),
    )


def _worker(settings: dict[str, Any]) -> None:
    import ray.train

    folder = Path(settings["folder"])
    if any(folder.glob("failed-*.json")):
        # An attempt met a fault that would come again: all workers leave at once, and the driver tells it.
        return
    context = ray.train.get_context()
    place = Place(context.get_world_rank(), context.get_world_size(), context.get_local_world_size())
    try:
        settings["work"](place, _report)
    except LASTING as error:
        told = error if isinstance(error, FmrayError) else RunError(f"{type(error).__name__}: {error}")
        fault = {"error": type(told).__name__, "what": told.what, "where": told.where, "todo": told.todo, "traceback": traceback.format_exc()}
        write_json(folder / f"failed-{place.rank}.json", fault)
        if not _all_failed(folder, place.world_size):
            raise


def _all_failed(folder: Path, world_size: int) -> bool:
    """Whether every worker met its fault within a moment: then all may leave quietly, and none is started again in vain."""
    deadline = time.monotonic() + PEERS_FAIL_WITHIN_S
    while (everyone := len(list(folder.glob("failed-*.json"))) == world_size) is False and time.monotonic() < deadline:
        time.sleep(0.05)
    return everyone


def _report(step: int, checkpoint: Path) -> None:
    """Tells Ray Train of a checkpoint that lies in its storage already; returns when every worker has told."""
    import ray.train

    ray.train.report(
        {"step": step}, checkpoint=ray.train.Checkpoint(str(checkpoint)), checkpoint_upload_mode=ray.train.CheckpointUploadMode.NO_UPLOAD
    )


def _revive(fault: dict[str, str]) -> FmrayError:
    return ERRORS.get(fault["error"], RunError)(fault["what"], where=fault["where"], todo=fault["todo"])


def _as_error(error: BaseException, max_failures: int) -> RunError | ResourceError:
    from ray.train import ControllerError, WorkerGroupError

    again = "the same command goes on from the last checkpoint"
    if isinstance(error, WorkerGroupError):
        rank, first = min(error.worker_failures.items())
        line = (str(first).strip().splitlines() or [""])[-1]
        return RunError(f"a worker was lost more than max_failures={max_failures} times; last, rank {rank}: {type(first).__name__} {line}", todo=again)
    if isinstance(error, ControllerError) and "Startup" in type(error.controller_failure).__name__:
        return ResourceError(f"the cluster did not start the workers in {STARTS + 1} attempts: its resources are taken", todo="wait for other jobs to end, or ask for fewer workers")
    return RunError(f"training failed: {type(error).__name__}: {(str(error).strip().splitlines() or [''])[-1]}", todo=again)
