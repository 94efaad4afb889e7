"""Quality rules: each removes what it names, and they decide as datatrove's filters do on real documents."""

import gzip
import json
import random
import re
import zipfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from fmray.core.config import load_config
from fmray.data.filters import Filter
from fmray.data.filters._tokens import tokens
from fmray.data.filters.c4 import C4, count_sentences
from fmray.data.filters.decontaminate import Decontaminate
from fmray.data.filters.fineweb import Fineweb
from fmray.data.filters.gopher import Gopher
from tests.data.corpora import docstrings, topics
from tests.data.reading import SHARED, needs_shared

PROSE = (
    "The committee met on Thursday to decide what was to be done with the old bridge. Nobody could say how long it had stood there. "
    "Some of the older members have seen it in their childhood, and they wanted it kept. The engineers, however, had found cracks in "
    "two of its arches. After a long debate the vote was put off, and everyone went home in the rain without a word."
)


def fate(filter: Filter, text: str) -> str | None:
    return filter.open()([text]).removed[0]


def test_tokens_are_words_marks_and_contractions_apart() -> None:
    def lengths(text: str) -> list[int]:
        return tokens([text]).length_W.tolist()

    assert lengths('He said: "Don\'t!"') == [2, 4, 1, 1, 2, 3, 1, 1]
    assert lengths("well-known a--b 1-2 a/b") == [4, 1, 5, 1, 2, 1, 1, 1, 1, 1, 1, 1]
    assert lengths("wait... Mr. Smith's U.S. trip.") == [4, 3, 3, 5, 2, 4, 4, 1]
    assert lengths("see http://a.org/b-c, or x@y.org.") == [3, 16, 1, 2, 7, 1]


@pytest.mark.parametrize(
    ("rule", "text"),
    [
        (None, PROSE),
        ("few_words", PROSE[:100]),
        ("short_words", "a I o be " * 60),
        ("long_words", "incomprehensibilities the of to and " * 3 + "disproportionableness " * 60),
        ("hashes", PROSE + " # # # # # # # # # # # # # # # #"),
        ("ellipses", PROSE.replace(" ", " ... ", 12)),
        ("bullets", "\n".join(f"- {line}" for line in PROSE.split(". "))),
        ("ellipsis_lines", "\n".join(f"{line} here goes a longer line that ends in…" for line in PROSE.split(". "))),
        ("few_alphabetic", PROSE + " 12 34 56 78" * 12),
        ("few_stop_words", "Committees met Thursday deciding fates concerning bridges nobody remembered building. " * 9),
        ("repeated_paragraphs", f"{PROSE}\n\n" + "Same old story.\n\n" * 3),
        ("repeated_lines", PROSE.replace(". ", ".\n") + "\nSame.\nSame.\nSame.\nSame."),
        ("repeated_line_chars", f"{PROSE}\nOne\nTwo\nThree\nFour\n{PROSE}"),
        ("top_2_gram", PROSE + " old bridge" * 20),
        ("repeated_5_grams", f"{PROSE} {PROSE[:150]}"),
    ],
)
def test_gopher_names_what_is_wrong(rule: str | None, text: str) -> None:
    assert fate(Gopher(), text) == rule


def test_c4_keeps_sentences_and_says_how_many_lines_it_cut() -> None:
    lines = PROSE.replace(". ", ".\n").split("\n")
    page = "\n".join(["Home", "Menu | About", *lines, "We use cookies to please you.", "Please enable Javascript now.", "Read more..."])
    outcome = C4().open()([page, "One. Two. Three.", f"{PROSE}\nLorem ipsum dolor sit amet.", f"{PROSE}\nif (a) {{ b }} else c.", "a [12] fact. " * 5])
    assert outcome.removed == [None, "few_sentences", "lorem_ipsum", "curly_bracket", None]
    assert outcome.texts[0] == "\n".join(lines)
    assert outcome.texts[4].count("[") == 0
    assert outcome.notes == {"lines_cut": 5}


def test_sentences_are_counted_past_abbreviations() -> None:
    assert count_sentences('Mr. A. Smith paid 3.5 dollars, e.g. in the U.S. yesterday. "Really?" she said. Yes... it is!') == 4


@pytest.mark.parametrize(
    ("rule", "text"),
    [
        (None, PROSE.replace(". ", ".\n")),
        ("unpunctuated_lines", PROSE.replace(".", "").replace(",", "\n")),
        ("short_lines", "Yes, it is so.\n" + "\n".join(f"Line number {i}." for i in range(20))),
        ("repeated_line_chars", f"{PROSE}\n{PROSE}"),
        ("lists", "\n\n\n\n".join(f"This entry has the number {i} in it." for i in range(20))),
    ],
)
def test_fineweb_names_what_is_wrong(rule: str | None, text: str) -> None:
    assert fate(Fineweb(), text) == rule


def lines_of(path: Path) -> list[str]:
    with gzip.open(path, "rt", encoding="utf-8") as stream:
        return [line for line in stream.read().split("\n") if line.strip()]


def peps() -> list[str]:
    return [json.loads(line)["text"] for line in lines_of(SHARED / "pretrain/en/python_peps.jsonl.gz")]


def pieces(parts: list[str], draw: random.Random, most: int, join: str) -> list[str]:
    """Neighbouring parts together, one to `most` of them."""
    made, at = [], 0
    while at < len(parts):
        n = draw.randint(1, most)
        made.append(join.join(parts[at : at + n]))
        at += n
    return made


@cache
def real_documents() -> list[str]:
    """3,000: passages of novels, sections of PEPs, film reviews, docstrings, and texts of Python's help."""
    draw = random.Random(7)
    novels = [piece for path in sorted((SHARED / "pretrain/en/novels").glob("*.gz")) for piece in pieces(lines_of(path), draw, 15, "\n")]
    sections = [piece for text in peps() for piece in pieces(text.split("\n\n"), draw, 12, "\n\n")]
    with zipfile.ZipFile(SHARED / "tasks/cls_en/movie_reviews.zip") as archive:
        reviews = [archive.read(name).decode("latin-1") for name in sorted(archive.namelist()) if name.endswith(".txt")]
    parts = ((novels, 1350), (sections, 750), (reviews, 150), ([d["text"] for d in docstrings()], 600), (pieces(topics(), draw, 6, "\n\n"), 150))
    return [text for texts, n in parts for text in draw.sample(texts, n)]


def disagreements(texts: list[str]) -> dict[str, float]:
    """The share of documents that a filter keeps and datatrove's does not, or the other way round, by filter."""
    oracle = pytest.importorskip("datatrove.pipeline.filters")
    from datatrove.data import Document

    def kept(filter: object, text: str) -> bool:
        return filter.filter(Document(text=text, id="")) is True  # type: ignore[attr-defined]

    pairs: dict[str, tuple[Filter, Callable[[], object]]] = {
        "gopher quality": (Gopher(repetition=False), oracle.GopherQualityFilter),
        "gopher repetition": (Gopher(quality=False), oracle.GopherRepetitionFilter),
        "c4": (C4(), oracle.C4QualityFilter),
        "fineweb": (Fineweb(), oracle.FineWebQualityFilter),
    }
    theirs = {name: make() for name, (_, make) in pairs.items()}
    # All filters on one text before the next: datatrove remembers the tokens of the last few texts.
    wanted = [[kept(oracle_filter, text) for oracle_filter in theirs.values()] for text in texts]
    shares = {}
    for (name, (ours, _)), keeps in zip(pairs.items(), zip(*wanted, strict=True), strict=True):
        assert 0.02 < sum(keeps) / len(texts) < 0.98, f"{name} tells nothing apart here"
        fates = ours.open()(texts).removed
        shares[name] = sum((rule is None) != keep for rule, keep in zip(fates, keeps, strict=True)) / len(texts)
    return shares


def test_they_decide_as_datatrove_does_on_documentation() -> None:
    draw = random.Random(5)
    texts = draw.sample([d["text"] for d in docstrings()], 80) + draw.sample(pieces(topics(), draw, 12, "\n\n"), 70)
    assert all(share <= 0.02 for share in disagreements(texts).values())


@pytest.mark.slow
@needs_shared
def test_they_decide_as_datatrove_does_on_thousands_of_real_documents(record_property: Callable[[str, object], None]) -> None:
    for name, share in disagreements(real_documents()).items():
        record_property(name, f"{1 - share:.4f} agree")
        print(f"{name}: {1 - share:.4f} agree")
        assert share <= 0.01, f"{name}: {share:.4f} disagree"


def decontaminate(path: Path) -> Decontaminate:
    return load_config(Decontaminate, {"type": "decontaminate", "sets": {"exam": {"source": {"type": "jsonl", "path": str(path)}}}})


def held_out(texts: list[str], folder: Path) -> Decontaminate:
    path = folder / "exam.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return decontaminate(path)


@needs_shared
def test_known_leaks_of_the_real_data_are_found_and_clean_pairs_are_clean(tmp_path: Path) -> None:
    texts = peps()
    hit = held_out(texts[::2], tmp_path).open()(texts[1::2]).removed
    assert sum(rule == "exam" for rule in hit) > len(texts) // 8  # licence and status paragraphs that PEPs share
    bleak = lines_of(SHARED / "pretrain/en/novels/Dickens_Bleak_1853.txt.gz")
    assert not any(held_out(texts, tmp_path).open()(bleak).removed)


def runs(text: str, n: int = 13) -> set[tuple[str, ...]]:
    """All runs of n words of a text in English, the slow way."""
    words = re.findall(r"\w+", text.lower())
    return {tuple(words[i : i + n]) for i in range(len(words) - n + 1)}


@needs_shared
def test_sentences_shared_between_professions_are_found_and_no_others(tmp_path: Path) -> None:
    with gzip.open(SHARED / "pretrain/en/wikipedia_bold_profession.json.gz", "rt", encoding="utf-8") as stream:
        groups = [[sentence for one in group.values() for sentence in one] for group in json.load(stream).values()]
    exam = [sentence for group in groups[::2] for sentence in group]
    corpus = [sentence for group in groups[1::2] for sentence in group if sentence.isascii()]
    known = set().union(*map(runs, exam))
    expected = [not known.isdisjoint(runs(sentence)) for sentence in corpus]
    assert 30 < sum(expected) < len(corpus) / 2
    assert [rule == "exam" for rule in held_out(exam, tmp_path).open()(corpus).removed] == expected
