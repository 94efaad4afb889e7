"""Figures of corpus bias from its counts.

Representation and association are HELM's (Liang et al. 2022, section 4.7): the total variation distance of the groups' shares
from uniform, where mentions are divided by the length of the group's list; and the mean of that distance over the target words,
where a target's share of a group counts their mentions within the same window. Pointwise mutual information and the test are
taken over windows that hold a word at all, so that a long text with one pronoun in every line does not decide them alone.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fmray.data.corpus_bias._lists import WordLists
from fmray.data.corpus_bias.counting import BiasCounts

Floats = NDArray[np.float64]
SMOOTHING = 0.5
Z = 1.959963984540054
"""Standard normal quantile of a two-sided 95 % interval."""


def distance_from_uniform(amounts_G: Floats) -> float | None:
    """Total variation distance of the shares from equal ones, 0 to 1 - 1/G; None where there is nothing."""
    total = float(amounts_G.sum())
    return float(np.abs(amounts_G / total - 1.0 / len(amounts_G)).sum() / 2.0) if total > 0 else None


def normalised(mentions: NDArray[np.int64], sizes_G: NDArray[np.int64]) -> Floats:
    """Mentions for each word of the group's list."""
    return mentions / sizes_G


def report(lists: WordLists, counts: BiasCounts, sizes_G: NDArray[np.int64], min_count: int, n_words: int) -> dict[str, Any]:
    """All figures as plain JSON values; see `CorpusBias.report`."""
    amounts_G = normalised(counts.mentions_G, sizes_G)
    names = list(lists.groups)
    total = amounts_G.sum()
    groups = {
        name: {
            "mentions": int(counts.mentions_G[g]),
            "list_words": int(sizes_G[g]),
            "share": _round(amounts_G[g] / total) if total else None,
            "windows": int(counts.windows_G[g]),
            "documents_leaning": int(counts.leaning_G[g]),
        }
        for g, name in enumerate(names)
    }
    distance = distance_from_uniform(amounts_G)
    kinds, first = {}, 0
    for kind, words in lists.targets.items():
        kinds[kind] = _association(counts, sizes_G, slice(first, first + len(words)))
        first += len(words)
    return {
        "n_documents": counts.n_documents,
        "n_windows": counts.n_windows,
        "groups": groups,
        "representation": {"distance_from_uniform": _round(distance)},
        "association": _association(counts, sizes_G, slice(None)) | {"by_kind": kinds},
        "most_skewed": skewed_words(lists, counts, min_count)[:n_words],
        "min_count": min_count,
    }


def _association(counts: BiasCounts, sizes_G: NDArray[np.int64], part: slice) -> dict[str, Any]:
    """HELM's association, and the same against the groups' own shares, which says how much of it is more than representation."""
    together_TG = normalised(counts.together_TG[part], sizes_G)
    found_TG = together_TG[together_TG.sum(axis=1) > 0]
    if not len(found_TG):
        return {"distance_from_uniform": None, "distance_from_representation": None, "n_targets": 0}
    shares_TG = found_TG / found_TG.sum(axis=1, keepdims=True)
    amounts_G = normalised(counts.mentions_G, sizes_G)
    base_G = amounts_G / amounts_G.sum()
    return {
        "distance_from_uniform": _round(np.abs(shares_TG - 1.0 / shares_TG.shape[1]).sum(axis=1).mean() / 2.0),
        "distance_from_representation": _round(np.abs(shares_TG - base_G).sum(axis=1).mean() / 2.0),
        "n_targets": len(found_TG),
    }


def skewed_words(lists: WordLists, counts: BiasCounts, min_count: int) -> list[dict[str, Any]]:
    """Target words that stand beside a group in at least `min_count` windows, those that differ most from the groups' own shares first.

    Each with its windows by group, the group that it favours, that group's share with its Wilson interval (95 %) and what it
    would be by the groups' frequency, PMI in bits with that group (counts smoothed by one half), and Pearson's chi-square over the groups with its p-value, not corrected
    for the number of words.
    """
    from scipy.stats import chi2

    kinds = [kind for kind, words in lists.targets.items() for _ in words]
    names = list(lists.groups)
    n_GT = counts.windows_TG.sum(axis=1)
    if not counts.windows_G.sum():
        return []
    base_G = counts.windows_G / counts.windows_G.sum()
    rows = []
    for t in np.flatnonzero(n_GT >= max(1, min_count)):
        both_G, n = counts.windows_TG[t], int(n_GT[t])
        possible = base_G > 0
        expected_G = n * base_G[possible]
        statistic = float(((both_G[possible] - expected_G) ** 2 / expected_G).sum())
        g = int(np.argmax(np.where(possible, both_G / n - base_G, -np.inf)))
        low, high = _wilson(int(both_G[g]), n)
        rows.append(
            {
                "word": lists.target_names[t],
                "kind": kinds[t],
                "mentions": int(counts.targets_T[t]),
                "windows": {name: int(both_G[i]) for i, name in enumerate(names)},
                "favours": names[g],
                "share": _round(both_G[g] / n),
                "share_lower": _round(low),
                "share_upper": _round(high),
                "share_expected": _round(base_G[g]),
                "pmi_bits": _round(_pmi(counts, int(t), g)),
                "chi_square": _round(statistic),
                "p_value": float(chi2.sf(statistic, max(1, int(possible.sum()) - 1))),
            }
        )
    return sorted(rows, key=lambda row: (-row["chi_square"], row["word"]))


def _pmi(counts: BiasCounts, t: int, g: int) -> float:
    """log2 of how much oftener a window holds both than it would if they were independent."""
    n = counts.n_windows + SMOOTHING
    both = (counts.windows_TG[t, g] + SMOOTHING) / n
    return float(np.log2(both / ((counts.windows_T[t] + SMOOTHING) / n * (counts.windows_G[g] + SMOOTHING) / n)))


def _wilson(k: int, n: int) -> tuple[float, float]:
    """Wilson's score interval (1927) of a share of k in n."""
    centre = (k + Z * Z / 2) / (n + Z * Z)
    half = Z / (n + Z * Z) * float(np.sqrt(k * (n - k) / n + Z * Z / 4))
    return max(0.0, centre - half), min(1.0, centre + half)


def repeats_by_group(counts: BiasCounts, sizes_G: NDArray[np.int64], max_repeats: int) -> Floats:
    """How often documents that lean towards each group should stand in the corpus, 1 to `max_repeats`, for the most even mentions [G].

    Coordinate by coordinate on a grid of 64ths, until nothing changes; of equally good values the smallest, for repeated text
    is what it costs.
    """
    grid_R = 1.0 + np.arange((max_repeats - 1) * 64 + 1) / 64.0
    repeats_G = np.ones(len(sizes_G))
    own_GG = normalised(counts.leaning_mentions_GG, sizes_G)
    fixed_G = normalised(counts.mentions_G, sizes_G) - own_GG.sum(axis=0)
    if not counts.mentions_G.sum():
        return repeats_G
    for _ in range(50):
        before = repeats_G.copy()
        for g in range(len(repeats_G)):
            others_G = fixed_G + repeats_G @ own_GG - repeats_G[g] * own_GG[g]
            amounts_RG = others_G + grid_R[:, None] * own_GG[g]
            shares_RG = amounts_RG / amounts_RG.sum(axis=1, keepdims=True)
            unevenness_R = np.round(((shares_RG - 1.0 / len(repeats_G)) ** 2).sum(axis=1), 12)
            repeats_G[g] = grid_R[int(np.argmin(unevenness_R))]
        if (repeats_G == before).all():
            break
    return repeats_G


def _round(value: float | np.floating[Any] | None) -> float | None:
    return None if value is None else round(float(value), 6)
