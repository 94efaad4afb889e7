"""The stage search: Ray Tune over the fine-tuning of one model."""

import contextlib
import json
import logging
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from fmray.cluster import connect
from fmray.core.artifact import Artifact, write_json
from fmray.core.config import Config, dump
from fmray.core.errors import FmrayError, RunError
from fmray.core.report import Decision
from fmray.core.stage import Out, stage
from fmray.model.checkpoint import Checkpoint, Trial
from fmray.tasks.classifier import opened_for
from fmray.train.algorithms import Wanted
from fmray.train.finetune import TASK_SUMMARY, WORK, Spent, export, run_tuning
from fmray.train.finetune import plan as plan_tuning
from fmray.train.search_board import Board, number
from fmray.train.search_config import SearchConfig
from fmray.train.search_importance import importances
from fmray.train.search_trial import (
    EPOCHS,
    SCORE,
    TUNE,
    Trained,
    exhausted,
    stopper,
    taken,
    trainable,
    trained_s,
    wall_s,
)
from fmray.train.tuning import MODEL, Epochs
from fmray.train.tuning_group import require_trials

if TYPE_CHECKING:
    from ray.tune import Result, Tuner

CONTROL = "control"
TUNE_ENVIRONMENT = {
    "TUNE_GLOBAL_CHECKPOINT_S": "1",  # what a killed driver may lose
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C ends the run instead of making Tune return half a search
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "RAY_AIR_NEW_OUTPUT": "0",  # its tables on stdout
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
}


def plan(config: SearchConfig, upstream: dict[str, Config]) -> dict[str, str]:
    """What `fmray check` says about a search."""
    config.algorithm.ready(_wanted(config))
    space = ", ".join(f"{name}: {values.type} {list(values.edges())}" for name, values in config.space.items())  # type: ignore[attr-defined]
    trials = f"{config.num_trials} by {config.algorithm.type} search under {config.scheduler.type}, and one control from random weights"  # type: ignore[attr-defined]
    budget = {"budget": ", ".join(f"{name} {value:g}" for name, value in dump(config.budget).items() if value is not None)} if config.budget.is_set else {}
    return {**plan_tuning(config, upstream), "trials": trials, **_workers_line(config), **budget, "space": space}


def _workers_line(config: SearchConfig) -> dict[str, str]:
    if config.num_workers == 1:
        return {}
    unit = "GPUs" if config.num_gpus else "cores"
    return {"workers": f"{config.num_workers} a trial, {config.at_once} trials at a time: needs {config.at_once * config.devices:g} {unit} at once"}


def _wanted(config: SearchConfig) -> Wanted:
    return Wanted(config.space, config.metric, SCORE, config.seed, config.max_concurrent_trials)


@stage("search", version=2, plan=plan)
def search(config: SearchConfig, checkpoint: Artifact[Checkpoint], decision: Artifact[Decision], out: Out) -> Checkpoint:
    """Searches, exports the trial and epoch that are best on the validation split, and tunes a control from random weights.

    The test split is read by nothing here: the trials get a file without it. Killed, finished trials are kept, running ones
    go on from their last epoch: a trial keeps its epochs itself, because Ray Tune's snapshot of the search may be older than the
    checkpoints that Tune has kept since, and then Tune looks for one that is gone.

    Raises:
        ArtifactError: the model cannot bear the task's head, or its tokenizer does not fit it.
        ConfigError: it has fewer positions than `max_length`.
        RunError: every trial failed; the message names the first failure.
    """
    # Every trial would find out for itself, and fail.
    opened_for(checkpoint.path, config.task.head, config.max_length)
    config.algorithm.ready(_wanted(config))
    out.progress(f"reading the task {config.task.name}")
    data = config.task.load()
    write_json(out.path / TASK_SUMMARY, data.summary())
    seen = out.work / "data.json"
    data.save(seen, ("train", "validation"))
    connect()
    require_trials(config, config.at_once)
    results = run_trials(config, checkpoint.path, seen, out)
    out_of_budget = exhausted(config, wall_s(out.work), trained_s(out.work))
    ended = [_ended(config, index, result, out_of_budget) for index, result in enumerate(results)]
    winner = max((e for e in ended if e.best is not None), key=lambda e: e.score, default=None)
    if winner is None or winner.best is None:
        raise _all_failed(results, ended, out.work / TUNE)
    control, control_tokens = _control(config, winner, checkpoint.path, seen, out)
    trials = [*(e.trial for e in ended), control]
    spent = Spent(sum(e.n_tokens * WORK[config.trial(e.trial.config).method] for e in ended) + control_tokens, sum(t.wall_s or 0.0 for t in trials))
    payload = export(out, checkpoint, config.trial(winner.trial.config), data, winner.best, spent, trials, more=_importances(config, ended))
    for scratch in (TUNE, CONTROL):
        shutil.rmtree(out.work / scratch)
    return payload


def _importances(config: SearchConfig, ended: list["_Ended"]) -> dict[str, float]:
    return {f"importance/{name}": share for name, share in importances(config.space, [e.trial for e in ended], config.seed).items()}


def _all_failed(results: list["Result"], ended: list["_Ended"], folder: Path) -> FmrayError:
    cause = _cause(results[0].error or RuntimeError("it reported nothing"))
    if isinstance(cause, FmrayError) and cause.exit_code == 2:
        return cause
    return RunError(f"every one of the {len(ended)} trials failed; the first: {ended[0].trial.note}", todo=f"see {folder}")


@dataclass(frozen=True)
class _Ended:
    """A trial that ended: its line in the trace, the tokens it trained on, and where its best epoch lies (None: it failed)."""

    trial: Trial
    n_tokens: int
    best: Path | None

    @property
    def score(self) -> float:
        return float("-inf") if self.trial.score is None else self.trial.score


class _Told:
    """Who is told how far the trials are. Ray Tune pickles its callbacks and restores the pickled ones: a terminal cannot be inside."""

    board: ClassVar[Board | None] = None


def run_trials(config: SearchConfig, start: Path, data: Path, out: Out) -> list["Result"]:
    """Runs what `num_trials` and the budget allow, or what an interrupted search in `out` left, and gives the results in the order of the draws.

    Args:
        start: a Hugging Face directory.
        data: what `TaskData.save` wrote.
    """
    with _environment(TUNE_ENVIRONMENT), _quiet():
        tuner = _tuner(config, start, data, out.work / TUNE)
        _Told.board = Board(config, out)
        try:
            grid = tuner.fit()
            # A restored search lists its trials in another order; ids that say nothing stay as listed.
            return sorted((grid[index] for index in range(len(grid))), key=lambda result: number(Path(result.path).name) or 0)
        finally:
            _Told.board = None


def _tuner(config: SearchConfig, start: Path, data: Path, folder: Path) -> "Tuner":
    """A new experiment in `folder`, or the one that was interrupted there."""
    from ray import tune
    from ray.tune import FailureConfig, RunConfig, TuneConfig, Tuner

    # What a trial on workers of its own holds itself must be something, and be wanted by nothing else: a byte.
    held: dict[str, float] = {"cpu": config.num_cpus, "gpu": config.num_gpus} if config.num_workers == 1 else {"memory": 1}
    trial = tune.with_resources(trainable(config, start, data, folder), held)
    if any(folder.glob("experiment_state*.json")):
        return Tuner.restore(str(folder), trainable=trial, resume_unfinished=True, resume_errored=True)
    shutil.rmtree(folder, ignore_errors=True)
    return Tuner(
        trial,
        param_space=config.algorithm.domains(tune, config.space),
        tune_config=TuneConfig(
            search_alg=config.algorithm.build(tune, _wanted(config)),
            scheduler=config.scheduler.build(tune, SCORE, config.max_epochs, config.space),
            num_samples=config.algorithm.n_samples(config.num_trials),
            # A process that is done with a trial ends the group of workers with itself.
            reuse_actors=config.num_workers == 1,
            trial_dirname_creator=_trial_id,
        ),
        run_config=RunConfig(
            name=folder.name,
            storage_path=str(folder.parent),
            failure_config=FailureConfig(max_failures=config.max_failures),
            stop=stopper(config, folder.parent) if config.budget.is_set else None,
            callbacks=[_callback()],
            verbose=0,
        ),
    )


def _trial_id(trial: Any) -> str:
    return str(trial.trial_id)


def _callback() -> Any:
    from ray.tune import Callback

    class Live(Callback):
        def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
            if _Told.board is not None:
                _Told.board(trials)

        def on_experiment_end(self, trials: list[Any], **info: Any) -> None:
            self.on_step_end(0, trials)

    return Live()


@contextlib.contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Environment variables that Ray Tune reads in this process, set for the block alone."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Ray Tune's information goes nowhere for the block; its warnings stay."""
    logger = logging.getLogger("ray.tune")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)


def _ended(config: SearchConfig, index: int, result: "Result", out_of_budget: bool) -> _Ended:
    """What became of a trial, read from Ray Tune's result and from the epochs that the trial kept."""
    folder = Path(result.path)
    epochs = Epochs(folder / EPOCHS)
    values = json.loads((folder / "params.json").read_text())
    history = epochs.history()
    died, trained = _deaths(folder / "error.txt"), Trained.read(folder)
    if result.error is None and not history and out_of_budget:
        status, note = "stopped", "the budget was spent before its first epoch ended"
    elif result.error is not None or not history:
        status, note = "failed", f"{_first_line(result.error)} ({died} times)" if result.error else "it ended without a report"
    else:
        status = "finished" if config.trial(values).ends_after(history) else "stopped"
        by = f"{config.scheduler.type}{' or the budget' if out_of_budget else ''}"  # type: ignore[attr-defined]
        note = f"stopped by {by}" if status == "stopped" else ""
        note += f"{', ' if note else ''}died {died} times and was taken up again" if died else ""
        copied = taken(folder)
        note += f"{', ' if note else ''}took over the training of another {copied} times" if copied else ""
    trial = Trial(
        trial_id=f"{index:03d}", config=values, status=status, score=epochs.best_score(), history=history,
        wall_s=trained.seconds or None, note=note,
    )  # fmt: skip
    return _Ended(trial, trained.n_tokens, None if status == "failed" or not history else epochs.best())


def _deaths(errors: Path) -> int:
    """How often a trial died, by the file to which Ray Tune adds each failure."""
    if not errors.exists():
        return 0
    return sum(line.startswith("Failure #") for line in errors.read_text(errors="replace").splitlines())


def _cause(error: BaseException) -> BaseException:
    return getattr(error, "cause", None) or error


def _first_line(error: BaseException) -> str:
    cause = _cause(error)
    return f"{type(cause).__name__}: {(str(cause).strip().splitlines() or [''])[0]}"


def _control(config: SearchConfig, winner: _Ended, start: Path, data: Path, out: Out) -> tuple[Trial, int]:
    """The winner's hyperparameters on random weights, for as many epochs as the winner ran; its best epoch goes to `control/`.

    Returns:
        Its line in the trace, and the tokens it trained on.
    """
    clock = time.monotonic()
    epochs = Epochs(out.work / CONTROL)
    tuning, stop_after = config.trial(winner.trial.config), len(winner.trial.history)
    try:
        run_tuning(tuning, start, data, epochs.folder, out, from_scratch=True, stop_after=stop_after, what="control from random weights")
        shutil.copytree(epochs.best() / MODEL, out.path / CONTROL, dirs_exist_ok=True)
        status, note = "control", "the winner's hyperparameters from random weights"
    except RunError as error:
        status, note = "failed", f"the control from random weights failed: {error}"
    history = epochs.history()
    trial = Trial(
        trial_id=CONTROL, config=winner.trial.config, status=status, score=max(history, default=None), history=history,
        wall_s=round(time.monotonic() - clock, 3), note=note,
    )  # fmt: skip
    return trial, epochs.n_tokens()
