"""What the model was trained on: size, splits, mixture, what was removed by which rule, and what rows look like."""

from collections.abc import Mapping, Sequence

from fmray.report.charts import Row, rows_chart
from fmray.report.corpus import (
    BIAS_HEAD,
    MIXTURE,
    SampleRow,
    bias_rows,
    cut,
    falling,
    known,
    lengths,
    mixture,
    n_kept,
    origin,
    sample_rows,
)
from fmray.report.markup import Markup, el, table
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
    pairs = [("source", origin(data.get("source") or {})), *known(data)]
    languages = falling(data.get("languages") or {})
    spread = lengths(data)
    done, figures = bias_rows(step.path)
    return el(
        "div",
        heading(step, "corpus", tag("measured")),
        el("div", facts(pairs), _removed(data["removed"], n_kept(data)), class_="two"),
        table(MIXTURE, mixture(data), caption="Mixture of the training split", numeric=range(1, len(MIXTURE))) if mixture(data) else None,
        el("div", _bars(spread, "Training documents by length in tokens"), _bars(languages, "Languages of the documents kept"), class_="two") if spread or languages else None,
        table(BIAS_HEAD, figures, caption=f"Bias of the training split ({done})", numeric=range(1, 3)) if figures else None,
        _samples(sample_rows(step.path)),
    )


def _removed(removed: Mapping[str, int], kept: int) -> Markup:
    total = kept + sum(removed.values())
    if total == kept:
        return el("p", f"No document was removed: all {total:,} that were read are kept.")
    rows = [Row(el("span", rule), n, f"{n:,}", mark="s2", note=f"{n / total:.1%} of all read") for rule, n in falling(removed)]
    return el("div", el("p", f"Removed, of {total:,} documents read:"), rows_chart(rows, title="Documents removed by rule", unit="documents", bars=True))


def _bars(counts: Sequence[tuple[str, int]], title: str) -> Markup | None:
    if not counts:
        return None
    whole = max(1, sum(n for _, n in counts))
    rows = [Row(el("span", name), n, f"{n:,}", note=f"{n / whole:.1%}") for name, n in counts]
    return el("div", el("p", f"{title}:"), rows_chart(rows, title=title, unit="documents", bars=True))


def _samples(samples: Sequence[SampleRow]) -> Markup | None:
    """Rows as text, each document of a row in a box of its own; nothing of it is read as markup."""
    if not samples:
        return None
    shown = [
        el(
            "div",
            el("p", f"{s.split} row {s.row:,}: {s.holds}", class_="lead"),
            [el("pre", piece, class_="piece") for piece in cut(s.pieces)],
        )
        for s in samples
    ]
    return el("details", el("summary", f"Sample rows, decoded ({len(samples)})"), shown)
