"""The classification engine: the scores of the model's own kind."""

from pathlib import Path

import pytest

from fmray.serve.engine import Scores, Text
from fmray.serve.engines.classification import Classification
from fmray.tasks.classifier import Classifier
from tests.train import tiny


@pytest.mark.parametrize("problem", ["single_label_classification", "multi_label_classification"])
def test_scores_add_up_to_one_unless_a_text_may_bear_several_labels(tmp_path: Path, problem: str) -> None:
    tiny.save_decoder(tmp_path / "base")
    Classifier.start(tmp_path / "base", ["a", "b", "c"], seed=0, problem=problem).save(tmp_path / "model")
    (found,) = Classification(tmp_path / "model", device="cpu", threads=1).answer([Text("rain and snow")])
    assert isinstance(found, Scores)
    classifier = Classifier.load(tmp_path / "model")
    logits_K = classifier.logits(classifier.encode(["rain and snow"], 64))[0]
    total = sum(found.scores.values())
    if problem == "single_label_classification":
        assert total == pytest.approx(1.0)
    else:
        assert abs(total - 1.0) > 0.05
        assert all((score > 0.5) == (logit > 0) for score, logit in zip(found.scores.values(), logits_K, strict=True))
