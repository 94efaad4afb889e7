"""Answers of packed rows against the model's own on one text at a time, and pseudo-likelihood against one forward pass a hidden token."""

import copy
from pathlib import Path

import pytest
import torch
import transformers
from tokenizers.processors import TemplateProcessing

from fmray.core.errors import ArtifactError, DataError, RunError
from fmray.data.vocabulary import read_vocabulary
from fmray.evaluate.lm_tasks.asking import answers, setup
from fmray.evaluate.lm_tasks.causal import CausalScorer
from fmray.evaluate.lm_tasks.encoding import Encoder, check_fits
from fmray.evaluate.lm_tasks.masked import hide_each
from fmray.evaluate.lm_tasks.opened import Ask
from fmray.evaluate.lm_tasks.packing import Request, plan_rows
from fmray.evaluate.lm_tasks.workers import Workers
from tests.evaluate.lm_tasks.small import POSITIONS, save, sentence, tokenizer

SHOTS = " ".join(sentence(i, 5) for i in range(4))


def asks(front: str = "") -> list[Ask]:
    return [Ask(i, (f"{front}{sentence(i)} ", sentence(i + k, 3))) for i in range(6) for k in range(2)] + [Ask(6, ("", sentence(9)))]


def alone(model, context: str, continuation: str) -> tuple[float, bool]:
    """Straight from the model: the text at once, then the log-probabilities of its last tokens."""
    text = tokenizer()
    front = text(context.rstrip())["input_ids"] if context else [1]
    whole = text(context + continuation)["input_ids"] if context else [1, *text(continuation)["input_ids"]]
    logprobs = model(torch.tensor([whole[:-1]])).logits[0].log_softmax(-1)[len(front) - 1 :]
    targets = torch.tensor(whole[len(front) :])
    return float(logprobs.gather(1, targets[:, None]).sum()), bool((logprobs.argmax(-1) == targets).all())


@pytest.mark.parametrize(("kind", "packs"), [("llama", True), ("gpt2", True), ("mistral", False), ("gpt_neo", False)])
def test_packed_rows_answer_as_one_text_at_a_time(tmp_path: Path, kind, packs):
    path = save(tmp_path, kind)
    workers = Workers("causal_lm", path, None, 1, 1, 0)
    ready = setup("causal_lm", path, workers, 16)
    assert ready.shares == packs, "a model that sees only its last tokens would see other ones in a packed row"
    model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    for asked in (asks(), asks(SHOTS)[:-1]):
        given, cut = answers("multiple_choice", asked, ready, workers)
        with torch.inference_mode():
            right = [alone(model, *ask.arguments) for ask in asked]
        assert not cut
        assert [logprob for logprob, _ in given] == pytest.approx([logprob for logprob, _ in right], abs=2e-4)
        assert [greedy for _, greedy in given] == [greedy for _, greedy in right]


def test_a_packed_row_is_never_read_as_a_plain_one(tmp_path: Path):
    scorer = CausalScorer(save(tmp_path, "mistral"), None, 1, "cpu")
    requests = [Request(0, [5, 6, 7], [8]), Request(1, [5, 6, 9], [10])]
    (packed,) = plan_rows(requests, POSITIONS, 256, shares=True).rows
    with pytest.raises(RunError, match="a packed row came to a model that may not be asked so"):
        scorer.score((), packed)
    assert len([scorer.score((), row) for row in plan_rows(requests, POSITIONS, 256, shares=False).rows]) == 2


@pytest.mark.slow
@pytest.mark.parametrize("num_workers", [1, 2])
def test_what_a_worker_cannot_open_is_refused_as_bad_input(tmp_path: Path, num_workers: int):
    with pytest.raises(ArtifactError, match="is not a model checkpoint") as error:
        Workers("causal_lm", tmp_path, None, num_workers, 1, 0).shares()
    assert error.value.exit_code == 2


def test_a_masked_model_is_asked_for_one_hidden_token_at_a_time(tmp_path: Path):
    path = save(tmp_path, "bert")
    workers = Workers("masked_lm", path, None, 1, 1, 0)
    given, _ = answers("multiple_choice", asks(), setup("masked_lm", path, workers, 16), workers)
    model = transformers.AutoModelForMaskedLM.from_pretrained(path, dtype=torch.float32).eval()
    for ask, (logprob, _) in zip(asks(), given, strict=True):
        context, continuation = (tokenizer()(part)["input_ids"] for part in (ask.arguments[0].rstrip(), ask.arguments[0][len(ask.arguments[0].rstrip()) :] + ask.arguments[1]))
        total = 0.0
        for i, token in enumerate(continuation):
            ids = torch.tensor([[*context, *continuation]])
            ids[0, len(context) + i] = 3
            with torch.inference_mode():
                total += float(model(ids).logits[0, len(context) + i].log_softmax(-1)[token])
        assert logprob == pytest.approx(total, abs=2e-4)


def test_an_untrained_twin_is_the_same_each_time_and_another_for_each_seed(tmp_path: Path):
    path = save(tmp_path, "llama")
    told = []
    for seed in (None, 1, 1, 2):
        workers = Workers("causal_lm", path, seed, 1, 1, 0)
        told.append(answers("loglikelihood", asks(), setup("causal_lm", path, workers, 16), workers)[0])
    assert told[1] == told[2]
    assert told[0] != told[1] != told[3]


def test_a_continuation_without_tokens_or_beyond_the_model_is_refused():
    encoder = Encoder(tokenizer(), POSITIONS)
    with pytest.raises(DataError, match="no token that is asked for"):
        encoder.request(0, "the cat", "")
    with pytest.raises(DataError, match="only 64 positions"):
        encoder.request(0, "the cat", " red" * 99)


def test_a_continuation_may_be_as_long_as_the_model_less_what_is_put_around_it():
    framing = copy.deepcopy(tokenizer())
    framing.backend_tokenizer.post_processor = TemplateProcessing(single="<bos> $A <eos>", special_tokens=[("<bos>", 1), ("<eos>", 2)])
    one = len(framing(" red", add_special_tokens=False)["input_ids"])
    encoder = Encoder(framing, 8 * one)
    assert (encoder.front, encoder.back) == ([1], [2])
    assert len(encoder.request(0, "the", " red" * 8).continuation) == 8 * one, "a causal model reads nothing behind it"
    with pytest.raises(DataError, match=f"{8 * one} tokens that are asked for and the model only {8 * one - 2} positions"):
        encoder.hidden_request(0, "the", " red" * 8)
    tight = Encoder(framing, 8 * one + 2)
    hidden, cut = hide_each([tight.hidden_request(0, "the", " red" * 8)], tight.front, tight.back, tight.max_length)
    assert {len(text.ids) for text in hidden} == {8 * one + 2}
    assert cut == {0}


def test_a_tokenizer_that_does_not_fit_is_refused(tmp_path: Path):
    vocabulary = read_vocabulary(save(tmp_path, "llama"))
    size = len(vocabulary.special_V)
    check_fits(vocabulary, size, "causal_lm", "m")
    with pytest.raises(ArtifactError, match=f"ids up to {size - 1} and its model none beyond 99") as refused:
        check_fits(vocabulary, 100, "causal_lm", "m")
    assert refused.value.exit_code == 2
