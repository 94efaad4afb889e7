"""The filter that repairs mojibake: what it repairs, what it leaves alone, what it counts."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fmray.core.config import Config, load_config
from fmray.data.filters import Filter, Outcome
from fmray.data.text import normalise

pytest.importorskip("ftfy")


class Holder(Config):
    """A config with a filter in it."""

    filter: Filter


def apply(texts: list[str], **fields: object) -> Outcome:
    return load_config(Holder, {"filter": {"type": "mojibake", **fields}}).filter.open()(texts)


GOOD = ["plain", "Le café était fermé.", "“déjà vu” — naïve", "却说刘姥姥进了大观园", "Größe und Straße", "Привет", ""]


def test_wrong_decodings_are_undone_and_counted() -> None:
    broken = [text.encode().decode("cp1252") for text in ("Le café était fermé.", "it’s", "“Größe”".replace("”", "’"))]
    outcome = apply([*broken, "fine"])
    assert outcome.texts == ["Le café était fermé.", "it’s", "“Größe’", "fine"]
    assert outcome.notes == {"mojibake_repaired": 3}
    assert set(outcome.removed) == {None}


def test_what_the_normal_form_has_lost_does_not_come_back() -> None:
    broken = [normalise(text.encode().decode("latin-1")) for text in ("Le café est là-haut, garçon", "it’s")]
    assert apply(broken).texts == ["Le café est là-haut, garçon", "itâs"]


def test_good_text_stays_as_it_is_and_nothing_is_noted() -> None:
    outcome = apply(GOOD)
    assert list(outcome.texts) == GOOD
    assert not outcome.notes
    assert len(outcome.removed) == len(GOOD)


def test_the_wider_scope_straightens_what_ftfy_does() -> None:
    (text,) = apply(["&lt;b&gt; “ﬁve”"], scope="text").texts
    assert text == '<b> "five"'
    assert apply(["&lt;b&gt; “ﬁve”"]).texts == ["&lt;b&gt; “ﬁve”"]


@given(st.lists(st.text(max_size=30), max_size=4))
def test_a_text_has_the_same_fate_in_any_batch(texts: list[str]) -> None:
    together = apply(texts)
    alone = [apply([text]) for text in texts]
    assert list(together.texts) == [outcome.texts[0] for outcome in alone]
    assert together.notes["mojibake_repaired"] == sum(outcome.notes["mojibake_repaired"] for outcome in alone)
