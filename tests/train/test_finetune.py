"""The stage finetune, through the core: a classifier as an artifact, from a decoder and from an encoder."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from fmray.core.artifact import Artifact
from fmray.core.errors import ArtifactError, ConfigError, DataError
from fmray.model.checkpoint import Checkpoint, hf_digest
from fmray.tasks.classifier import Classifier
from fmray.train.tuning import Tuned, tune_classifier
from tests.models import minilm
from tests.train import tiny

pytestmark = pytest.mark.usefixtures("ray_session")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Artifact[Checkpoint]:
    return tiny.base_model(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def tuned(base: Artifact[Checkpoint], path: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Artifact[Checkpoint], tiny.Watcher]:
    watcher = tiny.Watcher()
    root = tmp_path_factory.mktemp("runs") / "tuned"
    return tiny.run("finetune", config_of(path), root, watcher, checkpoint=base), watcher


def config_of(path: Path, **changes: Any) -> dict[str, Any]:
    return {"task": tiny.task(path), "epochs": 6, "optim": {"lr": 3e-3}} | changes


def test_the_artifact_is_a_directory_that_opens_with_nothing_else(tuned: tuple[Artifact[Checkpoint], tiny.Watcher]) -> None:
    folder = tuned[0].path
    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    texts = ["storm and rain", "butter in the oven", "the captain and the mast"]
    with torch.inference_mode():
        theirs = model(**tokenizer(texts, padding=True, truncation=True, return_tensors="pt")).logits.numpy()
    ours = Classifier.load(folder)
    np.testing.assert_allclose(ours.logits(ours.encode(texts, tokenizer.model_max_length)), theirs, atol=1e-6)
    assert [model.config.id2label[i] for i in theirs.argmax(axis=1)] == ["weather", "cooking", "sailing"]


def test_its_payload_says_what_it_is(tuned: tuple[Artifact[Checkpoint], tiny.Watcher], base: Artifact[Checkpoint]) -> None:
    payload = tuned[0].payload
    assert (payload.head, payload.architecture, payload.parent) == ("sequence_classification", "llama", base.fingerprint)
    assert payload.labels == ("cooking", "sailing", "weather")
    assert payload.digest == hf_digest(tuned[0].path)
    assert payload.task is not None
    assert payload.task["name"] == "topics"
    assert payload.figures["validation/macro_f1"] > 0.9
    assert payload.losses[-1].loss < payload.losses[0].loss
    assert payload.losses[-1].step == payload.step
    summary = json.loads((tuned[0].path / "task.json").read_text())
    assert sum(summary["counts"]["train"].values()) == payload.figures["train_examples"]
    assert payload.cost is not None
    assert payload.cost.flops is not None
    assert payload.cost.flops > 6 * 1e4 * payload.tokens_seen


def test_it_tells_how_far_it_is(tuned: tuple[Artifact[Checkpoint], tiny.Watcher]) -> None:
    steps = [(done, total) for _, done, total, figures in tuned[1].told if "loss" in figures]
    assert steps, tuned[1].told
    assert all(total == steps[0][1] and 0 < done <= total for done, total in steps)


def test_killed_after_an_epoch_it_goes_on_from_there(base: Artifact[Checkpoint], path: Path, tmp_path: Path, tuned: tuple[Artifact[Checkpoint], tiny.Watcher]) -> None:
    import shutil

    from fmray.core.artifact import STARTED
    from fmray.core.config import load_config
    from fmray.train.finetune import FinetuneConfig
    from fmray.train.tuning import Epochs, tune_classifier

    # What a run leaves that was killed behind its second epoch: no record, and the epochs in its work folder.
    root = tmp_path / "tuned"
    root.mkdir()
    shutil.copyfile(tuned[0].path / STARTED, root / STARTED)
    config = load_config(FinetuneConfig, config_of(path))
    epochs = Epochs(root / "work" / "epochs")
    epochs.folder.mkdir(parents=True)

    def on_epoch(t: Any) -> bool:
        epochs.add(t)
        return bool(t.progress.epoch < 2)

    tune_classifier(config, base.path, config.task.load(), on_epoch=on_epoch)
    (epochs.folder / "took.json").write_text("3600.0")
    watcher = tiny.Watcher()
    again = tiny.run("finetune", config_of(path), root, watcher, checkpoint=base)
    assert again.payload.digest == tuned[0].payload.digest
    assert again.payload.cost.device_hours > 1.0 > tuned[0].payload.cost.device_hours > 0, "what was done before the kill was spent too"
    steps_an_epoch = -(-int(again.payload.figures["train_examples"]) // 16)
    assert min(done or 0 for _, done, _, figures in watcher.told if "loss" in figures) > 2 * steps_an_epoch


def test_from_scratch_shares_nothing_with_the_checkpoint(base: Artifact[Checkpoint], path: Path, tmp_path: Path) -> None:
    one = tiny.run("finetune", config_of(path, epochs=1, optim={"lr": 1e-9}, from_scratch=True), tmp_path / "scratch", checkpoint=base)
    start = Classifier.start(base.path, one.payload.labels, seed=0, from_scratch=True)
    got = Classifier.load(one.path)
    torch.testing.assert_close(got.model.model.embed_tokens.weight, start.model.model.embed_tokens.weight, atol=1e-5, rtol=0)
    pretrained = Classifier.start(base.path, one.payload.labels, seed=0)
    assert (got.model.model.embed_tokens.weight - pretrained.model.model.embed_tokens.weight).abs().max() > 1e-3


def test_an_encoder_of_another_family_is_tuned_as_well(path: Path, tmp_path: Path) -> None:
    source = minilm()
    payload = Checkpoint(head="causal_lm", architecture="bert", digest=hf_digest(source), n_params=1, vocab_size=30522)
    (tmp_path / "minilm").mkdir()
    for file in source.iterdir():
        if file.is_file():
            (tmp_path / "minilm" / file.name).symlink_to(file)
    base = tiny.commit(tmp_path / "minilm", payload, "minilm")
    config = config_of(path, epochs=3, optim={"lr": 3e-4}, max_length=24)
    tuned = tiny.run("finetune", config, tmp_path / "tuned", checkpoint=base)
    classifier = Classifier.load(tuned.path)
    rows = tiny.labelled(40, seed=9)
    predicted = classifier.logits(classifier.encode([text for text, _ in rows], 24)).argmax(axis=1)
    accuracy = np.mean([classifier.labels[p] == label for p, (_, label) in zip(predicted, rows, strict=True)])
    assert accuracy >= 0.95
    assert tuned.payload.architecture == "bert"


def best_of(path: Path, base: Artifact[Checkpoint], folder: Path, *, seed: int, from_scratch: bool = False) -> tuple[float, Path]:
    """The figure of the best of two epochs tuned in this process, the last of equals, and where its model lies."""
    config = tiny.config_of(path, epochs=2, optim={"lr": 3e-3}, seed=seed)

    best: list[float] = []

    def on_epoch(tuned: Tuned) -> bool:
        best[:] = [max(tuned.progress.history)]
        if tuned.progress.history[-1] == best[0]:
            tuned.classifier.save(folder)
        return True

    tune_classifier(config, base.path, config.task.load(), from_scratch=from_scratch, on_epoch=on_epoch)
    return best[0], folder


def test_several_seeds_and_a_control_stand_in_the_artifact_and_its_report(base: Artifact[Checkpoint], path: Path, tmp_path: Path) -> None:
    config, watcher = config_of(path, epochs=2, seeds=2, control=True), tiny.Watcher()
    tuned = tiny.run("finetune", config, tmp_path / "tuned", watcher, checkpoint=base)
    figures = tuned.payload.figures
    alone = [best_of(path, base, tmp_path / f"seed{seed}", seed=seed)[0] for seed in (0, 1)]
    assert figures["seeds"] == 2
    assert figures["validation/macro_f1"] == pytest.approx(max(alone))
    assert figures["validation/macro_f1_mean"] == pytest.approx(np.mean(alone))
    assert figures["validation/macro_f1_deviation"] == pytest.approx(np.std(alone, ddof=1))
    scratch = max((best_of(path, base, tmp_path / f"scratch{seed}", seed=seed, from_scratch=True) for seed in (0, 1)), key=lambda one: one[0])
    texts = [text for text, _ in tiny.labelled(20)]
    control, best = Classifier.load(tuned.path / "control"), Classifier.load(scratch[1])
    np.testing.assert_allclose(control.logits(control.encode(texts, 32)), best.logits(best.encode(texts, 32)), atol=1e-3, err_msg="the control too is the best of its seeds")
    assert {"control from random weights, seed 0", "control from random weights, seed 1"} <= {text for text, *_ in watcher.told}
    report = tiny.run("evaluate", {}, tmp_path / "report", checkpoint=tuned)
    metrics = {metric.name.removeprefix("eval/topics/"): metric for metric in report.payload.metrics}
    assert "all of which were tuned" in metrics["random_init_macro_f1"].note
    assert metrics["macro_f1"].control == metrics["random_init_macro_f1"].value
    assert metrics["pretraining_gain_macro_f1"].value == pytest.approx(metrics["macro_f1"].value - metrics["macro_f1"].control)
    assert metrics["ece"].higher_is_better is False
    assert all(metrics[name].lower <= metrics[name].value <= metrics[name].upper for name in ("accuracy", "mcc", "weighted_f1", "tfidf_macro_f1"))
    assert metrics["truncated"].value == 0.0
    confusion = json.loads((report.path / "confusion.json").read_text())
    assert np.trace(confusion["counts"]) / np.sum(confusion["counts"]) == pytest.approx(metrics["accuracy"].value)
    examples = [json.loads(line) for line in (report.path / "examples.jsonl").read_text().splitlines()]
    assert np.mean([row["label"] == row["model"] for row in examples]) == pytest.approx(metrics["accuracy"].value)


@pytest.mark.parametrize("kind", ["token_classification", "question_answering", "multi_label_classification"])
def test_other_tasks_are_tuned_judged_and_open_with_nothing_else(base: Artifact[Checkpoint], tmp_path: Path, kind: str) -> None:
    import transformers

    from fmray.tasks import task_from
    from fmray.tasks.classifier import AUTO_CLASSES
    from tests.tasks.made import DATA

    (tmp_path / "data").mkdir()
    config = {"task": DATA[kind](tmp_path / "data"), "epochs": 1, "optim": {"lr": 3e-3}, "max_length": 24}
    tuned = tiny.run("finetune", config, tmp_path / "tuned", checkpoint=base)
    task = task_from(tuned.payload.task, "")
    assert tuned.payload.head == task.head
    assert getattr(transformers, AUTO_CLASSES[task.head]).from_pretrained(tuned.path).config.problem_type == task.problem
    report = tiny.run("evaluate", {}, tmp_path / "report", checkpoint=tuned)
    metrics = {metric.name.rpartition("/")[2]: metric for metric in report.payload.metrics}
    assert set(task.metric_names) <= set(metrics)
    n = int(tuned.payload.figures["test_examples"])
    assert metrics[task.main_metric].n == n
    assert len((report.path / "examples.jsonl").read_text().splitlines()) == n


def test_settings_of_held_out_rows_are_refused_for_a_tuned_checkpoint(tuned: tuple[Artifact[Checkpoint], tiny.Watcher], tmp_path: Path) -> None:
    for field, value in (("max_rows", 5), ("control_rows", 5), ("num_workers", 2)):
        with pytest.raises(ConfigError, match=rf"report\.{field}: a tuned checkpoint is judged on all test examples") as caught:
            tiny.run("evaluate", {field: value}, tmp_path / "report", checkpoint=tuned[0])
        assert caught.value.exit_code == 2


def test_bad_input_is_one_line_and_leaves_nothing(base: Artifact[Checkpoint], path: Path, tmp_path: Path) -> None:
    empty = tiny.commit(tmp_path / "empty", base.payload, "empty")
    for error, message, config, checkpoint in (
        (DataError, "no column 'topic'", config_of(path, task=tiny.task(path, label="topic")), base),
        (ArtifactError, "is not a model checkpoint", config_of(path), empty),
    ):
        with pytest.raises(error, match=message) as caught:
            tiny.run("finetune", config, tmp_path / "out", checkpoint=checkpoint)
        assert caught.value.exit_code == 2
        assert not (tmp_path / "out").exists()


def test_a_model_that_does_not_fit_is_refused_before_the_data_are_read(base: Artifact[Checkpoint], path: Path, tmp_path: Path) -> None:
    import shutil

    narrow = tmp_path / "narrow"
    shutil.copytree(base.path, narrow)
    told = json.loads((narrow / "config.json").read_text())
    (narrow / "config.json").write_text(json.dumps({**told, "vocab_size": 300}))
    for error, message, config, checkpoint in (
        (ConfigError, "max_length: is 65, but the model has 64 positions", config_of(path, max_length=65), base),
        (ArtifactError, "the architecture 'llama' has no masked lm head", config_of(path, task={"type": "fill_mask", "source": {"type": "csv", "path": str(path)}}), base),
        (ArtifactError, "its tokenizer has .* tokens and the model embeddings for 300: they do not fit", config_of(path), tiny.commit(narrow, base.payload, "narrow")),
    ):
        watcher = tiny.Watcher()
        with pytest.raises(error, match=message) as caught:
            tiny.run("finetune", config, tmp_path / "out", watcher, checkpoint=checkpoint)
        assert caught.value.exit_code == 2
        assert not watcher.told
        assert not (tmp_path / "out").exists()
