"""Two reports on the same examples: the paired difference of each figure with its interval, who won where, and the stage `compare`."""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from fmray.core import intervals
from fmray.core.artifact import RECORD, Artifact, load, read_record
from fmray.core.config import Config
from fmray.core.errors import ArtifactError, DataError
from fmray.core.intervals import Interval
from fmray.core.report import Metric, Report
from fmray.core.stage import Out, stage
from fmray.model.checkpoint import Checkpoint

EXAMPLES = "examples.jsonl"
# Of all figures that an example may have, those of which less is better.
LOWER_IS_BETTER = frozenset({"loss", "nats", "nats_per_word", "nats_per_byte", "bits_per_byte"})
Key = tuple[str, int]
"""What an example is known by, and how many like it stood before."""


@dataclass(frozen=True)
class Example:
    """What one model did on an example: its figures, what a reader is shown of it, and what it said (None where that is the figure itself).

    Examples of the same `unit`, such as questions about one passage, are resampled together; None is a unit of its own.
    """

    figures: Mapping[str, float]
    shown: Mapping[str, Any]
    said: Any = None
    unit: int | None = None


@dataclass(frozen=True)
class Comparison:
    """One figure of A against B on the same examples of a task ("" where a report has but one).

    Attributes:
        difference: A minus B, its interval by a bootstrap of the pairs, those of a unit together.
        wins, losses: examples where A did better, and worse; the rest are ties.
        p_value: McNemar's exact test (1947) of wins against losses, for figures that are 0 or 1; else None.
        won, lost: these examples with what both said.
    """

    task: str
    figure: str
    n: int
    a: float
    b: float
    difference: Interval
    wins: int
    losses: int
    p_value: float | None
    won: tuple[dict[str, Any], ...]
    lost: tuple[dict[str, Any], ...]

    @property
    def name(self) -> str:
        """The figure with its task."""
        return f"{self.task}/{self.figure}" if self.task else self.figure


def compare(a: Artifact[Report], b: Artifact[Report], *, seed: int = 0) -> list[Comparison]:
    """Every figure that examples have on their own in both reports, example by example.

    Raises:
        DataError: a report keeps no examples, they share no task, or a task's examples or all of their figures differ.
    """
    theirs, ours = read_examples(b), read_examples(a)
    shared = [task for task in ours if task in theirs]
    if not shared:
        raise DataError(f"{a.path} and {b.path} share no task: {_tasks(ours)} against {_tasks(theirs)}", todo="evaluate both on the same tasks")
    found = []
    for task in shared:
        missing = [len(ours[task].keys() - theirs[task].keys()), len(theirs[task].keys() - ours[task].keys())]
        if any(missing):
            raise DataError(
                f"the examples{f' of {task}' if task else ''} differ: {missing[0]} of {len(ours[task])} stand only in {a.path}, {missing[1]} of {len(theirs[task])} only in {b.path}",
                todo="evaluate both on the same documents, with the same definition, shots and seed",
            )  # fmt: skip
        first = next(iter(ours[task]))
        figures = [figure for figure in ours[task][first].figures if figure in theirs[task][first].figures]
        if not figures:
            names = (", ".join(side[task][first].figures) for side in (ours, theirs))
            raise DataError(f"the reports share no figure{f' of {task}' if task else ''}: {' against '.join(names)}", where=f"{a.path} and {b.path}", todo="evaluate both with the same metrics")
        found += [_compared(task, figure, ours[task], theirs[task], seed) for figure in figures]
    return found


def _compared(task: str, figure: str, ours: Mapping[Key, Example], theirs: Mapping[Key, Example], seed: int) -> Comparison:
    pairs = [(ours[key], theirs[key]) for key in ours]
    a_N, b_N = (np.array([side.figures[figure] for side in sides]) for sides in zip(*pairs, strict=True))
    gain_N = np.sign(b_N - a_N if figure in LOWER_IS_BETTER else a_N - b_N)
    wins, losses = int((gain_N > 0).sum()), int((gain_N < 0).sum())

    def shown(sign: int) -> tuple[dict[str, Any], ...]:
        return tuple({**pairs[i][0].shown, **_said(*pairs[i]), figure: [float(a_N[i]), float(b_N[i])]} for i in np.flatnonzero(gain_N == sign))

    _, unit_N = np.unique([i if one.unit is None else one.unit for i, (one, _) in enumerate(pairs)], return_inverse=True)
    difference = intervals.ratio(np.bincount(unit_N, a_N - b_N), np.bincount(unit_N), seed=seed)
    binary = bool(np.isin(np.concatenate([a_N, b_N]), (0.0, 1.0)).all())
    return Comparison(
        task, figure, len(pairs), float(a_N.mean()), float(b_N.mean()), difference, wins, losses,
        mcnemar(wins, losses) if binary else None, shown(1), shown(-1),
    )  # fmt: skip


def _said(a: Example, b: Example) -> dict[str, Any]:
    return {} if a.said is None else {"said": [a.said, b.said]}


def mcnemar(wins: int, losses: int) -> float:
    """The two-sided p-value of McNemar's exact test: were wins and losses tosses of a fair coin, how often would they be as unequal?"""
    from scipy.stats import binomtest

    return float(binomtest(wins, wins + losses, 0.5).pvalue) if wins + losses else 1.0


def _tasks(examples: Mapping[str, Any]) -> str:
    return ", ".join(task or "one without a name" for task in examples)


def read_examples(report: Artifact[Report]) -> dict[str, dict[Key, Example]]:
    """The examples of a report by task: of likelihood tasks, of a tuned model's test split, or rows of held-out text.

    Raises:
        DataError: it keeps none, or of a kind without figures.
    """
    path = report.path / (report.payload.examples or EXAMPLES)
    try:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise DataError(f"the report keeps no examples that can be read ({type(error).__name__})", where=str(path), todo="compare reports of evaluate") from None
    found: dict[str, dict[Key, Example]] = {}
    seen: Counter[tuple[str, str]] = Counter()
    for line in lines:
        task, known_by, example = _example(line, report)
        found.setdefault(task, {})[known_by, seen[task, known_by]] = example
        seen[task, known_by] += 1
    if not found or not all(example.figures for examples in found.values() for example in examples.values()):
        raise DataError("the report's examples hold no figure that one example has on its own, so nothing can be compared", where=str(path), todo="compare reports of evaluate, on a task with such figures")
    return found


def _example(line: Mapping[str, Any], report: Artifact[Report]) -> tuple[str, str, Example]:
    """The task of a line, what its example is known by, and the example."""
    if "metrics" in line:
        shown = {"task": line["task"], "document": line["document"], "text": line["text"], "target": line["target"]}
        return line["task"], f"{line['document_hash']} {line['prompt_hash']}", Example(line["metrics"], shown, line.get("answers"))
    if "label" in line:
        asked = {name: line[name] for name in ("text", "input") if name in line}
        known_by = hashlib.sha256(json.dumps([asked, line["label"]], sort_keys=True).encode()).hexdigest()
        return line.get("task", ""), known_by, Example(line.get("figures", {}), {"task": line.get("task", ""), **asked, "target": line["label"]}, line["model"], line.get("unit"))
    if "row" in line and "loss" in line:
        return "", f"{report.record.inputs.get('dataset')} {line['row']}", Example({"loss": float(line["loss"])}, {"row": line["row"], "text": line.get("text", "")})
    return "", "", Example({}, {})


def find_report(path: Path) -> Artifact[Report]:
    """The report at a path, or the one report about the checkpoint there that lies beside it and keeps examples.

    Raises:
        ArtifactError: there is none, or there are several.
    """
    found: Artifact[Any] = load(path)
    if isinstance(found.payload, Report):
        return found
    if not isinstance(found.payload, Checkpoint):
        raise ArtifactError(f"is a {found.record.kind}, neither a report nor a checkpoint", where=str(path))
    records = [(folder, read_record(folder)) for folder in sorted(path.parent.iterdir()) if (folder / RECORD).is_file()]
    reports = [load(folder, Report) for folder, record in records if record is not None and record.stage == "evaluate"]
    about = [report for report in reports if report.payload.subject == found.fingerprint and report.payload.examples]
    if len(about) != 1:
        named = f"{len(about)} reports about it lie beside it: {', '.join(report.path.name for report in about)}" if about else "no report about it lies beside it"
        raise ArtifactError(named, where=str(path), todo="give the path of the report itself" if about else "evaluate it first")
    return about[0]


def summary(a: Artifact[Report], b: Artifact[Report], found: list[Comparison], n_examples: int) -> dict[str, Any]:
    """The comparisons as plain values, with at most so many examples that A won and lost."""
    return {
        "a": str(a.path), "b": str(b.path), "subjects": [a.payload.subject, b.payload.subject],
        "comparisons": [{
            "task": one.task, "figure": one.figure, "n": one.n, "a": one.a, "b": one.b, "difference": one.difference.value, "lower": one.difference.lower,
            "upper": one.difference.upper, "wins": one.wins, "losses": one.losses, "mcnemar_p": one.p_value, "won": list(one.won[:n_examples]), "lost": list(one.lost[:n_examples]),
        } for one in found],
    }  # fmt: skip


def markdown(said: Mapping[str, Any]) -> str:
    """A summary as Markdown."""
    lines = [f"A: `{said['a']}`  ", f"B: `{said['b']}`", "", "| task | figure | examples | A | B | A − B | 95 % interval | A better | B better | McNemar p |", "|---|---|--:|--:|--:|--:|---|--:|--:|--:|"]
    for one in said["comparisons"]:
        p = "" if one["mcnemar_p"] is None else f"{one['mcnemar_p']:.3g}"
        lines.append(
            f"| {one['task']} | {one['figure']} | {one['n']} | {one['a']:.4f} | {one['b']:.4f} | {one['difference']:+.4f} | {one['lower']:+.4f} to {one['upper']:+.4f} "
            f"| {one['wins']} | {one['losses']} | {p} |"
        )
    for one in said["comparisons"]:
        for side, better in (("won", "A"), ("lost", "B")):
            for example in one[side]:
                text = json.dumps({name: value for name, value in example.items() if name != "task"}, ensure_ascii=False)
                lines += [*(["", f"{one['task'] or one['figure']}, {one['figure']}: {better} is better", ""] if example is one[side][0] else []), f"* {text}"]
    return "\n".join(lines)


class CompareConfig(Config):
    """How a report is held against the champion's.

    Attributes:
        seed: of the bootstrap.
    """

    seed: int = Field(0, ge=0)


@stage("compare", version=1, recompute=True)
def compare_reports(config: CompareConfig, report: Artifact[Report], champion: Artifact[Report], out: Out) -> Report:
    """A report about the candidate's differences from the champion, for a gate's rules such as `lower(compare/piqa/acc_difference) >= 0`.

    Raises:
        DataError: the two do not rest on the same examples.
    """
    found = compare(report, champion, seed=config.seed)
    with (out.path / EXAMPLES).open("w", encoding="utf-8") as file:
        for one in found:
            for side, examples in (("candidate", one.won), ("champion", one.lost)):
                file.writelines(json.dumps({"better": side, "figure": one.name, **example}, ensure_ascii=False) + "\n" for example in examples)
    return Report(subject=report.payload.subject, metrics=tuple(_metric(one, champion.name) for one in found), examples=EXAMPLES)


def _metric(one: Comparison, champion: str) -> Metric:
    tested = "" if one.p_value is None else f", McNemar p {one.p_value:.3g}"
    return Metric(
        name=f"compare/{one.name}_difference", value=one.difference.value, higher_is_better=one.figure not in LOWER_IS_BETTER, stderr=one.difference.stderr,
        lower=one.difference.lower, upper=one.difference.upper, n=one.n,
        note=f"{one.a:.4f} minus {one.b:.4f} of {champion} on the same examples; better on {one.wins}, worse on {one.losses}{tested}; interval by resampling pairs",
    )  # fmt: skip
