"""The keyed order: the published generator, a bijection, and pinned so that no release reorders anyone's training."""

import numpy as np

from fmray.data.order import key, mix, permutation, unit


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
