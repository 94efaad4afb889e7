"""What a cross-validated checkpoint is judged by: every example by what was said of it when it was held out."""

import statistics
from collections.abc import Mapping

from fmray.core.report import Metric
from fmray.tasks import Predictions, Task
from fmray.tasks.folds import Folds


def how(folds: Folds) -> str:
    """A word on what the figures are about."""
    return f"each example judged by the one of {len(folds.parts)} models that was not tuned on its fold; the model here was then tuned on all of them"


def over_folds(task: Task, folds: Folds, predictions: Mapping[str, Predictions], main: str) -> list[Metric]:
    """Mean and standard deviation over the folds of the task's main figure, for the tuned model (named ""), and for the others by name.

    Args:
        main: the name in `predictions` of the tuned model.
    """
    found = []
    for name, said in predictions.items():
        scores = [figures[task.main_metric] for figures in folds.scores(task, said)]
        key = f"eval/{task.name}/{'' if name == main else f'{name}_'}{task.main_metric}"
        note = f"over {len(scores)} folds: {', '.join(f'{score:.4f}' for score in scores)}"
        found.append(Metric(name=f"{key}_mean", value=statistics.mean(scores), higher_is_better=True if name == main else None, n=len(scores), note=note))
        found.append(Metric(name=f"{key}_deviation", value=statistics.stdev(scores), higher_is_better=None, n=len(scores), note=note))
    return found
