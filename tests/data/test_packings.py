"""Every packing: what goes in comes out, in order, marked rightly, however it is fed; then what is each one's own."""

import itertools
from array import array
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fmray.data.packings import Packing, Rows
from fmray.data.packings.best_fit import BestFit, best_fit
from fmray.data.packings.concatenate import Concatenate
from fmray.data.packings.unpacked import Unpacked

PAD = 0
COLUMNS = ("input_ids_NT", "segment_ids_NT", "position_ids_NT")
PACKINGS: dict[str, Any] = {tag: cls() for tag, cls in Packing.members().items()} | {"best_fit in small buffers": BestFit(buffer_tokens=17)}
CONSERVING = [name for name in PACKINGS if name != "unpacked"]
each = pytest.mark.parametrize("packing", PACKINGS.values(), ids=PACKINGS)
lengths_ = st.lists(st.integers(0, 20), max_size=14)


def numbered(lengths: list[int]) -> list[list[int]]:
    """Documents of these lengths whose tokens are the numbers 1, 2, 3... throughout: each token is known again."""
    ends = np.cumsum([0, *lengths]).tolist()
    return [list(range(a + 1, b + 1)) for a, b in itertools.pairwise(ends)]


def pack(packing: Packing, batches: list[Any], seq_len: int) -> tuple[Rows, int]:
    packer = packing.packer(seq_len, PAD)
    made = [*(packer.add(batch) for batch in batches), packer.finish()]
    assert len(packer.finish()) == 0
    return Rows(*(np.concatenate([getattr(rows, name) for rows in made]) for name in COLUMNS)), packer.n_truncated


def pieces(rows: Rows) -> list[list[int]]:
    """The tokens of every segment, row by row."""
    found = []
    for ids, segments in zip(rows.input_ids_NT, rows.segment_ids_NT, strict=True):
        found += [ids[segments == number].tolist() for number in range(1, segments.max(initial=0) + 1)]
    return found


@each
@given(lengths_, st.integers(1, 9))
def test_tokens_are_conserved_and_those_of_a_document_keep_their_order(packing: Packing, lengths: list[int], seq_len: int) -> None:
    documents = numbered(lengths)
    rows, n_truncated = pack(packing, [documents], seq_len)
    used = rows.segment_ids_NT > 0
    tokens = rows.input_ids_NT[used].tolist()
    assert len(set(tokens)) == len(tokens)
    assert len(tokens) + n_truncated == sum(lengths)
    for document in documents:
        kept = [token for token in tokens if token in set(document)]
        assert kept == document[: len(kept)]
    assert (rows.input_ids_NT[~used] == PAD).all()
    assert rows.input_ids_NT.shape[1] == seq_len
    assert {getattr(rows, name).dtype for name in COLUMNS} == {np.dtype(np.int32)}


@each
@given(lengths_, st.integers(1, 9))
def test_segments_are_pieces_of_one_document_numbered_from_1_and_positions_restart(packing: Packing, lengths: list[int], seq_len: int) -> None:
    rows, _ = pack(packing, [numbered(lengths)], seq_len)
    owner = np.repeat(np.arange(len(lengths)), lengths)
    for ids, segments, positions in zip(rows.input_ids_NT, rows.segment_ids_NT, rows.position_ids_NT, strict=True):
        n_used = int((segments > 0).sum())
        assert n_used > 0
        assert (segments[n_used:] == 0).all()
        assert (positions[n_used:] == 0).all()
        steps = np.diff(segments[:n_used], prepend=0)
        assert set(steps.tolist()) <= {0, 1}
        starts = np.maximum.accumulate(np.where(steps == 1, np.arange(n_used), 0))
        np.testing.assert_array_equal(positions[:n_used], np.arange(n_used) - starts)
        for number in range(1, segments.max() + 1):
            assert len(set(owner[ids[segments == number] - 1])) == 1
            assert (np.diff(ids[segments == number]) == 1).all()


@each
@given(lengths_, st.integers(1, 9), st.lists(st.integers(0, 14), max_size=4))
def test_how_documents_arrive_changes_nothing(packing: Packing, lengths: list[int], seq_len: int, cuts: list[int]) -> None:
    documents = numbered(lengths)
    edges = sorted([0, len(documents), *(min(at, len(documents)) for at in cuts)])
    parts = [[array("i", d) for d in documents[a:b]] for a, b in itertools.pairwise(edges)]
    whole, n_whole = pack(packing, [documents], seq_len)
    fed, n_fed = pack(packing, parts, seq_len)
    assert n_whole == n_fed
    for name in COLUMNS:
        np.testing.assert_array_equal(getattr(whole, name), getattr(fed, name))


@pytest.mark.parametrize("name", CONSERVING)
@given(lengths_, st.integers(1, 9))
def test_nothing_is_truncated_by_a_packing_that_conserves(name: str, lengths: list[int], seq_len: int) -> None:
    assert pack(PACKINGS[name], [numbered(lengths)], seq_len)[1] == 0


@given(lengths_, st.integers(1, 9))
def test_concatenation_keeps_the_stream_and_fills_all_rows_but_the_last(lengths: list[int], seq_len: int) -> None:
    rows, _ = pack(Concatenate(), [numbered(lengths)], seq_len)
    assert rows.input_ids_NT.reshape(-1)[: sum(lengths)].tolist() == list(range(1, sum(lengths) + 1))
    assert len(rows) == -(-sum(lengths) // seq_len)


def test_concatenation_by_hand() -> None:
    rows, _ = pack(Concatenate(), [[[5, 6, 7], [8, 9, 10, 11]]], 4)
    assert rows.input_ids_NT.tolist() == [[5, 6, 7, 8], [9, 10, 11, 0]]
    assert rows.segment_ids_NT.tolist() == [[1, 1, 1, 2], [1, 1, 1, 0]]
    assert rows.position_ids_NT.tolist() == [[0, 1, 2, 0], [0, 1, 2, 0]]


@given(lengths_, st.integers(1, 9))
def test_best_fit_cuts_only_what_is_longer_than_a_row(lengths: list[int], seq_len: int) -> None:
    rows, _ = pack(BestFit(), [numbered(lengths)], seq_len)
    expected = [d[at : at + seq_len] for d in numbered(lengths) for at in range(0, len(d), seq_len)]
    assert sorted(pieces(rows)) == sorted(expected)


def test_best_fit_by_hand() -> None:
    rows, _ = pack(BestFit(), [[[1, 2], [3, 4, 5], [6, 7, 8, 9, 10, 11, 12], [13]]], 5)
    assert rows.input_ids_NT.tolist() == [[1, 2, 3, 4, 5], [6, 7, 8, 9, 10], [11, 12, 13, 0, 0]]
    assert rows.segment_ids_NT.tolist() == [[1, 1, 2, 2, 2], [1, 1, 1, 1, 1], [1, 1, 2, 0, 0]]
    assert rows.position_ids_NT.tolist() == [[0, 1, 0, 1, 2], [0, 1, 2, 3, 4], [0, 1, 0, 0, 0]]


@given(st.lists(st.integers(1, 30), min_size=1, max_size=60))
def test_each_bin_is_the_fullest_that_had_room(lengths: list[int]) -> None:
    """Against the definition, written down plainly."""
    rooms: list[int] = []
    for length in sorted(lengths, reverse=True):
        fitting = [room for room in rooms if room >= length]
        if fitting:
            rooms[rooms.index(min(fitting))] -= length
        else:
            rooms.append(30 - length)
    bins = best_fit(np.array(lengths), 30)
    fill = np.bincount(bins, weights=lengths)
    assert sorted((30 - fill).tolist()) == sorted(rooms)


def realistic(n: int, seed: int = 0) -> list[int]:
    """Lengths of documents, log-normal as those of web pages and paragraphs are: median 200 tokens, some of many thousands."""
    return np.random.default_rng(seed).lognormal(5.3, 1.2, n).astype(int).clip(2, 30_000).tolist()


@pytest.mark.parametrize("seq_len", [512, 2048])
def test_best_fit_fills_rows_and_cuts_far_fewer_documents(seq_len: int) -> None:
    lengths = realistic(4000)
    found = {}
    for packing in (BestFit(), Concatenate()):
        rows, _ = pack(packing, [numbered(lengths)], seq_len)
        n_cut = len(pieces(rows)) - len(lengths)
        needed = sum(-(-length // seq_len) - 1 for length in lengths)
        found[packing.type] = (float((rows.segment_ids_NT > 0).mean()), n_cut - needed)
    assert found["best_fit"][0] >= 0.99
    assert found["best_fit"][1] == 0
    assert found["concatenate"][1] > len(lengths) / 20


@given(st.lists(st.integers(1, 20), max_size=14), st.integers(1, 9))
@settings(max_examples=50)
def test_unpacked_gives_each_document_its_row_and_counts_what_it_leaves_out(lengths: list[int], seq_len: int) -> None:
    documents = numbered(lengths)
    rows, n_truncated = pack(Unpacked(), [documents], seq_len)
    assert pieces(rows) == [d[:seq_len] for d in documents]
    assert len(rows) == len(documents)
    assert n_truncated == sum(max(0, length - seq_len) for length in lengths)
