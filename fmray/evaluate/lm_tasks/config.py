"""What a likelihood or generation task is: its definition (YAML in lm-eval's format), its documents, and how many of them."""

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field

from fmray.core.artifact import fingerprint
from fmray.core.config import Config, did_you_mean
from fmray.core.errors import ConfigError
from fmray.core.yaml import parse_yaml
from fmray.data.sources.jsonl import Jsonl

DEFINITIONS = Path(__file__).parent / "definitions"
MAX_SHOTS = 64
Output = Literal["loglikelihood", "loglikelihood_rolling", "multiple_choice", "generate_until"]
# What lm-eval computes for a document of each kind of output, without a file from the Hugging Face hub.
OUTPUTS: Mapping[str, tuple[str, ...]] = {
    "loglikelihood": ("acc", "perplexity"),
    "loglikelihood_rolling": ("word_perplexity", "byte_perplexity", "bits_per_byte"),
    "multiple_choice": ("acc", "acc_norm", "acc_bytes", "acc_mutual_info", "exact_match", "f1", "mcc", "brier_score"),
    "generate_until": ("exact_match",),
}


class LmTask(Config):
    """A task for a language model.

    Attributes:
        task: the name of a shipped definition (`piqa`), or the path of a YAML file in lm-eval's format; by default the task's own name.
        path: the documents: JSON Lines, plain or compressed, a file, a folder or a glob.
        metrics: which of the definition's metrics are reported; all unless some are named.
        shots: so many solved examples stand before each document: always the same ones, drawn by the step's seed and never scored. By
            default as many as the definition's `num_fewshot`, or none.
        limit: at most so many documents are scored, drawn by the step's seed; the same whatever `shots` is.
    """

    task: str = ""
    path: str = Field(min_length=1)
    metrics: tuple[str, ...] = ()
    shots: int = Field(0, ge=0, le=MAX_SHOTS)
    limit: int | None = Field(None, ge=1)

    def named(self, name: str) -> Self:
        """The task under its name, whose definition can be put to a model.

        Raises:
            ConfigError: the definition cannot be used, lacks one of `metrics`, or takes no solved examples.
        """
        task = self if self.task else self.model_copy(update={"task": name})
        where = f"tasks.{name}"
        try:
            definition = read_definition(task.task)
        except ConfigError as error:
            raise ConfigError(error.what, where=f"{where} ({error.where})" if error.where else where, todo=error.todo) from None
        if "shots" not in task.model_fields_set:
            task = task.model_copy(update={"shots": definition.get("num_fewshot") or 0})
        has = [entry["metric"] for entry in definition["metric_list"]]
        for metric in task.metrics:
            if metric not in has:
                raise ConfigError(f"the task {task.task} has no metric '{metric}'{did_you_mean(metric, has)}", where=f"{where}.metrics", todo=f"it has: {', '.join(has)}")
        if task.shots and task.output == "loglikelihood_rolling":
            raise ConfigError(f"{task.task} scores whole texts, and no example can stand before them", where=f"{where}.shots", todo="set it to 0")
        return task

    @cached_property
    def definition(self) -> dict[str, Any]:
        """The definition's fields, with the metrics asked for.

        Raises:
            ConfigError: it cannot be read, or names an output type or a metric that there is none of.
        """
        definition = read_definition(self.task)
        kept = [entry for entry in definition["metric_list"] if not self.metrics or entry["metric"] in self.metrics]
        return definition | {"metric_list": kept or definition["metric_list"]}

    @property
    def output(self) -> Output:
        """What the model is asked for."""
        output: Output = self.definition["output_type"]
        return output

    def identity(self) -> dict[str, Any]:
        """The definition and the documents by their content, wherever they lie."""
        own = {k: v for k, v in super().identity().items() if k not in ("task", "path")}
        return {**own, "definition": fingerprint(self.definition), "documents": Jsonl(path=self.path).identity()["files"]}


def shipped() -> dict[str, Path]:
    """The definitions that come with the package, by name."""
    return {path.stem: path for path in sorted(DEFINITIONS.glob("*.yaml"))}


def read_definition(task: str) -> dict[str, Any]:
    """The fields of a task's definition: a shipped one by its name, or a YAML file by its path.

    Raises:
        ConfigError: there is none, it is no mapping, asks for an unknown output, or for a metric that this output does not give.
    """
    known = shipped()
    path = known.get(task, Path(task).expanduser())
    if task not in known and not path.is_file():
        raise ConfigError(f"there is no task '{task}'{did_you_mean(task, known)}", todo=f"shipped: {', '.join(known)}; or give the path of a YAML file")
    try:
        definition = parse_yaml(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot be read ({error})", where=str(path)) from None
    if not isinstance(definition, dict):
        raise ConfigError("is no task: expected a mapping with `output_type`, `doc_to_text`, `doc_to_target` and `metric_list`", where=str(path))
    output = definition.get("output_type")
    if output not in OUTPUTS:
        raise ConfigError(f"asks for the unknown output_type '{output}'{did_you_mean(str(output), OUTPUTS)}", where=str(path), todo=f"known: {', '.join(OUTPUTS)}")
    _check_metrics(definition, path)
    _check_shots(definition, path)
    for name in ("doc_to_text", "doc_to_target", *(("doc_to_choice",) if output == "multiple_choice" else ())):
        if name not in definition:
            raise ConfigError(f"lacks `{name}`, which {output} needs", where=str(path))
    return definition


def _check_metrics(definition: Mapping[str, Any], path: Path) -> None:
    output, entries = definition["output_type"], definition.get("metric_list")
    if not isinstance(entries, list) or not entries or not all(isinstance(entry, dict) and isinstance(entry.get("metric"), str) for entry in entries):
        raise ConfigError("needs a `metric_list`, each with its `metric`", where=str(path), todo=f"{output} gives: {', '.join(OUTPUTS[output])}")
    for entry in entries:
        name = entry["metric"]
        if name not in OUTPUTS[output]:
            raise ConfigError(f"asks for the metric '{name}', which {output} does not give{did_you_mean(name, OUTPUTS[output])}", where=str(path), todo=f"it gives: {', '.join(OUTPUTS[output])}")


def _check_shots(definition: Mapping[str, Any], path: Path) -> None:
    shots, told = definition.get("num_fewshot"), definition.get("fewshot_config")
    if shots is not None and not (isinstance(shots, int) and 0 <= shots <= MAX_SHOTS):
        raise ConfigError(f"has num_fewshot {shots!r}, which is no number from 0 to {MAX_SHOTS}", where=str(path))
    if told is not None and not isinstance(told, dict):
        raise ConfigError("has a `fewshot_config` that is no mapping", where=str(path))
    for name in ("samples", "fewshot_indices"):
        if (told or {}).get(name) is not None:
            raise ConfigError(f"names its solved examples in `fewshot_config.{name}`; they are drawn from the documents", where=str(path), todo=f"leave {name} out")
