"""Judges a classifier on the test split that no training and no search has seen, beside the baselines that put it in proportion.

Shapes: N test examples, K labels.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fmray.cluster import call
from fmray.core import intervals
from fmray.core.artifact import Artifact
from fmray.core.errors import DataError
from fmray.core.intervals import Interval
from fmray.core.report import Metric
from fmray.core.stage import Out
from fmray.data.dataset import TokenDataset
from fmray.data.text import overlap
from fmray.evaluate.config import EvaluateConfig
from fmray.model.checkpoint import Checkpoint
from fmray.tasks import TaskData, task_from
from fmray.tasks.classifier import Classifier
from fmray.tasks.scores import macro_f1_R

EXAMPLES = "examples.jsonl"
SUMMARY = "task.json"
CONTROL = "control"
TFIDF_FEATURES = 20_000
Labels = NDArray[np.int64]


def evaluate_classification(
    config: EvaluateConfig, checkpoint: Artifact[Checkpoint], out: Out, dataset: Artifact[TokenDataset] | None
) -> tuple[list[Metric], str]:
    """The metrics of a sequence-classification checkpoint on its task's test split, and the name of the per-example file.

    Beside the model stand the most frequent label, TF-IDF with logistic regression, and the same architecture from random
    weights, tuned with the same hyperparameters, when the checkpoint keeps that control.

    Raises:
        DataError: the task's data are not those that the checkpoint was tuned on, so its test rows may have been trained on.
    """
    task = task_from(checkpoint.payload.task, str(checkpoint.path))
    out.progress(f"reading the task {task.name}")
    data = task.load()
    _require_same_data(checkpoint.path, data)
    control = checkpoint.path / CONTROL
    hashes = None if dataset is None else dataset.path / "document_hashes.npy"
    out.progress(f"scoring {len(data.splits['test'])} test examples")
    metrics: list[Metric] = call(
        _judge, checkpoint.path, control if control.is_dir() else None, data, task.name, hashes, out.path / EXAMPLES, config,
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
    model: Path, control: Path | None, data: TaskData, name: str, hashes: Path | None, examples: Path, config: EvaluateConfig
) -> list[Metric]:
    """Runs in a fresh worker: predictions of every system, their figures, and the per-example file."""
    import torch

    torch.set_num_threads(config.num_cpus)
    test, n_labels = data.splits["test"], len(data.labels)
    probabilities_NK = _probabilities(model, test.texts, config.micro_batch_size)
    predictions: dict[str, Labels] = {"model": probabilities_NK.argmax(axis=1), "tfidf": tfidf(data, config.seed), "majority": majority(data)}
    if control is not None:
        predictions["random_init"] = _probabilities(control, test.texts, config.micro_batch_size).argmax(axis=1)
    seen_N = _seen(test.texts, hashes)
    _write_examples(examples, data, probabilities_NK, predictions, seen_N)
    return metrics_of(name, test.labels_N, predictions, n_labels, seen_N, config.seed)


def _probabilities(path: Path, texts: Sequence[str], batch_size: int) -> NDArray[np.float64]:
    classifier = Classifier.load(path)
    logits_NK = classifier.logits(classifier.encode(texts, classifier.tokenizer.model_max_length), batch_size).astype(np.float64)
    exponents_NK = np.exp(logits_NK - logits_NK.max(axis=1, keepdims=True))
    probabilities_NK: NDArray[np.float64] = exponents_NK / exponents_NK.sum(axis=1, keepdims=True)
    return probabilities_NK


def majority(data: TaskData) -> Labels:
    """The most frequent label of the training split, for every test example."""
    most = int(np.bincount(data.splits["train"].labels_N, minlength=len(data.labels)).argmax())
    return np.full(len(data.splits["test"]), most, dtype=np.int64)


def tfidf(data: TaskData, seed: int) -> Labels:
    """Test predictions of logistic regression on TF-IDF of words and word pairs, fitted on the training split."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    pipeline = make_pipeline(
        TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, max_features=TFIDF_FEATURES),
        LogisticRegression(max_iter=1000, C=10.0, random_state=seed),
    )
    pipeline.fit(data.splits["train"].texts, data.splits["train"].labels_N)
    predicted_N: Labels = pipeline.predict(data.splits["test"].texts)
    return predicted_N


def _seen(texts: Sequence[str], hashes: Path | None) -> NDArray[np.float64] | None:
    """The share of each text's words that stand in a training document of the pretraining corpus."""
    if hashes is None:
        return None
    known = np.load(hashes, allow_pickle=False)
    return np.array([overlap(text, known) for text in texts])


def metrics_of(
    name: str, truth_N: Labels, predictions: dict[str, Labels], n_labels: int, seen_N: NDArray[np.float64] | None, seed: int
) -> list[Metric]:
    """All metrics from the predictions of each system; intervals by resampling test examples."""

    def macro(system: str) -> Interval:
        return intervals.statistic(lambda w: macro_f1_R(truth_N, predictions[system], n_labels, w), len(truth_N), seed=seed)

    def metric(key: str, interval: Interval, *, better: bool | None = True, control: float | None = None, note: str = "") -> Metric:
        return Metric(
            name=f"eval/{name}/{key}", value=interval.value, higher_is_better=better, stderr=interval.stderr, lower=interval.lower,
            upper=interval.upper, n=interval.n, control=control, note=note,
        )  # fmt: skip

    def unknown(key: str, why: str, better: bool | None = None) -> Metric:
        return Metric(name=f"eval/{name}/{key}", value=None, higher_is_better=better, note=why)

    random_init = macro("random_init") if "random_init" in predictions else None
    metrics = [
        metric("accuracy", intervals.mean(predictions["model"] == truth_N, seed=seed)),
        metric("macro_f1", macro("model"), control=random_init.value if random_init else None),
        metric("majority_macro_f1", macro("majority"), better=None, note="the most frequent training label for every example"),
        metric("tfidf_macro_f1", macro("tfidf"), better=None, note="logistic regression on TF-IDF of words and word pairs"),
    ]
    if random_init is None:
        why = "the checkpoint keeps no control trained from random weights; search makes one"
        metrics += [unknown("random_init_macro_f1", why), unknown("pretraining_gain_macro_f1", why)]
    else:
        gain = intervals.statistic(
            lambda w: macro_f1_R(truth_N, predictions["model"], n_labels, w) - macro_f1_R(truth_N, predictions["random_init"], n_labels, w),
            len(truth_N), seed=seed,
        )  # fmt: skip
        metrics.append(metric("random_init_macro_f1", random_init, better=None, note="the same architecture and hyperparameters from random weights"))
        metrics.append(metric("pretraining_gain_macro_f1", gain, note="macro_f1 minus random_init_macro_f1 on the same resamples"))
    if seen_N is None:
        metrics.append(unknown("pretraining_overlap", "no dataset was given, so it is not known which test rows were pretrained on", False))
    else:
        metrics.append(metric("pretraining_overlap", intervals.mean(seen_N, seed=seed), better=False, note="share of a test row's words that stand in a training document of the dataset, whole or as a whole paragraph; mean over rows"))
    return metrics


def _write_examples(
    path: Path, data: TaskData, probabilities_NK: NDArray[np.float64], predictions: dict[str, Labels], seen_N: NDArray[np.float64] | None
) -> None:
    test = data.splits["test"]
    with path.open("w", encoding="utf-8") as file:
        for index, text in enumerate(test.texts):
            row: dict[str, Any] = {"text": text, "label": data.labels[test.labels_N[index]]}
            row |= {system: data.labels[predicted[index]] for system, predicted in predictions.items()}
            row["probability"] = round(float(probabilities_NK[index].max()), 6)
            row["pretraining_overlap"] = None if seen_N is None else round(float(seen_N[index]), 4)
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
