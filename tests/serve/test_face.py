"""The face's own patience: a replica that never comes costs a client the deadline and not for ever."""

import asyncio

import pytest

from fmray.serve.engine import RequestError
from fmray.serve.face import ask


def test_a_replica_that_never_answers_is_a_503_and_is_asked_no_more() -> None:
    async def wait(*, stream: bool) -> RequestError:
        call: asyncio.Future[object] = asyncio.get_running_loop().create_future()
        with pytest.raises(RequestError, match=r"no replica of the model answered within 0\.05 s") as late:
            await ask(call, 0.05, asyncio.sleep(60) if stream else None)
        assert call.cancelled()
        return late.value

    for stream in (False, True):
        error = asyncio.run(wait(stream=stream))
        assert (error.status, error.code, error.headers()) == (503, "replica_unavailable", {"Retry-After": "1"})


def test_an_answer_in_time_is_handed_on_and_an_error_raised() -> None:
    async def given(value: object) -> object:
        call: asyncio.Future[object] = asyncio.get_running_loop().create_future()
        call.set_result(value)
        return await ask(call, 5.0)

    assert asyncio.run(given([1])) == [1]
    with pytest.raises(RequestError, match="no such thing"):
        asyncio.run(given(RequestError(400, "no such thing")))
