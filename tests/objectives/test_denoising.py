"""Document denoising: what is hidden, in how many spans and how long, sentences that move whole, and transformers' own loss."""

import dataclasses
import itertools

import numpy as np
import pytest

from fmray.core.errors import ConfigError
from fmray.model.architectures.bart import Bart
from fmray.objectives import Setting
from fmray.objectives._encoder_decoder import IGNORED
from fmray.objectives.denoising import Denoising
from tests.objectives.cases import CASES, MASK, SEQ_LEN, learns_as_transformers, lone_rows, vocabulary
from tests.train.rows import BOS, EOS

SETTING = Setting(vocabulary=vocabulary(), one_a_row=True)
CASE = next(case for case in CASES if isinstance(case.objective, Denoising) and isinstance(case.architecture, Bart))


def documents(rows):
    return [ids_T[segments_T == 1].tolist() for ids_T, segments_T in zip(rows["input_ids_BT"], rows["segment_ids_BT"], strict=True)]


def inputs(batch):
    return [ids_T[mask_T == 1].tolist() for ids_T, mask_T in zip(batch["input_ids_BT"].numpy(), batch["attention_mask_BT"].numpy(), strict=True)]


def fits(shown, document):
    """Whether the input comes from the document by replacing spans of any length, zero included, by a mask each."""
    ends = {0}
    for token in shown:
        ends = set(range(min(ends), len(document) + 1)) if token == MASK else {end + 1 for end in ends if end < len(document) and document[end] == token}
        if not ends:
            return False
    return len(document) in ends


def sentences(tokens):
    found = [[]]
    for i, token in enumerate(tokens):
        found[-1].append(token)
        if token % 9 == 5 and not (i + 1 < len(tokens) and tokens[i + 1] % 9 == 5):
            found.append([])
    return [sentence for sentence in found if sentence]


def test_the_target_is_the_whole_document_behind_the_end_token():
    rows = lone_rows(50)
    batch = Denoising().collate(rows, SETTING)
    for labels, begun, given in zip(batch["labels_BT"].tolist(), batch["decoder_input_ids_BT"].tolist(), documents(rows), strict=True):
        assert [token for token in labels if token != IGNORED] == given
        assert begun[: len(given)] == [EOS, *given[:-1]]
    assert Denoising().count(batch) == sum(map(len, documents(rows)))


@pytest.mark.parametrize("share", [0.1, 0.3, 0.6, 0.95])
def test_exactly_the_share_is_hidden_behind_masks_and_the_input_is_no_longer_than_the_document(share):
    rows = lone_rows(300)
    shown = inputs(Denoising(share=share, permute_sentences=False).collate(rows, SETTING))
    for some, given in zip(shown, documents(rows), strict=True):
        assert (some[0], some[-1]) == (BOS, EOS)
        assert len([token for token in some if token != MASK]) == len(given) - max(1, round(share * (len(given) - 2)))
        assert MASK in some
        assert len(some) <= len(given)
        assert fits(some, given)
        # No two masks touch: each stands for one span.
        assert all((a, b) != (MASK, MASK) for a, b in itertools.pairwise(some))


def test_lengths_follow_poisson_and_add_up():
    objective, draw = Denoising(), np.random.default_rng(0)
    drawn = [objective._lengths(3000, 7001, draw) for _ in range(20)]
    assert all(lengths.sum() == 3000 for lengths in drawn)
    lengths = np.concatenate([lengths[:-1] for lengths in drawn])
    n = len(lengths)
    assert lengths.mean() == pytest.approx(3, abs=4 * np.sqrt(3 / n))
    assert (lengths == 0).mean() == pytest.approx(np.exp(-3), abs=4 * np.sqrt(0.05 / n))
    assert (lengths == 3).mean() == pytest.approx(27 / 6 * np.exp(-3), abs=4 * np.sqrt(0.17 / n))
    for hidden, most in ((1, 1), (5, 1), (5, 3), (2, 40)):
        for _ in range(50):
            few = objective._lengths(hidden, most, draw)
            assert few.sum() == hidden
            assert len(few) <= min(hidden, most)


def test_tokens_are_hidden_equally_often_wherever_they_stand():
    rows = lone_rows(20)
    longest = int(np.argmax([len(document) for document in documents(rows)]))
    rows = {name: np.repeat(values[longest : longest + 1], 4000, axis=0) for name, values in rows.items()} | {"row_ids_B": np.arange(4000)}
    given = documents(rows)[0][1:-1]
    assert len(set(given)) == len(given) > 16
    shown = inputs(Denoising(share=0.3, permute_sentences=False).collate(rows, SETTING))
    hidden_N = np.array([[token not in some for token in given] for some in map(set, shown)]).mean(axis=0)
    assert hidden_N.mean() == pytest.approx(round(0.3 * len(given)) / len(given))
    # A span that would begin in front of the document does not, so its first and last tokens are hidden less often.
    assert hidden_N.min() > 0.1
    inside = hidden_N[4:-4]
    assert np.abs(inside / inside.mean() - 1).max() < 0.15


def test_sentences_move_whole_and_into_any_order():
    rows, objective = lone_rows(200), Denoising(share=0.01)
    moved = 0
    for row, given in enumerate(documents(rows)):
        one = {name: values[row : row + 1] for name, values in rows.items()}
        draw = np.random.default_rng([0, 0, row])
        wanted = sentences(given[1:-1])
        order = draw.permutation(len(wanted))
        shuffled = [BOS, *[token for i in order for token in wanted[i]], EOS]
        (some,) = inputs(objective.collate(one, SETTING))
        assert fits(some, shuffled)
        moved += shuffled != given
    assert moved > 50


def test_loss_and_gradients_are_those_of_transformers():
    learns_as_transformers(CASE)


def test_a_document_of_one_token_and_an_empty_one():
    rows = {name: values.copy() for name, values in lone_rows(2).items()}
    rows["segment_ids_BT"][0, 3:], rows["segment_ids_BT"][1] = 0, 0
    rows["input_ids_BT"][0, 2] = EOS
    batch = Denoising().collate(rows, SETTING)
    assert inputs(batch) == [[BOS, MASK, EOS], []]
    assert Denoising().count(batch) == 3


def test_it_says_what_the_dataset_lacks():
    def check(objective, setting=SETTING, **changes):
        objective.check(dataclasses.replace(setting, vocabulary=vocabulary(**changes)), SEQ_LEN)

    check(Denoising())
    with pytest.raises(ConfigError, match="denoising trains on rows of one document each; prepare the dataset with packing"):
        check(Denoising(), dataclasses.replace(SETTING, one_a_row=False))
    with pytest.raises(ConfigError, match="has no mask token"):
        check(Denoising(), mask_id=None)
    plain = {"tokens": {str(i): i for i in range(5)}}
    check(Denoising(permute_sentences=False), **plain)
    with pytest.raises(ConfigError, match=r"objective\.permute_sentences: no token of the dataset's tokenizer ends a sentence"):
        check(Denoising(), **plain)
