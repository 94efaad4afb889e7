"""The large experiment file: accepted as it stands, and small enough for a laptop by overrides alone."""

import re
import shlex
from pathlib import Path

import fmray  # noqa: F401  (registers the stages)
from fmray.cli import split_rest
from fmray.core.experiment import load_experiment

FILE = Path(__file__).parents[2] / "jobs" / "pretrain_1b.yaml"


def shrunk_words() -> list[str]:
    """The command line that the file's own header gives for a laptop, without `fmray run FILE`."""
    header = [line.removeprefix("#").strip() for line in FILE.read_text().splitlines() if line.startswith("#")]
    first = next(i for i, line in enumerate(header) if line.startswith("fmray run"))
    return shlex.split(" ".join(header[first:]))[3:]


def overrides_of(words: list[str]) -> list[str]:
    name = words.index("--name")
    return split_rest(words[:name] + words[name + 2 :])[1]


def test_the_file_is_accepted_and_its_plan_says_what_it_takes() -> None:
    plans = {step.name: lines for step, lines in load_experiment(FILE).plan()}
    base = plans["base"]
    assert int(base["parameters"].split(" ")[0].replace(",", "")) > 1_000_000_000
    assert base["batch"] == "512 rows = 16 workers x 8 micro-batches x 4 rows"
    assert "ZeRO stage 2, bf16" in base["engine"]
    assert re.search(r"stage 3: [\d.]+ GiB", base["memory a worker"])
    assert base["tokens"].startswith("26,214,400,000")


def test_another_corpus_and_other_zero_stages_are_one_override_away(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "some text"}\n')
    source = f"corpus.source={{type: jsonl, path: {tmp_path}}}"
    experiment = load_experiment(FILE, [source, "base.zero.stage=3", "base.micro_batch_size=1"])
    assert experiment.steps["corpus"].config.source.type == "jsonl"  # type: ignore[attr-defined]
    assert "ZeRO stage 3" in {s.name: p for s, p in experiment.plan()}["base"]["engine"]


def test_the_header_gives_a_command_that_shrinks_it_to_twenty_steps() -> None:
    plans = {step.name: lines for step, lines in load_experiment(FILE, overrides_of(shrunk_words())).plan()}
    assert plans["base"]["batch"] == "8 rows = 2 workers x 2 micro-batches x 2 rows"
    assert plans["base"]["tokens"].startswith("20,480 (20 steps")
    assert int(plans["base"]["parameters"].split(" ")[0].replace(",", "")) < 3_000_000


def test_it_runs_twenty_steps_shrunk_by_overrides_alone(ray_session: None, tmp_path: Path) -> None:
    experiment = load_experiment(FILE, overrides_of(shrunk_words()), storage=str(tmp_path), name="tiny_1b")
    base = experiment.run(["base"])[-1].artifact.payload
    assert base.step == 20
    assert base.tokens_seen == 20 * 8 * 128
    losses = [point.loss for point in base.losses]
    assert len(losses) == 20
    assert losses[-1] < losses[0] - 0.2
