"""The registry: only what was admitted enters, aliases change whole and by the rules, and two writers never lose a change."""

import json
import multiprocessing
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fmray.cli import app
from fmray.core.artifact import load
from fmray.core.errors import ArtifactError, ConfigError, GateRefused
from fmray.core.report import Decision
from fmray.serve.admission import Waiver, admit
from fmray.serve.registry import FILE, REGISTRY, Registry
from tests.serve.conftest import make_checkpoint, make_decision

Copy = Callable[..., Path]


@pytest.fixture
def registry(copy_of: Copy) -> Registry:
    """`lm` with version 1 as champion and version 2 as candidate."""
    root = copy_of("base", "base_gate")
    make_decision(root / "next_gate", make_checkpoint(root / "next", "causal_lm", 7))
    registry = Registry(root / REGISTRY)
    assert registry.register("lm", admit(root / "base")) == 1
    registry.set_champion("lm", 1)
    assert registry.register("lm", admit(root / "next")) == 2
    registry.set_candidate("lm", 2)
    return registry


def test_a_version_is_known_by_its_files(registry: Registry) -> None:
    root = registry.folder.parent
    assert registry.register("lm", admit(root / "next")) == 2
    entry = registry.entry("lm")
    assert [v.number for v in entry.versions] == [1, 2]
    assert registry.path_of(entry.version(2)) == (root / "next").resolve()
    assert registry.decision_of(entry.version(2)) == (root / "next_gate").resolve()
    assert [e.action for e in entry.history] == ["register", "champion", "register", "candidate"]


def test_what_its_gate_refused_enters_with_a_waiver_alone(copy_of: Copy) -> None:
    root = copy_of("base")
    make_decision(root / "base_gate", load(root / "base"), admitted=False)
    registry = Registry(root / REGISTRY)
    with pytest.raises(GateRefused):
        registry.register("lm", admit(root / "base"))
    registry.register("lm", admit(root / "base", waiver=Waiver("Ada", "to look")))
    version = registry.entry("lm").version(1)
    assert (version.waived_by, version.waiver_reason, version.decision) == ("Ada", "to look", None)


def test_promotion_needs_a_canarys_decision_or_a_waiver(registry: Registry) -> None:
    before = (registry.folder / FILE).read_bytes()
    with pytest.raises(GateRefused, match="no canary has admitted version 2"):
        registry.promote("lm")
    about_another = load(registry.folder.parent / "base_gate", Decision)
    with pytest.raises(GateRefused):
        registry.promote("lm", decision=about_another)
    assert (registry.folder / FILE).read_bytes() == before
    entry = registry.promote("lm", decision=load(registry.folder.parent / "next_gate", Decision))
    assert (entry.champion, entry.candidate, entry.history[-1].before) == (2, None, 1)
    assert entry.history[-1].decision == "../next_gate"
    with pytest.raises(ConfigError, match="no candidate to promote"):
        registry.promote("lm", waiver=Waiver("Ada", "again"))


def test_rollback_first_drops_the_candidate_then_goes_back_one_champion_at_a_time(registry: Registry) -> None:
    entry = registry.rollback("lm", reason="slow")
    assert (entry.champion, entry.candidate, entry.history[-1].action) == (1, None, "dismiss")
    with pytest.raises(ConfigError, match="no champion before"):
        registry.rollback("lm")
    registry.set_candidate("lm", 2)
    registry.promote("lm", waiver=Waiver("Ada", "sure"))
    assert registry.rollback("lm").champion == 1
    with pytest.raises(ConfigError, match="no champion before"):
        registry.rollback("lm")


def test_a_canary_takes_back_no_more_than_it_began(registry: Registry) -> None:
    registry.promote("lm", waiver=Waiver("Ada", "by hand"))
    with pytest.raises(ConfigError, match="no longer the candidate"):
        registry.rollback("lm", candidate=2)
    assert registry.entry("lm").champion == 2


def test_a_damaged_file_is_told_and_kept(registry: Registry) -> None:
    (registry.folder / FILE).write_text("{")
    with pytest.raises(ArtifactError, match="is damaged"):
        registry.rollback("lm")
    assert (registry.folder / FILE).read_text() == "{"


def _register_many(folder: str, checkpoint: str, names: list[str]) -> None:
    admission = admit(Path(checkpoint))
    for name in names:
        Registry(Path(folder)).register(name, admission)


def test_two_writers_lose_nothing(copy_of: Copy) -> None:
    root = copy_of("base", "base_gate")
    names = [[f"{writer}{number}" for number in range(8)] for writer in "ab"]
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_register_many, args=(str(root / REGISTRY), str(root / "base"), each)) for each in names]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert set(Registry(root / REGISTRY).read()) == {*names[0], *names[1]}


def test_the_commands_show_and_change_it(registry: Registry) -> None:
    storage = ["--storage", str(registry.folder.parent)]

    def run(*arguments: str) -> str:
        done = CliRunner().invoke(app, [*arguments, *storage], catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return done.stdout

    said = json.loads(run("status", "--json"))["models"]["lm"]
    assert (said["champion"], said["candidate"], said["canary"]["observations"]) == (1, 2, 0)
    assert "candidate 2 rolled back, v1 stays by Ada: slow" in run("rollback", "lm", "--reason", "slow", "--by", "Ada")
    registry.set_candidate("lm", 2)
    promoted = json.loads(run("promote", "lm", "--waive", "seen enough", "--by", "Ada", "--json"))
    assert (promoted["champion"], promoted["history"][0]["reason"]) == (2, "seen enough")
    assert "v2" in run("status", "lm")
    for arguments, error, words in (
        (["rollback", "lmx"], ConfigError, "did you mean 'lm'"),
        (["promote", "lm"], ConfigError, "has no candidate"),
        (["promote", "lm", "--by", "Ada"], ConfigError, "both a reason and a name"),
    ):
        with pytest.raises(error, match=words) as refused:
            CliRunner().invoke(app, [*arguments, *storage], catch_exceptions=False)
        assert (refused.value.exit_code, "\n" in str(refused.value)) == (2, False)
