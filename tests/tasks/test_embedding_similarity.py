"""How alike two texts are: figures against scipy and scikit-learn, the control of spelling, and what is refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import roc_auc_score

from fmray.core.errors import ConfigError, DataError
from fmray.tasks import Split
from fmray.tasks.classifier import Classifier
from fmray.tasks.scores import area_under_curve, pearson, spearman
from tests.models import minilm
from tests.tasks.made import task


def similarity(folder: Path, *rows: dict[str, Any], **fields: Any) -> Any:
    (folder / "e.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return task(type="embedding_similarity", source={"type": "jsonl", "path": str(folder / "e.jsonl")}, **fields)


def test_correlations_are_those_of_scipy_under_any_weights() -> None:
    draw = np.random.default_rng(0)
    truth, said = draw.integers(0, 4, 60).astype(float), np.round(draw.normal(size=60), 1)
    binary, weights = (truth > 1).astype(float), draw.integers(0, 3, (5, 60)).astype(float)
    for row, weight in enumerate(weights):
        repeat = np.repeat(np.arange(60), weight.astype(int))
        assert spearman(truth, said, weights)[row] == pytest.approx(spearmanr(truth[repeat], said[repeat]).statistic)
        assert pearson(truth, said, weights)[row] == pytest.approx(pearsonr(truth[repeat], said[repeat]).statistic)
        assert area_under_curve(binary, said, weights)[row] == pytest.approx(roc_auc_score(binary[repeat], said[repeat]))
    assert spearman(np.ones(60), said, weights).tolist() == [0.0] * 5


def test_a_sentence_encoder_knows_paraphrases_without_training(tmp_path: Path) -> None:
    rows = [("A cat sleeps on the sofa.", "A kitten naps on the couch.", 1), ("A cat sleeps on the sofa.", "The stock market fell.", 0), ("He plays the guitar.", "A man makes music.", 1), ("He plays the guitar.", "The soup is cold.", 0)]
    found = similarity(tmp_path, {"text": "a", "sentence2": "b", "score": 1})
    split = Split(tuple([first, second] for first, second, _ in rows), tuple(float(score) for _, _, score in rows))
    opened = Classifier.start(minilm(), (), seed=0, head="encoder", problem=None)
    encoded = found.encode(opened.tokenizer, split, 32, 0)
    said = found.predict(found.outputs(opened, encoded, 3), encoded, split)
    assert found.metrics((), split.targets, said)["auc"] == 1.0
    alone = [found.outputs(opened, found.encode(opened.tokenizer, Split((pair,), (1.0,)), 32, 0))[0][0] for pair in split.inputs]
    np.testing.assert_allclose(said.values, alone, atol=2e-6, err_msg="neither padding nor company changes a pair")


@pytest.mark.parametrize(
    ("row", "fields", "message"),
    [
        ({"score": 6}, {"highest": 5.0}, "the score 6 lies outside 0 to 5; set task.lowest and task.highest"),
        ({"score": "alike"}, {}, "the column 'score' holds 'alike', which is no number; say in task.values what it stands for"),
        ({"score": "neutral"}, {"values": {"entailment": 1.0}}, "the column 'score' holds 'neutral'; task.values knows: entailment"),
        ({"score": None}, {}, "of 1 rows 1 without 'score'"),
        ({"label": 1}, {}, "the source has no column 'score'"),
    ],
)
def test_scores_that_say_nothing_are_refused(tmp_path: Path, row: dict[str, Any], fields: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError) as caught:
        similarity(tmp_path, {"text": "a", "sentence2": "b"} | row, **fields).load()
    assert message in str(caught.value)
    assert caught.value.exit_code == 2


def test_an_empty_range_of_scores_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="the range of scores is empty: lowest 1 is not below highest 1"):
        similarity(tmp_path, {"text": "a"}, lowest=1.0)
