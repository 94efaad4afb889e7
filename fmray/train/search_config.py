"""The config of a search: what is tuned, over which space, by which algorithm and scheduler; checked before anything runs."""

from types import NoneType, UnionType
from typing import Any, Literal, Self, Union, get_args, get_origin

from pydantic import Field, model_validator

from fmray.core.config import Component, Config, did_you_mean, dump, load_config, runtime
from fmray.core.errors import ConfigError
from fmray.train.algorithms import Algorithm
from fmray.train.algorithms.random import Random
from fmray.train.schedulers import Scheduler
from fmray.train.schedulers.asha import Asha
from fmray.train.space import Distribution
from fmray.train.tuning import TuningConfig

FIXED = ("metric",)
SCALARS = (int, float, bool, str)


class Budget(Config):
    """Where a search ends before its trials do: what runs then is stopped, its unfinished epoch is lost, and the best so far is the winner.

    One epoch is always waited for. The control runs afterwards and is not in it.

    Attributes:
        hours: of wall time, the time before a kill included.
        price: of the finished epochs of all trials, their seconds times the cores (or GPUs) of a trial, over all of its workers.
        price_per_hour: of one core, or one GPU, in the currency of `price`.
    """

    hours: float | None = Field(None, gt=0)
    price: float | None = Field(None, gt=0)
    price_per_hour: float | None = Field(None, gt=0)

    @property
    def is_set(self) -> bool:
        """Whether there is a limit."""
        return self.hours is not None or self.price is not None

    @model_validator(mode="after")
    def _price_has_a_rate(self) -> Self:
        if (self.price is None) != (self.price_per_hour is None):
            raise ValueError("a budget in money needs both price and price_per_hour")
        return self


class SearchConfig(TuningConfig):
    """A fine-tuning whose fields named in `space` are searched; every other field holds for all trials.

    Attributes:
        space: dotted field of the fine-tuning -> the values that it may take.
        num_trials: the budget in trials.
        budget: the budget in time or money, whichever ends first.
        max_concurrent_trials: at most so many at a time; the cluster may hold fewer, unless a trial has several workers: then so many
            must fit, for they could not wait for each other. Which hyperparameters are drawn does not depend on it (Optuna: beyond its
            start-up trials it does), whom ASHA stops may.
    """

    space: dict[str, Distribution] = Field(min_length=1)
    num_trials: int = Field(8, ge=1)
    budget: Budget = Budget()
    algorithm: Algorithm = Random()
    scheduler: Scheduler = Asha()
    max_concurrent_trials: int = runtime(2, ge=1)

    @model_validator(mode="after")
    def _space_fits(self) -> Self:
        known = searchable()
        for name, distribution in self.space.items():
            if name not in known:
                raise ConfigError(f"unknown field '{name}'{did_you_mean(name, known)}", where="space", todo=f"searchable: {', '.join(known)}")
            for value in distribution.edges():
                try:
                    self.trial({name: value})
                except ConfigError as error:
                    raise ConfigError(error.what, where=f"space.{name}") from None
        self.algorithm.check(self.space, self.num_trials, self.scheduler.type)  # type: ignore[attr-defined]
        self.scheduler.check(self.space, self.algorithm.type, self.num_trials, self.max_concurrent_trials)  # type: ignore[attr-defined]
        return self

    def trial(self, values: dict[str, Any]) -> TuningConfig:
        """The fine-tuning of one trial: this config with `values` (by dotted field) in place.

        Raises:
            ConfigError: a value that the field does not accept.
        """
        fields = {name: value for name, value in dump(self).items() if name in TuningConfig.model_fields}
        for name, value in values.items():
            *parents, last = name.split(".")
            at = fields
            for parent in parents:
                at = at[parent]
            at[last] = value
        return load_config(TuningConfig, fields)

    @property
    def at_once(self) -> int:
        """The most trials that can run at a time."""
        return min(self.max_concurrent_trials, self.num_trials)

    @property
    def max_epochs(self) -> int:
        """The most epochs that any trial may run."""
        return max(self.space["epochs"].edges()) if "epochs" in self.space else self.epochs


def searchable() -> list[str]:
    """The dotted names of the fields that a space may name: the single values that enter a fine-tuning's fingerprint."""
    return [name for name in _leaves(TuningConfig) if name not in FIXED]


def _leaves(cls: type[Config], prefix: str = "") -> list[str]:
    names = []
    for name, field in cls.model_fields.items():
        extra = field.json_schema_extra
        if isinstance(extra, dict) and extra.get("runtime"):
            continue
        kind = field.annotation
        # A Literal that may be None is typing's own union, any other optional one the language's.
        kinds = [k for k in get_args(kind) if k is not NoneType] if get_origin(kind) in (Union, UnionType) else [kind]
        if all(k in SCALARS or get_origin(k) is Literal for k in kinds):
            names.append(prefix + name)
        elif isinstance(kind, type) and issubclass(kind, Config) and not issubclass(kind, Component):
            names += _leaves(kind, f"{prefix}{name}.")
    return names
