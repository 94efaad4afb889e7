"""A task opened with lm-eval: its prompts, and what its metrics make of a model's answers."""

import hashlib
import json
import logging
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fmray.core import intervals
from fmray.core.errors import ConfigError, DataError, FmrayError
from fmray.core.intervals import Interval
from fmray.evaluate.lm_tasks.config import LmTask
from fmray.evaluate.lm_tasks.documents import Drawn

# What a document's value of these metrics is to a reader who compares two models document by document: the log-likelihood that lm-eval
# keeps (with the words or bytes that it is spread over), as nats or bits.
BY_DOCUMENT: Mapping[str, tuple[str, Callable[[Any], float]]] = {
    "perplexity": ("nats", lambda loglikelihood: -loglikelihood),
    "word_perplexity": ("nats_per_word", lambda pair: -pair[0] / max(pair[1], 1)),
    "byte_perplexity": ("nats_per_byte", lambda pair: -pair[0] / max(pair[1], 1)),
    "bits_per_byte": ("bits_per_byte", lambda pair: -pair[0] / max(pair[1], 1) / math.log(2)),
}

# What a definition says of where its documents lie, and of those that stand before them; both are drawn here.
ELSEWHERE = ("dataset_path", "dataset_name", "dataset_kwargs", "fewshot_config", "num_fewshot")


@dataclass(frozen=True)
class Ask:
    """One thing asked of the model for the document number `document`: lm-eval's arguments for it."""

    document: int
    arguments: tuple[Any, ...]


class OpenTask:
    """A task of lm-eval over documents that were drawn here."""

    def __init__(self, name: str, task: LmTask, drawn: Drawn) -> None:
        """Opens it.

        Raises:
            ConfigError: the definition asks for what the documents lack, or is otherwise none that lm-eval can use.
            DataError: the right answer of a document is none of its choices.
        """
        os.environ.setdefault("TQDM_DISABLE", "1")
        import datasets
        from lm_eval.api.task import ConfigurableTask

        logging.getLogger("lm_eval").setLevel(logging.ERROR)
        definition = {key: value for key, value in task.definition.items() if not key.endswith("_split") and key not in ELSEWHERE}
        # How solved examples are written is the definition's; which they are was drawn.
        told = {key: value for key, value in (task.definition.get("fewshot_config") or {}).items() if key != "split"}
        fixed: dict[str, Any] = {"fewshot_split": "shots", "fewshot_config": {**told, "sampler": "first_n"}} if task.shots else {}
        has = ", ".join(drawn.documents[0])
        try:
            splits = {"test": drawn.documents, **({"shots": drawn.shots} if task.shots else {})}
            data = {split: datasets.Dataset.from_list(list(documents)) for split, documents in splits.items()}
            self.task: Any = ConfigurableTask(config={**definition, **fixed, "task": name, "test_split": "test", "num_fewshot": task.shots, "custom_dataset": lambda **_: data})
            self.task.build_all_requests()
            if task.output == "multiple_choice":
                _check_answers(self.task, drawn, name, task)
        except FmrayError:
            raise
        except Exception as error:  # the definition's templates may fail in any way
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise ConfigError(f"the task {task.task} cannot be put to its documents ({reason})", where=f"tasks.{name}", todo=f"a document of {task.path} has: {has}") from None
        self.name, self.config = name, task
        self.asks = [Ask(instance.doc_id, instance.args) for instance in self.task.instances]
        self._instances = list(self.task.instances)
        self._documents = list(self.task.eval_docs)

    @property
    def prompt_hash(self) -> str:
        """sha256 over all that is put to the model, in order."""
        return hashlib.sha256(json.dumps([ask.arguments for ask in self.asks]).encode()).hexdigest()

    def values(self, answers: Mapping[int, Any]) -> dict[str, list[Any]]:
        """What lm-eval makes of the answers, by metric, one value a document that was asked about, in order.

        Args:
            answers: by the number of the ask; all of those about a document or none.
        """
        self.task._instances = [self._instances[i] for i in answers]
        by_document: dict[int, list[Any]] = {}
        for i, answer in answers.items():
            instance = self._instances[i]
            instance.resps, instance.filtered_resps = [answer], {}
            by_document.setdefault(instance.doc_id, []).append(instance)
        self.task.apply_filters()
        filters = list(self.task._instances[0].filtered_resps)
        found: dict[str, list[Any]] = {}
        for name in filters:
            for document, instances in by_document.items():
                results = self.task.process_results(self._documents[document], [instance.filtered_resps[name] for instance in instances])
                for metric, value in results.items():
                    found.setdefault(metric if len(filters) == 1 else f"{metric}_{name}", []).append(value)
        return found

    def figure(self, metric: str, items: Sequence[Any]) -> float:
        """lm-eval's figure of a metric from documents' values."""
        return float(self._aggregate(metric)(list(items)))

    def interval(self, metric: str, items: Sequence[Any], seed: int) -> Interval:
        """The same with its bootstrap interval over documents."""
        value = self.figure(metric, items)
        if all(isinstance(item, int | float) for item in items) and self._aggregate(metric).__name__ == "mean":
            return replace(intervals.mean([float(item) for item in items], seed=seed), value=value)

        def figures(weights_RN: NDArray[np.float64]) -> NDArray[np.float64]:
            drawn = (np.repeat(np.arange(len(items)), weights_N.astype(int)) for weights_N in weights_RN)
            return np.array([self.figure(metric, [items[int(i)] for i in chosen]) for chosen in drawn])

        return replace(intervals.statistic(figures, len(items), seed=seed), value=value)

    def higher_is_better(self, metric: str) -> bool:
        """Whether more of it is better."""
        return bool(self.task.higher_is_better()[self._plain(metric)])

    def _aggregate(self, metric: str) -> Callable[[list[Any]], float]:
        aggregate: Callable[[list[Any]], float] = self.task.aggregation()[self._plain(metric)]
        return aggregate

    def _plain(self, metric: str) -> str:
        known = self.task.aggregation()
        return metric if metric in known else next(name for name in known if metric.startswith(f"{name}_"))

    def target(self, document: int) -> str:
        """What the definition holds for right, as text."""
        task, doc = self.task, self._documents[document]
        target = task.doc_to_target(doc)
        if isinstance(target, int) and task.config.doc_to_choice is not None:
            return str(task.doc_to_choice(doc)[target])
        return str(target[0] if isinstance(target, list) and target else target)

    def text(self, document: int) -> str:
        """A document as a reader, or a training corpus, would have it: what is asked, and the right answer."""
        task, doc = self.task, self._documents[document]
        asked = task.doc_to_text(doc) if not task.multiple_input else task.doc_to_choice(doc)[task.doc_to_text(doc)]
        between = task.config.target_delimiter if asked else ""
        return f"{asked}{between}{self.target(document)}"


def _check_answers(opened: Any, drawn: Drawn, name: str, task: LmTask) -> None:
    """lm-eval counts a document whose right answer it cannot find among the choices as told wrong, and says so in a log alone."""
    two_only = any(entry["metric"] == "f1" for entry in task.definition["metric_list"])
    for place, doc in zip(drawn.places, opened.eval_docs, strict=True):
        choices = opened.doc_to_choice(doc)
        gold = opened.doc_to_text(doc) if opened.multiple_input else opened.doc_to_target(doc)
        several = isinstance(gold, list)
        right = [choices.index(one) if isinstance(one, str) and one in choices and not several else one for one in (gold if several else [gold])]
        if not right or several != bool(opened.multiple_target) or not all(isinstance(one, int) and 0 <= one < len(choices) for one in right):
            raise DataError(
                f"document {place}: its right answer {str(gold)[:40]!r} is none of its {len(choices)} choices", where=f"tasks.{name} ({task.path})",
                todo="mend doc_to_target, or the document",
            )  # fmt: skip
        if two_only and (len(choices) > 2 or several):
            raise ConfigError(f"f1 is for documents with two choices, one of them right, and document {place} has {len(choices)}", where=f"tasks.{name}", todo="take another metric, such as acc")


def document_figures(values: Mapping[str, Sequence[Any]], at: int) -> dict[str, float]:
    """The figures of one document that two models can be compared by; a metric that only many documents have is left out."""
    found = {}
    for metric, items in values.items():
        if metric in BY_DOCUMENT:
            name, convert = BY_DOCUMENT[metric]
            found[name] = round(float(convert(items[at])), 6)
        elif isinstance(items[at], int | float | np.number):
            found[metric] = float(items[at])
    return found
