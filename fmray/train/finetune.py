"""The stage finetune: a model for a task from any checkpoint whose architecture has the task's head."""

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
from fmray.model.checkpoint import Checkpoint, LossPoint, Trial, count_weights, hf_digest, read_hf_config
from fmray.model.flops import flops_per_token
from fmray.tasks import TaskData
from fmray.tasks.classifier import Method
from fmray.train.beat import Beat, following
from fmray.train.tuning import MODEL, Epochs, Tuned, TuningConfig, read_progress, tune_classifier

TASK_SUMMARY = "task.json"
CONTROL = "control"
EPOCHS = "epochs"
TOOK = "took.json"
LOSS_POINTS = 200
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
    """

    from_scratch: bool = False
    seeds: int = Field(1, ge=1)
    control: bool = False

    @model_validator(mode="after")
    def _control_is_another(self) -> Self:
        if self.control and self.from_scratch:
            raise ValueError("control: from_scratch is that control already")
        return self


def plan(config: TuningConfig, upstream: dict[str, Config]) -> dict[str, str]:
    """What `fmray check` says about a fine-tuning."""
    return {"task": config.task.name, "epochs": str(config.epochs), "chosen by": f"validation {config.metric}"}


@stage("finetune", version=2, plan=plan)
def finetune(config: FinetuneConfig, checkpoint: Artifact[Checkpoint], out: Out) -> Checkpoint:
    """Fine-tunes, keeps the epoch that is best on the validation split, and writes it as a Hugging Face directory.

    Killed, it goes on from its last finished epoch.
    """
    read_hf_config(checkpoint.path)
    out.progress(f"reading the task {config.task.name}")
    data = config.task.load()
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
    """Runs or resumes one fine-tuning in a fresh worker process, with live figures; its epochs are kept in `folder`.

    Args:
        data: what `TaskData.save` wrote.
        stop_after: epochs after which to stop short of the schedule's end.
    """
    folder.mkdir(parents=True, exist_ok=True)
    beat = out.work / "beat.json"

    def tell(figures: dict[str, float]) -> None:
        out.progress(what, **figures)

    with following(beat, tell):
        call(_worker, config, start, data, folder, beat, from_scratch, stop_after, num_cpus=config.num_cpus, num_gpus=config.num_gpus)


def _worker(config: TuningConfig, start: Path, data: Path, folder: Path, beat_file: Path, from_scratch: bool, stop_after: int | None) -> None:
    epochs, beat, before, began = Epochs(folder), Beat(beat_file), _took(folder), time.monotonic()
    latest_score: dict[str, float] = {}
    last = stop_after or config.epochs
    if len(epochs.history()) >= last or config.ends_after(epochs.history()):
        return

    def on_epoch(tuned: Tuned) -> bool:
        write_json(folder / TOOK, before + time.monotonic() - began)
        epochs.add(tuned)
        latest_score[f"validation_{config.metric}"] = tuned.progress.history[-1]
        return tuned.progress.epoch < last

    tune_classifier(
        config, start, TaskData.read(data), from_scratch=from_scratch, resume=epochs.latest(), on_epoch=on_epoch,
        on_step=lambda step, total, stats: beat(done=step, total=total, loss=stats.loss, **latest_score),
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
    """Copies the best epoch's Hugging Face files into the artifact and says what they are and what they took."""
    for file in sorted((best / MODEL).iterdir()):
        shutil.copyfile(file, out.path / file.name)
    hf, n_params = read_hf_config(out.path), count_weights(out.path)
    chosen, n_train = read_progress(best), len(data.splits["train"])
    count = config.num_gpus or config.num_cpus
    out.spend(device="gpu" if config.num_gpus else "cpu", count=count, seconds=spent.seconds)
    # A model without a language modelling head looks its embeddings up, whatever was tied in pretraining.
    tells_tokens = config.task.head in ("causal_lm", "masked_lm")
    per_token = flops_per_token(hf if tells_tokens else {**hf, "tie_word_embeddings": False}, n_params, round(chosen.n_tokens[0] / n_train))
    return Checkpoint(
        head=config.task.head,
        architecture=str(hf["model_type"]),
        digest=hf_digest(out.path),
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
            device_hours=count * spent.seconds / 3600,
            notes="all trainings of this step; flops: 6 N + 12 L d T a token at the mean length (frozen: a third, lora: two thirds of it), without padding and scoring",
        ),
    )


def thinned(losses: Sequence[float]) -> tuple[LossPoint, ...]:
    """At most `LOSS_POINTS` points of a curve, evenly spread, its last one among them."""
    every = max(1, -(-len(losses) // LOSS_POINTS))
    steps = range(len(losses), 0, -every)
    return tuple(LossPoint(step=step, loss=losses[step - 1]) for step in reversed(steps))
