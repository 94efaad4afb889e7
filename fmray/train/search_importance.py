"""How much of what trials scored goes back to each hyperparameter."""

from collections.abc import Mapping, Sequence
from typing import Any

from fmray.model.checkpoint import Trial
from fmray.train.space import Distribution

FEWEST = 4


def importances(space: Mapping[str, Distribution], trials: Sequence[Trial], seed: int) -> dict[str, float]:
    """The share of the variance of the scores by field, by functional ANOVA over a random forest (Hutter et al. 2014), adding up to 1.

    With as few trials as a search has it is a hint and no finding. Of fewer than `FEWEST` scored trials, of a single field and of
    scores that are all the same there is none.
    """
    scored = [trial for trial in trials if trial.score is not None]
    if len(space) < 2 or len(scored) < FEWEST or len({trial.score for trial in scored}) < 2:
        return {}
    import optuna
    from ray import tune
    from ray.tune.search.optuna import OptunaSearch

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    distributions: dict[str, Any] = OptunaSearch.convert_search_space({name: distribution.domain(tune) for name, distribution in space.items()})
    study = optuna.create_study(direction="maximize")
    for trial in scored:
        study.add_trial(optuna.trial.create_trial(params=trial.config, distributions=distributions, value=trial.score))
    found = optuna.importance.get_param_importances(study, evaluator=optuna.importance.FanovaImportanceEvaluator(seed=seed))
    return {name: round(float(found.get(name, 0.0)), 4) for name in space}
