"""Near-duplicate removal beside datasketch: documents a second, and F1, of both on the same documents in one run.

    python benchmarks/dedup.py [DOCUMENTS] [--write]

Both shingle the same words (five at a time), make 128 or more hash minima, and say which documents go. datasketch is used as its
documentation does: a MinHash a document, `MinHashLSH(threshold=0.8, num_perm=128)`, query, then insert; it compares no pair further.
"""

import argparse
import platform
import random
import re
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fmray.data.near_duplicates import NearDuplicates, removed_keys, shingles
from fmray.data.sources.python_docs import PythonDocs
from fmray.data.text import document_hash
from fmray.data.words import words

RESULT = Path(__file__).parent / "results" / "dedup_2cpu_202611.md"
SHINGLE, THRESHOLD, REPEATS = 5, 0.8, 5

Texts = Sequence[str]
Flags = NDArray[np.bool_]


def corpus(n: int, seed: int = 0) -> list[str]:
    """`n` documents in pairs: docstrings put together to 60-600 words, and copies with words replaced for similarities 0.5 to 0.95."""
    draw = random.Random(seed)
    sentences = [document["text"] for document in PythonDocs().iter_documents()]
    vocabulary = sorted({word for text in sentences for word in text.split()})
    pairs: list[str] = []
    while len(pairs) < n:
        length, text = draw.randint(60, 600), list[str]()
        while len(text) < length:
            text += draw.choice(sentences).split()
        wanted = draw.choice((0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.6, 0.5))
        rate = 1 - (2 * wanted / (1 + wanted)) ** (1 / SHINGLE)
        text = text[:length]
        copy = [draw.choice(vocabulary) if draw.random() < rate else word for word in text]
        if copy != text:
            pairs += [" ".join(text), " ".join(copy)]
    return pairs


def exact(texts: Texts) -> Flags:
    """Whether each pair's Jaccard similarity is at least the threshold."""
    sets = [frozenset(shingles(words([text]), SHINGLE)[0].tolist()) for text in texts]
    return np.array([len(a & b) >= THRESHOLD * len(a | b) for a, b in zip(sets[::2], sets[1::2], strict=True)])


def ours(texts: Texts) -> tuple[Flags, dict[str, float]]:
    """Which pairs lose a document, and the seconds of each part."""
    config = NearDuplicates(threshold=THRESHOLD, shingle=SHINGLE)
    with tempfile.TemporaryDirectory() as folder:
        keys, signatures, work = Path(folder, "keys.npy"), Path(folder, "signatures.npy"), Path(folder, "work")
        work.mkdir()
        hashes = np.array([document_hash(text) for text in texts], np.uint64)
        np.save(keys, hashes)
        started = time.perf_counter()
        np.save(signatures, config.signatures(texts))
        signed = time.perf_counter()
        gone = removed_keys([(keys, signatures)], config, work)
        spent = {"signatures": signed - started, "search": time.perf_counter() - signed}
    return np.isin(hashes, gone).reshape(-1, 2).any(axis=1), spent


def theirs(texts: Texts) -> tuple[Flags, dict[str, float]]:
    """The same with datasketch."""
    from datasketch import MinHash, MinHashLSH

    started = time.perf_counter()
    signed = []
    for text in texts:
        found = re.findall(r"\w+", text.lower())
        runs = {" ".join(found[i : i + SHINGLE]).encode() for i in range(max(1, len(found) - SHINGLE + 1))}
        minima = MinHash(num_perm=128)
        minima.update_batch(list(runs))
        signed.append(minima)
    made = time.perf_counter()
    index, gone = MinHashLSH(threshold=THRESHOLD, num_perm=128), np.zeros(len(texts), np.bool_)
    for i, minima in enumerate(signed):
        gone[i] = bool(index.query(minima))
        if not gone[i]:
            index.insert(i, minima)
    spent = {"signatures": made - started, "search": time.perf_counter() - made}
    return gone.reshape(-1, 2).any(axis=1), spent


def f1(found: Flags, right: Flags) -> float:
    """The harmonic mean of precision and recall over pairs."""
    return 2 * float((found & right).sum()) / float(found.sum() + right.sum())


def measure(texts: Texts) -> dict[str, tuple[float, dict[str, float]]]:
    """F1 and median seconds of each part, by library; the repeats are interleaved."""
    right = exact(texts)
    libraries: dict[str, Callable[[Texts], tuple[Flags, dict[str, float]]]] = {"fmray": ours, "datasketch": theirs}
    for run in libraries.values():
        run(texts[:20])
    spent: dict[str, list[dict[str, float]]] = {name: [] for name in libraries}
    quality = {}
    for _ in range(REPEATS):
        for name, run in libraries.items():
            found, seconds = run(texts)
            spent[name].append(seconds)
            quality[name] = f1(found, right)
    return {name: (quality[name], {part: statistics.median(one[part] for one in runs) for part in runs[0]}) for name, runs in spent.items()}


def report(texts: Texts, measured: dict[str, tuple[float, dict[str, float]]]) -> str:
    """The result as a Markdown table."""
    n, size = len(texts), sum(map(len, texts)) / 1e6
    lines = [
        f"{n:,} documents, {size:.1f} MB; one process, one core; medians of {REPEATS} interleaved runs. Python {platform.python_version()}, "
        + ", ".join(f"{name} {version(name)}" for name in ("rensa", "numpy", "datasketch"))
        + ".",
        "",
        "| | signatures, documents/s | search, documents/s | both, documents/s | F1 at 0.8 |",
        "|---|--:|--:|--:|--:|",
    ]
    rates = {}
    for name, (quality, spent) in measured.items():
        rates[name] = n / sum(spent.values())
        lines.append(f"| {name} | {n / spent['signatures']:,.0f} | {n / spent['search']:,.0f} | {rates[name]:,.0f} | {quality:.3f} |")
    lines.append(f"| ratio | | | {rates['fmray'] / rates['datasketch']:.1f} | |")
    return "\n".join(lines)


def main() -> None:
    """Measures and prints; with --write, replaces the table of the result file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("documents", nargs="?", type=int, default=10_000)
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    texts = corpus(arguments.documents)
    table = report(texts, measure(texts))
    print(table)
    if arguments.write:
        head, _, rest = RESULT.read_text(encoding="utf-8").partition("<!-- table -->\n")
        _, _, tail = rest.partition("<!-- end -->\n")
        RESULT.write_text(f"{head}<!-- table -->\n{table}\n<!-- end -->\n{tail}", encoding="utf-8")


if __name__ == "__main__":
    main()
