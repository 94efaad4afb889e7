"""The continuous-batching engine against plain `generate`, alone and in company."""

import asyncio
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fmray.data.tokenizer import encode, load
from fmray.data.tokenizers.bpe import Bpe
from fmray.serve.engine import Piece, RequestError, Sampling
from fmray.serve.engines.continuous import ContinuousBatching
from tests.serve.conftest import MAX_LEN, TEXT

PROMPTS = ["Return", "Raise an error when the file", "x", "The quick brown fox jumps over the lazy dog; na", "5 €", "of the option"]


def make(path: Path, **changes: Any) -> ContinuousBatching:
    options: dict[str, Any] = {"device": "cpu", "dtype": "float32", "threads": 1, "cache_tokens": 1024, "max_requests": 8}
    return ContinuousBatching(path, **(options | changes))


@pytest.fixture(scope="module")
def engine(experiment: Path) -> Iterator[ContinuousBatching]:
    engine = make(experiment / "base")
    yield engine
    engine.close()


async def answer(engine: ContinuousBatching, prompt: str | list[int], sampling: Sampling, *, stream: bool = False) -> list[Piece]:
    ids = engine.encode(prompt, sampling.max_tokens)
    return [piece async for piece in engine.generate(ids, sampling, stream=stream)]


async def together(engine: ContinuousBatching, prompts: list[str], sampling: Sampling) -> list[str]:
    return ["".join(p.text for p in pieces) for pieces in await asyncio.gather(*(answer(engine, prompt, sampling) for prompt in prompts))]


def greedy_ids(path: Path, prompts: list[str], max_tokens: int, **more: Any) -> list[list[int]]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(path)
    model: Any = AutoModelForCausalLM.from_pretrained(path, dtype="float32")
    generated = []
    for prompt in prompts:
        encoded = tokenizer(prompt, return_tensors="pt")
        ids = model.generate(encoded["input_ids"], attention_mask=encoded["attention_mask"], do_sample=False, max_new_tokens=max_tokens, **more)
        generated.append(ids[0, encoded["input_ids"].shape[1] :].tolist())
    return generated


def greedy_reference(path: Path, prompts: list[str], max_tokens: int, **more: Any) -> list[str]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(path)
    return [str(tokenizer.decode(ids, skip_special_tokens=True)) for ids in greedy_ids(path, prompts, max_tokens, **more)]


def test_a_prompt_begins_with_one_bos_and_does_not_end_under_a_tokenizer_of_prepare(copy_of: Callable[..., Path]) -> None:
    path = copy_of("base") / "base"
    Bpe().make([[TEXT] * 4], 300, MAX_LEN, path)
    tokenizer, special = load(path)
    engine = make(path)
    try:
        (ids,) = encode(tokenizer, special, ["Return the value"])
        assert engine.encode("Return the value", 8) == ids[:-1].tolist()
        assert engine.encode("", 8) == [special.bos]
    finally:
        engine.close()


def test_greedy_equals_generate_in_a_mixed_batch(engine: ContinuousBatching, experiment: Path) -> None:
    prompts = PROMPTS * 3  # more than max_requests, so that some join while others leave
    texts = asyncio.run(together(engine, prompts, Sampling(max_tokens=24, temperature=0)))
    assert texts == greedy_reference(experiment / "base", prompts, 24)
    assert len(set(texts)) == len(PROMPTS)


def test_a_seed_gives_the_same_answer_alone_and_in_company(engine: ContinuousBatching) -> None:
    sampling = Sampling(max_tokens=16, temperature=0.8, seed=11)
    alone = [asyncio.run(together(engine, [prompt], sampling))[0] for prompt in PROMPTS]
    assert asyncio.run(together(engine, PROMPTS, sampling)) == alone
    assert asyncio.run(together(engine, PROMPTS, Sampling(max_tokens=16, temperature=0.8, seed=12))) != alone


def test_penalties_and_biases_in_a_mixed_batch_are_those_of_generate(engine: ContinuousBatching, experiment: Path) -> None:
    """A penalty on the whole text beside transformers' own; a ban and an order by bias; and neighbours that nothing changes."""
    plain = greedy_reference(experiment / "base", PROMPTS, 24)
    penalised = greedy_reference(experiment / "base", PROMPTS, 24, repetition_penalty=1.5)
    never_again = Sampling(max_tokens=24, temperature=0, presence_penalty=2.0, frequency_penalty=2.0, logit_bias=((7, -100.0),))
    asked = [Sampling(max_tokens=24, temperature=0), Sampling(max_tokens=24, temperature=0, repetition_penalty=1.5), never_again]

    async def mixed() -> list[list[Any]]:
        return await asyncio.gather(*(answer(engine, prompt, sampling) for sampling in asked for prompt in PROMPTS))

    texts = ["".join(piece.text for piece in pieces) for pieces in asyncio.run(mixed())]
    n = len(PROMPTS)
    assert texts[:n] == plain
    assert texts[n : 2 * n] == penalised
    assert penalised != plain
    assert texts[2 * n :] != plain
    [forced] = asyncio.run(answer(engine, "Return", Sampling(max_tokens=3, temperature=0.9, logit_bias=((40, 100.0),), logprobs=1)))
    assert forced.text == engine.decode([40]) * 3
    assert any(one.logprob < one.top[0][1] for one in forced.logprobs), "log-probabilities are those of the model itself"


def test_without_a_seed_answers_differ(engine: ContinuousBatching) -> None:
    assert len(set(asyncio.run(together(engine, ["Return"] * 6, Sampling(max_tokens=16, temperature=2.0))))) > 1


def test_a_cache_too_small_for_all_still_answers_all(experiment: Path) -> None:
    engine = make(experiment / "base", cache_tokens=96, max_requests=4)
    try:
        texts = asyncio.run(together(engine, PROMPTS, Sampling(max_tokens=40, temperature=0)))
        assert texts == greedy_reference(experiment / "base", PROMPTS, 40)
    finally:
        engine.close()


def test_streamed_pieces_add_up(engine: ContinuousBatching) -> None:
    sampling = Sampling(max_tokens=24, temperature=0)
    pieces = asyncio.run(answer(engine, PROMPTS[1], sampling, stream=True))
    [whole] = asyncio.run(answer(engine, PROMPTS[1], sampling))
    assert len(pieces) > 5
    assert "".join(p.text for p in pieces) == whole.text
    assert [p.finish_reason for p in pieces[:-1]] == [None] * (len(pieces) - 1)
    assert (pieces[-1].n_tokens, pieces[-1].finish_reason) == (whole.n_tokens, whole.finish_reason) == (24, "length")


def test_a_stop_string_ends_the_answer_early(engine: ContinuousBatching) -> None:
    [whole] = asyncio.run(answer(engine, "Return", Sampling(max_tokens=40, temperature=0)))
    stop = whole.text[6:8]
    for stream in (False, True):
        pieces = asyncio.run(answer(engine, "Return", Sampling(max_tokens=40, temperature=0, stop=(stop,)), stream=stream))
        assert "".join(p.text for p in pieces) == whole.text[: whole.text.index(stop)]
        assert pieces[-1].finish_reason == "stop"
        assert pieces[-1].n_tokens < 40
    assert_idle(engine)


def test_the_models_end_token_ends_the_answer(experiment: Path, copy_of: Any) -> None:
    """The model is told that a token of its own greedy answer is its end token."""
    from transformers import GenerationConfig

    path = copy_of("base") / "base"
    [ids] = greedy_ids(path, ["Return"], 12)
    end = ids[5]
    GenerationConfig(eos_token_id=[1, end]).save_pretrained(path)
    engine = make(path)
    try:
        [piece] = asyncio.run(answer(engine, "Return", Sampling(max_tokens=12, temperature=0)))
        assert piece.finish_reason == "stop"
        assert piece.n_tokens == ids.index(end) + 1
    finally:
        engine.close()


def test_leaving_early_cancels_the_request(engine: ContinuousBatching) -> None:
    async def leave() -> None:
        pieces = engine.generate(engine.encode("Return", 80), Sampling(max_tokens=80, temperature=0), stream=True)
        await anext(pieces)
        await pieces.aclose()

    asyncio.run(leave())
    assert_idle(engine)


def assert_idle(engine: ContinuousBatching) -> None:
    """No handler is left, and within a moment no request is scheduled."""
    import time

    assert engine._manager.output_router.result_handlers == {}
    deadline = time.monotonic() + 10
    while engine._manager.batch_processor.has_pending_requests():
        assert time.monotonic() < deadline, "the cancelled request goes on"
        time.sleep(0.01)


def test_token_ids_are_taken_as_they_are(engine: ContinuousBatching) -> None:
    sampling = Sampling(max_tokens=8, temperature=0)
    ids = engine.encode("Return the", 8)
    assert ids[0] == 0
    assert engine.encode(ids, 8) == ids
    assert asyncio.run(answer(engine, ids, sampling)) == asyncio.run(answer(engine, "Return the", sampling))


def test_an_empty_prompt_begins_a_text(engine: ContinuousBatching) -> None:
    assert engine.encode("", 8) == [0]


@pytest.mark.parametrize(
    ("prompt", "max_tokens", "code"),
    [([320], 4, None), ([-1], 4, None), ([], 4, None), ("Return", MAX_LEN, "context_length_exceeded"), ([5] * 200, 1, "context_length_exceeded")],
)
def test_impossible_prompts_are_refused(engine: ContinuousBatching, prompt: Any, max_tokens: int, code: str | None) -> None:
    with pytest.raises(RequestError) as refused:
        engine.encode(prompt, max_tokens)
    assert (refused.value.status, refused.value.param, refused.value.code) == (400, "prompt", code)


def test_the_whole_context_can_be_used(engine: ContinuousBatching) -> None:
    ids = [random.Random(0).randrange(3, 320) for _ in range(MAX_LEN - 10)]
    [piece] = asyncio.run(answer(engine, ids, Sampling(max_tokens=10, temperature=0)))
    assert piece.n_tokens == 10 or piece.finish_reason == "stop"


def test_a_dead_engine_says_so(experiment: Path) -> None:
    engine = make(experiment / "base")
    engine.health()
    engine.close()
    with pytest.raises(RuntimeError, match="generation thread ended"):
        engine.health()
    with pytest.raises(RequestError) as refused:
        asyncio.run(answer(engine, "Return", Sampling(max_tokens=4)))
    assert refused.value.status == 503


def test_logprobs_are_those_of_a_plain_forward_pass(engine: ContinuousBatching, experiment: Path) -> None:
    """Streamed or not, greedy or drawn: of the model itself, before temperature; and the text's tokens add up to it."""
    import torch
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(experiment / "base", dtype="float32")
    ids = engine.encode("Return the", 8)
    for sampling in (Sampling(max_tokens=8, temperature=0, logprobs=3), Sampling(max_tokens=8, temperature=0.7, seed=1, logprobs=3)):
        pieces = asyncio.run(answer(engine, ids, sampling, stream=True))
        told = [one for piece in pieces for one in piece.logprobs]
        [whole] = asyncio.run(answer(engine, ids, sampling))
        assert told == list(whole.logprobs)
        assert len(told) == 8
        row = list(ids)
        for one in told:
            with torch.no_grad():
                logprobs_V = model(torch.tensor([row])).logits[0, -1].log_softmax(-1)
            token = min(range(320), key=lambda i, one=one, at=logprobs_V: abs(float(at[i]) - one.logprob))
            assert float(logprobs_V[token]) == pytest.approx(one.logprob, abs=1e-4)
            assert [value for _, value in one.top] == pytest.approx(logprobs_V.topk(3).values.tolist(), abs=1e-4)
            row.append(token)
        if sampling.temperature == 0:
            assert all(one.logprob == one.top[0][1] for one in told)


def test_scores_of_given_text_and_a_stop_string_cuts_logprobs(engine: ContinuousBatching, experiment: Path) -> None:
    from fmray.model.language_model import LanguageModel

    texts = ["Return the value", "x", "The quick brown fox jumps over the lazy dog"]
    rows = [engine.encode(text, 0) for text in texts]
    found = asyncio.run(engine.score(rows, 2))
    sums = LanguageModel.load(experiment / "base", "cpu", "float32").loglikelihood(texts)
    for row, told, (total, n) in zip(rows, found, sums, strict=True):
        assert (len(told), told[0].logprob, len(told) - 1) == (len(row), None, n)
        assert sum(one.logprob or 0.0 for one in told) == pytest.approx(total, abs=1e-3)
        assert all(len(one.top) == 2 for one in told[1:])
    [whole] = asyncio.run(answer(engine, "Return", Sampling(max_tokens=40, temperature=0, logprobs=0)))
    stop = whole.text[6:8]
    [piece] = asyncio.run(answer(engine, "Return", Sampling(max_tokens=40, temperature=0, logprobs=0, stop=(stop,))))
    assert len("".join(one.text for one in piece.logprobs[:-1])) < len(piece.text)
    assert engine._sampling.drawn == {}


def test_embeddings_are_mean_pooled_and_of_length_one(engine: ContinuousBatching, experiment: Path) -> None:
    import torch
    from transformers import AutoModel

    rows = [engine.encode(text, 0) for text in ("Return the value", "x")]
    found = asyncio.run(engine.embed(rows))
    model: Any = AutoModel.from_pretrained(experiment / "base", dtype="float32")
    for row, one in zip(rows, found, strict=True):
        with torch.no_grad():
            mean_D = model(torch.tensor([row])).last_hidden_state[0].mean(0)
        assert one.vector == pytest.approx((mean_D / mean_D.norm()).tolist(), abs=1e-5)
        assert sum(x * x for x in one.vector) == pytest.approx(1.0)


def test_vllm_is_missed_in_one_line() -> None:
    from fmray.core.errors import ConfigError
    from fmray.serve.engines.vllm import Vllm

    with pytest.raises(ConfigError, match="the engine vllm needs the package vllm") as missing:
        Vllm(Path("x"), dtype="bfloat16", cache_tokens=1024, max_requests=4)
    assert (missing.value.exit_code, "\n" in str(missing.value)) == (2, False)
