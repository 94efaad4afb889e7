"""The experiment files of pretraining in jobs/: accepted as they stand, with a gate on held-out loss, and a plan that knows the model."""

from pathlib import Path

import pytest

import fmray  # noqa: F401  (registers the stages)
from fmray.core.experiment import load_experiment

JOBS = Path(__file__).parents[2] / "jobs"
FILES = {
    "pretrain_masked": "masked_lm", "pretrain_proteins": "masked_lm", "pretrain_mnist": "masked_image", "pretrain_spans": "span_corruption",
    "pretrain_denoising": "denoising", "pretrain_contrastive": "contrastive",
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_the_file_is_accepted_and_small_enough_for_a_laptop(name: str) -> None:
    experiment = load_experiment(JOBS / f"{name}.yaml")
    plans = {step.name: lines for step, lines in experiment.plan()}
    assert experiment.steps["base"].config.objective.type == FILES[name]  # type: ignore[attr-defined]
    assert " = 2 workers x 1 micro-batches" in plans["base"]["batch"]
    # What begins from another step has that one's size.
    built = plans["words" if "words" in plans else "base"]
    assert int(built["parameters"].split(" ")[0].replace(",", "")) < 5_000_000
    assert float(built["FLOPs"].split(" ")[0]) < 3e14
