"""Held-out figures of an encoder that tells texts apart: by hand, the same again, and what is refused."""

import shutil

import numpy as np
import pytest
import torch
import transformers

from fmray.core.config import load_config
from fmray.core.errors import ConfigError
from fmray.evaluate.config import EvaluateConfig
from fmray.evaluate.representations import measure, metrics, told_apart, uniformity
from fmray.model.architectures.encoder import Encoder
from fmray.objectives.contrastive import Contrastive
from tests.objectives.cases import SMALL
from tests.train.dataset import token_dataset

OBJECTIVE = {"type": "contrastive"}
CONFIG = load_config(EvaluateConfig, {"num_cpus": 1, "seed": 5, "micro_batch_size": 3})


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A dataset and an encoder that was not trained, drawn otherwise than its twin."""
    root = tmp_path_factory.mktemp("held")
    dataset = token_dataset(root / "corpus", unpacked=True)
    torch.manual_seed(0)
    config = Encoder(**SMALL).hf_config(448, 32)
    Contrastive().configure(config)
    transformers.AutoModel.from_config(config).save_pretrained(root / "model")
    shutil.copytree(dataset.path / "tokenizer", root / "model", dirs_exist_ok=True)
    return dataset.path, root / "model"


def unit(draw, n, width=6):
    values = draw.standard_normal((n, width))
    return values / np.linalg.norm(values, axis=1, keepdims=True)


def test_figures_are_those_computed_pair_by_pair():
    draw = np.random.default_rng(0)
    first, second = unit(draw, 12), unit(draw, 12)
    second[:8] = first[:8]
    readings = told_apart(first, second, 0.5, n_groups=3)
    near, losses, found = [], [], []
    for i in range(12):
        group = range(i // 4 * 4, i // 4 * 4 + 4)
        scores = np.array([first[i] @ second[j] / 0.5 for j in group])
        losses.append(np.log(np.exp(scores).sum()) - scores[i % 4])
        found.append(scores.argmax() == i % 4)
        near += [np.exp(-2 * ((first[i] - first[j]) ** 2).sum()) for j in group if j != i]
    np.testing.assert_allclose(readings.loss_N, losses)
    np.testing.assert_array_equal(readings.found_N, found)
    np.testing.assert_allclose(readings.distance_N, ((first - second) ** 2).sum(axis=1), atol=1e-12)
    assert uniformity(readings, np.ones((1, 12)))[0] == pytest.approx(np.log(np.mean(near)))
    # A row that is drawn twice is no pair with itself.
    weights = np.array([[2.0, 1.0, 0.0, 0.0] + [0.0] * 8])
    assert uniformity(readings, weights)[0] == pytest.approx(-2 * ((first[0] - first[1]) ** 2).sum())


def test_rows_are_read_twice_by_the_model_and_its_twin_and_again_to_the_same(made):
    dataset, model = made
    (rows, ours, twin), (_, again, _) = (measure(CONFIG, OBJECTIVE, model, dataset) for _ in range(2))
    assert len(rows) == len(ours.loss_N) == len(twin.loss_N) == 8
    np.testing.assert_array_equal(ours.loss_N, again.loss_N)
    assert (ours.distance_N > 1e-6).all()
    assert not np.allclose(ours.loss_N, twin.loss_N)
    found = {metric.name: metric for metric in metrics(ours, twin)}
    assert set(found) == {"eval/loss", "eval/chance_loss", "eval/retrieval", "eval/alignment", "eval/uniformity"}
    assert found["eval/chance_loss"].value == pytest.approx(np.log(8))
    for name in ("loss", "alignment", "uniformity"):
        assert found[f"eval/{name}"].lower < found[f"eval/{name}"].value < found[f"eval/{name}"].upper
        assert found[f"eval/{name}"].control is not None


def test_uniformity_is_better_where_rows_lie_apart():
    draw = np.random.default_rng(0)
    apart = unit(draw, 40)
    together = unit(draw, 40) * 0.1 + apart[0]
    together /= np.linalg.norm(together, axis=1, keepdims=True)
    figures = [{m.name: m.value for m in metrics(readings, readings)} for readings in (told_apart(v, v, 0.05, 1) for v in (apart, together))]
    assert figures[0]["eval/uniformity"] < figures[1]["eval/uniformity"] < 0
    assert figures[0]["eval/loss"] < figures[1]["eval/loss"]
    assert figures[0]["eval/retrieval"] == 1.0


def test_what_makes_no_two_readings_is_refused(made):
    dataset, model = made
    with pytest.raises(ConfigError, match="an encoder trained with masked_lm cannot be measured"):
        measure(CONFIG, {"type": "masked_lm"}, model, dataset)
