"""Population-based training (Jaderberg et al. 2017, https://arxiv.org/abs/1711.09846)."""

from collections.abc import Mapping
from types import ModuleType
from typing import Any, ClassVar, Literal

from pydantic import Field

from fmray.core.errors import ConfigError
from fmray.train.schedulers import Scheduler
from fmray.train.space import Distribution

WHILE_TRAINING = ("optim.lr", "optim.weight_decay", "optim.eps", "optim.max_grad_norm")
"""What may change between two epochs of one training."""


class Pbt(Scheduler):
    """The trials are a population: every so often one of the worst takes over weights and optimizer state of one of the best, and its
    hyperparameters changed a little (times 0.8 or 1.2 within their ranges, of listed values the one beside) or drawn anew.

    All trials are there at a time. Where the cluster holds fewer they take turns epoch by epoch, and each turn loads the model again.
    Whom a trial copies depends on who came first, and Ray Tune draws by a generator that it does not seed: a search is not repeated exactly.
    What a trial had learnt before it copied another is gone.

    Attributes:
        every_epochs: how often a trial is looked at.
        share: of the population that copies, and that is copied.
        resample_probability: how often a value is drawn anew instead of changed a little.
    """

    type: Literal["pbt"] = "pbt"
    exchanges: ClassVar[bool] = True
    every_epochs: int = Field(1, ge=1)
    share: float = Field(0.25, gt=0, le=0.5)
    resample_probability: float = Field(0.25, ge=0, le=1)

    def check(self, space: Mapping[str, Distribution], algorithm: str, num_trials: int, max_concurrent: int) -> None:
        """Wants fields that can change while a trial runs, first values drawn at random, and the whole population at a time."""
        for name in space:
            if name not in WHILE_TRAINING:
                raise ConfigError(f"'{name}' cannot change while a trial runs", where="space", todo=f"with pbt search: {', '.join(WHILE_TRAINING)}")
        if algorithm != "random":
            raise ConfigError(f"pbt changes hyperparameters itself and cannot be told by {algorithm}", where="algorithm", todo="use type: random")
        if not 1 < num_trials <= max_concurrent:
            said = f"{num_trials} trials with max_concurrent_trials {max_concurrent} are no population" if num_trials > 1 else "one trial is no population"
            raise ConfigError(said, where="max_concurrent_trials", todo="give at least 2 trials, all at a time; where the cluster holds fewer they take turns")

    def build(self, tune: ModuleType, metric: str, max_epochs: int, space: Mapping[str, Distribution]) -> Any:
        """`PopulationBasedTraining`, counting epochs."""

        def within(values: dict[str, Any]) -> dict[str, Any]:
            return values | {name: distribution.nearest(values[name]) for name, distribution in space.items()}

        # Of a list Ray Tune takes the value beside; of a domain it multiplies the value, which need not be one of a choice.
        mutations = {name: list(distribution.listed() or ()) or distribution.domain(tune) for name, distribution in space.items()}
        return tune.create_scheduler(
            "pbt",
            time_attr="training_iteration",
            metric=metric,
            mode="max",
            perturbation_interval=self.every_epochs,
            hyperparam_mutations=mutations,
            quantile_fraction=self.share,
            resample_probability=self.resample_probability,
            custom_explore_fn=within,
            log_config=False,
        )
