"""Judges a tuned model on the test split that no training and no search has seen, beside the baselines that put it in proportion.

Shapes: N test examples, U independent units of them, R weightings.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fmray.cluster import call
from fmray.core import intervals
from fmray.core.artifact import Artifact, write_json
from fmray.core.errors import ConfigError, DataError
from fmray.core.intervals import Interval
from fmray.core.report import Metric
from fmray.core.stage import Out
from fmray.data.dataset import TokenDataset
from fmray.data.text import overlap
from fmray.evaluate.config import EvaluateConfig
from fmray.evaluate.cross_validated import how, over_folds
from fmray.model.checkpoint import Checkpoint
from fmray.tasks import Predictions, Task, TaskData, task_from
from fmray.tasks.classifier import Classifier
from fmray.tasks.folds import Said, cut

EXAMPLES = "examples.jsonl"
CONFUSION = "confusion.json"
SUMMARY = "task.json"
HELD_OUT_ALONE = ("max_rows", "control_rows", "num_workers")
CONTROL = "control"
MODEL, RANDOM_INIT = "model", "random_init"


def evaluate_downstream(
    config: EvaluateConfig, checkpoint: Artifact[Checkpoint], out: Out, dataset: Artifact[TokenDataset] | None
) -> tuple[list[Metric], str]:
    """The metrics of a tuned checkpoint on its task's test split, and the name of the per-example file.

    Beside the model stand the task's baselines (of text: the most frequent label, TF-IDF with logistic regression), and the same
    architecture from random weights, all of it tuned with the same hyperparameters, when the checkpoint keeps that control. Of a
    cross-validated checkpoint every example is judged, by what the models of the folds said of it.

    Raises:
        ConfigError: the step sets what holds for held-out rows alone.
        DataError: the task's data are not those that the checkpoint was tuned on, so its test rows may have been trained on.
    """
    for name in HELD_OUT_ALONE:
        if getattr(config, name) != EvaluateConfig.model_fields[name].default:
            raise ConfigError("a tuned checkpoint is judged on all test examples of its task, by one worker", where=f"{out.name}.{name}", todo="leave it out")
    task = task_from(checkpoint.payload.task, str(checkpoint.path))
    out.progress(f"reading the task {task.name}")
    data = task.load()
    _require_same_data(checkpoint.path, data)
    control = checkpoint.path / CONTROL
    hashes = None if dataset is None else dataset.path / "document_hashes.npy"
    out.progress(f"scoring {len(data.splits['test'])} test examples")
    metrics: list[Metric] = call(
        _judge, checkpoint.path, control if control.is_dir() else None, data, task, hashes, out.path, config,
        num_cpus=config.num_cpus, num_gpus=config.num_gpus,
    )  # fmt: skip
    return metrics, EXAMPLES


def _require_same_data(path: Path, data: TaskData) -> None:
    tuned_on = json.loads((path / SUMMARY).read_text(encoding="utf-8"))["digest"]
    if tuned_on != data.digest:
        raise DataError(
            "the task's data have changed since this checkpoint was tuned, so its test rows may have been trained on",
            where=str(path), todo="bring the data back, or tune again",
        )  # fmt: skip


def _judge(
    model: Path, control: Path | None, data: TaskData, task: Task, hashes: Path | None, folder: Path, config: EvaluateConfig
) -> list[Metric]:
    """Runs in a fresh worker: predictions of every system, their figures, and the per-example file."""
    import torch

    torch.set_num_threads(config.num_cpus)
    held_out, about, more = Said.read(model), "", list[Metric]()
    if held_out is None:
        systems = {name: predict(path, task, data, config.micro_batch_size) for name, path in ((MODEL, model), (RANDOM_INIT, control)) if path is not None}
        baselines = task.baselines(data, config.seed)
    else:
        folds, systems = cut(task, data, held_out.n_folds), dict(held_out.systems)
        data, baselines, about, more = folds.whole, folds.baselines(task, config.seed), how(folds), over_folds(task, folds, systems, MODEL)
    notes = {name: note for name, (_, note) in baselines.items()}
    predictions = systems | {name: said for name, (said, _) in baselines.items()}
    seen_N = _seen(data.splits["test"].texts, hashes)
    write_examples(folder / EXAMPLES, task, data, predictions, seen_N)
    _write_confusion(folder / CONFUSION, data, predictions[MODEL])
    return [*task_metrics(task, data, predictions, notes, seen_N, config.seed, about), *more, _truncated(model, task, data)]


def _truncated(path: Path, task: Task, data: TaskData) -> Metric:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    cut_N = task.truncated(tokenizer, data.splits["test"], tokenizer.model_max_length, len(data.labels))
    return Metric(
        name=f"eval/{task.name}/truncated", value=float(cut_N.mean()), higher_is_better=False, n=len(cut_N),
        note=f"share of test examples of which only {tokenizer.model_max_length} tokens were read",
    )  # fmt: skip


def predict(path: Path, task: Task, data: TaskData, batch_size: int, split: str = "test") -> Predictions:
    """What the model in a directory says of a split."""
    opened = Classifier.load(path, head=task.head)
    examples = data.splits[split]
    rows = task.encode(opened.tokenizer, examples, opened.tokenizer.model_max_length, len(data.labels))
    return task.predict(task.outputs(opened, rows, batch_size), rows, examples)


def _seen(texts: Sequence[str], hashes: Path | None) -> NDArray[np.float64] | None:
    """The share of each text's words that stand in a training document of the pretraining corpus."""
    if hashes is None:
        return None
    known = np.load(hashes, allow_pickle=False)
    return np.array([overlap(text, known) for text in texts])


def task_metrics(
    task: Task, data: TaskData, predictions: Mapping[str, Predictions], notes: Mapping[str, str], seen_N: NDArray[np.float64] | None, seed: int,
    about: str = "",
) -> list[Metric]:  # fmt: skip
    """All metrics from the test predictions of each system, with a word `about` them; intervals by resampling the task's units of test examples."""
    targets, main = data.splits["test"].targets, task.main_metric
    unit_N = task.units(data.splits["test"])
    n_units = int(unit_N.max()) + 1
    grouped = f"{len(targets)} examples in {n_units} groups, which are resampled whole" if n_units < len(targets) else ""
    known = "; ".join(word for word in (grouped, about) if word)

    def figures(system: str, weights_RU: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
        return task.figures(data.labels, targets, predictions[system], weights_RU[:, unit_N])

    def draws(system: str) -> dict[str, Interval]:
        return intervals.statistics(lambda weights_RU: figures(system, weights_RU), n_units, seed=seed)

    def metric(key: str, interval: Interval, *, better: bool | None = True, control: float | None = None, note: str = "") -> Metric:
        return Metric(
            name=f"eval/{task.name}/{key}", value=interval.value, higher_is_better=better, stderr=interval.stderr, lower=interval.lower,
            upper=interval.upper, n=interval.n, control=control, note=note,
        )  # fmt: skip

    def unknown(key: str, why: str, better: bool | None = None) -> Metric:
        return Metric(name=f"eval/{task.name}/{key}", value=None, higher_is_better=better, note=why)

    control = draws(RANDOM_INIT) if RANDOM_INIT in predictions else {}
    metrics = [
        metric(key, interval, better=key not in task.lower_is_better, control=control[key].value if key in control else None, note=known)
        for key, interval in draws(MODEL).items()
    ]
    metrics += [metric(f"{name}_{main}", draws(name)[main], better=None, note=note) for name, note in notes.items()]
    if not control:
        why = "the checkpoint keeps no control trained from random weights; search makes one, finetune does with `control: true`"
        metrics += [unknown(f"random_init_{main}", why), unknown(f"pretraining_gain_{main}", why)]
    else:
        gain = intervals.statistic(lambda w_RU: figures(MODEL, w_RU)[main] - figures(RANDOM_INIT, w_RU)[main], n_units, seed=seed)
        metrics.append(metric(f"random_init_{main}", control[main], better=None, note="the same architecture and hyperparameters from random weights, all of which were tuned"))
        metrics.append(metric(f"pretraining_gain_{main}", gain, note=f"{main} minus random_init_{main} on the same resamples"))
    if seen_N is None:
        metrics.append(unknown("pretraining_overlap", "no dataset was given, so it is not known which test rows were pretrained on", False))
    else:
        metrics.append(metric("pretraining_overlap", intervals.ratio(np.bincount(unit_N, seen_N), np.bincount(unit_N), seed=seed), better=False, note="share of a test row's words that stand in a training document of the dataset, whole or as a whole paragraph; mean over rows"))
    return metrics


def write_examples(path: Path, task: Task, data: TaskData, predictions: Mapping[str, Predictions], seen_N: NDArray[np.float64] | None) -> None:
    """One line of JSON a test example: what it is, what each system says of it, and the model's figures on it alone, by which `compare` goes."""
    test, sure_N = data.splits["test"], predictions[MODEL].confidence_N
    unit_N = task.units(test)
    with path.open("w", encoding="utf-8") as file:
        for index, (one, target) in enumerate(zip(test.inputs, test.targets, strict=True)):
            row: dict[str, Any] = {"task": task.name, "text" if isinstance(one, str) else "input": one, "label": task.shown(data.labels, target)}
            row |= {system: task.shown(data.labels, said.values[index]) for system, said in predictions.items()}
            row["unit"] = int(unit_N[index])
            row["figures"] = _alone(task, data.labels, target, predictions[MODEL].alone(index))
            if sure_N is not None:
                row["probability"] = round(float(sure_N[index]), 6)
            row["pretraining_overlap"] = None if seen_N is None else round(float(seen_N[index]), 4)
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def _alone(task: Task, labels: Sequence[str], target: Any, said: Predictions) -> dict[str, float]:
    """The figures that an example has on its own."""
    found = task.metrics(labels, [target], said) if task.per_example else {}
    return {name: round(found[name], 6) for name in task.per_example}


def _write_confusion(path: Path, data: TaskData, said: Predictions) -> None:
    """The confusion matrix of a task with one label an example: rows are true labels, columns predicted ones."""
    from sklearn.metrics import confusion_matrix

    targets = data.splits["test"].targets
    if data.labels and all(isinstance(target, int) for target in targets):
        counts = confusion_matrix(targets, said.values, labels=range(len(data.labels))).tolist()
        write_json(path, {"labels": data.labels, "rows": "true", "columns": "predicted", "counts": counts})
