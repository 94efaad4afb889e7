"""A cross-validated fine-tuning, through the core: what is judged, by which models, and what a kill leaves."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fmray.core.artifact import Artifact
from fmray.core.config import load_config
from fmray.evaluate.downstream import predict
from fmray.model.checkpoint import Checkpoint, hf_digest
from fmray.tasks import Predictions, TaskData
from fmray.tasks.folds import cut
from fmray.train.finetune import FinetuneConfig
from fmray.train.tuning import MODEL, Epochs, Tuned, tune_classifier
from tests.train import tiny

FOLDS = 2


def best_by_hand(config: FinetuneConfig, start: Path, data: TaskData, folder: Path, *, from_scratch: bool = False) -> Path:
    """The Hugging Face directory of the best epoch of a tuning in this process."""
    epochs = Epochs(folder)
    folder.mkdir()

    def on_epoch(tuned: Tuned) -> bool:
        epochs.add(tuned)
        return True

    tune_classifier(config, start, data, from_scratch=from_scratch, on_epoch=on_epoch)
    return epochs.best() / MODEL


class Killed(Exception):
    """The driver's end."""


class Killing(tiny.Watcher):
    """Ends the run when the first fold is done and the second one is about to be judged."""

    def progress(self, step: str, text: str, done: float | None, total: float | None, figures: Any) -> None:
        super().progress(step, text, done, total, figures)
        if text.startswith(f"fold 2 of {FOLDS}: scoring"):
            raise Killed


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_every_example_is_judged_by_the_model_of_its_fold(base: Artifact[Checkpoint], path: Path, tmp_path: Path) -> None:
    config = {"task": tiny.task(path), "epochs": 2, "optim": {"lr": 3e-3}, "folds": FOLDS, "control": True}
    with pytest.raises(Killed):
        tiny.run("finetune", config, tmp_path / "tuned", Killing(), checkpoint=base)
    watcher = tiny.Watcher()
    tuned = tiny.run("finetune", config, tmp_path / "tuned", watcher, checkpoint=base)
    told = {text for text, *_ in watcher.told}
    assert not any(text.startswith("fold 1 of 2") for text in told), "a fold that is done is not done again"
    assert {"fold 2 of 2: scoring 60 held-out examples", "control from random weights, fold 1 of 2", "all examples"} <= told
    assert not list((tuned.path / "work").glob("*fold*"))
    report = tiny.run("evaluate", {}, tmp_path / "report", checkpoint=tuned)
    metrics = {metric.name.removeprefix("eval/topics/"): metric for metric in report.payload.metrics}
    rows = {row["text"]: row for row in map(json.loads, (report.path / "examples.jsonl").read_text().splitlines())}

    asked = load_config(FinetuneConfig, config)
    task, data = asked.task, asked.task.load()
    folds = cut(task, data, FOLDS)
    assert sorted(rows) == sorted(text for split in data.splits.values() for text in split.texts)
    assert metrics["macro_f1"].n == len(rows) == tuned.payload.figures["test_examples"]
    scores = []
    for number, part in enumerate(folds.parts):
        model = best_by_hand(asked, base.path, part, tmp_path / str(number))
        said = predict(model, task, part, 64)
        scores.append(task.metrics(part.labels, part.splits["test"].targets, said)["macro_f1"])
        assert [rows[text]["model"] for text in part.splits["test"].texts] == [part.labels[label] for label in said.values]
    control = best_by_hand(asked, base.path, folds.parts[0], tmp_path / "control", from_scratch=True)
    expected = predict(control, task, folds.parts[0], 64).values
    assert [rows[text]["random_init"] for text in folds.parts[0].splits["test"].texts] == [data.labels[label] for label in expected]

    figures, labels = tuned.payload.figures, list(data.labels)
    pooled = Predictions([labels.index(rows[text]["model"]) for text in folds.whole.splits["test"].texts])
    whole = task.metrics(labels, folds.whole.splits["test"].targets, pooled)["macro_f1"]
    assert figures["folds"] == FOLDS
    assert figures["test/macro_f1"] == metrics["macro_f1"].value == pytest.approx(whole)
    assert figures["test/macro_f1_mean"] == metrics["macro_f1_mean"].value == pytest.approx(np.mean(scores))
    assert figures["test/macro_f1_deviation"] == metrics["macro_f1_deviation"].value == pytest.approx(np.std(scores, ddof=1))
    assert metrics["macro_f1"].lower <= metrics["macro_f1"].value <= metrics["macro_f1"].upper
    assert metrics["macro_f1"].control == metrics["random_init_macro_f1"].value
    assert "not tuned on its fold" in metrics["macro_f1"].note
    assert figures["train_examples"] + figures["validation_examples"] == len(rows), "the model that is kept is tuned on all of them"
    assert hf_digest(best_by_hand(asked, base.path, folds.whole, tmp_path / "whole")) == tuned.payload.digest
