"""A small HTML and SVG builder in which text is escaped unless it was built here."""

import html
import re
import unicodedata
from collections.abc import Iterable
from typing import TypeAlias

_VOID = frozenset({"br", "hr", "img", "input", "link", "meta"})


class Markup(str):
    """Text that is already safe HTML. Only this module makes it from foreign text."""


Node: TypeAlias = "str | int | float | Iterable[Node] | None"


def text(value: object) -> Markup:
    """Escapes any value for element content and quoted attributes.

    Characters that no HTML document may hold (controls, lone surrogates) and those that reorder text around them (bidirectional
    overrides) become U+FFFD: text of a corpus must not be able to change how the page around it reads.
    """
    clean = "".join(_REPLACEMENT if _is_unfit(c) else c for c in str(value))
    return Markup(html.escape(clean, quote=True))


_REPLACEMENT = "\ufffd"
_REORDERING = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def _is_unfit(character: str) -> bool:
    if character in "\n\t" or " " <= character <= "~":
        return False
    return character in _REORDERING or unicodedata.category(character) in ("Cc", "Cs")


def el(tag: str, *children: Node, **attributes: object) -> Markup:
    """An element. Attribute names lose a trailing underscore, and inner underscores become hyphens; None and False are left out.

    `el("a", "see", href="#x", aria_label="y", class_="z")`. Strings among the children are escaped, Markup is not.
    """
    parts = [f"<{tag}"]
    for name, value in attributes.items():
        if value is None or value is False:
            continue
        key = name.rstrip("_").replace("_", "-")
        parts.append(f" {key}" if value is True else f' {key}="{text(value)}"')
    parts.append(">")
    if tag in _VOID:
        return Markup("".join(parts))
    parts.append(join(*children))
    parts.append(f"</{tag}>")
    return Markup("".join(parts))


def join(*children: Node) -> Markup:
    """The children one after another, escaped where they are plain text."""
    parts: list[str] = []
    for child in children:
        if child is None:
            continue
        if isinstance(child, Markup):
            parts.append(child)
        elif isinstance(child, (str, int, float)):
            parts.append(text(child))
        else:
            parts.append(join(*child))
    return Markup("".join(parts))


def table(head: Iterable[Node], rows: Iterable[Iterable[Node]], *, caption: str, numeric: Iterable[int] = ()) -> Markup:
    """A table that scrolls sideways inside its own box on a narrow screen; columns in `numeric` are set right-aligned."""
    right = set(numeric)
    cells = [list(row) for row in rows]
    return el(
        "div",
        el(
            "table",
            el("caption", caption),
            el("thead", el("tr", [el("th", cell, scope="col", class_="num" if i in right else None) for i, cell in enumerate(head)])),
            el("tbody", [el("tr", [el("td", cell, class_="num" if i in right else None) for i, cell in enumerate(row)]) for row in cells]),
        ),
        class_="scroll",
        tabindex="0",
        role="region",
        aria_label=caption,
    )


def anchor(name: str) -> str:
    """An id for a step or section that holds nothing but letters, digits and hyphens."""
    return "s-" + re.sub(r"[^a-zA-Z0-9]+", "-", name).strip("-").lower()
