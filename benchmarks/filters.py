"""Documents a second of the quality rules beside datatrove's, on the same documents in one run, and of the other filters alone.

    python benchmarks/filters.py [DOCUMENTS]

Documents are paragraphs of the texts behind Python's help(), one to twelve together. datatrove's tokens are made anew for each
filter, as ours are.
"""

import argparse
import ast
import platform
import random
import statistics
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version

from datatrove.data import Document
from datatrove.pipeline.filters import (
    C4QualityFilter,
    FineWebQualityFilter,
    GopherQualityFilter,
    GopherRepetitionFilter,
)
from datatrove.utils.text import split_into_parts

from fmray.data.filters import Filter
from fmray.data.filters.c4 import C4
from fmray.data.filters.fineweb import Fineweb
from fmray.data.filters.gopher import Gopher
from fmray.data.filters.language import Language
from fmray.data.filters.length import Length
from fmray.data.filters.pii import Pii
from fmray.data.filters.unicode import Unicode
from fmray.data.sources.python_docs import TOPICS, library

REPEATS = 3
PAIRS: dict[str, tuple[Filter, Callable[[], object]]] = {
    "gopher, quality": (Gopher(repetition=False), GopherQualityFilter),
    "gopher, repetition": (Gopher(quality=False), GopherRepetitionFilter),
    "c4": (C4(), C4QualityFilter),
    "fineweb": (Fineweb(), FineWebQualityFilter),
}
ALONE: dict[str, Filter] = {"unicode": Unicode(), "length": Length(min_words=5), "language": Language(keep=("en",)), "pii": Pii()}


def corpus(n: int) -> list[str]:
    """`n` documents."""
    draw = random.Random(0)
    (assigned,) = [node for node in ast.parse((library() / TOPICS).read_bytes()).body if isinstance(node, ast.Assign)]
    paragraphs = [part.strip() for text in ast.literal_eval(assigned.value).values() for part in text.split("\n\n") if part.strip()]
    starts = [draw.randrange(len(paragraphs) - 12) for _ in range(n)]
    return ["\n\n".join(paragraphs[at : at + draw.randint(1, 12)]) for at in starts]


def ours(filter: Filter, texts: Sequence[str]) -> list[bool]:
    """Which documents stay."""
    return [rule is None for rule in filter.open()(texts).removed]


def theirs(filter: object, texts: Sequence[str]) -> list[bool]:
    """Which documents datatrove keeps."""
    split_into_parts.cache_clear()
    return [filter.filter(Document(text=text, id="")) is True for text in texts]  # type: ignore[attr-defined]


def rate(run: Callable[[], object], n: int) -> float:
    """Documents a second of one run."""
    started = time.perf_counter()
    run()
    return n / (time.perf_counter() - started)


def main() -> None:
    """Measures and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("documents", nargs="?", type=int, default=400)
    n = parser.parse_args().documents
    texts = corpus(n)
    print(f"{n} documents, {sum(map(len, texts)) / n:,.0f} characters on average; one core, medians of {REPEATS} interleaved runs.")
    print(f"Python {platform.python_version()}, numpy {version('numpy')}, datatrove {version('datatrove')}, py3langid {version('py3langid')}.\n")
    print("| filter | fmray, documents/s | datatrove, documents/s | ratio | same decision |\n|---|--:|--:|--:|--:|")
    for name, (filter, make) in PAIRS.items():
        oracle = make()
        same = sum(a == b for a, b in zip(ours(filter, texts), theirs(oracle, texts), strict=True)) / n
        mine, other = [], []
        for _ in range(REPEATS):
            mine.append(rate(lambda: ours(filter, texts), n))  # noqa: B023
            other.append(rate(lambda: theirs(oracle, texts), n))  # noqa: B023
        a, b = statistics.median(mine), statistics.median(other)
        print(f"| {name} | {a:,.0f} | {b:,.0f} | {a / b:.0f} | {same:.1%} |")
    for name, filter in ALONE.items():
        ours(filter, texts[:5])
        print(f"| {name} | {statistics.median(rate(lambda: ours(filter, texts), n) for _ in range(REPEATS)):,.0f} | | | |")  # noqa: B023


if __name__ == "__main__":
    main()
