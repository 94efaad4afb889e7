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
from fmray.core.errors import ConfigError
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
        """
        os.environ.setdefault("TQDM_DISABLE", "1")
        import datasets
        from lm_eval.api.task import ConfigurableTask

        logging.getLogger("lm_eval").setLevel(logging.ERROR)
        definition = {key: value for key, value in task.definition.items() if not key.endswith("_split") and key not in ("dataset_path", "dataset_name", "dataset_kwargs")}
        fixed: dict[str, Any] = {"fewshot_split": "shots", "fewshot_config": {"sampler": "first_n"}} if task.shots else {}
        has = ", ".join(drawn.documents[0])
        try:
            splits = {"test": drawn.documents, **({"shots": drawn.shots} if task.shots else {})}
            data = {split: datasets.Dataset.from_list(list(documents)) for split, documents in splits.items()}
            self.task: Any = ConfigurableTask(config={**definition, **fixed, "task": name, "test_split": "test", "num_fewshot": task.shots, "custom_dataset": lambda **_: data})
            self.task.build_all_requests()
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
