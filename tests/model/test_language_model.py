"""The face for evaluation: likelihoods against plain transformers, packed rows, twins."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from fmray.core.errors import ArtifactError, DataError
from fmray.model.language_model import LanguageModel
from tests.train.tiny import save_decoder


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    save_decoder(folder)
    return folder


@pytest.fixture(scope="module")
def language_model(saved):
    return LanguageModel.load(saved, device="cpu")


def test_logits_equal_those_of_plain_transformers(saved, language_model):
    ids = torch.arange(5, 35).view(2, 15)
    with torch.no_grad():
        assert torch.equal(language_model.model(ids).logits, AutoModelForCausalLM.from_pretrained(saved)(ids).logits)


def test_nll_of_one_document_is_that_of_transformers_loss(language_model):
    ids = np.arange(5, 35)[None]
    nll = language_model.token_nll(ids, np.ones_like(ids), np.arange(30)[None])
    with torch.no_grad():
        loss = language_model.model(torch.as_tensor(ids), labels=torch.as_tensor(ids)).loss
    assert np.isnan(nll[0, 0])
    assert np.isfinite(nll[0, 1:]).all()
    assert nll[0, 1:].mean() == pytest.approx(loss.item(), rel=1e-5)


def test_packed_documents_have_the_likelihood_they_have_alone(language_model):
    a, b = np.arange(5, 25), np.arange(40, 70)
    row = np.concatenate([a, b, np.zeros(6, int)])[None]
    segments = np.repeat([1, 2, 0], [20, 30, 6])[None]
    positions = np.concatenate([np.arange(20), np.arange(30), np.zeros(6, int)])[None]
    packed = language_model.token_nll(row, segments, positions)[0]
    for document, start in ((a, 0), (b, 20)):
        alone = language_model.token_nll(document[None], np.ones((1, len(document)), int), np.arange(len(document))[None])[0]
        np.testing.assert_allclose(packed[start + 1 : start + len(document)], alone[1:], atol=1e-5)
        assert np.isnan(packed[start])
    assert np.isnan(packed[50:]).all()


def test_loglikelihood_counts_the_first_token_after_bos_and_does_not_depend_on_the_batch(language_model):
    texts = ["rain", "the anchor and the mast", "", "simmer the onion in butter " * 3]
    together = language_model.loglikelihood(texts, batch_size=4)
    alone = [language_model.loglikelihood([text], batch_size=1)[0] for text in texts]
    for text, (logprob, n_tokens), (logprob_alone, n_alone) in zip(texts, together, alone, strict=True):
        assert n_tokens == n_alone == len(language_model.tokenizer(text, add_special_tokens=False)["input_ids"])
        assert logprob == pytest.approx(logprob_alone, abs=1e-4)
        assert (logprob < 0) == (n_tokens > 0)


def test_a_text_longer_than_the_model_is_refused(language_model):
    with pytest.raises(DataError, match="only 64 positions"):
        language_model.loglikelihood(["anchor mast " * 100])


def test_a_twin_has_the_config_and_other_weights_by_its_seed(saved, language_model):
    before = torch.random.get_rng_state()
    one, again, other = (LanguageModel.random_twin(saved, seed, device="cpu") for seed in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), before)
    weight = "model.layers.0.mlp.up_proj.weight"
    ours, first, second, third = (m.model.state_dict()[weight] for m in (language_model, one, again, other))
    assert torch.equal(first, second)
    assert not torch.equal(first, third)
    assert not torch.equal(first, ours)
    assert one.model.config.to_dict() == language_model.model.config.to_dict() | {"dtype": one.model.config.to_dict()["dtype"]}


def test_a_broken_model_is_one_line(saved, tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "no-such-model"}')
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(ArtifactError, match="cannot be opened as a causal language model") as error:
        LanguageModel.load(tmp_path)
    assert "\n" not in str(error.value)
