"""Starts workers through Ray Train, watches them, and brings their errors back as one line."""

import importlib
import json
import logging
import os
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fmray import cluster
from fmray.core.artifact import write_json
from fmray.core.errors import (
    ArtifactError,
    ConfigError,
    DataError,
    FmrayError,
    GateRefused,
    ResourceError,
    RunError,
    Terminated,
)
from fmray.train import faults, fence, stopping
from fmray.train.config import Workers
from fmray.train.stopping import STOP, STOPPED, Stopped, Termination
from fmray.train.watchdog import HANGS, last_hang
from fmray.train.worker import Place

logger = logging.getLogger(__name__)

Work = Callable[[Place], None]

RUN = "train"
WATCH_S = 0.3
PEERS_FAIL_WITHIN_S = 5.0
# Asking an unlucky cluster for its workers this often takes a minute each time.
STARTS = 3
# A range of workers takes what there is. But for up to 20 s Ray counts the room of a node that is gone, and waits for workers there in vain.
RANGE_STARTS, RANGE_START_S = 100, "30"
# Time for two steps and a save; who sends SIGTERM rarely waits longer.
STOP_WITHIN_S = 120.0
AGAIN = "the same command goes on from the last checkpoint"
ERRORS: dict[str, type[FmrayError]] = {cls.__name__: cls for cls in (RunError, ConfigError, ArtifactError, DataError, ResourceError, GateRefused)}
# Faults of program or data: they come again on every attempt. A lost peer shows as RuntimeError and is worth another one.
LASTING = (FmrayError, TypeError, ValueError, LookupError, AttributeError, ImportError, AssertionError)


def launch(
    work: Work, *, folder: Path, num_workers: Workers, cpus_per_worker: int, use_gpu: bool, max_failures: int, max_faults_per_node: int, wait_s: float, watch: Callable[[], None]
) -> None:  # fmt: skip
    """Runs `work` on every worker to its end, starting all again after one was lost or got SIGTERM; `watch` is called meanwhile.

    With a range of workers it runs on as many as the cluster has room for, and starts all again when that changes. A node that
    `max_faults_per_node` faults came from is not used again, where others have room (see `faults`).

    Args:
        work: is told its place; it saves and resumes by itself, below `folder/train`.
        folder: shared by all nodes.

    Raises:
        ResourceError: the cluster cannot hold the workers.
        FmrayError: what a worker raised.
        Terminated: this process got SIGTERM; the workers stopped in order (see `stopping`), if they could.
        RunError: workers were lost more than `max_failures` times, or failed otherwise, or the cluster's head is gone.
    """
    resources = {"CPU": float(cpus_per_worker)} | ({"GPU": 1.0} if use_gpu else {})
    # Ray starts in processes of its own; torch, which Ray Train imports, comes in meanwhile.
    importing = threading.Thread(target=importlib.import_module, args=("torch",))
    importing.start()
    cluster.connect()
    importing.join()
    cluster.require([resources] * num_workers.min, wait_s)
    if cluster.is_private():
        # Nobody takes a node away from under a Ray of one's own, and each helper process costs seconds of start-up.
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    if not num_workers.fixed:
        os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", RANGE_START_S)
    _forget_last_start(folder)
    hung_before, head = last_hang(folder / HANGS), cluster.Head()
    with Termination() as terminated:
        while True:
            told_by = faults.callbacks(folder, max_faults_per_node, resources)
            trainer = _trainer(work, folder, num_workers, resources, use_gpu, max_failures, told_by)
            outcome = _fit(trainer, folder, terminated, [watch, faults.Told(folder), head])
            failed = sorted(folder.glob("failed-*.json"))
            if failed:
                raise _revive(json.loads(failed[0].read_text()))
            if terminated:
                raise Terminated(f"ended by SIGTERM{_stopped_behind(folder)}", todo=AGAIN)
            if outcome and not head.answers():
                head.give_up()
            if outcome:
                hung = last_hang(folder / HANGS)
                raise _as_error(outcome[0], max_failures, hung if hung != hung_before else "") from outcome[0]
            if not (folder / STOPPED).exists():
                return
            logger.warning("a worker got SIGTERM; training stopped%s and goes on", _stopped_behind(folder))
            _forget_last_start(folder)


def _forget_last_start(folder: Path) -> None:
    # Which state to go on from is read from the states themselves; Ray's own list may be torn by a kill.
    for stale in (folder / RUN / "checkpoint_manager_snapshot.json", folder / STOP, folder / STOPPED, *folder.glob("failed-*.json")):
        stale.unlink(missing_ok=True)


def _stopped_behind(folder: Path) -> str:
    if not (folder / STOPPED).exists():
        return ""
    return f" behind step {json.loads((folder / STOPPED).read_text())['step']}, whose state is written"


def _fit(trainer: Any, folder: Path, terminated: Termination, watches: Sequence[Callable[[], None]]) -> list[BaseException]:
    """Runs the trainer to its end; what it raised, if anything. After SIGTERM it is given `STOP_WITHIN_S` to stop in order."""
    outcome: list[BaseException] = []

    def fit() -> None:
        try:
            trainer.fit()
        except BaseException as error:
            outcome.append(error)

    # In a thread of its own, so that Ctrl-C reaches the main thread and not a handler of Ray's.
    thread = threading.Thread(target=fit, daemon=True, name="fmray-fit")
    thread.start()
    deadline = None
    while thread.is_alive():
        thread.join(WATCH_S)
        for watch in watches:
            watch()
        if terminated and deadline is None:
            deadline = time.monotonic() + STOP_WITHIN_S
            write_json(folder / STOP, {"reason": "the driver got SIGTERM"})
        if deadline is not None and time.monotonic() > deadline:
            raise Terminated(f"ended by SIGTERM; the workers did not stop in order within {STOP_WITHIN_S:g} s", todo=AGAIN)
    return outcome


def _trainer(work: Work, folder: Path, num_workers: Workers, resources: dict[str, float], use_gpu: bool, max_failures: int, callbacks: list[Any]) -> Any:
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    return TorchTrainer(
        _worker,
        train_loop_config={"work": work, "folder": str(folder), "start": fence.begin(folder)},
        torch_config=_torch_config("nccl" if use_gpu else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=num_workers.min if num_workers.fixed else (num_workers.min, num_workers.max),  # type: ignore[arg-type]
            use_gpu=use_gpu,
            resources_per_worker=resources,
            elastic_resize_monitor_interval_s=num_workers.resize_every_s,  # type: ignore[call-arg]
        ),
        run_config=RunConfig(
            name=RUN,
            storage_path=str(folder),
            failure_config=FailureConfig(max_failures=max_failures, controller_failure_limit=STARTS if num_workers.fixed else RANGE_STARTS),  # type: ignore[call-arg]
            callbacks=callbacks,
        ),
    )


def _torch_config(backend: str) -> Any:
    """Ray's set-up of torch's process group, which also takes SIGTERM in the main thread of every worker."""
    from ray.train.torch import TorchConfig

    class Setup(TorchConfig().backend_cls):  # type: ignore[misc]
        def on_start(self, worker_group: Any, backend_config: Any) -> None:
            worker_group.execute(stopping.install)
            super().on_start(worker_group, backend_config)

    class StoppableTorchConfig(TorchConfig):
        @property
        def backend_cls(self) -> type:
            return Setup

    return StoppableTorchConfig(backend=backend)


def _worker(settings: dict[str, Any]) -> None:
    folder = Path(settings["folder"])
    with fence.inside(folder, settings["start"]):
        _work_on(folder, settings["work"])


def _work_on(folder: Path, work: Work) -> None:
    import ray.train

    if any(folder.glob("failed-*.json")):
        # An attempt met a fault that would come again: all workers leave at once, and the driver tells it.
        return
    context = ray.train.get_context()
    place = Place(context.get_world_rank(), context.get_world_size(), context.get_local_world_size())
    if place.rank == 0:
        # Of an attempt that stopped and then lost a worker before all had left.
        (folder / STOPPED).unlink(missing_ok=True)
    try:
        faults.tell_place(folder, place.rank)
        with stopping.listening(folder):
            work(place)
    except Stopped as stopped:
        if place.rank == 0:
            write_json(folder / STOPPED, {"step": stopped.step})
    except LASTING as error:
        told = error if isinstance(error, FmrayError) else RunError(f"{type(error).__name__}: {error}")
        fault = {"error": type(told).__name__, "what": told.what, "where": told.where, "todo": told.todo, "traceback": traceback.format_exc()}
        try:
            write_json(folder / f"failed-{place.rank}.json", fault)
        except OSError:
            # A storage that takes nothing at all: Ray brings the error back instead, after its further attempts.
            raise told from error
        if not _all_failed(folder, place.world_size):
            raise


def _all_failed(folder: Path, world_size: int) -> bool:
    """Whether every worker met its fault within a moment: then all may leave quietly, and none is started again in vain."""
    deadline = time.monotonic() + PEERS_FAIL_WITHIN_S
    while (everyone := len(list(folder.glob("failed-*.json"))) == world_size) is False and time.monotonic() < deadline:
        time.sleep(0.05)
    return everyone


def _revive(fault: dict[str, str]) -> FmrayError:
    return ERRORS.get(fault["error"], RunError)(fault["what"], where=fault["where"], todo=fault["todo"])


def _as_error(error: BaseException, max_failures: int, hung: str) -> FmrayError:
    from ray.train import ControllerError, WorkerGroupError

    if isinstance(error, WorkerGroupError):
        rank, first = min(error.worker_failures.items())
        if isinstance(cause := getattr(first, "_base_exc", first), FmrayError):
            return cause
        line = (str(first).strip().splitlines() or [""])[-1]
        last = f"training hung: {hung}" if hung else f"rank {rank}: {type(first).__name__} {line}"
        return RunError(f"a worker was lost more than max_failures={max_failures} times; last, {last}", todo=AGAIN)
    if isinstance(error, ControllerError) and "Startup" in type(error.controller_failure).__name__:
        return ResourceError("the cluster did not start the workers, however often it was asked: its resources are taken", todo="wait for other jobs to end, or ask for fewer workers")
    return RunError(f"training failed: {type(error).__name__}: {(str(error).strip().splitlines() or [''])[-1]}", todo=AGAIN)
