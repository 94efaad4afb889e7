"""The stage finetune: a classifier from any checkpoint that has a classification head for its architecture."""

import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fmray.cluster import call
from fmray.core.artifact import Artifact, write_json
from fmray.core.config import Config, dump
from fmray.core.report import Cost
from fmray.core.stage import Out, stage
from fmray.model.checkpoint import Checkpoint, LossPoint, Trial, count_weights, hf_digest, read_hf_config
from fmray.model.flops import flops_per_token
from fmray.tasks import TaskData
from fmray.train.beat import Beat, following
from fmray.train.tuning import MODEL, Epochs, Tuned, TuningConfig, read_progress, tune_classifier

TASK_SUMMARY = "task.json"
LOSS_POINTS = 200


class FinetuneConfig(TuningConfig):
    """A fine-tuning. `from_scratch` starts the same architecture from random weights: the control of pretraining."""

    from_scratch: bool = False


def plan(config: TuningConfig, upstream: dict[str, Config]) -> dict[str, str]:
    """What `fmray check` says about a fine-tuning."""
    return {"task": config.task.name, "epochs": str(config.epochs), "chosen by": f"validation {config.metric}"}


@stage("finetune", version=1, plan=plan)
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
    epochs = Epochs(out.work / "epochs")
    began = time.monotonic()
    run_tuning(config, checkpoint.path, seen, epochs.folder, out, from_scratch=config.from_scratch)
    spent = Spent(epochs.n_tokens(), time.monotonic() - began)
    payload = export(out, checkpoint, config, data, epochs.best(), spent)
    shutil.rmtree(epochs.folder)
    return payload


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
    epochs, beat = Epochs(folder), Beat(beat_file)
    latest_score: dict[str, float] = {}
    last = min(config.epochs, stop_after or config.epochs)
    if len(epochs.history()) >= last:
        return

    def on_epoch(tuned: Tuned) -> bool:
        epochs.add(tuned)
        latest_score[f"validation_{config.metric}"] = tuned.progress.history[-1]
        return tuned.progress.epoch < last

    tune_classifier(
        config, start, TaskData.read(data), from_scratch=from_scratch, resume=epochs.latest(), on_epoch=on_epoch,
        on_step=lambda step, total, stats: beat(done=step, total=total, loss=stats.loss, **latest_score),
    )  # fmt: skip


@dataclass(frozen=True)
class Spent:
    """What all trainings of a stage took: tokens trained on, and seconds that its processes ran, added up."""

    n_tokens: int
    seconds: float


def export(
    out: Out, parent: Artifact[Checkpoint], config: TuningConfig, data: TaskData, best: Path, spent: Spent, trials: Sequence[Trial] = ()
) -> Checkpoint:
    """Copies the best epoch's Hugging Face files into the artifact and says what they are and what they took."""
    for file in sorted((best / MODEL).iterdir()):
        shutil.copyfile(file, out.path / file.name)
    hf, n_params = read_hf_config(out.path), count_weights(out.path)
    chosen, n_train = read_progress(best), len(data.splits["train"])
    count = config.num_gpus or config.num_cpus
    out.spend(device="gpu" if config.num_gpus else "cpu", count=count, seconds=spent.seconds)
    # A classifier looks its embeddings up and has no language modelling head, whatever was tied in pretraining.
    per_token = flops_per_token({**hf, "tie_word_embeddings": False}, n_params, round(chosen.n_tokens[0] / n_train))
    return Checkpoint(
        head="sequence_classification",
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
            f"validation/{config.metric}": max(chosen.history),
            "train_examples": float(n_train),
            "validation_examples": float(len(data.splits["validation"])),
            "test_examples": float(len(data.splits["test"])),
        },
        cost=Cost(
            flops=None if per_token is None else per_token * spent.n_tokens,
            device_hours=count * spent.seconds / 3600,
            notes="all trainings of this step; flops: 6 N + 12 L d T a token at the mean length, without padding and scoring",
        ),
    )


def thinned(losses: Sequence[float]) -> tuple[LossPoint, ...]:
    """At most `LOSS_POINTS` points of a curve, evenly spread, its last one among them."""
    every = max(1, -(-len(losses) // LOSS_POINTS))
    steps = range(len(losses), 0, -every)
    return tuple(LossPoint(step=step, loss=losses[step - 1]) for step in reversed(steps))
