"""What holds for every filter, and what unicode, length, language, profanity and decontaminate do."""

import json
import pickle
import random
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fmray.core.config import load_config
from fmray.core.errors import ConfigError, DataError
from fmray.data.filters import Apply, Filter
from fmray.data.filters.decontaminate import Decontaminate
from fmray.data.filters.language import Language
from fmray.data.filters.length import Length
from fmray.data.filters.profanity import Profanity
from fmray.data.filters.unicode import Unicode
from tests.data.corpora import topics

LEAK = "the quick brown fox jumps over the lazy dog and then sleeps under a tall old tree until dawn"
OPTIONAL = {"profanity": "profanity_check", "mojibake": "ftfy", "language": "py3langid"}

ODD = [
    "", " ", "\n\n", "a", "...", "💥" * 40, "e\u0301\u0323" * 30, "\u202e\u200b\u200d\ufffd", "\U0010ffff", "\x85\u2028\u2029 line", "今天天气很好，我们去公园。",
    "İstanbul ẞ ﬁ x²", "ab\u0000cd", "'" * 50, "a'b " * 30, "- - -\n• x\n" * 20, "http://", "@", "://", "word " * 3000,
]  # fmt: skip


def config_of(tag: str, folder: Path) -> dict[str, Any]:
    """The least a member needs to be made."""
    if tag != "decontaminate":
        return {"type": tag}
    (folder / "held_out.jsonl").write_text(json.dumps({"text": LEAK}) + "\n")
    return {"type": tag, "sets": {"held_out": {"source": {"type": "jsonl", "path": str(folder / "held_out.jsonl")}}}}


@pytest.fixture(scope="module", params=sorted(tag for tag in Filter.members() if not tag.startswith("test_")))
def member(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Filter:
    if request.param in OPTIONAL:
        pytest.importorskip(OPTIONAL[request.param])
    found = load_config(Filter.members()[request.param], config_of(request.param, tmp_path_factory.mktemp("sets")))
    assert isinstance(found, Filter)
    return found


@pytest.fixture(scope="module")
def apply(member: Filter) -> Apply:
    return member.open()


def fates(apply: Apply, texts: list[str]) -> list[tuple[str, str | None]]:
    outcome = apply(texts)
    assert len(outcome.texts) == len(outcome.removed) == len(texts)
    return list(zip(outcome.texts, outcome.removed, strict=True))


def test_a_text_has_one_fate_in_every_company(apply: Apply) -> None:
    texts = [*ODD, *topics()[:150], LEAK]
    alone = [fates(apply, [text])[0] for text in texts]
    assert fates(apply, texts) == alone
    order = random.Random(0).sample(range(len(texts)), len(texts))
    assert fates(apply, [texts[i] for i in order]) == [alone[i] for i in order]
    assert fates(apply, []) == []


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=st.lists(st.text(max_size=60), max_size=6))
def test_any_text_is_borne(apply: Apply, texts: list[str]) -> None:
    together = fates(apply, texts)
    assert together == [fates(apply, [text])[0] for text in texts]


@pytest.mark.parametrize("piece", ["a", "a ", "a. ", ".", "-", "词", "a\n", "(", "'", "a'"])
def test_a_megabyte_of_anything_takes_linear_time(apply: Apply, piece: str) -> None:
    text = piece * (1_000_000 // len(piece))
    apply([piece])
    started = time.process_time()
    fates(apply, [text])
    assert time.process_time() - started < 5.0


def test_it_travels_and_its_identity_names_no_place(member: Filter) -> None:
    assert pickle.loads(pickle.dumps(member)) == member
    identity = json.dumps(member.identity())
    assert str(Path.home()) + "/" not in identity
    assert "held_out.jsonl" not in identity


def test_unicode_forms() -> None:
    assert Unicode().open()(["e\u0301", "ﬁ"]).texts == ["é", "ﬁ"]
    folded = Unicode(form="NFKC").open()(["ｆｕｌｌ", "plain"])
    assert (folded.texts, folded.notes) == (["full", "plain"], {"changed": 1})


def test_length_rules() -> None:
    apply = Length(min_chars=2, max_chars=9, min_words=2, max_words=3).open()
    assert apply(["a", "a b", "a b c d", "aaaa", "a b c d e f"]).removed == ["few_chars", None, "many_words", "few_words", "many_chars"]
    with pytest.raises(ConfigError, match="min_words is above max_words"):
        load_config(Length, {"type": "length", "min_words": 5, "max_words": 2})


SENTENCES = {
    "en": "The committee will meet again on Thursday to decide what should be done about the old bridge.",
    "zh": "委员会将于星期四再次开会，决定应该如何处理那座旧桥，并听取居民的意见。",
    "fr": "Le comité se réunira de nouveau jeudi pour décider de ce qu'il faut faire du vieux pont.",
    "de": "Der Ausschuss wird am Donnerstag wieder zusammentreten, um über die alte Brücke zu entscheiden.",
}


def test_languages_are_told_apart_and_noted() -> None:
    pytest.importorskip("py3langid")
    outcome = Language(keep=("en", "zh")).open()(list(SENTENCES.values()))
    assert outcome.removed == [None, None, "fr", "de"]
    assert outcome.notes == {"en": 1, "zh": 1}
    assert Language().open()([*SENTENCES.values(), ""]).removed == [None, None, None, None, "unsure"]
    with pytest.raises(ConfigError, match="unknown language 'english'"):
        Language(keep=("english",)).open()


def test_a_missing_classifier_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "profanity_check", None)
    with pytest.raises(ConfigError, match=r"fmray\[profanity\]"):
        Profanity().open()


def test_profanity_is_removed_or_reported() -> None:
    pytest.importorskip("profanity_check")
    texts = ["you are a fucking asshole", "the committee will meet again on Thursday"]
    assert Profanity().open()(texts).removed == ["profane", None]
    report = Profanity(action="report").open()(texts)
    assert (report.removed, report.notes) == ([None, None], {"profane": 1})


def decontaminate(folder: Path, rows: list[dict[str, Any]], **config: Any) -> Decontaminate:
    fields = config.pop("fields", ["text"])
    (folder / "set.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return load_config(
        Decontaminate,
        {"type": "decontaminate", "sets": {"exam": {"source": {"type": "jsonl", "path": str(folder / "set.jsonl")}, "fields": fields}}, **config},
    )


def test_a_shared_run_of_words_is_found_whatever_its_case_and_marks(tmp_path: Path) -> None:
    apply = decontaminate(tmp_path, [{"text": LEAK}]).open()
    words = LEAK.split()
    inside = "An old story. " + ", ".join(words[2:15]).upper() + " -- so it goes."
    short = "An old story. " + " ".join(words[2:14]) + " so it goes."
    outcome = apply([inside, short, LEAK])
    assert outcome.removed == ["exam", None, "exam"]
    assert outcome.notes == {"exam": 2}


def test_a_run_across_two_documents_is_none(tmp_path: Path) -> None:
    words = LEAK.split()
    assert decontaminate(tmp_path, [{"text": LEAK}]).open()([" ".join(words[:9]), " ".join(words[9:])]).removed == [None, None]


def test_chinese_runs_are_of_characters(tmp_path: Path) -> None:
    passage = "昔者庄周梦为胡蝶栩栩然胡蝶也自喻适志与"
    apply = decontaminate(tmp_path, [{"text": passage}]).open()
    assert apply(["他说：" + passage[3:16] + "。", "他说：" + passage[3:15] + "。"]).removed == ["exam", None]


def test_reports_fields_and_faults(tmp_path: Path) -> None:
    rows = [{"text": "unrelated", "choices": [LEAK, "no"]}]
    report = decontaminate(tmp_path, rows, fields=["choices"], action="report").open()([LEAK])
    assert (report.removed, report.notes) == ([None], {"exam": 1})
    with pytest.raises(DataError, match="no field 'answer'"):
        decontaminate(tmp_path, rows, fields=["answer"]).open()
    with pytest.raises(DataError, match="holds no text of 13 words"):
        decontaminate(tmp_path, [{"text": "too short"}]).open()


def test_its_identity_follows_the_content_of_a_set(tmp_path: Path) -> None:
    one = decontaminate(tmp_path, [{"text": LEAK}])
    before, apply = one.identity(), one.open()
    changed = decontaminate(tmp_path, [{"text": LEAK[::-1]}])
    assert changed.identity() != before
    assert apply([LEAK]).removed == ["exam"]
    assert changed.open()([LEAK]).removed == [None]
