"""Cross-validation of a fine-tuning: a model a fold, what it says of the fold that it was not tuned on, and what that took."""

import json
import shutil
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fmray.cluster import call
from fmray.core.artifact import write_json
from fmray.core.stage import Out
from fmray.evaluate.downstream import predict
from fmray.tasks import Predictions, Task, TaskData
from fmray.tasks.folds import Folds, from_plain, plain
from fmray.train.tuning import MODEL, Epochs, TuningConfig

JUDGED_BATCH = 64
Tune = Callable[[Path, Epochs, str], float]
"""Tunes on a file that `TaskData.save` wrote, keeps its epochs, shows a word on what it is; gives the seconds that its processes ran."""


@dataclass(frozen=True)
class Crossed:
    """What came of all folds: what was said of each example when it was held out, and the tokens and seconds of the tunings."""

    said: Predictions
    n_tokens: int
    seconds: float


def hold_out(config: TuningConfig, folds: Folds, out: Out, name: str, tune: Tune, what: str = "") -> Crossed:
    """Tunes a model for each fold and asks the epoch that is best on its validation split about the fold, which it has not seen.

    Killed, it goes on with the fold that it was at; of a fold that is done only its predictions are kept.

    Args:
        name: of its files in the work folder.
        what: a word on all of the tunings.
    """
    done = []
    for number, part in enumerate(folds.parts):
        epochs, kept = Epochs(out.work / f"{name}_fold_{number}"), out.work / f"{name}_fold_{number}.json"
        if not kept.exists():
            seen = out.work / "seen_fold.json"
            part.save(seen, ("train", "validation"))
            told = ", ".join(word for word in (what, f"fold {number + 1} of {len(folds.parts)}") if word)
            seconds = tune(seen, epochs, told)
            out.progress(f"{told}: scoring {len(part.splits['test'])} held-out examples")
            said = call(_say, epochs.best() / MODEL, config.task, part, config, num_cpus=config.num_cpus, num_gpus=config.num_gpus)
            write_json(kept, {"said": plain(said), "n_tokens": epochs.n_tokens(), "seconds": seconds})
        shutil.rmtree(epochs.folder, ignore_errors=True)
        done.append(json.loads(kept.read_text(encoding="utf-8")))
    said = folds.pooled([from_plain(one["said"]) for one in done])
    return Crossed(said, sum(one["n_tokens"] for one in done), sum(one["seconds"] for one in done))


def _say(model: Path, task: Task, part: TaskData, config: TuningConfig) -> Predictions:
    import torch

    torch.set_num_threads(config.num_cpus)
    return predict(model, task, part, config.micro_batch_size or JUDGED_BATCH)


def figures(config: TuningConfig, folds: Folds, said: Predictions) -> dict[str, float]:
    """The number of folds, and the figure by which the epochs were chosen on held-out examples: on all together, mean and standard
    deviation over the folds.
    """
    whole = config.task.metrics(folds.whole.labels, folds.whole.splits["test"].targets, said)
    scores = [one[config.metric] for one in folds.scores(config.task, said)]
    name = f"test/{config.metric}"
    return {"folds": float(len(scores)), name: whole[config.metric], f"{name}_mean": statistics.mean(scores), f"{name}_deviation": statistics.stdev(scores)}


def clean(out: Out) -> None:
    """Removes what `hold_out` left in the work folder."""
    for file in out.work.glob("*_fold*.json"):
        file.unlink()
