"""Text is escaped wherever it goes, and the page's builder cannot be talked out of it."""

from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fmray.report.markup import anchor, el, join, table, text

HOSTILE = ["<script>alert(1)</script>", '" onload="alert(1)', "</style><img src=x onerror=alert(1)>", "&lt;b&gt;", "javascript:alert(1)"]


class Reader(HTMLParser):
    """Collects the elements, attributes and text of a document."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.words = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.words += data


def read(page: str) -> Reader:
    """Parses a page as a browser would read its text and attributes."""
    reader = Reader()
    reader.feed(page)
    reader.close()
    return reader


@pytest.mark.parametrize("hostile", HOSTILE)
def test_children_and_attributes_are_escaped(hostile: str) -> None:
    page = read(el("p", hostile, el("b", hostile), title=hostile, aria_label=hostile))
    assert page.tags == ["p", "b"]
    assert page.words == hostile * 2
    assert page.attributes == [("p", "title", hostile), ("p", "aria-label", hostile)]


@given(st.text(alphabet=st.characters(exclude_categories=["Cc", "Cs"], exclude_characters="\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")))
def test_any_fit_text_reads_back_unchanged(value: str) -> None:
    page = read(el("p", value, title=value))
    assert page.tags == ["p"]
    assert page.words == value
    assert page.attributes == [("p", "title", value)]


@given(st.text(alphabet=st.characters(), min_size=1))
def test_any_text_at_all_can_be_written_as_utf8(value: str) -> None:
    assert read(el("p", text(value).encode().decode())).tags == ["p"]


@pytest.mark.parametrize("unfit", ["\x00", "\x1b", "\ud800", "\u202e", "\u2066"])
def test_characters_that_a_page_must_not_hold_are_replaced(unfit: str) -> None:
    assert text(f"a{unfit}b") == "a\ufffdb"


def test_absent_children_and_attributes_leave_nothing() -> None:
    assert el("p", None, title=None, hidden=False) == "<p></p>"
    assert el("input", disabled=True) == "<input disabled>"
    assert join("a", [1, None, [el("b", "c")]]) == "a1<b>c</b>"


def test_a_table_says_what_it_is_and_can_be_reached_by_keyboard() -> None:
    page = table(["rule", "n"], [["<b>", 3]], caption="Rules", numeric=[1])
    assert ("div", "tabindex", "0") in read(page).attributes
    assert '<td class="num">3</td>' in page
    assert "&lt;b&gt;" in page


def test_anchors_hold_nothing_but_letters_digits_and_hyphens() -> None:
    assert anchor("base_gate@2") == "s-base-gate-2"
    assert anchor('"><script>') == "s-script"
