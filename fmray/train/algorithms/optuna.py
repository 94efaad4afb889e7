"""Tree-structured Parzen estimator by Optuna: learns from finished trials where to look next."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from pydantic import Field

from fmray.core.errors import ConfigError
from fmray.train.algorithms import Algorithm, Wanted
from fmray.train.space import Distribution


class Optuna(Algorithm):
    """TPE (Bergstra et al. 2011). The first `startup_trials` are drawn at random; the rest depend on the results so far.

    With several trials at a time a suggestion depends on which of them had finished, so only `max_concurrent_trials: 1`
    repeats a search exactly beyond the start-up trials.

    Attributes:
        warm_start: the artifact of an earlier search by the same figure (the folder of its record.json): its scored trials that lie in
            this space are known from the start, and count as start-up trials.
    """

    type: Literal["optuna"] = "optuna"
    startup_trials: int = Field(10, ge=1)
    warm_start: str | None = Field(None, min_length=1)

    def identity(self) -> dict[str, Any]:
        """With the digest of what the earlier search found, wherever it lies.

        Raises:
            ConfigError: there is no search.
        """
        told = super().identity()
        if self.warm_start is not None:
            told["warm_start"] = hashlib.sha256(json.dumps(_record(self.warm_start)["payload"]["trials"], sort_keys=True).encode()).hexdigest()
        return told

    def ready(self, wanted: Wanted) -> None:
        """Reads the earlier search."""
        self._known(wanted)

    def build(self, tune: ModuleType, wanted: Wanted) -> Any:
        """`OptunaSearch` with a seeded TPE sampler."""
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        sampler = optuna.samplers.TPESampler(seed=wanted.seed, n_startup_trials=self.startup_trials)
        searcher = tune.create_searcher("optuna", metric=wanted.key, mode="max", sampler=sampler, **self._known(wanted))
        return tune.search.ConcurrencyLimiter(searcher, max_concurrent=wanted.max_concurrent)

    def _known(self, wanted: Wanted) -> dict[str, list[Any]]:
        return {} if self.warm_start is None else earlier(self.warm_start, wanted.space, wanted.metric)


def earlier(folder: str, space: Mapping[str, Distribution], metric: str) -> dict[str, list[Any]]:
    """The points of an earlier search that lie in a space, and their scores, as Ray Tune takes them.

    Raises:
        ConfigError: it is no search, it was judged by another figure, or none of its trials lies in the space.
    """
    record = _record(folder)
    theirs = record["config"].get("metric")
    if theirs != metric:
        raise ConfigError(f"that search was judged by {theirs}, this one is by {metric}", where="algorithm.warm_start", todo="give a search by the same figure")
    points, scores = [], []
    for trial in record["payload"]["trials"]:
        values = trial["config"]
        inside = values.keys() == space.keys() and all(space[name].nearest(value) == value for name, value in values.items())
        if inside and trial["score"] is not None and trial["status"] != "control":
            points.append(values)
            scores.append(trial["score"])
    if not points:
        raise ConfigError(f"none of the {len(record['payload']['trials'])} trials of that search lies in this space", where="algorithm.warm_start", todo="give a search over the same fields")
    return {"points_to_evaluate": points, "evaluated_rewards": scores}


def _record(folder: str) -> dict[str, Any]:
    try:
        record = json.loads((Path(folder) / "record.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"'{folder}' holds no readable record.json ({type(error).__name__})", where="algorithm.warm_start", todo="give the folder of an earlier search") from None
    if not record.get("payload", {}).get("trials"):
        raise ConfigError(f"'{folder}' is no search: its record holds no trials", where="algorithm.warm_start", todo="give the folder of an earlier search")
    return dict(record)
