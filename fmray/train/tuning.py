"""Fine-tunes a model on a task: what the finetune stage and every trial of a search run, in one process or in each of several workers.

Shapes: N rows of a split, B rows of a batch, T positions, K labels.
"""

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from fmray.core.artifact import fingerprint, write_json
from fmray.core.config import Config, did_you_mean, dump, runtime
from fmray.core.cursor import Cursor
from fmray.core.errors import ConfigError
from fmray.model.adapter import ADAPTER
from fmray.tasks import Task, TaskData
from fmray.tasks.classifier import FRESH, LABELLED, Classifier, Method, Rows
from fmray.train import stopping
from fmray.train.data_parallel import DataParallelEngine, from_first
from fmray.train.engine import Precision, StepStats, TorchEngine
from fmray.train.loop import Step, train
from fmray.train.optim import Optim
from fmray.train.schedules import Schedule
from fmray.train.schedules.linear import Linear
from fmray.train.task_loss import TaskLoss, collate
from fmray.train.worker import Place

MODEL, STATE, PROGRESS = "model", "state", "progress.json"
POOL = 16
ALONE = Place(rank=0, world_size=1, local_world_size=1)
# Between the seeds of two workers: their dropout is not the same.
APART = 2**32


class TuningOptim(Optim):
    """The optimizer with defaults for a model that has learnt something already: a lower lr that falls to zero, little decay."""

    lr: float = Field(3e-4, gt=0)
    weight_decay: float = Field(0.01, ge=0)
    betas: tuple[float, float] = (0.9, 0.999)
    schedule: Schedule = Linear()


class Lora(Config):
    """Low-rank adapters of every linear layer but the head: W + (alpha / rank) B A, merged into the weights on export."""

    rank: int = Field(8, ge=1)
    alpha: int = Field(16, ge=1)
    dropout: float = Field(0.05, ge=0, lt=1)


class TuningConfig(Config):
    """How a model is fine-tuned; finetune takes it as it is, search varies what its space names.

    Attributes:
        metric: the validation figure of the task by which the best epoch (and the best trial) is chosen; by default the task's main one.
        method: `full` tunes all weights, `frozen` the head alone, `lora` the head and low-rank adapters.
        class_weights: `balanced` weighs each label's targets by n / (K n_label), so that rare labels count as much as frequent ones.
        patience: ends the tuning after so many epochs without a better validation figure; None runs them all.
        max_length: texts are cut to so many tokens; None takes what the model has positions for, at most 512.
        num_workers: so many Ray Train workers share every global batch, each with the whole model; the first one also scores the
            validation split. Dropout aside, the result is that of one worker, up to rounding.
        micro_batch_size: rows of one forward pass on one worker; None takes all of a worker's rows at once.
        num_cpus: cores, and so torch threads, of each worker.
        num_gpus: GPUs of each worker: 0, 1, or of a single worker a share such as 0.25, so that so many trials of a search fit on one GPU;
            each may then take that share of its memory.
        max_failures: how often a tuning (of a search: each trial) that lost a process is taken up again from its last epoch before it
            counts as failed.
    """

    task: Task
    optim: TuningOptim = TuningOptim()
    epochs: int = Field(3, ge=1)
    global_batch_size: int = Field(16, ge=1)
    max_length: int | None = Field(None, ge=2)
    precision: Precision = "fp32"
    metric: str = Field(default_factory=lambda fields: fields["task"].main_metric)
    method: Method = "full"
    lora: Lora = Lora()
    class_weights: Literal["balanced"] | None = None
    patience: int | None = Field(None, ge=1)
    seed: int = Field(0, ge=0)
    num_workers: int = runtime(1, ge=1)
    micro_batch_size: int | None = runtime(None, ge=1)
    num_cpus: int = runtime(1, ge=1)
    num_gpus: float = runtime(0, ge=0, le=1)
    max_failures: int = runtime(2, ge=0)

    @model_validator(mode="after")
    def _fits_the_task(self) -> Self:
        known = self.task.metric_names
        if self.metric not in known:
            hint = did_you_mean(self.metric, known)
            raise ConfigError(f"the task {self.task.name} has no metric '{self.metric}'{hint}", where="metric", todo=f"known: {', '.join(known)}")
        if self.class_weights is not None and self.task.head not in LABELLED:
            raise ConfigError(f"the task {self.task.name} has no labels to weigh", where="class_weights", todo="leave it out")
        if self.method == "frozen" and self.task.head not in FRESH:
            raise ConfigError(f"frozen tunes a new head alone, and the task {self.task.name} adds none", where="method", todo="use full or lora")
        return self

    @model_validator(mode="after")
    def _workers_have_work(self) -> Self:
        if self.num_workers > self.global_batch_size:
            said = f"{self.num_workers} workers cannot share a global batch of {self.global_batch_size} rows"
            raise ConfigError(said, where="num_workers", todo="lower it or raise global_batch_size")
        if self.num_workers > 1 and not float(self.num_gpus).is_integer():
            said = f"{self.num_gpus:g} of a GPU is for one worker alone, and num_workers is {self.num_workers}"
            raise ConfigError(said, where="num_gpus", todo="give each worker 0 or 1")
        return self

    @property
    def devices(self) -> float:
        """The GPUs, or else the cores, that a tuning holds."""
        return self.num_workers * (self.num_gpus or self.num_cpus)

    def ends_after(self, history: Sequence[float]) -> bool:
        """Whether a tuning with these validation figures so far has come to its end: by its epochs, or by its patience."""
        if len(history) >= self.epochs:
            return True
        since_best = len(history) - 1 - max(range(len(history)), key=lambda i: (history[i], -i)) if history else 0
        return self.patience is not None and since_best >= self.patience


@dataclass
class Progress:
    """What has been done: finished epochs, the validation score after each, and the loss of every optimizer step."""

    history: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    n_tokens: list[int] = field(default_factory=list)

    @property
    def epoch(self) -> int:
        """Finished epochs."""
        return len(self.history)


@dataclass
class Tuned:
    """A model after an epoch, with all that resumes it."""

    classifier: Classifier
    engine: TorchEngine
    progress: Progress

    def save(self, folder: Path) -> None:
        """Writes `model/` (a Hugging Face directory), `adapter/` where there is one (unmerged), `state/` (the engine's) and `progress.json` into
        an empty folder."""
        (folder / STATE).mkdir(parents=True)
        self.classifier.save(folder / MODEL)
        self.classifier.save_adapter(folder / ADAPTER)
        self.engine.save(folder / STATE)
        write_json(folder / PROGRESS, vars(self.progress))


OnEpoch = Callable[[Tuned], bool]
OnStep = Callable[[int, int, StepStats], None]


def tune_classifier(
    config: TuningConfig, start: Path, data: TaskData, *, from_scratch: bool = False, resume: Path | None = None,
    on_epoch: OnEpoch, on_step: OnStep = lambda step, total, stats: None, place: Place = ALONE,
) -> None:  # fmt: skip
    """Trains on the train split; after each epoch scores the validation split and calls `on_epoch`, which says whether to go on.

    Of several workers, which call it together, the first alone scores, and calls `on_epoch`; all of them do what it says.

    Args:
        start: a Hugging Face directory.
        from_scratch: the same architecture from random weights: the control that says what the weights in `start` gave.
        resume: a folder that `Tuned.save` wrote for the same config; what follows equals the uninterrupted run. Rank 0's counts.
        place: where this worker stands among the others; with several their process group exists.

    Raises:
        ArtifactError: `start` is no model, or one without a classification head.
        DataError: the task refuses its data, or the model has no positions for what it is to write.
        RunError: the loss is not finite.
        Stopped: a worker was asked to stop.
    """
    _take_share(config)
    task, resume = config.task, from_first(resume, place.world_size)
    classifier = Classifier.start(
        start, data.labels, seed=config.seed, from_scratch=from_scratch, device="cuda" if config.num_gpus else "cpu", head=task.head, problem=task.problem
    )
    max_length = classifier.longest(config.max_length)
    classifier.train_only("full" if from_scratch else config.method, config.lora)
    rows, judged = _encoded(task, classifier, start, data, max_length)
    steps = -(-len(rows["row_ids_B"]) // config.global_batch_size)
    engine = (DataParallelEngine if place.world_size > 1 else TorchEngine)(
        classifier.model, config.optim, lambda step: config.optim.lr_at(step, steps * config.epochs),
        precision=config.precision, device=str(classifier.model.device),
    )  # fmt: skip
    tuned, loss = Tuned(classifier, engine, Progress()), TaskLoss(task, label_weights(config, data), engine.device, classifier.model.config)
    if resume is not None:
        engine.load(resume / STATE)
        tuned.progress = read_progress(resume)
    task.require_room(classifier, judged)
    stop = False

    def note(step: int, stats: StepStats, cursor: Cursor) -> None:
        nonlocal stop
        stop = stats.stop
        tuned.progress.losses.append(stats.loss)
        on_step(step, steps * config.epochs, stats)

    while not config.ends_after(tuned.progress.history):
        epoch = tuned.progress.epoch
        if stop:
            raise stopping.Stopped(epoch * steps)
        batches, seed = global_batches(task.of_epoch(rows, config.seed, epoch), config, epoch, place), config.seed + place.rank * APART
        train(engine, loss, batches, max_steps=(epoch + 1) * steps, seed=seed, on_step=note, stop_asked=stopping.asked)
        if engine.step < (epoch + 1) * steps:
            continue
        tuned.progress.history.append(_score(config, classifier, judged, data, place))
        tuned.progress.n_tokens.append(int(rows["attention_mask_BT"].sum()))
        if not from_first(place.rank > 0 or on_epoch(tuned), place.world_size):
            return


def _take_share(config: TuningConfig) -> None:
    """Keeps this process to the cores, and to the share of a GPU's memory, that are its own."""
    import torch

    torch.set_num_threads(config.num_cpus)
    if 0 < config.num_gpus < 1:
        torch.cuda.set_per_process_memory_fraction(config.num_gpus)


def _score(config: TuningConfig, classifier: Classifier, judged: Rows, data: TaskData, place: Place) -> float:
    """The figure of the validation split by which epochs and trials are chosen, as the first worker finds it."""
    task, validation, score = config.task, data.splits["validation"], 0.0
    if place.rank == 0:
        predicted = task.predict(task.outputs(classifier, judged), judged, validation)
        score = task.metrics(data.labels, validation.targets, predicted)[config.metric]
    return from_first(score, place.world_size)


_ENCODED: dict[str, tuple[Rows, Rows, Any]] = {}


def _encoded(task: Task, classifier: Classifier, start: Path, data: TaskData, max_length: int) -> tuple[Rows, Rows]:
    """The rows of the train and the validation split. The last ones are remembered: trials that share a process cut their texts once.

    The tokenizer that cut them comes with them, for cutting leaves its marks on what is saved of it.
    """
    key = fingerprint({"task": dump(task), "start": str(start), "digest": data.digest, "max_length": max_length})
    if key not in _ENCODED:
        rows, judged = (task.encode(classifier.tokenizer, data.splits[name], max_length, len(data.labels)) for name in ("train", "validation"))
        rows["row_ids_B"] = np.arange(len(rows["example_B"]), dtype=np.int64)
        _ENCODED.clear()
        _ENCODED[key] = rows, judged, classifier.tokenizer
    rows, judged, classifier.tokenizer = _ENCODED[key]
    return rows, judged


def label_weights(config: TuningConfig, data: TaskData) -> NDArray[np.float64] | None:
    """The weight of each label's targets [K] under `class_weights`, from the train split; a label that does not stand there weighs 1.

    With one label a target it is scikit-learn's `balanced`, n / (K n_label); of a multi-label task it is the ratio of the rows without
    a label to those with it.
    """
    if config.class_weights is None:
        return None
    counts_K = data.occurrences("train").astype(float)
    several = config.task.problem == "multi_label_classification"
    top = len(data.splits["train"]) - counts_K if several else counts_K.sum() / (counts_K > 0).sum()
    return np.divide(top, counts_K, out=np.ones_like(counts_K), where=counts_K > 0)


def global_batches(rows: Rows, config: TuningConfig, epoch: int, place: Place = ALONE) -> Iterator[Step]:
    """A worker's part of the global batches of one epoch. The last batch may be smaller, and a part of it empty."""
    size = config.global_batch_size
    micro = config.micro_batch_size or size
    consumed = 0
    for picked_B in epoch_order(rows["attention_mask_BT"].sum(axis=1), size, config.seed, epoch):
        # Of rows in the order of their lengths each worker takes one after the other: all have about as much to do.
        mine_B = picked_B[place.rank :: place.world_size]
        parts = [mine_B[i : i + micro] for i in range(0, len(mine_B), micro)]
        consumed += len(picked_B)
        yield [collate({name: column[part] for name, column in rows.items()}) for part in parts], Cursor(epoch=epoch, row=consumed)


def epoch_order(lengths_N: NDArray[np.int64], batch_size: int, seed: int, epoch: int) -> list[NDArray[np.int64]]:
    """The row ids of each batch of an epoch, from seed and epoch alone: every row once, rows of like length together.

    Rows are permuted, sorted by length within pools of `POOL` batches, and the batches of a pool are permuted again: little
    padding, and still another mixture each epoch.
    """
    draw = np.random.default_rng([seed, epoch])
    order_N = draw.permutation(len(lengths_N))
    batches: list[NDArray[np.int64]] = []
    for first in range(0, len(order_N), POOL * batch_size):
        pool = order_N[first : first + POOL * batch_size]
        pool = pool[np.argsort(lengths_N[pool], kind="stable")]
        cut = [pool[i : i + batch_size] for i in range(0, len(pool), batch_size)]
        batches += [cut[i] for i in draw.permutation(len(cut))]
    return batches


def read_progress(folder: Path) -> Progress:
    """The progress that `Tuned.save` wrote."""
    return Progress(**json.loads((folder / PROGRESS).read_text()))


class Epochs:
    """Saved epochs of one tuning below a folder: the latest one, which resumes it, and the best one, which it ends in."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def latest(self) -> Path | None:
        """The folder of the latest saved epoch."""
        saved = sorted(self.folder.glob("epoch_*"))
        return saved[-1] if saved else None

    def history(self) -> tuple[float, ...]:
        """The validation score after each finished epoch."""
        latest = self.latest()
        return () if latest is None else tuple(read_progress(latest).history)

    def n_tokens(self) -> int:
        """The tokens trained on in all finished epochs."""
        latest = self.latest()
        return 0 if latest is None else sum(read_progress(latest).n_tokens)

    def best(self) -> Path:
        """The folder of the kept epoch with the highest validation score, the last of equals: it has seen more."""
        return self.folder / _epoch_name(self._best())

    def best_score(self) -> float | None:
        """The validation score of the best kept epoch; None before the first."""
        return self.history()[self._best() - 1] if self.latest() is not None else None

    def _best(self) -> int:
        history = self.history()
        # Of a training that was taken over from another trial only the epochs since then are here.
        kept = [number for number in range(1, len(history) + 1) if (self.folder / _epoch_name(number)).exists()]
        return max(kept, key=lambda number: (history[number - 1], number))

    def copy(self, source: Path) -> None:
        """Takes an epoch that `Tuned.save` wrote elsewhere."""
        unfinished = self.folder / "unfinished"
        shutil.rmtree(unfinished, ignore_errors=True)
        shutil.copytree(source, unfinished)
        unfinished.rename(self.folder / _epoch_name(read_progress(source).epoch))

    def add(self, tuned: Tuned) -> None:
        """Saves an epoch, whole or not at all, and removes those that are neither the latest nor the best."""
        unfinished = self.folder / "unfinished"
        shutil.rmtree(unfinished, ignore_errors=True)
        tuned.save(unfinished)
        unfinished.rename(self.folder / _epoch_name(tuned.progress.epoch))
        kept = {self.latest(), self.best()}
        for folder in self.folder.glob("epoch_*"):
            if folder not in kept:
                shutil.rmtree(folder)


def _epoch_name(epoch: int) -> str:
    return f"epoch_{epoch:04d}"
