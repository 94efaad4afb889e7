"""Held-out loss by a checkpoint's own objective: sums that add up, baselines counted by hand, and what is refused."""

import shutil

import numpy as np
import pytest
import torch
import transformers

from fmray.core.artifact import load
from fmray.core.config import load_config
from fmray.core.errors import ConfigError
from fmray.data.dataset import TokenDataset
from fmray.evaluate.config import EvaluateConfig
from fmray.evaluate.held_out import IGNORED, evaluate_held_out, mean_image, measure, metrics, unigram
from fmray.evaluate.language_modelling import read_rows
from fmray.model.architectures.encoder import Encoder
from fmray.model.checkpoint import Checkpoint
from fmray.objectives import Setting, objective_from, setting_for
from fmray.objectives.masked_image import MaskedImage
from tests.objectives.cases import SMALL, image_rows
from tests.train.dataset import VOCAB_SIZE, token_dataset
from tests.train.tiny import commit

OBJECTIVE = {"type": "masked_lm", "share": 0.3}
CONFIG = load_config(EvaluateConfig, {"control_rows": 3, "num_cpus": 1, "seed": 5})


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A dataset and an encoder that was not trained."""
    root = tmp_path_factory.mktemp("held")
    dataset = token_dataset(root / "corpus")
    torch.manual_seed(0)
    transformers.AutoModelForMaskedLM.from_config(Encoder(**SMALL).hf_config(448, 32)).save_pretrained(root / "model")
    shutil.copytree(dataset.path / "tokenizer", root / "model", dirs_exist_ok=True)
    return dataset.path, root / "model"


def test_rows_add_up_to_the_loss_of_one_batch_and_again_to_the_same(made):
    dataset, model = made
    held, again = (measure(CONFIG, OBJECTIVE, model, dataset) for _ in range(2))
    np.testing.assert_array_equal(held.loss_B, again.loss_B)
    objective = objective_from(OBJECTIVE)
    network = transformers.AutoModelForMaskedLM.from_pretrained(model).eval()
    batch = objective.collate(read_rows(dataset, None), setting_for(dataset, load(dataset, TokenDataset).payload, network.config.to_dict(), 5))
    with torch.no_grad():
        whole = objective.loss(network, batch)
    assert held.targets_B.sum() == objective.count(batch) > 0
    assert held.loss_B.sum() == pytest.approx(whole.sum.item(), rel=1e-5)
    assert len(held.control_C) == 3
    assert not np.allclose(held.control_C, held.loss_B[held.control_rows_C])
    found = {metric.name: metric for metric in metrics(held, objective)}
    assert found["eval/loss"].value == pytest.approx(held.loss_B.sum() / held.targets_B.sum())
    # The rows use 64 of 400 tokens, which counting finds out and an untrained model does not know.
    assert found["eval/unigram_loss"].value < 4.3
    assert found["eval/loss"].value > 5.5
    assert found["eval/accuracy"].value < 0.1


def test_the_unigram_baseline_is_counted_on_targets():
    def batch(labels, shown=None):
        return {"labels_BT": torch.tensor([[IGNORED, *labels]]), "input_ids_BT": torch.tensor([[1, *(shown or [7] * len(labels))]])}

    train = [3] * 90 + [4] * 10
    nats = unigram(iter([batch(train)]), [batch([3, 3]), batch([4])], 8)
    assert nats == pytest.approx([-2 * np.log(0.9), -np.log(0.1)], rel=0.03)
    # Half of the hundred that are not hidden show themselves: what is shown is then believed by half.
    train, shown = [3] * 180 + [4] * 20, [7] * 100 + [3] * 45 + [5] * 35 + [5] * 15 + [4] * 5
    nats = unigram(iter([batch(train, shown)]), [batch([4], [4]), batch([4], [3]), batch([4], [7])], 8, mask_id=7)
    assert nats == pytest.approx([-np.log(0.5 + 0.5 * 0.1), -np.log(0.5 * 0.1), -np.log(0.1)], rel=0.03)


def test_the_mean_image_is_that_of_the_train_split():
    objective, setting = MaskedImage(normalised=False), Setting(patch_size=4)
    train, test = (objective.collate(image_rows(n, seed=n), setting) for n in (40, 3))
    losses = mean_image(iter([{k: v[:25] for k, v in train.items()}, {k: v[25:] for k, v in train.items()}]), [test], objective)
    mean = train["targets_BNP"].double().mean(dim=0)
    wanted = (((test["targets_BNP"] - mean) ** 2).mean(dim=-1) * test["masked_BN"]).sum()
    assert losses == pytest.approx([wanted.item()], rel=1e-6)




def test_a_checkpoint_that_does_not_say_its_objective_and_another_tokenizer_are_refused(made, tmp_path):
    model = made[1]
    payload = Checkpoint(head="masked_lm", architecture="bert", digest="d", n_params=1, vocab_size=VOCAB_SIZE)
    with pytest.raises(ConfigError, match="does not say what it was pretrained with"):
        evaluate_held_out(CONFIG, commit(tmp_path / "base", payload, "base"), _Out(), None)
    named = commit(tmp_path / "named", payload.model_copy(update={"objective": OBJECTIVE}), "base")
    with pytest.raises(ConfigError, match="names no dataset"):
        evaluate_held_out(CONFIG, named, _Out(), None)
    other = token_dataset(tmp_path / "other", vocab_size=390)
    with pytest.raises(ConfigError, match="another tokenizer"):
        measure(CONFIG, OBJECTIVE, model, other.path)


class _Out:
    name = "eval"
