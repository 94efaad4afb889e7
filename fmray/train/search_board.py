"""What is told of a search while it goes on: how many trials ended, the best score, and a table of all of them."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from fmray.core.stage import Out
from fmray.train.search_config import SearchConfig
from fmray.train.search_trial import SCORE, plain

STATES = {"PENDING": "waits", "RUNNING": "runs", "PAUSED": "pauses", "TERMINATED": "ended", "ERROR": "failed"}
ORDER = ("runs", "pauses", "ended", "failed", "waits")
ROUND = "training_iteration"


class Board:
    """Is called with Ray Tune's trials at every turn of its loop, and speaks up when something has changed."""

    def __init__(self, config: SearchConfig, out: Out) -> None:
        self._config, self._out = config, out
        self._seen: Any = None

    def __call__(self, trials: Sequence[Any]) -> None:
        """Tells how far the trials are."""
        seen = [(trial.trial_id, trial.status, _last(trial, ROUND), _best(trial)) for trial in trials]
        if seen == self._seen:
            return
        self._seen = seen
        failed, scores = sum(state == "ERROR" for _, state, _, _ in seen), [best for *_, best in seen if best is not None]
        figures = {f"best_validation_{self._config.metric}": max(scores)} if scores else {}
        ended = sum(trial.is_finished() for trial in trials)
        self._out.progress(f"trials ({failed} failed)" if failed else "trials", done=ended, total=self._config.num_trials, **figures)
        self._out.table(("trial", "", "epoch", self._config.metric, "hyperparameters"), rows(trials))


def rows(trials: Sequence[Any]) -> list[tuple[str, ...]]:
    """A line a trial: those at work first, then by their best score."""
    found = []
    for place, trial in enumerate(trials):
        best, state = _best(trial), STATES.get(trial.status, trial.status.lower())
        drawn_as = number(trial.trial_id)
        cells = (f"{place if drawn_as is None else drawn_as:03d}", state, f"{_last(trial, ROUND):.0f}", "" if best is None else f"{best:.4f}", short(plain(trial.config)))
        found.append(((ORDER.index(state) if state in ORDER else len(ORDER), -(best if best is not None else float("-inf")), place), cells))
    return [cells for _, cells in sorted(found)]


def short(values: Mapping[str, Any]) -> str:
    """Hyperparameters in few characters: each by the last part of its name, where that tells it apart."""
    leaves = [name.rpartition(".")[2] for name in values]
    names = [leaf if leaves.count(leaf) == 1 else name for leaf, name in zip(leaves, values, strict=True)]
    return " ".join(f"{name}={value:.3g}" if isinstance(value, float) else f"{name}={value}" for name, value in zip(names, values.values(), strict=True))


def number(trial_id: str) -> int | None:
    """Which draw a trial is, by its id. Optuna's ids say nothing of it."""
    found = re.search(r"_(\d+)$", trial_id)
    return int(found[1]) if found else None


def _best(trial: Any) -> float | None:
    return trial.metric_analysis[SCORE]["max"] if SCORE in trial.metric_analysis else None


def _last(trial: Any, figure: str) -> float:
    return float(trial.metric_analysis.get(figure, {}).get("last", 0))
