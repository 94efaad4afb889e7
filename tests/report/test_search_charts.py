"""Charts of a whole search: a line a trial over axes of hyperparameters, and what mattered."""

import re

from fmray.report.sections.search_charts import cost, importance, parallel
from tests.report.records import tuned


def trials() -> list[tuple[dict[str, object], dict[str, object]]]:
    return [(t.model_dump(), t.config) for t in tuned().trials if t.trial_id != "control"]


def test_each_scored_trial_is_a_line_from_its_values_to_its_score() -> None:
    drawn = str(parallel(trials(), ["optim.lr", "epochs"]))  # type: ignore[arg-type]
    lines = re.findall(r'points="([^"]+)"', drawn)
    assert len(lines) == 3, "the failed trial has no score"
    best = next(line for line, name in zip(lines, re.findall(r"<title>(\d+): score", drawn), strict=True) if name == "0001")
    # Three axes: the highest lr, the most epochs and the best score are all at the top.
    assert best.split() == ["0.0,0.0", "500.0,0.0", "1000.0,0.0"]
    assert drawn.count("line s1") == 1
    assert ">optim.lr<" in drawn
    assert ">score<" in drawn


def test_one_hyperparameter_or_one_trial_makes_no_such_chart() -> None:
    assert parallel(trials(), ["optim.lr"]) is None  # type: ignore[arg-type]
    assert parallel(trials()[:1], ["optim.lr", "epochs"]) is None  # type: ignore[arg-type]


def test_importances_stand_largest_first_and_the_cost_in_words() -> None:
    drawn = str(importance({"importance/epochs": 0.2, "validation/f1": 0.9, "importance/optim.lr": 0.8}))
    assert drawn.index("optim.lr") < drawn.index("epochs")
    assert "80 %" in drawn
    assert "validation" not in drawn
    assert importance({"validation/f1": 0.9}) is None
    payload = tuned().model_dump(mode="json") | {"cost": {"device_hours": 0.5, "flops": 2e12}}
    assert "5 trainings, 14 epochs" in str(cost(payload))
    assert "device hours" in str(cost(payload))
