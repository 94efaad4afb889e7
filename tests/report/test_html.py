"""report.html: complete, self-contained, and deaf to whatever stands in a record."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from fmray.core.errors import ArtifactError
from fmray.core.experiment import load_experiment
from fmray.report.html import write_report
from fmray.report.markup import anchor
from fmray.report.view import read_run
from tests.report import records
from tests.report.test_markup import read

HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)></style></title>\u202e\x00javascript:"
ELEMENTS = {
    "html", "head", "meta", "link", "title", "style", "body", "header", "main", "footer", "nav", "section", "h1", "h2", "h3", "p", "div", "span", "a", "b",
    "small", "code", "ul", "li", "dl", "dt", "dd", "table", "caption", "thead", "tbody", "tr", "th", "td", "blockquote", "svg", "g", "path", "rect", "line",
    "circle", "polyline", "polygon", "text",
}  # fmt: skip
# What decides how a payload is read; everything else in a record is text that could hold anything.
STRUCTURE = {"kind", "head", "severity", "method", "name", "stage", "subject", "fingerprint", "trial_id", "model", "split", "unit"}


def poison(value: Any, key: str = "") -> Any:
    """The same structure with hostile text in place of every free text, keys of free mappings included."""
    if isinstance(value, dict):
        free = key in ("removed", "notes", "source", "config", "versions", "figures")
        return {f"{name}{HOSTILE if free else ''}": poison(item, name) for name, item in value.items()}
    if isinstance(value, list):
        return [poison(item, key) for item in value]
    return value + HOSTILE if isinstance(value, str) and key not in STRUCTURE else value


def poisoned(root: Path) -> Path:
    for path in root.glob("*/record.json"):
        record = json.loads(path.read_text())
        for part in ("payload", "provenance", "config"):
            record[part] = poison(record[part], part)
        path.write_text(json.dumps(record))
    return root


def page_of(root: Path) -> str:
    return write_report(root).read_text(encoding="utf-8")


def words(page: str) -> str:
    return " ".join(read(re.sub(r"<style>.*?</style>", "", page, flags=re.DOTALL)).words.split())


def test_the_page_of_a_whole_life_tells_all_of_it(tmp_path: Path) -> None:
    path = write_report(records.whole(tmp_path / "quickstart"))
    assert path == tmp_path / "quickstart" / "report.html"
    assert not list(path.parent.glob("*.tmp"))
    said = words(path.read_text())
    for expected in (
        "Both gates are met; 2 models tried in service and taken down again.",
        "base reaches bits per byte 2.31 (unigram 4.21, bigram 2.94); tuned reaches macro F1 0.6 (majority 0.04, TF-IDF 0.72, random init 0.46).",
        "279 k words", "1.97 M", "3.42 GiB", "upper(eval/bits_per_byte) < eval/bigram_bits_per_byte", "✓ met", "uniform guess", "held-out loss",
        "0001 best", "stopped by asha", "the winner's hyperparameters from random weights", "exposure ×64", "control 1.41", "[11.1, 12.5]",
        "Memorises what is repeated 64 times", "Return the number of bytes read", "asyncio (0.812)", "fmray serve runs/quickstart/served",
        "exact duplicate", "of 9,246 documents read", "estimated", "declared", "unknown (no price was declared)", "device hours times 65 W declared",
        "0123456789abcdef0123456789abcdef01234567", "torch 2.13.0", "models.0.checkpoint: base, models.0.decision: base_gate",
    ):  # fmt: skip
        assert expected in said, expected


def test_a_refused_run_has_a_page_that_says_why(tmp_path: Path) -> None:
    said = words(page_of(records.refused(tmp_path / "x")))
    assert "refused Refused at base_gate: 2 of 3 rules not met (upper(eval/bits_per_byte) < eval/bigram_bits_per_byte, observed 3.33, limit 2.94)." in said
    assert "Nothing that needs this gate was made." in said
    assert "Served models" not in said


def test_rounds_are_joined_and_a_waiver_is_shown_with_its_name_and_reason(tmp_path: Path) -> None:
    page = page_of(records.two_rounds(tmp_path / "x"))
    said = words(page)
    assert "Let through by a waiver at base_gate@2 after 2 rounds" in said
    assert "Waived by A. Owner: a demonstration that nobody will use" in said
    assert '<span class="key s1" aria-hidden="true"></span>round 1</li>' in page
    assert '<span class="key s2" aria-hidden="true"></span>round 2</li>' in page
    assert "none planted" in said
    assert page.count('class="line s1"') >= 1
    assert page.count('class="line s2"') >= 1


def test_a_run_that_stopped_half_way_has_a_page_too(tmp_path: Path) -> None:
    root = tmp_path / "x"
    writer = records.Writer(root)
    writer.step("corpus", "prepare", records.dataset())
    writer.unfinished("base", "pretrain", {"dataset": "corpus"})
    said = words(page_of(root))
    assert "Unfinished: base has started and not ended." in said
    assert "base (pretrain): unfinished" in said


def test_steps_of_the_file_that_never_started_are_shown_as_not_run(tmp_path: Path) -> None:
    planned = tuple(load_experiment(Path(__file__).parents[2] / "jobs" / "quickstart.yaml").steps.values())
    page = write_report(records.refused(tmp_path / "x"), planned).read_text()
    assert "served (deploy): not run" in words(page)
    assert "Not run: base_audit, tuned, tuned_eval, tuned_gate, served." in words(page)
    assert 'aria-label="served, stage deploy, not run' in page
    root = tmp_path / "y"
    records.Writer(root).step("corpus", "prepare", records.dataset())
    assert "in part 1 step made; no gate has judged yet. Not run: base, " in words(write_report(root, planned).read_text())


@pytest.mark.parametrize("make", [records.whole, records.two_rounds, records.refused])
def test_hostile_text_stays_text(tmp_path: Path, make: Any) -> None:
    page = page_of(poisoned(make(tmp_path / "x")))
    parsed = read(page)
    assert set(parsed.tags) <= ELEMENTS
    assert parsed.tags.count("style") == 1
    assert not [a for a in parsed.attributes if a[1].startswith("on") or a[1] in ("src", "srcset", "xlink:href", "action")]
    assert "alert(1)" in parsed.words
    assert "\x00" not in page
    assert "\u202e" not in page


@pytest.mark.parametrize("make", [records.whole, records.two_rounds])
def test_the_page_loads_nothing_and_leads_nowhere_else(tmp_path: Path, make: Any) -> None:
    page = page_of(poisoned(make(tmp_path / "x")))
    parsed = read(page)
    links = {value for _, name, value in parsed.attributes if name == "href"}
    assert all(re.fullmatch(r"#[a-z0-9-]+|[A-Za-z0-9_%@-]+/|data:,", link) for link in links), links
    style = re.search(r"<style>(.*?)</style>", page, re.DOTALL)
    assert style is not None
    assert not re.search(r"url\(|@import|expression", style[1])
    assert "default-src &#x27;none&#x27;" in page


def test_every_link_inside_the_page_leads_to_something_and_ids_are_unique(tmp_path: Path) -> None:
    for make in (records.whole, records.two_rounds, records.refused):
        parsed = read(page_of(make(tmp_path / make.__name__)))
        assert parsed.tags.count("main") == 1
        ids = [value for _, name, value in parsed.attributes if name == "id"]
        assert len(ids) == len(set(ids))
        named = read_run(tmp_path / make.__name__).names
        targets = {anchor(name) for name in named} | {value[1:] for _, name, value in parsed.attributes if name == "href" and value.startswith("#")}
        assert targets <= set(ids), targets - set(ids)


def test_every_drawing_has_a_name_for_those_who_do_not_see_it(tmp_path: Path) -> None:
    page = page_of(records.whole(tmp_path / "x"))
    for tag in re.findall(r"<svg[^>]*>", page):
        assert 'aria-label="' in tag or "preserveAspectRatio" in tag or 'aria-hidden="true"' in tag or 'overflow="visible"' in tag, tag


def test_a_folder_that_is_no_experiment_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="holds no steps"):
        write_report(tmp_path)
    assert not (tmp_path / "report.html").exists()
