"""The dataset card: a README.md that tells people what the dataset is, and Hugging Face's `datasets` how to open it."""

import html
import posixpath
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import yaml

from fmray.data.dataset import ALL, CANARIES, HASHES, REMOVED, SPLITS, TOKENIZER, TokenDataset
from fmray.data.sources import Share

SHOWN = 20
"""How many entries of a list that a corpus can make long are shown."""
_SPECIAL = re.compile(r"([\\`*_{}\[\]()#+!|~$@:-])")
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]+")
_SIZES = ("n<1K", "1K<n<10K", "10K<n<100K", "100K<n<1M", "1M<n<10M", "10M<n<100M", "100M<n<1B", "1B<n<10B", "10B<n<100B", "100B<n<1T", "n>1T")

Origin = tuple[str, str, str]
"""Name, description and licence of a source; the licence is empty when nobody has said it."""


def card(payload: TokenDataset, *, name: str, licences: Mapping[str, str] | None = None) -> str:
    """The card of a dataset: front matter with the keys of a Hugging Face dataset card, then what it holds and how it was made.

    Names and values that a corpus or its files may have chosen are escaped: they are shown, and never read as Markdown or HTML.

    Args:
        licences: by the name of a source of the mixture, or ALL, where the source's identity does not say it (as `license`).
    """
    origins = _origins(payload.source, licences or {})
    sections = [
        (f"# {_escaped(name)}", _about(payload)),
        ("## Sources", _sources(origins)),
        ("## Mixture", _mixture(payload) if len(payload.parts) > 1 else ""),
        ("## Cleaning", _cleaning(payload)),
        ("## Languages", _counted(payload.languages, "language", "documents") if payload.languages else ""),
        ("## Rows", _rows(payload)),
        ("## Canaries", _canaries(payload) if payload.canaries else ""),
        ("## How to open it", _opening(payload)),
    ]
    front = yaml.safe_dump(_front_matter(payload, name, origins), sort_keys=False, allow_unicode=True)
    return f"---\n{front}---\n\n" + "\n".join(f"{title}\n\n{text.strip()}\n" for title, text in sections if text)


def licences(shares: Mapping[str, Share]) -> dict[str, str]:
    """The licences that the sources of a corpus state, by name."""
    return {name: share.source.license for name, share in shares.items() if share.source.license}


def _front_matter(payload: TokenDataset, name: str, origins: Sequence[Origin]) -> dict[str, Any]:
    """The keys of the card that programs read. What is not known is left out, but for the licence, which is then `unknown`."""
    rows = sum(payload.splits.values())
    licences = sorted({licence for _, _, licence in origins if licence})
    languages = sorted(payload.languages, key=lambda code: -payload.languages[code])
    tags = ["fmray", "image" if payload.modality == "image" else "tokenized", *(["packed", payload.packing] if payload.modality == "text" else [])]
    folders = {split: sorted({posixpath.dirname(s.name) for s in payload.shards if s.split == split}) for split in SPLITS}
    files = [{"split": split, "path": [f"{folder}/*.parquet" for folder in found]} for split, found in folders.items() if found]
    return {
        "pretty_name": name,
        **({"language": languages} if languages else {}),
        "license": licences if licences else "unknown",
        "size_categories": [_SIZES[min(max(0, len(str(rows)) - 3), len(_SIZES) - 1)]],
        **({"task_categories": ["text-generation"]} if payload.modality == "text" else {}),
        "tags": [*tags, *(["canaries"] if payload.canaries else [])],
        "configs": [{"config_name": "default", "data_files": files}],
    }


def _about(payload: TokenDataset) -> str:
    if payload.image_shape is not None:
        height, width, channels = payload.image_shape
        text = f"{payload.n_rows:,} images of {height} x {width} pixels and {channels} channels to train on, {payload.splits.get('validation', 0):,} to validate with."
    else:
        text = (
            f"{payload.n_documents:,} documents ({payload.n_tokens:,} tokens, {payload.n_bytes:,} bytes of UTF-8) to train on, "
            f"{payload.n_validation_documents:,} ({payload.n_validation_tokens:,} tokens) held out, in {payload.n_words:,} words."
        )
    return f"{text}\n\nMade by fmray; every figure on this page was counted while it was made. Digest of shards and tokenizer: `{payload.digest}`"


def _origins(source: Mapping[str, Any], licences: Mapping[str, str], name: str = ALL) -> list[Origin]:
    """Every source in a source's identity, those of a mixture one by one."""
    parts = source.get("sources")
    if isinstance(parts, Mapping):
        return [origin for key, part in parts.items() for origin in _origins(part, licences, str(key))]
    if isinstance(inner := source.get("source"), Mapping):
        return _origins(inner, licences, name)
    licence = str(source.get("license") or licences.get(name, ""))
    files = source.get("files")
    said = f", {files['n_files']:,} files" if isinstance(files, Mapping) and "n_files" in files else ""
    return [(name, f"{source.get('type', 'unknown')}{said}", licence)]


def _sources(origins: Sequence[Origin]) -> str:
    rows = [(name, said, licence or "unknown") for name, said, licence in origins]
    note = "" if all(licence != "unknown" for _, _, licence in rows) else "\n\nWhere a licence is unknown, nobody has said what it is: find out before you pass the data on."
    return _table(("source", "what it is", "licence"), rows) + note


def _mixture(payload: TokenDataset) -> str:
    rows = [
        (p.name, "as much as there is" if p.weight is None else f"{p.weight:.1%}", f"{p.share:.1%}", f"{p.n_documents:,}", f"{p.n_tokens:,}", f"{p.n_rows:,}", f"{p.repeats:.2f}")
        for p in payload.parts
    ]
    return "The training split as it came out. Every batch holds each source's share of rows.\n\n" + _table(
        ("source", "asked for", "share", "documents", "tokens", "rows", "times each document stands there"), rows
    )


def _cleaning(payload: TokenDataset) -> str:
    removed = sum(payload.removed.values())
    kept = payload.n_documents + payload.n_validation_documents - payload.n_planted - payload.n_repeated
    lines = [f"{kept + removed:,} documents were read, {kept:,} kept and {removed:,} removed{f' (listed in `{REMOVED}` where it is there)' if removed else ''}."]
    lines += [_counted(payload.removed, "removed by rule", "documents")] if removed else []
    lines += [_counted(payload.notes, "repaired, changed or found", "times")] if payload.notes else []
    if payload.n_skipped:
        named = "".join(f"\n- {_escaped(entry)}" for entry in payload.skipped[:SHOWN])
        lines.append(f"{payload.n_skipped:,} inputs could not be read and were left out; the first of them:\n{named}")
    return "\n\n".join(lines)


def _rows(payload: TokenDataset) -> str:
    columns = ", ".join(f"`{name}`" for name in payload.columns)
    if payload.image_shape is not None:
        return f"Columns: {columns}. Pixels are bytes in the order height, width, channel; a label of -1 is unknown."
    made = payload.tokenizer
    trained = f" trained on {made['n_documents']:,} documents" if isinstance(made.get("n_documents"), int) else ""
    lines = [
        f"Rows of {payload.seq_len:,} tokens; columns {columns}. Segment 0 is padding, the documents of a row count 1, 2, 3..., and positions begin anew with each.",
        f"- tokenizer: {_escaped(str(made.get('type', 'unknown')))}{trained}, vocabulary {payload.vocab_size:,}, in `{TOKENIZER}/`",
        f"- packing: {_escaped(payload.packing)}; {payload.n_truncated_tokens:,} tokens were left out by it",
    ]
    lines += [f"- positions of the training split that hold tokens: {payload.utilisation:.2%}"] if payload.utilisation is not None else []
    lines += [f"- `{payload.bias}` says how the corpus speaks of groups, before and after what was done about it"] if payload.bias else []
    lines += [f"- `{HASHES}` holds the hashes of the training documents, to find what a test set has in common with them"]
    return lines[0] + "\n\n" + "\n".join(lines[1:])


def _canaries(payload: TokenDataset) -> str:
    return (
        f"**{payload.n_planted:,} of the training documents are canaries**: made-up secrets, planted to measure later what a model "
        f"memorises (`{CANARIES}`). They are no part of the corpus. Do not publish this dataset as if they were not there."
    )


def _opening(payload: TokenDataset) -> str:
    lines = ["```python", "from datasets import load_dataset", "", 'rows = load_dataset("path/to/this/folder", split="train")']
    if payload.modality == "text":
        lines += ["", "from transformers import AutoTokenizer", "", f'tokenizer = AutoTokenizer.from_pretrained("path/to/this/folder/{TOKENIZER}")', 'print(tokenizer.decode(rows[0]["input_ids"]))']
    return "\n".join([*lines, "```"])


def _counted(counts: Mapping[str, int], what: str, unit: str) -> str:
    ordered = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
    rows = [(key.replace("_", " "), f"{n:,}") for key, n in ordered[:SHOWN]]
    rest = len(ordered) - SHOWN
    return _table((what, unit), rows) + (f"\n\n...and {rest:,} more." if rest > 0 else "")


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *([_escaped(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _escaped(text: str) -> str:
    """Text on one line that Markdown shows as it is."""
    return _SPECIAL.sub(r"\\\1", html.escape(_UNPRINTABLE.sub(" ", text), quote=False))
