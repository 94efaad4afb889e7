"""Fine-tunings and trials as groups of Ray Train workers: what is refused, what two workers learn, and what the loss of one costs."""

import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from fmray.core.artifact import Artifact
from fmray.core.config import load_config
from fmray.core.errors import ConfigError, ResourceError
from fmray.core.report import Decision
from fmray.model.checkpoint import Checkpoint
from fmray.train import tuning_group
from fmray.train.finetune import FinetuneConfig
from fmray.train.search_config import SearchConfig
from tests.train import tiny
from tests.train.test_search import config_of as search_config
from tests.train.tiny import config_of, tune

LR = {"lr": 2e-3}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_workers": 0}, "num_workers: Input should be greater than or equal to 1"),
        ({"num_workers": 17}, "num_workers: 17 workers cannot share a global batch of 16 rows; lower it or raise global_batch_size"),
        ({"num_workers": 2, "num_gpus": 0.5}, "num_gpus: 0.5 of a GPU is for one worker alone, and num_workers is 2; give each worker 0 or 1"),
        ({"num_gpus": 1.5}, "num_gpus: Input should be less than or equal to 1"),
        ({"num_gpus": -0.5}, "num_gpus: Input should be greater than or equal to 0"),
    ],
)
def test_workers_that_cannot_be_are_refused(path: Path, changes: dict[str, Any], message: str) -> None:
    for kind, config in ((FinetuneConfig, {"task": tiny.task(path)}), (SearchConfig, search_config(path))):
        with pytest.raises(ConfigError) as caught:
            load_config(kind, config | changes, "tuned")
        assert str(caught.value).startswith(f"tuned.{message}")


def test_a_space_whose_batches_the_workers_cannot_share_is_refused(path: Path) -> None:
    space = {"global_batch_size": {"type": "choice", "values": [2, 8]}}
    with pytest.raises(ConfigError, match=r"tuned\.space\.global_batch_size: 4 workers cannot share a global batch of 2 rows"):
        load_config(SearchConfig, search_config(path, space=space, num_workers=4), "tuned")


def test_workers_and_shares_of_a_gpu_stay_out_of_the_fingerprint(path: Path) -> None:
    here = config_of(path).identity()
    assert here == config_of(path, num_workers=2, max_failures=0).identity() == config_of(path, num_gpus=0.25).identity()
    assert config_of(path, num_gpus=0.25).devices == 0.25
    assert config_of(path, num_workers=4, num_cpus=2).devices == 8


@pytest.mark.usefixtures("ray_session")
def test_trials_that_do_not_fit_at_a_time_are_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning_group, "WAIT_S", 0.0)
    fits = load_config(SearchConfig, search_config(path, num_workers=4, max_concurrent_trials=9, num_trials=2))
    tuning_group.require_trials(fits, fits.at_once)
    too_many = load_config(SearchConfig, search_config(path, num_workers=3, max_concurrent_trials=3))
    with pytest.raises(ResourceError) as caught:
        tuning_group.require_trials(too_many, too_many.at_once)
    assert str(caught.value) == (
        "max_concurrent_trials: 3 trials at a time of 3 workers each do not fit: the cluster lacks resources after 0 s of waiting "
        "(CPU: 9 asked, 8 there); lower it or num_workers, or add nodes"
    )
    # Of one worker they wait for each other.
    alone = load_config(SearchConfig, search_config(path, max_concurrent_trials=90, num_trials=90))
    tuning_group.require_trials(alone, alone.at_once)


def test_what_check_says_of_workers(path: Path) -> None:
    from fmray.train.search import plan

    config = load_config(SearchConfig, search_config(path, num_workers=3, num_cpus=2))
    assert plan(config, {})["workers"] == "3 a trial, 2 trials at a time: needs 12 cores at once"
    assert "workers" not in plan(load_config(SearchConfig, search_config(path)), {})


def kill_a_worker_after(found: Any, killed: list[int]) -> threading.Thread:
    """Ends one of this Ray's training workers with SIGKILL as soon as there is what `found` looks for; says which."""

    def watch() -> None:
        deadline = time.monotonic() + 120
        while not found():
            if time.monotonic() > deadline:
                return
            time.sleep(0.02)
        for process in psutil.Process().children(recursive=True):
            if process.name().startswith("ray::RayTrainWo"):
                process.kill()
                killed.append(process.pid)
                return

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    return thread


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_a_finetuning_on_two_workers_survives_the_loss_of_one(base: Artifact[Checkpoint], path: Path, tmp_path: Path) -> None:
    config = {"task": tiny.task(path), "epochs": 4, "optim": LR}
    alone = tune(load_config(FinetuneConfig, config), base.path).progress
    killed: list[int] = []
    work, watcher = tmp_path / "two" / "work", tiny.Watcher()
    thread = kill_a_worker_after(lambda: list(work.glob("epochs/epoch_0002")), killed)
    two = tiny.run("finetune", config | {"num_workers": 2}, tmp_path / "two", watcher, checkpoint=base).payload
    thread.join()
    assert killed
    assert [point.step for point in two.losses] == list(range(1, two.step + 1))
    np.testing.assert_allclose([point.loss for point in two.losses], alone.losses[: two.step], rtol=1e-3)
    assert two.tokens_seen == sum(alone.n_tokens[: two.step * 4 // len(alone.losses)])
    assert two.cost is not None
    assert two.cost.device_hours
    assert any("loss" in figures for _, _, _, figures in watcher.told)
    assert not (work / "epochs").exists()


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_trials_on_two_workers_find_what_one_finds(base: Artifact[Checkpoint], decision: Artifact[Decision], path: Path, tmp_path: Path) -> None:
    space = {"optim.lr": {"type": "choice", "values": [4e-3, 1e-12]}}
    asha = {"type": "asha", "grace_epochs": 1}
    config = search_config(path, epochs=3, num_trials=2, space=space, algorithm={"type": "grid"}, scheduler=asha, max_concurrent_trials=1, num_workers=2)
    killed: list[int] = []
    work = tmp_path / "tuned" / "work"
    thread = kill_a_worker_after(lambda: list(work.glob("tune/*/epochs/epoch_0001")), killed)
    learnt, idle, control = tiny.run("search", config, tmp_path / "tuned", checkpoint=base, decision=decision).payload.trials
    thread.join()
    assert killed
    assert (learnt.status, learnt.note) == ("finished", "died 1 times and was taken up again")
    assert (idle.status, idle.note) == ("stopped", "stopped by asha")
    assert (control.status, len(control.history)) == ("control", 3)
    for trial, n_epochs in ((learnt, 3), (idle, 1)):
        alone = tune(load_config(SearchConfig, config).trial(trial.config), base.path)
        np.testing.assert_allclose(trial.history, alone.progress.history[:n_epochs], atol=0.05)
