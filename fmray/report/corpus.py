"""What a dataset's record and its sample rows say, in words: shared by the terminal and the page."""

import json
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fmray.report.figures import count

SAMPLES = "samples.json"
BIAS = "bias.json"
SKEWED = 5
"""How many of the words that lean most to one group are shown."""
SAMPLE_CHARACTERS = 700
"""How much of a sample row is shown."""
_REORDERING = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


@dataclass(frozen=True)
class SampleRow:
    """A packed row as text: one piece for each document, or part of one, that shares it."""

    split: str
    row: int
    n_tokens: int
    pieces: tuple[str, ...]

    @property
    def holds(self) -> str:
        """What it holds, in words."""
        return f"{self.n_tokens:,} tokens, {len(self.pieces)} {'documents or parts of them' if len(self.pieces) > 1 else 'document or a part of it'}"


BIAS_HEAD = ("how groups are spoken of", "before", "after")


def bias_rows(folder: Path) -> tuple[str, list[tuple[str, str, str]]]:
    """What was done about a corpus's bias, in words, and a line of BIAS_HEAD for each figure; no lines where it was not measured.

    Shares are those of the mentions of all groups; a distance is the total variation from groups that are spoken of alike, 0 to 1.
    """
    try:
        found = json.loads((folder / BIAS).read_text(encoding="utf-8"))
        before, after = found["before"], found["after"]
        lines = [(f"mentions: {name}", _share(group), _share(after["groups"][name])) for name, group in before["groups"].items()]
        for label, part in (("distance of mentions from even", "representation"), ("distance of associations from even", "association")):
            lines.append((label, _distance(before[part]), _distance(after[part])))
        for word in before["most_skewed"][:SKEWED]:
            lines.append((f"'{word['word']}' beside {word['favours']}", _share(word), _share(next((w for w in after["most_skewed"] if w["word"] == word["word"]), None))))
        return str(found["correct"] or "measured, nothing corrected"), lines
    except (OSError, ValueError, KeyError, TypeError):
        return "", []


def _share(counted: Mapping[str, Any] | None) -> str:
    return "no longer among the most skewed" if counted is None else f"{counted['share']:.1%}"


def _distance(found: Mapping[str, Any]) -> str:
    value = found["distance_from_uniform"]
    return "unknown" if value is None else f"{value:.3f}"


def sample_rows(folder: Path) -> list[SampleRow]:
    """The sample rows beside a dataset; none when they are not there or cannot be read."""
    try:
        rows = json.loads((folder / SAMPLES).read_text(encoding="utf-8"))["rows"]
        return [SampleRow(str(r["split"]), int(r["row"]), int(r["n_tokens"]), tuple(str(piece) for piece in r["pieces"])) for r in rows]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def cut(pieces: Sequence[str], at_most: int = SAMPLE_CHARACTERS) -> list[str]:
    """The pieces of a row up to so many characters in all; an ellipsis where one was cut, and nothing of those behind it."""
    shown: list[str] = []
    for piece in pieces:
        left = at_most - sum(map(len, shown))
        if left <= 0:
            break
        shown.append(piece if len(piece) <= left else f"{piece[:left]}…")
    return shown


def visible(text: str) -> str:
    """Text whose line breaks, controls and reordering characters are shown as symbols, so that none of them acts on a terminal."""
    return "".join(_symbol(c) for c in text)


def _symbol(character: str) -> str:
    if character == "\n":
        return "⏎ "
    if character < " ":
        return chr(0x2400 + ord(character))
    return "\ufffd" if character in _REORDERING or unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") else character


def origin(source: Mapping[str, Any]) -> str:
    """Where documents came from, in words: the kind of each source, how many files it has, and what else identifies it."""
    if isinstance(parts := source.get("sources"), Mapping):
        return "; ".join(f"{name}: {origin(part['source'])}" for name, part in parts.items())
    files = source.get("files")
    said = [f"{files['n_files']:,} files", f"sha256 {_short(files['sha256'])}"] if isinstance(files, Mapping) and {"n_files", "sha256"} <= set(files) else []
    others = (f"{key} {_short(value)}" for key, value in source.items() if key not in ("type", "files") and not isinstance(value, Mapping) and value is not None)
    return ", ".join([str(source.get("type", "unknown")), *said, *others])


def _short(value: Any) -> str:
    """A value of a source; of a digest only as much as tells it apart."""
    text = ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
    return f"{text[:12]}…" if len(text) == 64 and text.isalnum() else text


def is_image(data: Mapping[str, Any]) -> bool:
    """Whether a dataset's payload is of images."""
    return data.get("modality") == "image"


def n_kept(data: Mapping[str, Any]) -> int:
    """Documents of the corpus in both splits, each once; planted canaries are none."""
    return int(data["n_documents"] + data["n_validation_documents"] - data["n_planted"] - data.get("n_repeated", 0))


def known(data: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What a dataset is, as (label, value) pairs."""
    splits = ", ".join(f"{name} {rows:,}" for name, rows in data["splits"].items())
    validation = f"{n_kept(data):,}, of which {data['n_validation_documents']:,} for validation"
    common = [
        *_if(data.get("n_repeated"), "repeated", f"{data.get('n_repeated', 0):,} documents of the training split stand there again"),
        ("repaired or found", ", ".join(f"{rule.replace('_', ' ')}: {n:,}" for rule, n in data["notes"].items()) or "none"),
        *_if(data.get("n_skipped"), "could not be read", f"{data.get('n_skipped', 0):,} inputs, left out: {'; '.join(data.get('skipped', ())[:3])}"),
    ]
    if is_image(data):
        shape = " x ".join(str(n) for n in data.get("image_shape") or ())
        return [("images kept", validation), (f"rows, one image of {shape} each", splits), *common]
    kind = (data.get("tokenizer") or {}).get("type", "")
    truncated, used = data.get("n_truncated_tokens", 0), data.get("utilisation")
    packing = [str(data.get("packing", "concatenate")), *([f"{used:.1%} of positions hold tokens"] if used is not None else [])]
    packing += [f"{truncated:,} tokens left out"] if truncated else []
    return [
        ("documents kept", validation),
        ("words", f"{data['n_words']:,}"),
        ("training tokens", f"{data['n_tokens']:,} ({data['n_bytes'] / max(1, data['n_tokens']):.2f} bytes each)"),
        (f"rows of {data['seq_len']:,} tokens", splits),
        ("packing", ", ".join(packing)),
        ("vocabulary", f"{data['vocab_size']:,}{f' ({kind})' if kind else ''}"),
        *common,
        ("canaries", f"{data['n_planted']:,} documents planted in the training split, to audit what is memorised" if data["n_planted"] else "none planted"),
    ]


def _if(wanted: object, label: str, value: str) -> list[tuple[str, str]]:
    return [(label, value)] if wanted else []


MIXTURE = ("source", "asked for", "share", "documents", "tokens", "rows", "repeats")


def mixture(data: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """A line of MIXTURE for each source; none when there is one source alone."""
    parts = data.get("parts") or ()
    if len(parts) < 2:
        return []
    return [
        (p["name"], "all" if p["weight"] is None else f"{p['weight']:.1%}", f"{p['share']:.1%}", count(p["n_documents"]), count(p["n_tokens"]), count(p["n_rows"]), f"{p['repeats']:.2f}")
        for p in parts
    ]  # fmt: skip


def falling(counts: Mapping[str, int]) -> list[tuple[str, int]]:
    """Names in words with their counts, the largest first."""
    return sorted(((name.replace("_", " "), n) for name, n in counts.items()), key=lambda pair: (-pair[1], pair[0]))


def lengths(data: Mapping[str, Any]) -> list[tuple[str, int]]:
    """Documents by length, from the shortest lengths that occur to the longest: (tokens from and to, documents)."""
    histogram = list(data.get("length_histogram") or ())
    there = [k for k, n in enumerate(histogram) if n]
    if not there:
        return []
    return [(f"{2**k:,} to {2 ** (k + 1) - 1:,}" if k else "1", histogram[k]) for k in range(there[0], there[-1] + 1)]
