"""A task of a user's own, in one file beside the experiment: it trains, is chosen by its own figure, and comes back from a dump."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fmray.core.config import dump, load_config
from fmray.core.plugins import install
from fmray.tasks import Predictions, task_from
from fmray.train.tuning import Tuned, TuningConfig, tune_classifier
from tests.train import tiny

STAR_RATING = '''
"""Star ratings: text classification that is judged by how far off it is."""

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from fmray.tasks import Predictions, Weights
from fmray.tasks.text_classification import TextClassification


class StarRating(TextClassification):
    """How many stars a review gives. `closeness` is 1 where every guess is right and 0 where each is as far off as can be."""

    type: Literal["star_rating"] = "star_rating"
    name: str = "stars"
    label: str = "stars"
    classes: tuple[str, ...] = ("1", "2", "3", "4", "5")
    metric_names: ClassVar[tuple[str, ...]] = ("closeness", *TextClassification.metric_names)
    main_metric: ClassVar[str] = "closeness"

    def figures(
        self, labels: Sequence[str], targets: Sequence[Any], predictions: Predictions, weights_RN: Weights
    ) -> dict[str, NDArray[np.float64]]:
        """The figures of text classification, and the closeness, under R weightings of the N examples."""
        stars_K = np.array([float(label) for label in labels])
        off_N = np.abs(stars_K[list(targets)] - stars_K[list(predictions.values)]) / np.ptp(stars_K)
        closeness_R = 1 - weights_RN @ off_N / weights_RN.sum(axis=1)
        return {"closeness": closeness_R, **super().figures(labels, targets, predictions, weights_RN)}
'''


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> TuningConfig:
    install({"star_rating": STAR_RATING})
    stars = {"cooking": "1", "sailing": "3", "weather": "4"}
    path = tiny.write_csv(tmp_path_factory.mktemp("data") / "t.csv", [(text, stars[label]) for text, label in tiny.labelled(30)], ("text", "stars"))
    task: dict[str, Any] = {"type": "star_rating", "source": {"type": "csv", "path": str(path)}, "classes": ["1", "3", "4"]}
    return load_config(TuningConfig, {"task": task, "epochs": 4, "optim": {"lr": 3e-3}})


def test_its_figure_is_what_it_says(config: TuningConfig) -> None:
    figures = config.task.metrics(["1", "3", "4"], [0, 1, 2, 2], Predictions([0, 2, 2, 0]))
    assert figures["closeness"] == pytest.approx(1 - (0 + 1 + 0 + 3) / 3 / 4)
    assert figures["accuracy"] == 0.5


def test_it_is_tuned_and_chosen_by_its_figure(config: TuningConfig, tmp_path: Path) -> None:
    tiny.save_decoder(tmp_path)
    assert config.metric == "closeness"
    assert task_from(dump(config.task), "here") == config.task
    ended: list[Tuned] = []
    tune_classifier(config, tmp_path, config.task.load(), on_epoch=lambda tuned: not ended.append(tuned))
    assert np.max(ended[-1].progress.history) > 0.9
