"""The stage search: real Ray Tune over real fine-tunings of a tiny model; spaces checked at load time, deaths survived, nothing hidden."""

import contextlib
import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoModelForSequenceClassification

from fmray.core.artifact import Artifact, load
from fmray.core.config import load_config
from fmray.core.errors import ArtifactError, ConfigError, GateRefused
from fmray.core.report import Decision
from fmray.model.checkpoint import Checkpoint, Trial
from fmray.tasks import Predictions, task_from
from fmray.tasks.classifier import Classifier
from fmray.train.search_config import SearchConfig, searchable
from fmray.train.search_importance import importances
from fmray.train.search_trial import Trained
from tests.train import tiny

LR = {"optim.lr": {"type": "loguniform", "low": 1e-4, "high": 1e-2}}


def config_of(path: Path, **changes: Any) -> dict[str, Any]:
    return {"task": tiny.task(path), "epochs": 4, "space": LR, "num_trials": 4} | changes


@contextlib.contextmanager
def at_first_report(work: Path, act: Any) -> Iterator[list[dict[str, Any]]]:
    """Calls `act` with the first result that any trial reports, from another thread; gives the list of that result."""
    seen: list[dict[str, Any]] = []
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(0.02):
            for file in work.glob("tune/*/result.json"):
                lines = file.read_text().splitlines()
                if lines:
                    seen.append(json.loads(lines[0]))
                    act(seen[0])
                    return

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    yield seen
    ended.set()
    thread.join()


class TestOneSearch:
    """One search under ASHA with one trial killed in the middle, looked at from all sides."""

    @pytest.fixture(scope="class")
    def made(
        self, ray_session: None, base: Artifact[Checkpoint], decision: Artifact[Decision], tmp_path_factory: pytest.TempPathFactory
    ) -> tuple[Artifact[Checkpoint], tiny.Watcher, str]:
        root, watcher = tmp_path_factory.mktemp("runs") / "tuned", tiny.Watcher()
        # Long enough epochs that the kill falls into the trial whose report it follows.
        longer = tiny.write_csv(root.parent / "longer.csv", tiny.labelled(400))
        config = config_of(longer, epochs=6, max_concurrent_trials=1, scheduler={"type": "asha", "grace_epochs": 2})
        with at_first_report(root / "work", lambda result: os.kill(result["pid"], signal.SIGKILL)) as killed:
            artifact = tiny.run("search", config, root, watcher, checkpoint=base, decision=decision)
        return artifact, watcher, killed[0]["trial_id"]

    def test_the_killed_trial_was_taken_up_again_from_its_checkpoint(self, made: tuple[Artifact[Checkpoint], tiny.Watcher, str]) -> None:
        died = [t for t in made[0].payload.trials if "died 1 times" in t.note]
        assert [t.trial_id for t in died] == ["000"]
        assert died[0].status == "finished"
        assert len(died[0].history) == 6

    def test_every_trial_and_the_control_are_in_the_trace(self, made: tuple[Artifact[Checkpoint], tiny.Watcher, str]) -> None:
        trials = made[0].payload.trials
        assert [t.trial_id for t in trials] == ["000", "001", "002", "003", "control"]
        assert {t.status for t in trials[:4]} <= {"finished", "stopped"}
        for trial in trials[:4]:
            assert 1e-4 <= trial.config["optim.lr"] <= 1e-2
            assert trial.score == max(trial.history)
            assert (len(trial.history) == 6) == (trial.status == "finished")
            assert len(trial.history) >= 2, "none is stopped before grace_epochs"
        assert len({t.config["optim.lr"] for t in trials[:4]}) == 4

    def test_the_winner_is_the_best_on_validation(self, made: tuple[Artifact[Checkpoint], tiny.Watcher, str]) -> None:
        artifact = made[0]
        best = max((t for t in artifact.payload.trials if t.status != "control"), key=lambda t: t.score or 0.0)
        assert artifact.payload.figures["validation/macro_f1"] == best.score
        task = task_from(artifact.payload.task, "here")
        data = task.load()
        validation = data.splits["validation"]
        classifier = Classifier.load(artifact.path)
        predicted = classifier.logits(classifier.encode(validation.texts, classifier.tokenizer.model_max_length)).argmax(axis=1)
        assert task.metrics(data.labels, validation.targets, Predictions(predicted.tolist()))["macro_f1"] == pytest.approx(best.score)

    def test_the_control_differs_in_its_start_alone(self, made: tuple[Artifact[Checkpoint], tiny.Watcher, str], base: Artifact[Checkpoint]) -> None:
        artifact = made[0]
        control = artifact.payload.trials[-1]
        best = max((t for t in artifact.payload.trials[:-1]), key=lambda t: t.score or 0.0)
        assert (control.status, control.config, len(control.history)) == ("control", best.config, len(best.history))
        model = AutoModelForSequenceClassification.from_pretrained(artifact.path / "control")
        winner = AutoModelForSequenceClassification.from_pretrained(artifact.path)
        assert model.config.id2label == winner.config.id2label
        start = Classifier.start(base.path, artifact.payload.labels, seed=0).model.model.embed_tokens.weight.detach().numpy().ravel()
        alike = [np.corrcoef(m.model.embed_tokens.weight.detach().numpy().ravel(), start)[0, 1] for m in (winner, model)]
        assert alike[0] > 0.5
        assert abs(alike[1]) < 0.2

    def test_it_tells_how_many_trials_ended_and_the_best_score(self, made: tuple[Artifact[Checkpoint], tiny.Watcher, str]) -> None:
        told = [(done, total, figures) for text, done, total, figures in made[1].told if text.startswith("trials")]
        assert (told[-1][0], told[-1][1]) == (4, 4)
        assert told[-1][2]["best_validation_macro_f1"] == made[0].payload.figures["validation/macro_f1"]

    def test_a_table_shows_every_trial_as_it_goes(self, made: tuple[Artifact[Checkpoint], tiny.Watcher, str]) -> None:
        tables, trials = made[1].tables, made[0].payload.trials[:4]
        columns, rows = tables[-1]
        assert columns == ["trial", "", "epoch", "macro_f1", "hyperparameters"]
        best_first = sorted(trials, key=lambda t: (-(t.score or 0.0), t.trial_id))
        assert rows == [[t.trial_id, "ended", str(len(t.history)), f"{t.score:.4f}", f"lr={t.config['optim.lr']:.3g}"] for t in best_first]
        epochs = {row[2] for _, table in tables for row in table if row[:2] == ["000", "runs"]}
        assert {"1", "2", "3"} <= epochs, "it is told after each epoch"
        assert any(row[1] in ("waits", "runs") and row[3] == "" for _, table in tables for row in table)

    def test_nothing_of_the_test_split_was_within_reach_and_scratch_is_gone(self, made: tuple[Artifact[Checkpoint], tiny.Watcher, str]) -> None:
        artifact = made[0]
        data = task_from(artifact.payload.task, "here").load()
        seen = (artifact.path / "work" / "data.json").read_text()
        assert data.splits["validation"].texts[0] in seen
        assert not any(text in seen for text in data.splits["test"].texts)
        assert not (artifact.path / "work" / "tune").exists()
        assert not (artifact.path / "work" / "control").exists()


@pytest.mark.usefixtures("ray_session")
def test_a_trial_that_fails_is_reported_and_the_search_goes_on(base: Artifact[Checkpoint], decision: Artifact[Decision], path: Path, tmp_path: Path) -> None:
    space = LR | {"max_length": {"type": "choice", "values": [16, 65]}}
    config = config_of(path, epochs=1, space=space, max_failures=0, algorithm={"type": "optuna"}, seed=1)
    trials = tiny.run("search", config, tmp_path / "tuned", checkpoint=base, decision=decision).payload.trials
    by_length: dict[int, set[str]] = {16: set(), 65: set()}
    for trial in trials:
        by_length[trial.config["max_length"]].add(trial.status)
    assert by_length == {16: {"finished", "control"}, 65: {"failed"}}, trials
    failed = next(t for t in trials if t.status == "failed")
    assert (failed.score, failed.history) == (None, ())
    assert "ConfigError: max_length: is 65, but the model has 64 positions" in failed.note


@pytest.mark.usefixtures("ray_session")
def test_when_every_trial_fails_on_bad_input_that_is_the_error(base: Artifact[Checkpoint], decision: Artifact[Decision], path: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="max_length: is 65, but the model has 64 positions"):
        tiny.run("search", config_of(path, max_length=65, num_trials=1, max_failures=0), tmp_path / "tuned", checkpoint=base, decision=decision)
    assert not (tmp_path / "tuned").exists()


def test_a_head_that_the_architecture_has_not_is_refused_before_any_trial(base: Artifact[Checkpoint], decision: Artifact[Decision], path: Path, tmp_path: Path) -> None:
    watcher = tiny.Watcher()
    config = config_of(path, task={"type": "fill_mask", "source": {"type": "csv", "path": str(path)}})
    with pytest.raises(ArtifactError, match="the architecture 'llama' has no masked lm head") as caught:
        tiny.run("search", config, tmp_path / "tuned", watcher, checkpoint=base, decision=decision)
    assert caught.value.exit_code == 2
    assert not watcher.told, "not even the data were read"
    assert not (tmp_path / "tuned").exists()


def test_without_an_admitting_decision_nothing_is_searched(base: Artifact[Checkpoint], path: Path, tmp_path: Path) -> None:
    refusing = Decision(subject=base.fingerprint, subject_digest="", admitted=False, reasons=())
    with pytest.raises(GateRefused, match="did not admit"):
        tiny.run("search", config_of(path), tmp_path / "tuned", checkpoint=base, decision=tiny.commit(tmp_path / "gate", refusing, "gate"))


def test_the_default_scheduler_and_algorithm() -> None:
    assert {"optim.lr", "epochs", "global_batch_size", "max_length", "precision", "seed", "method", "class_weights", "patience"} <= set(searchable())
    assert not {"task", "metric", "num_cpus", "micro_batch_size", "optim.betas"} & set(searchable())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"space": {"optim.lrr": LR["optim.lr"]}}, "tuned.space: unknown field 'optim.lrr', did you mean 'optim.lr'?; searchable: optim.lr"),
        ({"space": {"num_cpus": {"type": "choice", "values": [1]}}}, "unknown field 'num_cpus'"),
        ({"space": {}}, "space"),
        ({"space": {"optim.lr": {"type": "loguniform", "low": 1e-2, "high": 1e-3}}}, "the range is empty: low 0.01 is not below high 0.001"),
        ({"space": {"optim.lr": {"type": "uniform", "low": 1.0, "high": 1.0}}}, "the range is empty"),
        ({"space": {"epochs": {"type": "integer", "low": 3, "high": 2}}}, "the range is empty"),
        ({"space": {"epochs": {"type": "choice", "values": []}}}, "the range is empty: `values` lists nothing"),
        ({"space": {"epochs": {"type": "choice", "values": [2, 0]}}}, "tuned.space.epochs: Input should be greater than or equal to 1"),
        ({"space": {"epochs": {"type": "uniform", "low": 1.5, "high": 3.5}}}, "tuned.space.epochs"),
        ({"space": {"epochs": {"type": "choice", "values": [2, None]}}}, "tuned.space.epochs"),
        ({"space": {"class_weights": {"type": "choice", "values": [None, "equal"]}}}, "tuned.space.class_weights: Input should be 'balanced'"),
        ({"space": {"optim.lr": {"type": "log", "low": 1.0, "high": 2.0}}}, "unknown distribution 'log'"),
        ({"scheduler": {"type": "ash"}}, "unknown scheduler 'ash', did you mean 'asha'?"),
        ({"algorithm": {"type": "optuna", "startup": 3}}, "unknown key 'startup', did you mean 'startup_trials'?"),
        ({"metric": "f1"}, "has no metric 'f1'"),
    ],
)
def test_a_wrong_space_is_refused_when_the_file_is_read(path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(SearchConfig, config_of(path, **changes), "tuned")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_choice_may_hold_nothing_for_a_field_that_may_be_left_out(path: Path) -> None:
    from ray import tune

    space = {"class_weights": {"type": "choice", "values": [None, "balanced"]}, "max_length": {"type": "choice", "values": [16, None]}}
    config = load_config(SearchConfig, config_of(path, space=space))
    trials = [config.trial({name: one.domain(tune).sample() for name, one in config.space.items()}) for _ in range(40)]
    assert {(trial.class_weights, trial.max_length) for trial in trials} == {(None, 16), (None, None), ("balanced", 16), ("balanced", None)}
    drawn = [Trial(trial_id=str(i), config={"class_weights": (None, "balanced")[i % 2], "max_length": (16, None)[i // 4]}, status="finished", score=i % 2 + i / 100) for i in range(8)]
    assert max(found := importances(config.space, drawn, 0), key=lambda name: found[name]) == "class_weights"


def test_where_it_runs_stays_out_of_the_fingerprint(path: Path) -> None:
    def identity(**changes: Any) -> Any:
        return load_config(SearchConfig, config_of(path, **changes)).identity()

    assert identity() == identity(max_concurrent_trials=8, max_failures=9, num_cpus=2)
    assert len({json.dumps(identity(**c)) for c in ({}, {"num_trials": 5}, {"scheduler": {"type": "fifo"}}, {"algorithm": {"type": "optuna"}}, {"seed": 1})}) == 5


@pytest.mark.slow
def test_a_killed_driver_is_restored_with_its_finished_trials(base: Artifact[Checkpoint], decision: Artifact[Decision], path: Path, tmp_path: Path) -> None:
    import subprocess
    import sys

    config = config_of(path, epochs=40, num_trials=3, scheduler={"type": "fifo"}, max_concurrent_trials=1)
    (tmp_path / "config.json").write_text(json.dumps(config))
    script = (
        "import json, sys\nfrom pathlib import Path\nfrom fmray.core.artifact import load\nfrom tests.train import tiny\n"
        "root, base, gate = map(Path, sys.argv[1:])\n"
        "tiny.run('search', json.loads((root / 'config.json').read_text()), root / 'tuned', checkpoint=load(base), decision=load(gate))\n"
    )
    argv = [sys.executable, "-c", script, str(tmp_path), str(base.path), str(decision.path)]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    work = tmp_path / "tuned" / "work"
    first = subprocess.Popen(argv, env=environment)
    finished: dict[str, float] = {}
    deadline = time.monotonic() + 240
    try:
        while not (finished and len(list(work.glob("tune/*/result.json"))) == 2):
            assert first.poll() is None, "the search ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.1)
            for file in work.glob("tune/*/result.json"):
                lines = [json.loads(line) for line in file.read_text().splitlines() if line.endswith("}")]
                if lines and lines[-1]["training_iteration"] == 40:
                    finished[lines[-1]["trial_id"]] = Trained.read(file.parent).seconds
        # What restores is Tune's own snapshot: wait for one that has the finished trial.
        while not any("TERMINATED" in file.read_text() for file in work.glob("tune/experiment_state*.json")):
            assert first.poll() is None, "the search ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.1)
    finally:
        first.kill()
        first.wait()
    subprocess.run(argv, env=environment, check=True, timeout=300)
    trials: tuple[Trial, ...] = load(tmp_path / "tuned", Checkpoint).payload.trials
    assert [t.status for t in trials] == ["finished"] * 3 + ["control"]
    assert [t.trial_id for t in trials if t.wall_s in finished.values()] == ["000"], "the finished trial was kept"
    whole = tiny.run("search", config, tmp_path / "whole", checkpoint=base, decision=decision)
    assert [(t.config, t.history) for t in trials] == [(t.config, t.history) for t in whole.payload.trials]


def test_a_range_of_whole_numbers_may_hold_one_alone() -> None:
    from ray import tune

    from fmray.train.space.integer import Integer

    assert {Integer(low=2, high=2).domain(tune).sample() for _ in range(5)} == {2}
    assert {Integer(low=2, high=3).domain(tune).sample() for _ in range(50)} == {2, 3}
