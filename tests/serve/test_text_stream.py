"""Incremental text equals the whole text, and nothing past a stop string is ever sent."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fmray.serve.text_stream import UNFINISHED, TextStream
from tests.serve.conftest import save_tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return save_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def stream(tokenizer: Any, ids: list[int], stop: tuple[str, ...] = ()) -> tuple[list[str], bool]:
    text = TextStream(tokenizer, stop)
    pieces = [text.feed(ids[: n + 1], last=n + 1 == len(ids)) for n in range(len(ids))]
    return pieces, text.stopped


@given(st.text(max_size=60))
def test_pieces_add_up_to_the_text_and_hold_whole_characters(tokenizer: Any, text: str) -> None:
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    pieces, _ = stream(tokenizer, ids)
    assert "".join(pieces) == text
    if UNFINISHED not in text:
        assert all(UNFINISHED not in piece for piece in pieces)


@given(st.lists(st.integers(0, 319), max_size=40))
def test_any_token_ids_give_what_decoding_them_at_once_gives(tokenizer: Any, ids: list[int]) -> None:
    pieces, _ = stream(tokenizer, ids)
    assert "".join(pieces) == tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


@given(st.text(alphabet="abc ", max_size=40), st.lists(st.text(alphabet="abc ", min_size=1, max_size=4), min_size=1, max_size=3))
def test_text_ends_before_the_first_stop_string(tokenizer: Any, text: str, stop: list[str]) -> None:
    pieces, stopped = stream(tokenizer, tokenizer(text, add_special_tokens=False)["input_ids"], tuple(stop))
    # Which of two overlapping stop strings is met first depends on where tokens end: the text is cut at one of them.
    sent = "".join(pieces)
    assert text.startswith(sent)
    assert stopped == any(s in text for s in stop)
    assert not any(s in sent for s in stop)
    assert (sent == text) if not stopped else any(text[len(sent) :].startswith(s) for s in stop)


def test_a_special_token_is_not_text(tokenizer: Any) -> None:
    pieces, _ = stream(tokenizer, [0, *tokenizer("ab", add_special_tokens=False)["input_ids"], 1])
    assert "".join(pieces) == "ab"
