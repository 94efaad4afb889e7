"""Grid search, a warm start, populations and budgets: what is refused when the file is read, and small searches that run."""

import json
import math
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ray import cloudpickle

from fmray.core.artifact import Artifact
from fmray.core.config import load_config
from fmray.core.errors import ConfigError
from fmray.core.report import Decision
from fmray.model.checkpoint import Checkpoint, Trial
from fmray.train.algorithms import Wanted
from fmray.train.algorithms.bohb import Bohb
from fmray.train.algorithms.optuna import Optuna, earlier
from fmray.train.search_config import SearchConfig
from fmray.train.search_importance import importances
from fmray.train.search_trial import exhausted, go_to, plain, stopper, wall_s
from fmray.train.space.choice import Choice
from fmray.train.space.integer import Integer
from fmray.train.space.loguniform import LogUniform
from fmray.train.tuning import Epochs, Progress
from tests.train import tiny

LR = {"optim.lr": {"type": "loguniform", "low": 1e-4, "high": 1e-2}}
LRS = {"optim.lr": {"type": "choice", "values": [1e-3, 3e-3]}, "global_batch_size": {"type": "integer", "low": 15, "high": 16}}


def config_of(path: Path, **changes: Any) -> dict[str, Any]:
    return {"task": tiny.task(path), "epochs": 2, "space": LR, "num_trials": 4, "scheduler": {"type": "fifo"}} | changes


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_csv(tmp_path_factory.mktemp("data") / "t.csv", tiny.labelled(30))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"algorithm": {"type": "grid"}}, "tuned.space.optim.lr: a grid needs values that can be counted; use type: choice"),
        ({"algorithm": {"type": "grid"}, "space": LRS, "num_trials": 3}, "tuned.num_trials: is 3, but the grid has 2 x 2 = 4 points; set it to 4"),
        ({"scheduler": {"type": "pbt"}, "space": LRS}, "tuned.space: 'global_batch_size' cannot change while a trial runs; with pbt search: optim.lr"),
        ({"scheduler": {"type": "pbt"}, "algorithm": {"type": "optuna"}}, "tuned.algorithm: pbt changes hyperparameters itself and cannot be told by optuna"),
        ({"scheduler": {"type": "pbt"}}, "tuned.max_concurrent_trials: 4 trials with max_concurrent_trials 2 are no population; give at least 2 trials, all at a time"),
        ({"scheduler": {"type": "pbt"}, "num_trials": 1}, "tuned.max_concurrent_trials: one trial is no population"),
        ({"algorithm": {"type": "bohb"}}, "tuned.algorithm: bohb learns from rungs, which fifo has not; use scheduler: {type: hyperband}"),
        ({"scheduler": {"type": "hyperband"}}, "tuned.scheduler: hyperband is BOHB's other half and does not go with random"),
        ({"budget": {"price": 3.0}}, "a budget in money needs both price and price_per_hour"),
        ({"budget": {"hours": 0.0}}, "tuned.budget.hours"),
        ({"budget": {"hour": 1.0}}, "unknown key 'hour', did you mean 'hours'?"),
    ],
)
def test_what_cannot_be_searched_is_refused_when_the_file_is_read(path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(SearchConfig, config_of(path, **changes), "tuned")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


def test_a_value_outside_a_range_goes_to_its_nearest_end() -> None:
    lr, n, kind = LogUniform(low=1e-4, high=1e-2), Integer(low=2, high=5), Choice(values=("a", "b"))
    assert [lr.nearest(value) for value in (1e-5, 1e-3, 1.0)] == [1e-4, 1e-3, 1e-2]
    assert [n.nearest(value) for value in (1.2, 3.6, 9)] == [2, 4, 5]
    assert [kind.nearest(value) for value in ("b", "c")] == ["b", "a"]
    assert (lr.listed(), n.listed(), kind.listed()) == (None, (2, 3, 4, 5), ("a", "b"))


def test_budgets_in_time_and_money_count_what_all_attempts_took(path: Path) -> None:
    def spent(wall: float, trained: float, **budget: float) -> bool:
        return exhausted(load_config(SearchConfig, config_of(path, num_cpus=2, budget=budget)), wall, trained)

    assert not spent(1e9, 1e9)
    assert spent(3600, 1, hours=1.0)
    assert not spent(3599, 9000, hours=1.0)
    assert not spent(3600, 0, hours=1.0), "the first epoch is waited for"
    # Two cores for 2,700 seconds are 1.5 hours of cores.
    assert spent(0, 2700, price=3.0, price_per_hour=2.0)
    assert not spent(0, 2699, price=3.0, price_per_hour=2.0)


def test_a_stopper_goes_on_counting_where_a_killed_search_was(path: Path, tmp_path: Path) -> None:
    (tmp_path / "tune" / "one").mkdir(parents=True)
    first = stopper(load_config(SearchConfig, config_of(path, budget={"hours": 1.0})), tmp_path)
    assert not first.stop_all()
    (tmp_path / "tune" / "one" / "trained.json").write_text(json.dumps({"seconds": 5.0, "n_tokens": 7}))
    assert first("one", {}) is False
    assert 0 < wall_s(tmp_path) < 60
    assert not first.stop_all()
    (tmp_path / "wall.json").write_text("3600")
    assert not first.stop_all(), "a running search knows its own clock"
    assert pickle.loads(cloudpickle.dumps(first)).stop_all()
    assert wall_s(tmp_path) >= 3600


def test_a_warm_start_takes_what_lies_in_the_space_and_refuses_the_rest(tmp_path: Path) -> None:
    space = {"optim.lr": LogUniform(low=1e-3, high=1e-2), "epochs": Integer(low=1, high=3)}

    def search(*trials: dict[str, Any], metric: str = "macro_f1") -> str:
        (tmp_path / "record.json").write_text(json.dumps({"config": {"metric": metric}, "payload": {"trials": list(trials)}}))
        return str(tmp_path)

    def trial(lr: float, score: float | None = 0.5, status: str = "finished", **more: Any) -> dict[str, Any]:
        return {"config": {"optim.lr": lr, "epochs": 2} | more, "score": score, "status": status}

    found = earlier(search(trial(2e-3), trial(2e-4), trial(5e-3, None), trial(3e-3, 0.7, "stopped"), trial(4e-3, 0.1, "control"), trial(4e-3, 0.2, seed=1)), space, "macro_f1")
    assert found == {"points_to_evaluate": [{"optim.lr": 2e-3, "epochs": 2}, {"optim.lr": 3e-3, "epochs": 2}], "evaluated_rewards": [0.5, 0.7]}
    refused = [
        (([trial(2e-3)], "accuracy"), "that search was judged by accuracy, this one is by macro_f1"),
        (([trial(2e-5)], "macro_f1"), "none of the 1 trials of that search lies in this space"),
        (([], "macro_f1"), "is no search: its record holds no trials"),
    ]
    for (trials, metric), message in refused:
        folder = search(*trials, metric=metric)
        with pytest.raises(ConfigError, match=message):
            earlier(folder, space, "macro_f1")
    with pytest.raises(ConfigError, match="none of the 1 trials of that search lies in this space"):
        Optuna(warm_start=search(trial(2e-5))).ready(Wanted(space, "macro_f1", "score", 0, 1))
    with pytest.raises(ConfigError, match=r"holds no readable record\.json"):
        earlier(str(tmp_path / "nowhere"), space, "macro_f1")


def test_bohb_draws_by_its_model_once_it_has_learnt(caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("hpbandster", reason="bohb needs the extra of that name")
    from ray import tune

    space = {"optim.lr": LogUniform(low=1e-4, high=1e-2), "epochs": Integer(low=1, high=4), "method": Choice(values=("full", "frozen"))}
    algorithm = Bohb()
    searcher = algorithm.build(tune, Wanted(space, "macro_f1", "score", 0, 2))
    assert searcher.set_search_properties(None, None, algorithm.domains(tune, space))
    np.random.seed(0)
    scores = []
    for number in range(60):
        values = plain(searcher.suggest(str(number)))
        assert all(space[name].nearest(value) == value for name, value in values.items()), values
        scores.append(-abs(math.log10(values["optim.lr"]) + 3.7))
        searcher.on_trial_result(str(number), {"score": scores[-1], "hyperband_info": {"budget": 1}})
        searcher.on_trial_complete(str(number))
    assert sum(scores[-30:]) / 30 > sum(scores[:10]) / 10 + 0.2, "later draws lie nearer to the best"
    assert not caplog.records, "a model that cannot draw falls back to chance, and says so in a warning"


def test_importance_tells_what_the_score_depends_on() -> None:
    space = {"optim.lr": LogUniform(low=1e-4, high=1e-2), "epochs": Integer(low=1, high=4)}
    drawn = [(10 ** (-4 + 2 * i / 15), 1 + i * 7 % 4) for i in range(16)]
    trials = [Trial(trial_id=str(i), config={"optim.lr": min(lr, 0.0099), "epochs": n}, status="finished", score=lr) for i, (lr, n) in enumerate(drawn)]
    found = importances(space, trials, 0)
    assert found["optim.lr"] > 0.9
    assert sum(found.values()) == pytest.approx(1.0, abs=1e-3)
    assert importances(space, trials[:3], 0) == {}
    assert importances({"optim.lr": space["optim.lr"]}, trials, 0) == {}


def test_a_trial_goes_on_from_the_epoch_that_it_is_given_and_keeps_none_beside_the_way(tmp_path: Path) -> None:
    from ray.tune import Checkpoint as TuneCheckpoint

    def saved(folder: Path, *epochs: tuple[float, float]) -> Path:
        folder.mkdir(parents=True)
        (folder / "progress.json").write_text(json.dumps(vars(Progress([score for score, _ in epochs], [loss for _, loss in epochs]))))
        return folder

    epochs = Epochs(tmp_path / "own")
    # Scores may well be the same in two trials; losses are not.
    one, two, other = (0.5, 1.1), (0.4, 1.0), (0.5, 0.9)

    took: list[bool] = []

    def keeps(given: Path | None) -> list[str]:
        took.append(go_to(epochs, None if given is None else TuneCheckpoint.from_directory(str(given))))
        return sorted(folder.name for folder in epochs.folder.glob("*"))

    for number, passed in ((1, (one,)), (2, (one, two))):
        saved(epochs.folder / f"epoch_{number:04d}", *passed)
    assert keeps(saved(tmp_path / "same", one, two)) == ["epoch_0001", "epoch_0002"]
    assert epochs.best_score() == 0.5
    assert keeps(saved(tmp_path / "older", one)) == ["epoch_0001"]
    assert keeps(saved(tmp_path / "later", one, two)) == ["epoch_0001", "epoch_0002"]
    assert keeps(saved(tmp_path / "other", other, two)) == ["epoch_0002"]
    assert (epochs.history(), epochs.best_score()) == ((0.5, 0.4), 0.4), "the other trial's best epoch is not here"
    assert epochs.best().name == "epoch_0002"
    assert keeps(None) == []
    assert took == [False, False, True, True, False], "what it has not itself comes from another"


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_a_grid_is_walked_once_and_optuna_begins_from_its_trace(base: Artifact[Checkpoint], decision: Artifact[Decision], path: Path, tmp_path: Path) -> None:
    grid = tiny.run("search", config_of(path, algorithm={"type": "grid"}, space=LRS), tmp_path / "grid", checkpoint=base, decision=decision)
    trials = grid.payload.trials
    assert sorted((t.config["optim.lr"], t.config["global_batch_size"]) for t in trials[:-1]) == [(1e-3, 15), (1e-3, 16), (3e-3, 15), (3e-3, 16)]
    assert {t.status for t in trials[:-1]} == {"finished"}
    assert set(grid.payload.figures) >= {"importance/optim.lr", "importance/global_batch_size"}
    algorithm = {"type": "optuna", "startup_trials": 4, "warm_start": str(grid.path)}
    config = config_of(path, algorithm=algorithm, space=LRS, num_trials=2, max_concurrent_trials=1)
    warm = tiny.run("search", config, tmp_path / "warm", checkpoint=base, decision=decision)
    assert len(warm.payload.trials) == 3, "what the earlier search tried is known and not run again"
    moved = load_config(SearchConfig, config).identity()["algorithm"]
    assert str(tmp_path) not in json.dumps(moved)


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_in_a_population_the_worst_takes_over_the_best(base: Artifact[Checkpoint], decision: Artifact[Decision], tmp_path: Path) -> None:
    longer = tiny.write_csv(tmp_path / "longer.csv", tiny.labelled(120))
    space = {"optim.lr": {"type": "choice", "values": [1e-12, 4e-3]}}
    config = config_of(longer, epochs=4, space=space, scheduler={"type": "pbt", "share": 0.5, "resample_probability": 0.0}, seed=3, max_concurrent_trials=4)
    found = tiny.run("search", config, tmp_path / "tuned", checkpoint=base, decision=decision)
    trials = found.payload.trials[:-1]
    assert [t.status for t in trials] == ["finished"] * 4
    assert all(len(t.history) == 4 for t in trials)
    assert any("took over the training of another" in t.note for t in trials), "whoever could not learn took over from one that could"
    assert max(t.score or 0.0 for t in trials) > 0.6
    assert found.payload.figures["validation/macro_f1"] == max(t.score or 0.0 for t in trials)


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_bohb_cuts_runs_short_and_takes_the_better_ones_up_again(base: Artifact[Checkpoint], decision: Artifact[Decision], path: Path, tmp_path: Path) -> None:
    pytest.importorskip("hpbandster", reason="bohb needs the extra of that name")
    config = config_of(path, epochs=3, num_trials=5, algorithm={"type": "bohb"}, scheduler={"type": "hyperband"}, max_concurrent_trials=1)
    trials = tiny.run("search", config, tmp_path / "tuned", checkpoint=base, decision=decision).payload.trials[:-1]
    assert len(trials) == 5
    assert {t.status for t in trials} <= {"finished", "stopped"}
    assert {len(t.history) for t in trials} >= {1, 3}, "some end at the first rung and some run to their end"


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_a_search_ends_with_its_budget_and_keeps_the_best_so_far(base: Artifact[Checkpoint], decision: Artifact[Decision], path: Path, tmp_path: Path) -> None:
    config = config_of(path, epochs=200, num_trials=50, budget={"hours": 8 / 3600}, max_concurrent_trials=1)
    payload = tiny.run("search", config, tmp_path / "tuned", checkpoint=base, decision=decision).payload
    assert len(payload.trials) < 51
    assert (payload.trials[-2].status, "budget" in payload.trials[-2].note) == ("stopped", True)
    assert sum(t.wall_s or 0.0 for t in payload.trials[:-1]) > 0
    assert payload.figures["validation/macro_f1"] > 0
