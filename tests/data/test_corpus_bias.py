"""Corpus bias: figures on planted corpora whose skew is known, corrections that reduce it, real novels."""

import gzip
import json
import pickle
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fmray.core.config import load_config
from fmray.core.errors import ConfigError
from fmray.data.corpus_bias import BiasCounts, CorpusBias
from fmray.data.text import normalise, paragraphs

NOVELS = Path(__file__).parents[3] / "shared" / "data" / "pretrain" / "en" / "novels"
TWO = {"groups": {"left": ["lefty", "leftish"], "right": ["righty", "rightish"]}, "targets": {"kinds": ["nurse/nurses", "clerk"]}}


def bias(**config: Any) -> CorpusBias:
    return load_config(CorpusBias, config)


def counted(config: CorpusBias, texts: list[str], size: int = 7) -> BiasCounts:
    total = config.empty()
    for at in range(0, len(texts), size):
        total.add(config.count(texts[at : at + size]))
    return total


def same(a: BiasCounts, b: BiasCounts) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(vars(a).values(), vars(b).values(), strict=True))


def planted() -> list[str]:
    """Two men for each woman, and nurses beside women four times in five."""
    draw = random.Random(0)
    texts = []
    for i in range(600):
        group = "He" if i % 3 else "She"
        nurse = draw.random() < (0.8 if group == "She" else 0.1)
        texts.append(f"{group} worked in the town as {'a nurse' if nurse else 'a clerk'}. The weather was dull.")
    return texts


def test_helms_figures_by_hand() -> None:
    config = bias(**TWO, min_count=1)
    counts = config.count(["lefty nurse, leftish. righty", "Lefty! clerk", "nurses and nurses"])
    assert (counts.n_documents, counts.n_windows) == (3, 5)
    assert counts.mentions_G.tolist() == [3, 1]
    assert counts.targets_T.tolist() == [3, 1]
    assert counts.together_TG.tolist() == [[2, 0], [0, 0]]
    assert (counts.windows_G.tolist(), counts.windows_T.tolist()) == ([2, 1], [2, 1])
    assert counts.windows_TG.tolist() == [[1, 0], [0, 0]]
    found = config.report(counts)
    assert found["representation"]["distance_from_uniform"] == 0.25
    assert found["association"] | {"by_kind": None} == {"distance_from_uniform": 0.5, "distance_from_representation": 0.25, "n_targets": 1, "by_kind": None}


def test_mentions_are_weighed_by_the_length_of_the_lists() -> None:
    config = bias(groups={"one": ["a"], "three": ["b", "c", "d"]}, targets={})
    assert config.report(config.count(["a b c d"]))["representation"]["distance_from_uniform"] == 0.0
    assert config.report(config.count(["a"]))["groups"]["one"]["share"] == 1.0


def test_a_planted_association_is_found_with_its_figures() -> None:
    config = bias(min_count=5)
    found = config.report(counted(config, planted()))
    assert found["groups"]["male"]["mentions"] == 400
    assert found["representation"]["distance_from_uniform"] == pytest.approx(2 / 3 - 1 / 2, abs=1e-6)
    words = {row["word"]: row for row in found["most_skewed"]}
    assert set(words) == {"nurse", "clerk"}
    assert (words["nurse"]["favours"], words["clerk"]["favours"]) == ("female", "male")
    assert words["nurse"]["windows"]["female"] == words["nurse"]["mentions"] - words["nurse"]["windows"]["male"]
    assert words["nurse"]["share_lower"] > words["nurse"]["share_expected"] == pytest.approx(1 / 3, abs=1e-6)
    assert words["nurse"]["share_lower"] < words["nurse"]["share"] < words["nurse"]["share_upper"]
    assert words["nurse"]["p_value"] < 1e-20
    assert words["nurse"]["pmi_bits"] > 0
    json.dumps(found)


def test_where_nothing_leans_nothing_stands_out() -> None:
    draw = random.Random(1)
    texts = [f"{draw.choice(['He', 'She'])} was {draw.choice(['kind', 'brave', 'proud'])}." for _ in range(3000)]
    config = bias(min_count=5)
    found = config.report(counted(config, texts))
    assert found["representation"]["distance_from_uniform"] < 0.03
    assert all(row["p_value"] > 0.001 for row in found["most_skewed"])
    assert len(found["most_skewed"]) == 3


def test_an_empty_corpus_has_no_figures() -> None:
    for config in (bias(), bias(lists="zh_gender", correct="rebalance")):
        for counts in (config.empty(), config.count([]), config.count(["42", ""])):
            found = config.report(counts)
            assert found["representation"]["distance_from_uniform"] is None
            assert found["most_skewed"] == []


def test_windows_are_sentences_or_documents() -> None:
    text = "He slept. Mr. Gray, a nurse (of St. Ives), met her!\n\nThe clerk left"
    sentence, document = (bias(window=window).count([text]) for window in ("sentence", "document"))
    assert (sentence.n_windows, document.n_windows) == (3, 1)
    assert sentence.together_TG.sum(axis=0).tolist() == [1, 1]
    assert document.together_TG.sum(axis=0).tolist() == [4, 2]


def test_words_are_found_whatever_stands_around_them() -> None:
    config = bias()
    assert config.count(["“He—she” ‘HIS’ she's, (her)his; herein sheer «him»\u00a0he"]).mentions_G.tolist() == [5, 3]


def test_chinese_words_are_found_without_spaces_and_longer_words_first() -> None:
    config = bias(lists="zh_gender", min_count=1)
    counts = config.count(["他们是工程师，其他人不是。她是护士！吉他和女王"])
    assert counts.mentions_G.tolist() == [1, 2]
    assert counts.n_windows == 3
    rows = {row["word"]: row["favours"] for row in config.report(counts)["most_skewed"]}
    assert rows == {"工程师": "male", "护士": "female"}


@given(st.lists(st.text("heHEsr nurse.\n \u201c", max_size=30), max_size=12), st.integers(1, 5), st.randoms())
def test_parts_add_up_in_any_order_and_travel_by_pickle(texts: list[str], size: int, draw: random.Random) -> None:
    config = bias()
    texts = [normalise(text) for text in texts]
    parts = [config.count(texts[at : at + size]) for at in range(0, len(texts), size)]
    draw.shuffle(parts)
    total = config.empty()
    for part in parts:
        total.add(pickle.loads(pickle.dumps(part)))
    assert same(total, config.count(texts))


def rebalanced(config: CorpusBias, texts: list[str]) -> tuple[dict[str, Any], dict[str, Any], np.ndarray]:
    counts = counted(config, texts)
    repeats = np.concatenate([config.repeats(texts[at : at + 50], counts) for at in range(0, len(texts), 50)])
    after = counted(config, [text for text, n in zip(texts, repeats, strict=True) for _ in range(n)])
    return config.report(counts), config.report(after), repeats


def test_rebalancing_evens_out_mentions() -> None:
    before, after, repeats = rebalanced(bias(correct="rebalance"), planted())
    assert before["repeats"] == {"male": 1.0, "female": 2.0}
    assert (before["representation"]["distance_from_uniform"], after["representation"]["distance_from_uniform"]) == (pytest.approx(1 / 6, abs=1e-6), 0.0)
    assert set(repeats.tolist()) == {1, 2}


def test_rebalancing_is_bounded_and_draws_by_text_and_seed_alone() -> None:
    texts = [f"He wrote the letter of number {i}." for i in range(1000)] + [f"She read letter {i}." for i in range(300)]
    before, after, repeats = rebalanced(bias(correct="rebalance", max_repeats=3), texts)
    assert repeats.max() == 3
    assert before["repeats"]["female"] == 3.0
    assert 0.0 < after["representation"]["distance_from_uniform"] < before["representation"]["distance_from_uniform"]
    config = bias(correct="rebalance", max_repeats=9)
    counts = counted(config, texts)
    repeats = config.repeats(texts, counts)
    assert set(repeats[1000:].tolist()) == {3, 4}
    assert repeats[1000:].mean() == pytest.approx(config.report(counts)["repeats"]["female"], abs=0.1)
    order = list(range(len(texts)))
    random.Random(0).shuffle(order)
    assert config.repeats([texts[i] for i in order], counts).tolist() == repeats[order].tolist()
    assert config.model_copy(update={"seed": 1}).repeats(texts, counts).tolist() != repeats.tolist()


def test_rebalancing_three_groups() -> None:
    draw = random.Random(0)
    texts = [f"{draw.choices(['a', 'b', 'c'], [6, 3, 2])[0]} and {draw.choice(['a', 'b', 'c'])} {i}" for i in range(2000)]
    config = bias(groups={"a": ["a"], "b": ["b"], "c": ["c"]}, targets={}, correct="rebalance")
    before, after, _ = rebalanced(config, texts)
    assert after["representation"]["distance_from_uniform"] < before["representation"]["distance_from_uniform"] / 5


def test_augmenting_evens_out_mentions_and_associations() -> None:
    config = bias(correct="augment", min_count=5)
    texts = planted()
    swapped = config.counterfactual(texts)
    assert None not in swapped
    before, after = (config.report(counted(config, t)) for t in (texts, [*texts, *filter(None, swapped)]))
    assert after["representation"]["distance_from_uniform"] == 0.0
    assert after["association"]["distance_from_uniform"] == 0.0 < before["association"]["distance_from_uniform"]
    assert all(row["p_value"] > 0.9 for row in after["most_skewed"])


@pytest.mark.parametrize(("config", "message"), [
    ({"groups": {"one": ["a"]}}, "at least two"),
    ({"groups": {"one": ["a"], "two": []}}, "each group needs a word"),
    ({"groups": {"one": ["a"], "two": ["b", "A"]}}, "'a' is listed twice"),
    ({"groups": {"one": ["a"], "two": ["two words"]}}, "'two words' is not one word"),
    ({"lists": "en_religion", "correct": "augment"}, "augment needs pairs to swap"),
    ({"groups": {"one": ["a"], "two": ["b", "c"]}, "correct": "augment"}, "augment needs pairs"),
    ({"lists": "zh_gender", "swap_names": True}, "swap_names is there for"),
])  # fmt: skip
def test_lists_that_cannot_be_used_are_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        bias(**config)


def test_own_targets_join_shipped_groups() -> None:
    config = bias(targets={"things": ["tea", "ship/ships"]}, min_count=1)
    rows = {row["word"]: row["favours"] for row in config.report(config.count(["He saw ships.", "She had tea."]))["most_skewed"]}
    assert rows == {"ship": "male", "tea": "female"}


@pytest.mark.parametrize("name", ["en_gender", "en_age", "en_religion", "zh_gender", "zh_age"])
def test_every_shipped_list_has_no_word_twice(name: str) -> None:
    lists = bias(lists=name).word_lists
    words = [w for words in lists.groups.values() for w in words] + [s for words in lists.targets.values() for w in words for s in w.split("/")]
    assert len(set(words)) == len(words)
    for words in lists.groups.values():
        counts = bias(lists=name).count(list(words))
        assert counts.mentions_G.sum() == len(words)


def test_real_novels_speak_more_of_men_and_each_correction_reduces_that() -> None:
    if not NOVELS.is_dir():
        pytest.skip(f"no novels in {NOVELS}")
    files = sorted(NOVELS.glob("*.gz"))[:6]
    texts = [part for file in files for part in paragraphs(normalise(gzip.decompress(file.read_bytes()).decode("utf-8", errors="replace")))]
    before, after, _ = rebalanced(bias(correct="rebalance"), texts)
    assert before["groups"]["male"]["share"] > 0.52
    assert after["representation"]["distance_from_uniform"] < before["representation"]["distance_from_uniform"] / 4
    config = bias(correct="augment")
    augmented = config.report(counted(config, [*texts, *filter(None, config.counterfactual(texts))]))
    for figure in ("representation", "association"):
        assert augmented[figure]["distance_from_uniform"] < before[figure]["distance_from_uniform"] / 4
