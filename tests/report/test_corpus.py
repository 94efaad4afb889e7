"""A dataset in the terminal and on the page: figures, mixture, removed, lengths, and sample rows that can do nothing to either."""

import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from fmray.core.artifact import write_json
from fmray.data.dataset import SAMPLES as SAMPLES_FILE
from fmray.data.dataset import Part, TokenDataset
from fmray.report.corpus import SAMPLES, cut, falling, lengths, mixture, sample_rows, visible
from fmray.report.dataset_view import BAR, bar
from fmray.report.figures import key_figures
from fmray.report.html import render
from fmray.report.terminal import show_artifact
from fmray.report.view import read_run
from tests.report import records

HOSTILE = "[bold]x[/] </pre><script>alert(1)</script>\x1b[2J\u202edlrow\x9b1m\nsecond line"


def part(name: str, weight: float | None, share: float, repeats: float) -> Part:
    return Part(name=name, weight=weight, n_documents=5000, n_tokens=400_000, n_rows=3100, n_bytes=1, repeats=repeats, share=share)


def full(**changes: Any) -> TokenDataset:
    fields = {
        "parts": (part("web", 0.7, 0.698, 1.0), part("books", None, 0.302, 2.25)), "utilisation": 0.987, "languages": {"en": 780, "de": 12},
        "length_histogram": (0, 0, 0, 12, 0, 900, 3), "tokenizer": {"type": "bpe"}, "n_truncated_tokens": 17, "skipped": ("a.txt: byte 7",), "n_skipped": 1,
        "n_repeated": 40, "packing": "best_fit",
    }  # fmt: skip
    return records.dataset(**(fields | changes))


def written(root: Path, payload: TokenDataset, pieces: list[str] | None = None) -> Path:
    records.Writer(root).step("corpus", "prepare", payload)
    if pieces is not None:
        rows = [{"split": "train", "row": 1234, "pieces": pieces, "n_tokens": 128}]
        write_json(root / "corpus" / SAMPLES_FILE, {"rows": rows})
    return root / "corpus"


def said(path: Path, width: int = 160) -> str:
    console = Console(width=width, highlight=False, force_terminal=True, color_system=None)
    with console.capture() as capture:
        shown = show_artifact(path)
        assert not isinstance(shown, dict)
        console.print(shown)
    return capture.get()


def test_the_name_of_the_file_is_that_of_the_data_room() -> None:
    assert SAMPLES == SAMPLES_FILE


def test_the_terminal_shows_figures_mixture_removed_lengths_and_rows(tmp_path: Path) -> None:
    text = " ".join(said(written(tmp_path / "x", full(), ["a first document", "and a second"])).split())
    for expected in (
        "documents kept 8,553, of which 431 for validation", "best_fit, 98.7% of positions hold tokens, 17 tokens left out", "1,024 (bpe)",
        "40 documents of the training split stand there again", "1 inputs, left out: a.txt: byte 7", "850 documents planted",
        "web 70.0% 69.8% 5,000 400 k 3,100 1.00", "books all 30.2% 5,000 400 k 3,100 2.25", "removed, of 9,206 documents read", "exact duplicate 612 6.6% ████",
        "en 780 98.5%", "8 to 15 12 1.3%", "16 to 31 0 0.0%", "32 to 63 900 98.4% ████", "64 to 127 3 0.3%",
        "train row 1,234: 128 tokens, 2 documents or parts of them ▌ a first document ▌ and a second", "stage prepare version 1",
    ):  # fmt: skip
        assert expected in text, expected


def test_a_plain_dataset_of_before_is_shown_too(tmp_path: Path) -> None:
    path = written(tmp_path / "x", records.dataset(removed={}))
    record = json.loads((path / "record.json").read_text())
    for late in ("modality", "parts", "utilisation", "languages", "length_histogram", "tokenizer", "packing", "n_truncated_tokens", "skipped", "n_skipped", "n_repeated"):
        del record["payload"][late]
    write_json(path / "record.json", record)
    text = said(path)
    assert "604,233" in text
    for absent in ("mixture", "removed,", "languages of", "by length", "sample rows"):
        assert absent not in text
    assert "No document was removed" in render(read_run(tmp_path / "x"))


def test_text_of_a_corpus_acts_neither_on_the_terminal_nor_on_the_page(tmp_path: Path) -> None:
    changes = {"languages": {HOSTILE: 2}, "parts": (part(HOSTILE, None, 0.5, 1.0), part("b", None, 0.5, 1.0)), "skipped": (HOSTILE,), "removed": {HOSTILE: 1}}
    path = written(tmp_path / "x", full(**changes), [HOSTILE, "plain"])
    text = said(path, width=400)
    assert "[bold]x[/]" in text
    assert not set("\x1b\x9b\u202e") & set(text)
    assert "␛[2J" in text
    assert "⏎ second line" in text
    page = render(read_run(tmp_path / "x"))
    assert "<script" not in page
    assert not set("\x1b\x9b\u202e") & set(page)
    assert page.count("&lt;script&gt;") >= 5


def test_the_page_holds_the_same(tmp_path: Path) -> None:
    written(tmp_path / "x", full(), ["a first document", "and a second"])
    page = render(read_run(tmp_path / "x"))
    for expected in ("Mixture of the training split", "<td>web</td>", "32 to 63", "Languages of the documents kept", '<pre class="piece">a first document</pre>', "Sample rows, decoded (1)"):
        assert expected in page, expected
    assert "<details>" in page


def test_json_holds_the_samples_as_they_are(tmp_path: Path) -> None:
    plain: Any = show_artifact(written(tmp_path / "x", full(), [HOSTILE, "plain"]), as_json=True)
    assert plain["samples"] == [{"split": "train", "row": 1234, "n_tokens": 128, "pieces": (HOSTILE, "plain")}]
    assert plain["payload"]["parts"][1]["repeats"] == 2.25
    assert "samples" not in show_artifact(records.whole(tmp_path / "y") / "base", as_json=True)  # type: ignore[operator]


def test_images_are_called_images(tmp_path: Path) -> None:
    path = written(tmp_path / "x", records.dataset(modality="image", image_shape=(28, 28, 1), columns=("pixels", "labels"), n_tokens=0, seq_len=0))
    text = " ".join(said(path).split())
    assert "rows, one image of 28 x 28 x 1 each train 4,712, validation 234" in text
    assert "tokens" not in text.split("stage prepare")[0]
    record = read_run(tmp_path / "x").steps[0].record
    assert record is not None
    assert key_figures(record)[:2] == [("images", "4,712"), ("of", "28 x 28 x 1")]


@pytest.mark.parametrize("content", ["", "[]", '{"rows": [{"split": "train"}]}', '{"rows": 3}', "\x00"])
def test_samples_that_cannot_be_read_are_none(tmp_path: Path, content: str) -> None:
    (tmp_path / SAMPLES).write_text(content)
    assert sample_rows(tmp_path) == []


def test_small_parts() -> None:
    assert cut(["abc", "defg", "h"], 5) == ["abc", "de…"]
    assert cut(["abc"], 3) == ["abc"]
    assert visible("a\tb\r\u2028") == "a␉b␍\ufffd"
    assert [bar(x) for x in (0.0, 1e-9, 0.5, 1.0)] == ["", "▏", "█" * (BAR // 2), "█" * BAR]
    assert lengths({"length_histogram": [5, 1]}) == [("1", 5), ("2 to 3", 1)]
    assert lengths({}) == mixture({}) == []
    assert falling({"b_c": 1, "a": 1, "z": 2}) == [("z", 2), ("a", 1), ("b c", 1)]
