"""Counterfactual texts: words swapped in their own case, English pronouns by their place."""

import gzip
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fmray.data.corpus_bias import CorpusBias
from fmray.data.corpus_bias.counterfactual import owns
from fmray.data.text import normalise

NOVELS = Path(__file__).parents[3] / "shared" / "data" / "pretrain" / "en" / "novels"


def swapped(text: str, **config: object) -> str | None:
    (found,) = CorpusBias.model_validate({"correct": "augment", **config}).counterfactual([text])
    return found


@pytest.mark.parametrize(("text", "expected"), [
    ("He said that SHE was Himself.", "She said that HE was Herself."),
    ("I saw her book and told her so; I like her.", "I saw his book and told him so; I like him."),
    ("Her brother gave her the letter", "His sister gave him the letter"),
    ("She gave her her\nhat gently, and thanked her kindly enough", "He gave him his\nhat gently, and thanked him kindly enough"),
    ("The book is his, and his dog is with him.", "The book is hers, and her dog is with her."),
    ("That hat was hers. HIS only son, HER only daughter", "That hat was his. HER only daughter, HIS only son"),
    ("Mr. Gray and Mrs. Gray, Ms. Gray and Miss Gray miss him", "Mrs. Gray and Mr. Gray, Mr. Gray and Mr Gray miss her"),
    ("Lady Anne, Sir John and the lady; yes, sir", "Lord Anne, Dame John and the gentleman; yes, madam"),
    ("the king's men", "the queen's women"),
])  # fmt: skip
def test_english(text: str, expected: str) -> None:
    assert swapped(text) == expected


@pytest.mark.parametrize("text", ["", "The weather was dull.", "heroic sheet, theme, human, hist, manner", "John met Mary."])
def test_nothing_to_swap(text: str) -> None:
    assert swapped(text) is None


def test_names_are_swapped_on_request() -> None:
    assert swapped("John met Mary, JOHN's friend.", swap_names=True) == "Mary met John, MARY's friend."


def test_chinese_is_swapped_in_place_but_not_inside_other_words() -> None:
    assert swapped("他们和其他人；她的爸爸弹吉他。", lists="zh_gender") == "她们和其他人；他的妈妈弹吉他。"
    assert swapped("其他人弹吉他。", lists="zh_gender") is None


def test_own_lists_are_swapped_by_place() -> None:
    assert swapped("Cats and a dog", groups={"a": ("cat", "cats"), "b": ("dog", "dogs")}) == "Dogs and a cat"


@given(st.lists(st.sampled_from(["he", "she", "man", "Woman", "KING", "queen", "boys", "Girls", "himself", "herself", "and", "the", "12", "a-b", "."]), max_size=20))
def test_what_maps_one_to_one_comes_back(words: list[str]) -> None:
    text = " ".join(words)
    there = swapped(text)
    assert (text if there is None else swapped(there)) == text


def test_the_rule_for_her_is_right_mostly_on_real_text() -> None:
    """Men's pronouns show which is which: the rule must tell `him` from `his` by what follows, as it must for `her`."""
    if not NOVELS.is_dir():
        pytest.skip(f"no novels in {NOVELS}")
    right = {"him": 0, "his": 0}
    total = dict(right)
    for file in sorted(NOVELS.glob("*.gz"))[1:12:2]:
        text = normalise(gzip.decompress(file.read_bytes()).decode("utf-8", errors="replace"))
        for found in re.finditer(r"\b(?:him|his)\b(?=[\w\s,.;:!?\"”—])", text):
            if found[0] == "his" and not re.match(r"\s\w", text[found.end() : found.end() + 2]):
                continue
            total[found[0]] += 1
            right[found[0]] += owns(text, found.end()) == (found[0] == "his")
    assert min(total.values()) > 2000
    assert right["him"] / total["him"] > 0.9
    assert right["his"] / total["his"] > 0.97
