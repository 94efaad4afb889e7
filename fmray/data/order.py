"""Deterministic pseudo-random order: a keyed bijection of 64-bit numbers that no library version can change."""

import numpy as np
from numpy.typing import NDArray

U64 = NDArray[np.uint64]

_GOLDEN = 0x9E3779B97F4A7C15
_MASK = (1 << 64) - 1


def mix(values: U64, key: int) -> U64:
    """A bijection of 64-bit numbers chosen by `key`: splitmix64's output function (Steele, Lea and Flood, 2014) after a keyed offset.

    Sorting anything by `mix(ids, key)` gives a repeatable shuffle that depends on nothing but the ids and the key.
    """
    with np.errstate(over="ignore"):
        z = values.astype(np.uint64) + np.uint64(key & _MASK)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


def key(*parts: int) -> int:
    """One 64-bit key from several numbers, such as a seed, an epoch and a purpose; the order of the parts matters."""
    state = 0
    for part in parts:
        value = np.array([(state + part + 1) * _GOLDEN & _MASK], np.uint64)
        state = int(mix(value, _GOLDEN)[0])
    return state


def unit(values: U64, key: int) -> NDArray[np.float64]:
    """A number in [0, 1) for each value, uniform over the values: to draw splits by hash."""
    return (mix(values, key) >> np.uint64(11)).astype(np.float64) / float(1 << 53)


def permutation(n: int, key: int) -> NDArray[np.int64]:
    """The numbers 0 to n-1 in the order that `key` gives them."""
    return np.argsort(mix(np.arange(n, dtype=np.uint64), key), kind="stable")
