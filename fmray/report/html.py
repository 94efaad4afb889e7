"""Puts report.html together: one file that loads nothing and runs nothing."""

from collections.abc import Sequence
from pathlib import Path

from fmray.core.experiment import Step
from fmray.report.markup import Markup, el
from fmray.report.sections import (
    audit,
    corpus,
    cost,
    evaluation,
    gates,
    overview,
    provenance,
    search,
    serving,
    training,
)
from fmray.report.sections.parts import section_anchor
from fmray.report.style import sheet
from fmray.report.view import RunView, read_run

REPORT = "report.html"
# Nothing may be fetched and no script may run, whatever a corpus or a record holds.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
_SECTIONS = (
    overview.section, gates.section, training.section, evaluation.section, search.section, audit.section, audit.findings,
    serving.section, corpus.section, cost.section, provenance.section,
)  # fmt: skip


def write_report(experiment_dir: Path, planned: Sequence[Step] = ()) -> Path:
    """Writes `report.html` into an experiment folder from its records alone, and gives its path.

    Args:
        planned: the steps of the experiment file, so that those which never started are shown as not run.

    Raises:
        ArtifactError: there is no such folder, or no step has started in it.
    """
    path = Path(experiment_dir) / REPORT
    page = render(read_run(experiment_dir, planned))
    temporary = path.with_suffix(".tmp")
    temporary.write_text(page, encoding="utf-8")
    temporary.replace(path)
    return path


def render(run: RunView) -> str:
    """The whole page as text."""
    cards = [card for card in (make(run) for make in _SECTIONS) if card is not None]
    links = [el("a", card.title, href=f"#{section_anchor(card.title)}") for card in cards]
    head = el(
        "head",
        el("meta", charset="utf-8"),
        el("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        el("meta", name="viewport", content="width=device-width, initial-scale=1"),
        el("link", rel="icon", href="data:,"),
        el("title", f"{run.name}: fmray report"),
        el("style", Markup(sheet())),
    )
    footer = el("footer", el("p", "Made by fmray from the records of the run; it loads nothing from outside and runs no script."))
    body = el("body", overview.header(run), el("main", el("nav", links, aria_label="Sections"), [card.markup for card in cards]), footer)
    return "<!doctype html>\n" + el("html", head, body, lang="en") + "\n"

