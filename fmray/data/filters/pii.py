"""Redaction of personal data and secrets."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Literal

from pydantic import Field

from fmray.data.filters import Apply, Filter, Outcome
from fmray.data.filters._pii_rules import FINDERS, NEEDS_DIGITS, Finder
from fmray.data.filters._presidio import presidio_finders

Kind = Literal["key", "email", "iban", "card", "ip", "phone"]


class Pii(Filter):
    """Replaces personal data by typed placeholders: `<EMAIL>`, `<PHONE>`, `<CARD>`, `<IP>`, `<IBAN>`, `<KEY>`; notes each kind's number.

    What has a checksum (cards, IBANs) or a shape of its own (addresses, keys of known services) is found reliably. Telephone numbers
    vary too much for a rule to know them all, and names and postal addresses are not looked for: this reduces what a model may
    remember, and is no proof of anonymity.

    Attributes:
        engine: `rules` are fmray's own, in linear time. `presidio` asks Microsoft Presidio's pattern recognisers (an extra) for all
            kinds but keys: slower by far, and its time on hostile text is not bounded.
    """

    type: Literal["pii"] = "pii"
    kinds: tuple[Kind, ...] = Field(("key", "email", "iban", "card", "ip", "phone"), min_length=1)
    engine: Literal["rules", "presidio"] = "rules"

    def open(self) -> Apply:
        """Loads the engine.

        Raises:
            ConfigError: the engine is not installed.
        """
        known: dict[str, Finder] = FINDERS if self.engine == "rules" else {**FINDERS, **presidio_finders()}
        wanted: Collection[str] = self.kinds
        finders = {kind: known[kind] for kind in FINDERS if kind in wanted}

        def apply(texts: Sequence[str]) -> Outcome:
            notes = Counter[str]()
            return Outcome([redacted(text, finders, notes) for text in texts], [None] * len(texts), notes)

        return apply


def redacted(text: str, finders: Mapping[str, Finder], notes: Counter[str]) -> str:
    """The text with a placeholder for everything found, counted by kind; where finds overlap, the first finder's counts."""
    n_digits = sum(map(text.count, "0123456789"))
    finds: list[tuple[int, int, str]] = []
    for kind, find in finders.items():
        if n_digits >= NEEDS_DIGITS.get(kind, 0):
            finds += [(start, end, kind) for start, end in find(text)]
    if not finds:
        return text
    parts, at = [], 0
    for start, end, kind in _apart(finds, list(finders)):
        parts += [text[at:start], f"<{kind.upper()}>"]
        at = end
        notes[kind] += 1
    return "".join([*parts, text[at:]])


def _apart(finds: list[tuple[int, int, str]], ranked: list[str]) -> list[tuple[int, int, str]]:
    """The finds from left to right; of two that overlap, the kind ranked first."""
    taken: list[tuple[int, int, str]] = []
    for found in sorted(finds, key=lambda one: (one[0], -one[1])):
        if not taken or taken[-1][1] <= found[0]:
            taken.append(found)
        elif ranked.index(found[2]) < ranked.index(taken[-1][2]):
            taken[-1] = found
    return taken
