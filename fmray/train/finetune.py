"""The stage finetune: a model for a task from any checkpoint whose architecture has the task's head."""

import functools
import json
import shutil
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from pydantic import Field, model_validator

from fmray.cluster import call
from fmray.core.artifact import Artifact, write_json
from fmray.core.config import Config, dump
from fmray.core.report import Cost
from fmray.core.stage import Out, stage
from fmray.evaluate import downstream
from fmray.model.adapter import ADAPTER, adapter_digest, is_adapter
from fmray.model.checkpoint import Checkpoint, LossPoint, Trial, count_weights, hf_digest, read_hf_config
from fmray.model.flops import flops_per_token
from fmray.model.import_ import ImportConfig
from fmray.tasks import TaskData
from fmray.tasks.classifier import Method, opened_for
from fmray.tasks.folds import Said, cut
from fmray.tasks.sourced import Sourced
from fmray.train import cross_validation
from fmray.train.beat import Beat, following
from fmray.train.engine import StepStats
from fmray.train.tuning import ALONE, MODEL, Epochs, Tuned, TuningConfig, read_progress, tune_classifier
from fmray.train.tuning_group import launch_group
from fmray.train.worker import Place

TASK_SUMMARY = "task.json"
CONTROL = "control"
EPOCHS = "epochs"
TOOK = "took.json"
LOSS_POINTS = 200
SHOWN_LABELS = 10
# How much of the work of a full step remains: forward, and backward through activations, without the gradients of weights that stay.
WORK: dict[Method, float] = {"full": 1.0, "lora": 2 / 3, "frozen": 1 / 3}


class FinetuneConfig(TuningConfig):
    """A fine-tuning, or several.

    Attributes:
        from_scratch: starts the same architecture from random weights.
        seeds: so many tunings with seeds that follow each other; the best on the validation split is kept, and mean and deviation of
            all of them stand among the figures.
        control: also tunes the same architecture from random weights, with as many seeds, and keeps the best in `control/`: an evaluation
            then says what the weights that were started from gave. Its settings are the same but for `method`: all of its weights are
            tuned, for those that would stay are random.
        folds: cross-validation. The examples of all splits are cut into so many folds (near-duplicates, and questions about one passage,
            stay together); a model is tuned for each on the other folds, a part of which validates, and says what the fold holds. An
            evaluation judges all examples by that, and so it does with the control, of which only what it said is kept. The model that
            is kept is one more, tuned on all examples but the part that validates, as scikit-learn's `refit` does.
    """

    from_scratch: bool = False
    seeds: int = Field(1, ge=1)
    control: bool = False
    folds: int | None = Field(None, ge=2)

    @model_validator(mode="after")
    def _control_is_another(self) -> Self:
        if self.control and self.from_scratch:
            raise ValueError("control: from_scratch is that control already")
        return self

    @model_validator(mode="after")
    def _folds_take_all(self) -> Self:
        if self.folds is None:
            return self
        if self.seeds > 1:
            raise ValueError("folds: mean and deviation are over the folds, so leave seeds out")
        own = [name for name in ("validation", "test") if isinstance(self.task, Sourced) and getattr(self.task, name) is not None]
        if own:
            raise ValueError(f"folds: every example of the source is held out once, so leave task.{own[0]} out")
        return self


def plan(config: TuningConfig, upstream: dict[str, Config]) -> dict[str, str]:
    """What `fmray check` says about a fine-tuning, whose data it reads; a model that is imported as it is must bear the head and fit `max_length`.

    Raises:
        ArtifactError, ConfigError, DataError: the stage would refuse the model or the data.
    """
    parent = upstream.get("checkpoint")
    if isinstance(parent, ImportConfig) and not is_adapter(parent.folder):
        opened_for(parent.folder, config.task.head, config.max_length)
    data = config.task.load()
    counts = ", ".join(f"{len(split):,} {name}" for name, split in data.splits.items())
    more = f" and {len(data.labels) - SHOWN_LABELS} more" if len(data.labels) > SHOWN_LABELS else ""
    labels = {"labels": ", ".join(data.labels[:SHOWN_LABELS]) + more} if data.labels else {}
    folds = config.folds if isinstance(config, FinetuneConfig) else None
    crossed = {} if folds is None else {"folds": f"{folds}, a model each, and one more tuned on all examples"}
    return {"task": config.task.name, "examples": counts, **labels, "epochs": str(config.epochs), "chosen by": f"validation {config.metric}", **crossed}


@stage("finetune", version=2, plan=plan)
def finetune(config: FinetuneConfig, checkpoint: Artifact[Checkpoint], out: Out) -> Checkpoint:
    """Fine-tunes, keeps the epoch that is best on the validation split, and writes it as a Hugging Face directory.

    Killed, it goes on from its last finished epoch.

    Raises:
        ArtifactError: the checkpoint is no model, cannot bear the task's head, or its tokenizer does not fit it.
        ConfigError: it has fewer positions than `max_length`.
    """
    read_hf_config(checkpoint.path)
    # Before the data are read and a worker starts, which would find out for itself.
    opened_for(checkpoint.path, config.task.head, config.max_length)
    out.progress(f"reading the task {config.task.name}")
    data = config.task.load()
    if config.folds is not None:
        return _cross_validated(config, checkpoint, data, config.folds, out)
    write_json(out.path / TASK_SUMMARY, data.summary())
    seen = out.work / "data.json"
    data.save(seen, ("train", "validation"))
    tunings = _tunings(config, checkpoint.path, seen, out, EPOCHS, from_scratch=config.from_scratch)
    controls = _tunings(config, checkpoint.path, seen, out, CONTROL, from_scratch=True, what="control from random weights") if config.control else []
    if controls:
        shutil.copytree(_best(controls).best() / MODEL, out.path / CONTROL, dirs_exist_ok=True)
    every = [*tunings, *controls]
    shares = [WORK["full" if config.from_scratch else config.method]] * len(tunings) + [1.0] * len(controls)
    spent = Spent(sum(epochs.n_tokens() * share for epochs, share in zip(every, shares, strict=True)), sum(_took(epochs.folder) for epochs in every))
    scores = [max(epochs.history()) for epochs in tunings]
    payload = export(out, checkpoint, config, data, _best(tunings).best(), spent, more=_over_seeds(config, scores))
    for epochs in every:
        shutil.rmtree(epochs.folder)
    return payload


def _cross_validated(config: FinetuneConfig, checkpoint: Artifact[Checkpoint], data: TaskData, n_folds: int, out: Out) -> Checkpoint:
    """The folds' models, then the one that is kept."""
    folds = cut(config.task, data, n_folds)
    write_json(out.path / TASK_SUMMARY, data.summary() | {"counts": folds.whole.counts()})

    def tuned(from_scratch: bool) -> cross_validation.Tune:
        def tune(seen: Path, epochs: Epochs, what: str) -> float:
            run_tuning(config, checkpoint.path, seen, epochs.folder, out, from_scratch=from_scratch, what=what)
            return _took(epochs.folder)

        return tune

    ours = cross_validation.hold_out(config, folds, out, EPOCHS, tuned(config.from_scratch))
    controls = [cross_validation.hold_out(config, folds, out, CONTROL, tuned(True), "control from random weights")] if config.control else []
    Said(n_folds, dict(zip((downstream.MODEL, downstream.RANDOM_INIT), (one.said for one in (ours, *controls)), strict=False))).save(out.path)
    seen, epochs = out.work / "data.json", Epochs(out.work / EPOCHS)
    folds.whole.save(seen, ("train", "validation"))
    seconds = tuned(config.from_scratch)(seen, epochs, "all examples")
    share = WORK["full" if config.from_scratch else config.method]
    tokens = share * (epochs.n_tokens() + ours.n_tokens) + sum(one.n_tokens for one in controls)
    spent = Spent(tokens, seconds + ours.seconds + sum(one.seconds for one in controls))
    payload = export(out, checkpoint, config, folds.whole, epochs.best(), spent, more=cross_validation.figures(config, folds, ours.said))
    shutil.rmtree(epochs.folder)
    cross_validation.clean(out)
    return payload


def _tunings(config: FinetuneConfig, start: Path, data: Path, out: Out, name: str, *, from_scratch: bool, what: str = "") -> list[Epochs]:
    """One tuning for each seed."""
    found = []
    for number in range(config.seeds):
        epochs = Epochs(out.work / (name if not number else f"{name}_{number}"))
        seed = config.seed + number
        told = ", ".join(text for text in (what, f"seed {seed}" if config.seeds > 1 else "") if text)
        run_tuning(config.model_copy(update={"seed": seed}), start, data, epochs.folder, out, from_scratch=from_scratch, what=told)
        found.append(epochs)
    return found


def _best(tunings: Sequence[Epochs]) -> Epochs:
    """The tuning with the best validation figure, the first of equals."""
    return max(tunings, key=lambda epochs: max(epochs.history()))


def _over_seeds(config: FinetuneConfig, scores: Sequence[float]) -> dict[str, float]:
    """Mean and standard deviation of the best validation figure over several seeds."""
    if len(scores) == 1:
        return {}
    name = f"validation/{config.metric}"
    return {"seeds": float(len(scores)), f"{name}_mean": statistics.mean(scores), f"{name}_deviation": statistics.stdev(scores)}


def run_tuning(
    config: TuningConfig, start: Path, data: Path, folder: Path, out: Out, *, from_scratch: bool, stop_after: int | None = None, what: str = ""
) -> None:
    """Runs or resumes one fine-tuning in a fresh worker process, or in several, with live figures; its epochs are kept in `folder`.

    Args:
        data: what `TaskData.save` wrote.
        stop_after: epochs after which to stop short of the schedule's end.
    """
    history, last = Epochs(folder).history(), stop_after or config.epochs
    if len(history) >= last or config.ends_after(history):
        return
    folder.mkdir(parents=True, exist_ok=True)
    beat = out.work / "beat.json"
    arguments = (config, start, data, folder, beat, from_scratch, last)

    def tell(figures: dict[str, float]) -> None:
        out.progress(what, **figures)

    with following(beat, tell):
        if config.num_workers > 1:
            launch_group(functools.partial(_worker, *arguments), config, folder, max_failures=config.max_failures)
        else:
            call(_worker, *arguments, ALONE, num_cpus=config.num_cpus, num_gpus=config.num_gpus, max_retries=config.max_failures)


def _worker(config: TuningConfig, start: Path, data: Path, folder: Path, beat_file: Path, from_scratch: bool, last: int, place: Place) -> None:
    """What each worker of a fine-tuning does; the first one keeps the epochs and tells the figures."""
    epochs, beat, before, began = Epochs(folder), Beat(beat_file), _took(folder), time.monotonic()
    latest_score: dict[str, float] = {}

    def on_epoch(tuned: Tuned) -> bool:
        write_json(folder / TOOK, before + time.monotonic() - began)
        epochs.add(tuned)
        latest_score[f"validation_{config.metric}"] = tuned.progress.history[-1]
        return tuned.progress.epoch < last

    def on_step(step: int, total: int, stats: StepStats) -> None:
        if place.rank == 0:
            beat(done=step, total=total, loss=stats.loss, **latest_score)

    tune_classifier(
        config, start, TaskData.read(data), from_scratch=from_scratch, resume=epochs.latest(), on_epoch=on_epoch, on_step=on_step, place=place,
    )  # fmt: skip


def _took(folder: Path) -> float:
    """Seconds that the processes of a tuning ran up to the end of its latest epoch, those before a kill too."""
    return float(json.loads((folder / TOOK).read_text())) if (folder / TOOK).exists() else 0.0


@dataclass(frozen=True)
class Spent:
    """What all trainings of a stage took: tokens trained on (each times the share in `WORK` of its method), and seconds that its
    processes ran, added up.
    """

    n_tokens: float
    seconds: float


def export(
    out: Out, parent: Artifact[Checkpoint], config: TuningConfig, data: TaskData, best: Path, spent: Spent, trials: Sequence[Trial] = (),
    more: Mapping[str, float] | None = None,
) -> Checkpoint:  # fmt: skip
    """Copies the best epoch's Hugging Face files into the artifact, with its adapter where it has one, and says what they are and what they
    took."""
    for file in sorted((best / MODEL).iterdir()):
        shutil.copyfile(file, out.path / file.name)
    tuned_adapter = (best / ADAPTER).exists()
    if tuned_adapter:
        shutil.copytree(best / ADAPTER, out.path / ADAPTER, dirs_exist_ok=True)
    hf, n_params = read_hf_config(out.path), count_weights(out.path)
    chosen, n_train = read_progress(best), len(data.splits["train"])
    device_s = config.devices * spent.seconds
    # A share of a GPU held for a time counts as the whole GPU for a part of it.
    count = max(1, int(config.devices))
    out.spend(device="gpu" if config.num_gpus else "cpu", count=count, seconds=device_s / count)
    # A model without a language modelling head looks its embeddings up, whatever was tied in pretraining.
    tells_tokens = config.task.head in ("causal_lm", "masked_lm")
    per_token = flops_per_token(hf if tells_tokens else {**hf, "tie_word_embeddings": False}, n_params, round(chosen.n_tokens[0] / n_train))
    return Checkpoint(
        head=config.task.head,
        architecture=str(hf["model_type"]),
        digest=hf_digest(out.path),
        adapter_digest=adapter_digest(out.path / ADAPTER) if tuned_adapter else None,
        n_params=n_params,
        vocab_size=int(hf["vocab_size"]),
        step=len(chosen.losses),
        tokens_seen=sum(chosen.n_tokens),
        losses=thinned(chosen.losses),
        parent=parent.fingerprint,
        task=dump(config.task),
        labels=data.labels,
        trials=tuple(trials),
        figures={
            f"validation/{config.metric}": chosen.history[-1],
            "train_examples": float(n_train),
            "validation_examples": float(len(data.splits["validation"])),
            "test_examples": float(len(data.splits["test"])),
            **(more or {}),
        },
        cost=Cost(
            flops=None if per_token is None else per_token * spent.n_tokens,
            device_hours=device_s / 3600,
            notes="all trainings of this step; flops: 6 N + 12 L d T a token at the mean length (frozen: a third, lora: two thirds of it), without padding and scoring",
        ),
    )


def thinned(losses: Sequence[float]) -> tuple[LossPoint, ...]:
    """At most `LOSS_POINTS` points of a curve, evenly spread, its last one among them."""
    every = max(1, -(-len(losses) // LOSS_POINTS))
    steps = range(len(losses), 0, -every)
    return tuple(LossPoint(step=step, loss=losses[step - 1]) for step in reversed(steps))
