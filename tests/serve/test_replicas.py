"""A replica without the network: what it admits, how long it works, and that nothing goes on for a client who left."""

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fmray.serve.deployment import DeployConfig
from fmray.serve.engine import Chat, Completion, Embeddable, Generation, RequestError, Sampling, Text
from fmray.serve.engines.classification import Classification
from fmray.serve.replicas import GenerationReplica, answered

LONG = Generation(("Return",), Sampling(max_tokens=80, temperature=0))


@pytest.fixture
def replica(experiment: Path) -> Iterator[Callable[..., GenerationReplica]]:
    made: list[Any] = []

    def make(**changes: Any) -> GenerationReplica:
        made.append(GenerationReplica(str(experiment / "base"), DeployConfig(num_cpus=0.1, cache_tokens=1024, **changes)))
        return made[-1]

    yield make
    for one in made:
        one._engine.close()


def refusal(answer: Any) -> RequestError:
    assert isinstance(answer, RequestError)
    return answer


async def idle(replica: Any) -> None:
    """Nothing is under way, and the engine knows of no request."""
    for _ in range(400):
        if await replica.load() == 0 and not replica._engine._manager.output_router.result_handlers:
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it goes on")


def test_an_input_that_the_engine_fails_on_costs_its_neighbours_nothing(experiment: Path) -> None:
    engine = Classification(experiment / "tuned", device="cpu", threads=1)
    wrong: Any = Text(5)  # type: ignore[arg-type]  # no text: what no schema lets pass stands for what nobody thought of
    first, failed, last = answered(engine, [Text("Return the value"), wrong, Text("x")])
    assert (refusal(failed).status, refusal(failed).message) == (500, "the engine failed (ValueError)")
    assert [first, last] == [*engine.answer([Text("Return the value")]), *engine.answer([Text("x")])]


def test_the_deadline_ends_the_work(replica: Callable[..., GenerationReplica]) -> None:
    one = replica(deadline_s=0.02)

    async def late() -> None:
        assert refusal(await one.complete(LONG)).status == 408
        told = [piece async for piece in one.stream(LONG)]
        assert told[0] == len(one._engine.encode("Return", 0))
        assert refusal(told[-1]).code == "deadline_exceeded"
        await idle(one)

    asyncio.run(late())


def test_a_full_queue_says_when_to_come_back_and_a_client_who_leaves_frees_it(replica: Callable[..., GenerationReplica]) -> None:
    one = replica(max_requests=2, max_queued=2)

    async def crowd() -> None:
        tasks = [asyncio.create_task(one.complete(LONG)) for _ in range(3)]
        streaming: Any = one.stream(LONG)
        await anext(streaming)
        await anext(streaming)
        assert await one.load() == 4
        full = refusal(await one.complete(LONG))
        assert (full.status, full.code, full.headers()) == (429, "queue_full", {"Retry-After": "1"})
        assert refusal(await one.embed([Embeddable("x")])).status == 429
        assert [refusal(told).status async for told in one.stream(LONG)] == [429]
        assert refusal(await one.complete(Generation(("x",), Sampling(), n=5))).status == 400
        for task in tasks:
            task.cancel()
        await streaming.aclose()
        await idle(one)
        [answer] = await one.complete(Generation(("x",), Sampling(max_tokens=3, temperature=0)))  # type: ignore[misc]
        assert answer.n_tokens == 3

    asyncio.run(crowd())


def test_choices_of_one_seed_differ_and_the_first_is_what_one_would_be(replica: Callable[..., GenerationReplica]) -> None:
    one = replica()

    async def ask(n: int) -> list[Completion]:
        found = await one.complete(Generation(("Return", "x"), Sampling(max_tokens=12, temperature=2.0, seed=4), n=n))
        assert isinstance(found, list)
        return found

    single, several, again = asyncio.run(ask(1)), asyncio.run(ask(3)), asyncio.run(ask(3))
    assert several == again
    assert [several[0], several[3]] == single
    assert len({one.text for one in several[:3]}) > 1
    assert len({one.text for one in several[3:]}) > 1


def test_echo_tells_the_prompts_logprobs_and_no_tokens_may_be_asked(replica: Callable[..., GenerationReplica]) -> None:
    one = replica()
    ids = [0, 5, 6, 7, 8]

    async def ask(max_tokens: int, echo: bool) -> Completion:
        found = await one.complete(Generation((ids,), Sampling(max_tokens=max_tokens, temperature=0, logprobs=1), echo=echo))
        assert isinstance(found, list)
        return found[0]

    none, scored, both, behind = (asyncio.run(ask(n, echo)) for n, echo in ((0, False), (0, True), (1, True), (1, False)))
    assert (none.text, none.logprobs, none.finish_reason) == ("", (), "length")
    assert [one.logprob is None for one in scored.logprobs] == [True, False, False, False, False]
    assert both.logprobs == scored.logprobs + behind.logprobs
    assert both.text == scored.text + behind.text
    assert (both.n_prompt_tokens, both.n_tokens) == (5, 1)


def test_the_servers_own_limits(replica: Callable[..., GenerationReplica]) -> None:
    one = replica(max_new_tokens=4, max_prompt_tokens=6)
    long = refusal(asyncio.run(one.complete(Generation(("x",), Sampling(max_tokens=5)))))
    assert (long.status, long.param) == (400, "max_tokens")
    many = refusal(asyncio.run(one.complete(Generation(([5] * 7,), Sampling(max_tokens=1)))))
    assert (many.status, many.code) == (400, "context_length_exceeded")
    [rest] = asyncio.run(one.complete(Generation(("x",), Sampling(max_tokens=None, temperature=0))))  # type: ignore[misc]
    assert rest.n_tokens == 4


def test_a_chat_needs_a_template_and_a_template_cannot_leave_its_sandbox(replica: Callable[..., GenerationReplica]) -> None:
    one: Any = replica()
    chat = Generation((Chat(({"role": "user", "content": "Return"},)),), Sampling(max_tokens=None, temperature=0))
    assert refusal(asyncio.run(one.complete(chat))).code == "no_chat_template"
    one._engine._tokenizer.chat_template = "{{ messages.__class__.__mro__ }}{{ ''.__class__.__base__.__subclasses__() }}"
    told = refusal(asyncio.run(one.complete(chat)))
    assert (told.status, told.param) == (400, "messages")
    assert "unsafe" in told.message
    one._engine._tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    assert "roles must alternate" in refusal(asyncio.run(one.complete(chat))).message
    one._engine._tokenizer.chat_template = "{{ bos_token }}{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}"
    spoken = one._engine.encode(Chat(({"role": "user", "content": "a<|eos|><|bos|>b"},)), 1)
    assert (spoken[0], spoken[-1], spoken.count(0), spoken.count(1)) == (0, 1, 1, 1)
    assert one._engine.decode(spoken) == "a<|eos|><|bos|>b"
