"""Puts tasks to a checkpoint: prompts by lm-eval, answers by our scorers on one or several workers, figures by lm-eval."""

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fmray import cluster
from fmray.core.artifact import Artifact, write_json
from fmray.core.errors import ConfigError
from fmray.core.report import Finding, Metric
from fmray.core.stage import Out
from fmray.data.dataset import TokenDataset
from fmray.data.vocabulary import read_vocabulary
from fmray.evaluate.config import EvaluateConfig
from fmray.evaluate.language_modelling import EXAMPLES, EXCERPT, spread
from fmray.evaluate.lm_tasks.asking import Setup, answers, setup
from fmray.evaluate.lm_tasks.documents import N_GRAM, Drawn, contaminated, draw
from fmray.evaluate.lm_tasks.encoding import check_fits
from fmray.evaluate.lm_tasks.opened import OpenTask, document_figures
from fmray.evaluate.lm_tasks.workers import SCORERS, Workers
from fmray.model.checkpoint import Checkpoint

SUMMARY = "tasks.json"
Seen = NDArray[np.float64] | None
Asked = tuple[dict[int, Any], frozenset[int], float]
"""The answers by the number of the ask, the documents that lost the beginning of a context, and the seconds it took."""


@dataclass(frozen=True)
class Told:
    """What came of a task: its metrics, one line a document, and how it was asked."""

    metrics: list[Metric]
    examples: list[dict[str, Any]]
    summary: dict[str, Any]


def evaluate_lm_tasks(
    config: EvaluateConfig, checkpoint: Artifact[Checkpoint], out: Out, dataset: Artifact[TokenDataset] | None
) -> tuple[list[Metric], list[Finding], str]:
    """The metrics of a language model on the tasks of a step, what a reader should know of them, and the per-example file's name.

    Raises:
        ConfigError: the checkpoint is no language model, lm-eval is not installed, or a definition does not fit its documents.
        ArtifactError: the checkpoint's tokenizer is not its model's.
        DataError: a task's documents cannot be read, or one does not fit the model.
    """
    about = checkpoint.payload
    _check_asked(config, about, out.name)
    check_fits(read_vocabulary(checkpoint.path), about.vocab_size, about.head, str(checkpoint.path))
    drawn = {name: draw(name, task, config.seed) for name, task in config.tasks.items()}
    out.progress(f"asking {checkpoint.name} {', '.join(config.tasks)}", done=0, total=1)
    here, started = config.num_workers == 1, time.monotonic()
    cluster.require([{"CPU": config.num_cpus, **({"GPU": config.num_gpus} if config.num_gpus else {})}] * config.num_workers, wait_s=60.0)
    told: dict[str, Told] = cluster.call(
        put_tasks, config, about.head, checkpoint.path, drawn, dataset.path if dataset else None, num_cpus=config.num_cpus if here else 0, num_gpus=config.num_gpus if here else 0
    )
    out.spend(device="cuda" if config.num_gpus else "cpu", count=config.num_workers * (config.num_gpus or config.num_cpus), seconds=time.monotonic() - started)
    with (out.path / EXAMPLES).open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(example, ensure_ascii=False) + "\n" for one in told.values() for example in one.examples)
    write_json(out.path / SUMMARY, {name: one.summary for name, one in told.items()})
    metrics = [metric for one in told.values() for metric in one.metrics]
    out.progress(f"{sum(len(one.examples) for one in told.values())} documents", done=1, total=1)
    return metrics, _findings(told), EXAMPLES


def _check_asked(config: EvaluateConfig, about: Checkpoint, step: str) -> None:
    if about.head not in SCORERS:
        raise ConfigError(f"tasks are put to language models ({', '.join(SCORERS)}), and the checkpoint has the head {about.head}", where=f"{step}.tasks")
    writing = [name for name, task in config.tasks.items() if task.output == "generate_until"]
    if writing and about.head == "masked_lm":
        raise ConfigError(f"a masked model writes no text, which {writing[0]} asks for", where=f"{step}.tasks.{writing[0]}")
    if find_spec("lm_eval") is None:
        raise ConfigError("tasks need lm-eval", where=f"{step}.tasks", todo="pip install 'fmray[lm-eval]'")


def put_tasks(config: EvaluateConfig, head: str, path: Path, drawn: Mapping[str, Drawn], dataset_path: Path | None) -> dict[str, Told]:
    """Puts all tasks to the model and, on some of the documents, to its untrained twin, in this process and its workers.

    Raises:
        ConfigError: a definition does not fit its documents.
        DataError: a document does not fit the model.
    """
    opened = {name: OpenTask(name, task, drawn[name]) for name, task in config.tasks.items()}
    chosen = {name: set(spread(len(drawn[name].places), config.control_rows).tolist()) for name in opened}
    seeds: tuple[int | None, ...] = (None, config.seed)
    found: dict[int | None, dict[str, Asked]] = {}
    for seed in seeds:
        workers = Workers(head, path, seed, config.num_workers, config.num_cpus, config.num_gpus)
        try:
            ready = setup(head, path, workers, config.micro_batch_size)
            found[seed] = {name: _asked(task, ready, workers, None if seed is None else chosen[name]) for name, task in opened.items()}
        finally:
            workers.close()
    texts = {name: [task.text(document) for document in range(len(drawn[name].places))] for name, task in opened.items()}
    seen = _seen(texts, dataset_path)
    return {name: _tell(task, drawn[name], found[None][name], found[config.seed][name], texts[name], seen[name], config, len(chosen[name])) for name, task in opened.items()}


def _seen(texts: Mapping[str, Sequence[str]], dataset_path: Path | None) -> dict[str, Seen]:
    """For each task which of its documents the training corpus holds; the corpus is read once for all."""
    if dataset_path is None:
        return dict.fromkeys(texts)
    hit_N = contaminated([text for task in texts.values() for text in task], dataset_path)
    edges = np.cumsum([len(task) for task in texts.values()])[:-1]
    return dict(zip(texts, np.split(hit_N, edges), strict=True))


def _asked(task: OpenTask, ready: Setup, workers: Workers, only: set[int] | None) -> Asked:
    numbers = [i for i, ask in enumerate(task.asks) if only is None or ask.document in only]
    started = time.monotonic()
    given, cut = answers(task.config.output, [task.asks[i] for i in numbers], ready, workers)
    return dict(zip(numbers, given, strict=True)), cut, time.monotonic() - started


def _tell(task: OpenTask, drawn: Drawn, asked: Asked, asked_twin: Asked, texts: Sequence[str], seen_N: Seen, config: EvaluateConfig, n_control: int) -> Told:
    given, cut, seconds = asked
    values, twin = task.values(given), task.values(asked_twin[0])
    how = (
        f"{task.config.shots} shots, seed {config.seed}, prompts {task.prompt_hash[:12]}; {len(cut)} documents truncated; interval by resampling documents; "
        f"control: untrained twin on {n_control} of them"
    )  # fmt: skip
    metrics = []
    for metric, items in values.items():
        found = task.interval(metric, items, config.seed)
        metrics.append(Metric(
            name=f"eval/{task.name}/{metric}", value=found.value, higher_is_better=task.higher_is_better(metric), stderr=found.stderr, lower=found.lower,
            upper=found.upper, n=found.n, control=task.figure(metric, twin[metric]), note=how,
        ))  # fmt: skip
    metrics += [Metric(name=f"eval/{task.name}/truncated", value=len(cut) / len(texts), higher_is_better=False, n=len(texts), note="share of documents whose context lost its beginning"), _contamination(task.name, seen_N)]
    summary = {
        "task": task.config.task, "definition": task.config.definition, "shots": task.config.shots, "shot_documents": list(drawn.shot_places), "seed": config.seed,
        "documents": len(texts), "prompt_hash": task.prompt_hash, "truncated": len(cut), "control_documents": n_control, "scoring_s": round(seconds, 2), "lm_eval": _version(),
    }  # fmt: skip
    return Told(metrics, _examples(task, drawn, values, given, texts, cut, seen_N), summary)


def _contamination(name: str, seen_N: Seen) -> Metric:
    key, unknown = f"eval/{name}/contaminated", "no dataset was given, so it is not known what was trained on"
    checked = None if seen_N is None else seen_N[~np.isnan(seen_N)]
    if checked is not None and not len(checked):
        unknown = f"no document has {N_GRAM} words, so none can be found in the training corpus"
    if checked is None or not len(checked):
        return Metric(name=key, value=None, higher_is_better=False, note=unknown)
    return Metric(name=key, value=float(checked.mean()), higher_is_better=False, n=len(checked), note=f"share of the documents of at least {N_GRAM} words that share so many in a row with a training document")


def _examples(task: OpenTask, drawn: Drawn, values: Mapping[str, Sequence[Any]], given: Mapping[int, Any], texts: Sequence[str], cut: frozenset[int], seen_N: Seen) -> list[dict[str, Any]]:
    said: dict[int, list[Any]] = {}
    for i, answer in given.items():
        said.setdefault(task.asks[i].document, []).append(answer[0] if isinstance(answer, tuple) else answer)
    prompts: dict[int, list[Any]] = {}
    for ask in task.asks:
        prompts.setdefault(ask.document, []).append(ask.arguments)
    found = []
    for document, place in enumerate(drawn.places):
        hit = None if seen_N is None or np.isnan(seen_N[document]) else bool(seen_N[document])
        found.append({
            "task": task.name, "document": place, "document_hash": _hash(drawn.documents[document]), "prompt_hash": _hash(prompts[document]), "text": texts[document][-EXCERPT:],
            "target": task.target(document)[:EXCERPT], "answers": said[document], "metrics": document_figures(values, document), "truncated": document in cut,
            "contaminated": hit,
        })  # fmt: skip
    return found


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def _version() -> str:
    from importlib.metadata import version

    return version("lm_eval")


def _findings(told: Mapping[str, Told]) -> list[Finding]:
    found = []
    for name, one in told.items():
        hits = [example for example in one.examples if example["contaminated"]]
        if hits:
            detail = f"{len(hits)} of {len(one.examples)} documents share {N_GRAM} words in a row with the training corpus; the figure may show memory rather than skill"
            found.append(Finding(title=f"{name} stands in the training corpus", severity="medium", detail=detail))
    return found
