"""The stage finetune: a classifier from any checkpoint that has a classification head for its architecture."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from fmray.cluster import call
from fmray.core.artifact import Artifact, write_json
from fmray.core.config import Config, dump
from fmray.core.stage import Out, stage
from fmray.model.checkpoint import Checkpoint, LossPoint, Trial, count_weights, hf_digest, read_hf_config
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
    run_tuning(config, checkpoint.path, seen, out.work / "epochs", out, from_scratch=config.from_scratch)
    payload = export(out, checkpoint, config, data, Epochs(out.work / "epochs").best())
    shutil.rmtree(out.work / "epochs")
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


def export(out: Out, parent: Artifact[Checkpoint], config: TuningConfig, data: TaskData, best: Path, trials: Sequence[Trial] = ()) -> Checkpoint:
    """Copies the best epoch's Hugging Face files into the artifact and says what they are."""
    for file in sorted((best / MODEL).iterdir()):
        shutil.copyfile(file, out.path / file.name)
    hf = read_hf_config(out.path)
    chosen = read_progress(best)
    return Checkpoint(
        head="sequence_classification",
        architecture=str(hf["model_type"]),
        digest=hf_digest(out.path),
        n_params=count_weights(out.path),
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
            "train_examples": float(len(data.splits["train"])),
            "validation_examples": float(len(data.splits["validation"])),
            "test_examples": float(len(data.splits["test"])),
        },
    )


def thinned(losses: Sequence[float]) -> tuple[LossPoint, ...]:
    """At most `LOSS_POINTS` points of a curve, evenly spread, its last one among them."""
    every = max(1, -(-len(losses) // LOSS_POINTS))
    steps = range(len(losses), 0, -every)
    return tuple(LossPoint(step=step, loss=losses[step - 1]) for step in reversed(steps))
