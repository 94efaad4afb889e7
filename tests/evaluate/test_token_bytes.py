"""Bytes by token, summed over any text, are the bytes of that text."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from fmray.evaluate.token_bytes import token_bytes
from tests.evaluate.lives import corpus

texts = st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=60)


@settings(max_examples=200, deadline=None)
@given(texts)
def test_the_bytes_of_a_texts_tokens_are_the_texts_bytes(text: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(corpus().path / "tokenizer")
    bytes_V = token_bytes(tokenizer)
    ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    assert bytes_V[ids].sum() == len(text.encode())


def test_special_tokens_stand_for_no_byte_and_added_words_for_their_own() -> None:
    tokenizer = AutoTokenizer.from_pretrained(corpus().path / "tokenizer")
    tokenizer.add_tokens(["na\u00efve"])
    bytes_V = token_bytes(tokenizer)
    assert [bytes_V[i] for i in (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)] == [0, 0, 0]
    assert bytes_V[tokenizer.convert_tokens_to_ids("na\u00efve")] == 6


def test_a_tokenizer_of_whole_words_has_no_bytes() -> None:
    words = Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a"))
    assert token_bytes(PreTrainedTokenizerFast(tokenizer_object=words)) is None


def test_it_counts_smollm2s_bytes() -> None:
    pytest.importorskip("gguf")
    from tests.models import smollm2

    tokenizer = AutoTokenizer.from_pretrained(smollm2())
    text = "A caf\u00e9 in \u6771\u4eac, \U0001f600 \u2013 done."
    assert token_bytes(tokenizer)[tokenizer(text)["input_ids"]].sum() == len(text.encode())
