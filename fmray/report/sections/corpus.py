"""What the model was trained on: size, splits, and what was removed by which rule."""

from collections.abc import Mapping
from typing import Any

from fmray.report.charts import Row, rows_chart
from fmray.report.markup import Markup, el
from fmray.report.sections.parts import Card, card, facts, heading, tag
from fmray.report.view import RunView, StepView


def section(run: RunView) -> Card | None:
    """One part for each dataset."""
    steps = run.of_kind("token_dataset")
    if not steps:
        return None
    return card("Corpus", "Counted while it was read, cleaned, tokenized and packed. Nothing is removed without being counted.", [_dataset(step) for step in steps])


def _dataset(step: StepView) -> Markup:
    data = step.payload
    source = data.get("source") or {}
    split = ", ".join(f"{name} {rows:,}" for name, rows in data["splits"].items())
    known = [
        ("source", ", ".join(f"{key} {_short(value)}" for key, value in source.items()) or "unknown"),
        ("documents kept", f"{_kept(data):,}, of which {data['n_validation_documents']:,} for validation"),
        ("words", f"{data['n_words']:,}"),
        ("training tokens", f"{data['n_tokens']:,}"),
        (f"rows of {data['seq_len']:,} tokens", split),
        ("vocabulary", f"{data['vocab_size']:,}"),
        ("repaired", ", ".join(f"{rule.replace('_', ' ')}: {n:,}" for rule, n in data["notes"].items()) or "none"),
        ("canaries", f"{data['n_planted']:,} documents planted in the training split, to audit what is memorised" if data["n_planted"] else "none planted"),
    ]
    return el("div", heading(step, "corpus", tag("measured")), el("div", facts(known), _removed(data["removed"], _kept(data)), class_="two"))


def _short(value: Any) -> str:
    """A value of a source; of a digest only as much as tells it apart."""
    text = str(value)
    return f"{text[:12]}…" if len(text) == 64 and text.isalnum() else text


def _kept(data: Mapping[str, Any]) -> int:
    """Documents of the corpus in both splits; planted canaries are none."""
    return int(data["n_documents"] + data["n_validation_documents"] - data["n_planted"])


def _removed(removed: Mapping[str, int], kept: int) -> Markup:
    total = kept + sum(removed.values())
    if total == kept:
        return el("p", f"No document was removed: all {total:,} that were read are kept.")
    rows = [Row(el("span", rule.replace("_", " ")), n, f"{n:,}", mark="s2", note=f"{n / total:.1%} of all read") for rule, n in sorted(removed.items(), key=lambda pair: -pair[1])]
    return el("div", el("p", f"Removed, of {total:,} documents read:"), rows_chart(rows, title="Documents removed by rule", unit="documents", bars=True))
