"""What is read of a tokenizer's files, held against transformers and the texts themselves."""

import numpy as np
import pytest
from transformers import AutoTokenizer

from fmray.core.errors import DataError
from fmray.data.tokenizers.bpe import Bpe
from fmray.data.tokenizers.character import Character
from fmray.data.tokenizers.unigram import Unigram
from fmray.data.tokenizers.wordpiece import WordPiece
from fmray.data.vocabulary import Vocabulary, read_vocabulary
from tests.train.tiny import labelled

TEXTS = [text for text, _ in labelled(200)]
KINDS = {"bpe": Bpe(sentinels=7), "unigram": Unigram(sentinels=7, byte_fallback=False), "wordpiece": WordPiece(sentinels=7), "character": Character(sentinels=7)}
SIZES = {"bpe": 320, "unigram": 80, "wordpiece": 150, "character": 60}


@pytest.fixture(scope="module", params=KINDS)
def made(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    KINDS[request.param].make([TEXTS], SIZES[request.param], 64, folder)
    return request.param, folder


def test_special_ids_are_those_that_transformers_names(made):
    _, folder = made
    theirs, ours = AutoTokenizer.from_pretrained(folder), read_vocabulary(folder)
    assert len(ours.special_V) == len(theirs)
    assert set(ours.special_V.nonzero()[0].tolist()) == set(theirs.all_special_ids)
    assert (ours.mask_id, ours.bos_id, ours.eos_id, ours.pad_id) == (theirs.mask_token_id, theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id)
    assert ours.sentinel_ids == tuple(theirs.convert_tokens_to_ids([f"<extra_id_{i}>" for i in range(7)]))
    assert not set(ours.plain_ids.tolist()) & set(theirs.all_special_ids)


def test_words_begin_where_white_space_ended(made):
    kind, folder = made
    ours, tokenizer = read_vocabulary(folder), AutoTokenizer.from_pretrained(folder)
    if kind == "character":
        assert ours.word_start_V is None
        return
    for text in TEXTS[:50]:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        # The first token begins a word wherever it stands.
        assert 1 + int(ours.word_start_V[ids[1:]].sum()) == len(text.split())


def test_sentences_end_with_full_stops_of_any_script_and_spelling():
    ends = [".", "Ġend.", '."', "?!”", "▁so?", "。", "ãĢĤ", "ï¼ģ", ".Ċ"]
    others = ["Mr", ".5", "ãĢ", ",", '"', "<|eos|>.", "▁"]
    tokens = {text: i for i, text in enumerate([*ends, *others])}
    special_V = np.zeros(len(tokens), dtype=bool)
    special_V[tokens["<|eos|>."]] = True
    vocabulary = Vocabulary(tokens, special_V, None, None, None, None, (), None)
    assert {text for text, i in tokens.items() if vocabulary.sentence_end_V[i]} == set(ends)


def test_a_folder_without_a_tokenizer_is_named(tmp_path):
    with pytest.raises(DataError, match="cannot be read as a tokenizer") as error:
        read_vocabulary(tmp_path)
    assert str(tmp_path) in str(error.value)
