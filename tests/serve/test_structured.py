"""Answers keep to their schema whatever the model would rather say, and their neighbours in the batch do not notice."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from transformers.generation.continuous_batching.offloading_manager import OffloadingManager

from fmray.serve.engine import Piece, RequestError, Sampling
from fmray.serve.engines import structured
from fmray.serve.engines.continuous import ContinuousBatching
from tests.serve.test_continuous import PROMPTS, answer, greedy_reference, make

SCHEMA = {
    "type": "object",
    "properties": {"label": {"enum": ["ham", "spam"]}, "stars": {"type": "integer", "minimum": 1, "maximum": 5}, "sure": {"type": "boolean"}},
    "required": ["label", "stars", "sure"],
    "additionalProperties": False,
}
TEXT = json.dumps(SCHEMA)


@pytest.fixture(scope="module")
def engine(experiment: Path) -> Iterator[ContinuousBatching]:
    engine = make(experiment / "base")
    yield engine
    engine.close()


def said(pieces: list[Piece]) -> str:
    return "".join(piece.text for piece in pieces)


def test_every_answer_keeps_to_the_schema_and_its_neighbours_are_as_they_were(engine: ContinuousBatching, experiment: Path) -> None:
    kept = [Sampling(max_tokens=60, temperature=1.5, seed=seed, schema=TEXT, logprobs=1) for seed in range(8)]
    plain = Sampling(max_tokens=24, temperature=0)

    async def mixed() -> list[list[Piece]]:
        asked = [answer(engine, "Return", sampling, stream=True) for sampling in kept]
        return await asyncio.gather(*asked, *(answer(engine, prompt, plain) for prompt in PROMPTS))

    found = asyncio.run(mixed())
    answers = [json.loads(said(pieces)) for pieces in found[: len(kept)]]
    for one in answers:
        jsonschema.validate(one, SCHEMA)
    assert len({json.dumps(one) for one in answers}) > 3, "what the schema leaves open is drawn"
    assert all(pieces[-1].finish_reason == "stop" for pieces in found[: len(kept)])
    assert [said(pieces) for pieces in found[len(kept) :]] == greedy_reference(experiment / "base", PROMPTS, 24)
    assert not engine._sampling.followers


def test_a_cache_that_must_be_freed_does_not_lose_the_place_in_the_schema(experiment: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    freed = []
    free = OffloadingManager.offload_requests
    monkeypatch.setattr(OffloadingManager, "offload_requests", lambda self: freed.append(self) or free(self))
    engine = make(experiment / "base", cache_tokens=96, max_requests=4)
    try:

        async def all_at_once() -> list[list[Piece]]:
            return await asyncio.gather(*(answer(engine, "x", Sampling(max_tokens=60, temperature=1.0, seed=seed, schema=TEXT)) for seed in range(6)))

        answers = [json.loads(said(pieces)) for pieces in asyncio.run(all_at_once())]
    finally:
        engine.close()
    assert freed, "nothing had to be freed"
    assert all(jsonschema.Draft202012Validator(SCHEMA).is_valid(one) for one in answers)


def test_an_answer_that_is_cut_off_says_so(engine: ContinuousBatching) -> None:
    pieces = asyncio.run(answer(engine, "Return", Sampling(max_tokens=3, temperature=0, schema=TEXT)))
    assert said(pieces).startswith("{")
    assert pieces[-1].finish_reason == "length"


def test_any_object_is_json(engine: ContinuousBatching) -> None:
    # A random model seldom ends a string, so it is told to prefer quotation marks and brackets.
    likes = tuple((engine.encode(mark, 1)[-1], 8.0) for mark in ('"', "}", ":"))
    pieces = asyncio.run(answer(engine, "Return", Sampling(max_tokens=80, temperature=0.5, seed=3, schema='{"type": "object"}', logit_bias=likes)))
    assert isinstance(json.loads(said(pieces)), dict)


@pytest.mark.parametrize(
    ("schema", "error"),
    [
        ('{"type": "nonsense"}', "the schema cannot be kept to: Invalid type: nonsense"),
        ('{"type": "string", "pattern": "(?<=a)b"}', "the schema cannot be kept to: regex parse error"),
        ('{"not": {}}', "Unimplemented keys"),
        (json.dumps({"enum": ["x" * 70_000]}), "the schema is longer than 65536 bytes"),
    ],
)
def test_a_schema_that_cannot_be_kept_to_is_refused(engine: ContinuousBatching, schema: str, error: str) -> None:
    with pytest.raises(RequestError, match=error) as refused:
        asyncio.run(engine.check(Sampling(schema=schema)))
    assert (refused.value.status, refused.value.param) == (400, "response_format")


def test_a_model_without_an_end_and_a_server_without_the_library_refuse(engine: ContinuousBatching, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RequestError, match="has no end token"):
        engine._structures.follower(TEXT, set())
    monkeypatch.setattr(structured.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RequestError, match=r"needs llguidance on the server \(pip install 'fmray\[structured\]'\)"):
        asyncio.run(engine.check(Sampling(schema=TEXT)))


def test_a_fault_of_the_follower_ends_its_request_alone(engine: ContinuousBatching) -> None:
    class Broken:
        def consume_tokens(self, ids: list[int]) -> bool:
            return False

        def compute_bitmask(self) -> bytes:
            return bytes(40)

        def is_error(self) -> bool:
            return True

        def get_error(self) -> str:
            return "too complex\n  at ..."

    made: Any = engine._structures.follower

    def broken(schema: str, eos: Any) -> structured.Follower:
        return structured.Follower(Broken(), engine._vocab_size, eos)

    engine._structures.follower = broken  # type: ignore[method-assign]
    try:
        with pytest.raises(RequestError, match=r"could not be kept to the schema: too complex at \.\.\."):
            asyncio.run(answer(engine, "Return", Sampling(max_tokens=20, temperature=0, schema=TEXT)))
    finally:
        engine._structures.follower = made  # type: ignore[method-assign]
    assert said(asyncio.run(answer(engine, "Return", Sampling(max_tokens=4, temperature=0))))


def test_what_was_compiled_is_kept_and_the_oldest_leaves(engine: ContinuousBatching) -> None:
    kept = engine._structures
    for number in range(structured.KEPT_SCHEMAS + 3):
        kept.follower(json.dumps({"enum": [number]}), {1})
    assert len(kept._compiled) == structured.KEPT_SCHEMAS
    assert ((1,), json.dumps({"enum": [2]})) not in kept._compiled
