"""The keyed order: the published generator, a bijection, pinned; sources interleaved, positions dealt to lanes."""

from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fmray.data import order as order_
from fmray.data.order import GlobalOrder, deal, interleave, key, mix, permutation, unit


def test_it_is_splitmix64() -> None:
    golden = 0x9E3779B97F4A7C15
    first_three = [int(mix(np.array([0], np.uint64), n * golden)[0]) for n in (1, 2, 3)]
    assert first_three == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]


def test_different_numbers_stay_different() -> None:
    assert len(np.unique(mix(np.arange(200_000, dtype=np.uint64), key(1)))) == 200_000


def test_the_order_is_pinned() -> None:
    assert key(0) == 0x6E789E6AA1B965F4
    assert permutation(8, key(7, 0)).tolist() == [7, 3, 5, 6, 2, 4, 0, 1]


def test_keys_differ_by_every_part_and_their_order() -> None:
    assert len({key(), key(0), key(0, 0), key(1), key(0, 1), key(1, 0), key(-1)}) == 7


def test_unit_draws_uniformly() -> None:
    drawn = unit(np.arange(100_000, dtype=np.uint64), key(5))
    assert drawn.min() >= 0
    assert drawn.max() < 1
    assert abs((drawn < 0.05).mean() - 0.05) < 0.003


counts_of_sources = st.lists(st.integers(0, 60), min_size=1, max_size=4).filter(any)


def sorted_by_hand(counts: Sequence[int]) -> list[int]:
    """The definition, in exact arithmetic."""
    return [source for _, source in sorted((Fraction(2 * k + 1, 2 * n), source) for source, n in enumerate(counts) for k in range(n))]


@given(counts_of_sources)
def test_sources_are_interleaved_by_the_exact_order_of_their_times(counts: list[int]) -> None:
    assert whole(counts).tolist() == sorted_by_hand(counts)


def whole(counts: Sequence[int]) -> np.ndarray:
    return interleave(counts, [0] * len(counts), counts)


def bound(counts: Sequence[int]) -> float:
    """The largest of 1 + (S - 2) f over the shares f of S sources; nothing, when there is one."""
    present = [n for n in counts if n]
    return 1 + (len(present) - 2) * max(present) / sum(present) + 1e-9 if len(present) > 1 else 1e-9


def furthest(sources: np.ndarray, counts: Sequence[int]) -> float:
    """How far any stretch of the order is from the shares of the sources, in rows: the spread of what a prefix is ahead."""
    worst = 0.0
    for source, n in enumerate(counts):
        ahead = np.concatenate([[0], np.cumsum(sources == source)]) - np.arange(len(sources) + 1) * n / len(sources)
        worst = max(worst, float(ahead.max() - ahead.min()))
    return worst


@given(counts_of_sources)
def test_every_stretch_holds_each_sources_share(counts: list[int]) -> None:
    assert furthest(whole(counts), counts) <= bound(counts)


@given(counts_of_sources, st.integers(0, 50), st.integers(1, 8))
def test_rows_are_dealt_once_and_lanes_of_a_source_are_runs(counts: list[int], first: int, n_lanes: int) -> None:
    sources = whole(counts)
    taken, lanes = deal(sources, len(counts), first, n_lanes), (first + np.arange(len(sources))) % n_lanes
    for source, n in enumerate(counts):
        mine = sources == source
        assert sorted(taken[mine]) == list(range(n))
        runs = [taken[mine & (lanes == lane)] for lane in range(n_lanes)]
        assert np.concatenate(runs).tolist() == list(range(n))


def made_order(sizes: Sequence[int], sources: Sequence[int], seed: int = 5, n_lanes: int = 1) -> GlobalOrder:
    return GlobalOrder(np.array(sizes, np.int64), np.array(sources, np.int64), seed, n_lanes)


@st.composite
def orders(draw: st.DrawFn) -> tuple[GlobalOrder, list[int], list[int]]:
    sizes = draw(st.lists(st.integers(1, 9), min_size=1, max_size=60))
    n_sources = draw(st.integers(1, min(3, len(sizes))))
    sources = [*range(n_sources), *draw(st.lists(st.integers(0, n_sources - 1), min_size=len(sizes) - n_sources, max_size=len(sizes) - n_sources))]
    return made_order(sizes, sources, draw(st.integers(0, 9)), draw(st.integers(1, 6))), sizes, sources


@given(orders(), st.data())
def test_an_epoch_is_a_permutation_and_any_positions_of_it_are_found_alone(
    made: tuple[GlobalOrder, list[int], list[int]], data: st.DataObject
) -> None:
    order, sizes, sources = made
    epoch = order.row_ids(2, np.arange(order.n_rows))
    assert sorted(epoch) == list(range(sum(sizes)))
    some = np.array(data.draw(st.lists(st.integers(0, order.n_rows - 1), max_size=20)), np.int64)
    fresh = made_order(sizes, sources, order.seed, order.n_lanes)
    np.testing.assert_array_equal(fresh.row_ids(2, some), epoch[some])


@given(orders())
def test_an_epoch_is_interleaved_by_the_exact_order_whatever_its_stripes(made: tuple[GlobalOrder, list[int], list[int]]) -> None:
    order, sizes, sources = made
    source_of_row = np.repeat(sources, sizes)
    found = source_of_row[order.row_ids(0, np.arange(order.n_rows))]
    assert found.tolist() == sorted_by_hand(np.bincount(source_of_row).tolist())


def test_a_large_mixture_keeps_its_shares_in_every_batch() -> None:
    rows_of = [70_000, 25_000, 5_000]
    large = made_order([100] * 1000, np.repeat([0, 1, 2], [700, 250, 50]).tolist(), n_lanes=8)
    found = np.searchsorted(np.cumsum(rows_of), large.row_ids(1, np.arange(100_000)), side="right")
    assert len(large._starts) > 10
    assert furthest(found, rows_of) <= 2.0
    for source, n in enumerate(rows_of):
        in_batch = (found == source).reshape(-1, 32).sum(axis=1)
        assert abs(in_batch - 32 * n / 100_000).max() <= 1.25


def test_seed_and_epoch_change_the_order_within_each_source() -> None:
    first = made_order([7] * 30, [0] * 20 + [1] * 10, seed=1)
    places = np.arange(first.n_rows)
    a, b, c = first.row_ids(0, places), first.row_ids(1, places), made_order([7] * 30, [0] * 20 + [1] * 10, seed=2).row_ids(0, places)
    np.testing.assert_array_equal(a < 140, b < 140)
    np.testing.assert_array_equal(a < 140, c < 140)
    assert (a != b).mean() > 0.8
    assert (a != c).mean() > 0.8


@pytest.mark.parametrize("world_size", [2, 4, 8])
def test_workers_read_blocks_of_their_own(world_size: int) -> None:
    large = made_order([10] * 400, [0] * 300 + [1] * 100, n_lanes=8)
    blocks = [set(large.row_ids(0, np.arange(rank, large.n_rows, world_size)) // 10) for rank in range(world_size)]
    assert set().union(*blocks) == set(range(400))
    assert max(map(len, blocks)) < 1.35 * 400 / world_size


def test_memory_is_bounded_by_a_stripe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(order_, "MAX_STRIPE", 1000)
    large = made_order([100] * 500, [0] * 400 + [1] * 100, n_lanes=16)
    assert max(np.diff(large._starts)) <= 2000
    assert sorted(large.row_ids(0, np.arange(50_000))) == list(range(50_000))
