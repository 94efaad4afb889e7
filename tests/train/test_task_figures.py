"""Figures of tasks while a training goes on: those of the evaluation of the same weights, and nothing of what is trained changes."""

from pathlib import Path
from typing import Any

import pytest

from fmray.core.artifact import Artifact
from fmray.core.config import load_config
from fmray.core.errors import ArtifactError, ConfigError, DataError
from fmray.data.dataset import TokenDataset
from fmray.evaluate.config import EvaluateConfig
from fmray.evaluate.lm_tasks.documents import draw
from fmray.evaluate.lm_tasks.run import put_tasks
from fmray.train.config import PretrainConfig
from fmray.train.metrics import METRICS, read_metrics
from fmray.train.task_figures import check_tasks
from fmray.train.tracking import point
from fmray.train.worker import Place, PretrainJob, run_pretraining
from tests.evaluate.lm_tasks.small import documents
from tests.train.dataset import token_dataset

SHAPE = {"num_hidden_layers": 2, "hidden_size": 48, "num_attention_heads": 2, "intermediate_size": 96}
CONFIG: dict[str, Any] = {
    "engine": "torch", "num_workers": 1, "precision": "fp32", "global_batch_size": 8, "max_steps": 4, "eval_every_steps": 2, "optim": {"lr": 3e-3},
}  # fmt: skip
KINDS: dict[str, dict[str, Any]] = {
    "causal_lm": {"model": {"type": "decoder", **SHAPE}}, "masked_lm": {"model": {"type": "encoder", "dropout": 0.1, **SHAPE}, "objective": {"type": "masked_lm"}},
}  # fmt: skip


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Artifact[TokenDataset]:
    return token_dataset(tmp_path_factory.mktemp("data") / "corpus")


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    held = documents(tmp_path_factory.mktemp("tasks") / "held")
    return {name: held[name] | {"limit": 7} for name in ("blimp", "lambada", "perplexity")}


def run(dataset: Artifact[TokenDataset], out: Path, fields: dict[str, Any]) -> list[dict[str, Any]]:
    config, payload = load_config(PretrainConfig, CONFIG | fields, "base"), dataset.payload
    (out / "work").mkdir(parents=True)
    run_pretraining(PretrainJob(
        config=config, model=config.model, dataset=dataset.path, vocab_size=payload.vocab_size, seq_len=32, positions=32, special_ids=payload.special_ids, out=out,
        states=out / "work" / "run", first_step=0, last_step=4, previous=None, init=None, drawn={name: draw(name, task, 0) for name, task in config.eval_tasks.items()},
    ), Place(0, 1, 1))  # fmt: skip
    return read_metrics(out / METRICS)


@pytest.mark.parametrize("head", KINDS)
def test_they_are_what_the_evaluation_tells_of_the_same_weights(dataset: Artifact[TokenDataset], tasks: dict[str, dict[str, Any]], tmp_path: Path, head: str) -> None:
    lines = run(dataset, tmp_path / "asked", KINDS[head] | {"eval_tasks": tasks})
    plain = run(dataset, tmp_path / "plain", KINDS[head])
    assert [(line["loss"], line["grad_norm"], line.get("eval_loss")) for line in lines] == [(line["loss"], line["grad_norm"], line.get("eval_loss")) for line in plain]
    asked = [line["step"] for line in lines if any(name.startswith("eval/") for name in line)]
    assert asked == [2, 4]
    config = load_config(EvaluateConfig, {"tasks": tasks, "num_cpus": 1, "control_rows": 1})
    told = put_tasks(config, head, tmp_path / "asked", {name: draw(name, task, 0) for name, task in config.tasks.items()}, None)
    evaluated = {metric.name: metric.value for one in told.values() for metric in one.metrics}
    found = {name: value for name, value in lines[-1].items() if name.startswith("eval/")}
    assert set(found) == {name for name in evaluated if not name.endswith(("truncated", "contaminated"))}
    assert {"eval/blimp/acc", "eval/lambada/perplexity", "eval/perplexity/bits_per_byte"} <= set(found)
    assert found == {name: pytest.approx(evaluated[name], rel=1e-4) for name in found}
    assert lines[1]["eval/perplexity/bits_per_byte"] != lines[3]["eval/perplexity/bits_per_byte"], "the weights have changed"
    assert point(lines[3]).figures["eval/blimp/acc"] == found["eval/blimp/acc"], "trackers show them"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"eval_every_steps": None}, "eval_tasks are measured with eval_every_steps alone"),
        ({"eval_tasks": {"blimp": {"path": "x.jsonl"}}}, r"base\.eval_tasks: blimp needs a limit"),
        ({"eval_tasks": {"lambada_generate": {"path": "x.jsonl", "limit": 5}}}, "lambada_generate has the model write"),
        ({"eval_tasks": {"piq": {"path": "x.jsonl", "limit": 5}}}, r"base\.eval_tasks\.piq: there is no task 'piq', did you mean 'piqa'"),
    ],
)
def test_tasks_that_cannot_be_asked_about_are_refused_with_the_file(tasks: dict[str, dict[str, Any]], changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(PretrainConfig, CONFIG | KINDS["causal_lm"] | {"eval_tasks": tasks} | changes, "base")


def test_a_model_or_documents_that_do_not_fit_are_refused_before_any_worker_starts(dataset: Artifact[TokenDataset], tasks: dict[str, dict[str, Any]]) -> None:
    def check(vocab_size: int = 400, **fields: Any) -> None:
        check_tasks(load_config(PretrainConfig, CONFIG | KINDS["causal_lm"] | {"eval_tasks": tasks} | fields, "base"), dataset.path / "tokenizer", vocab_size, "base")

    with pytest.raises(ConfigError, match=r"base\.eval_tasks: tasks are put to language models"):
        check(model={"type": "encoder", **SHAPE}, objective={"type": "contrastive"})
    with pytest.raises(ArtifactError, match="its tokenizer has ids up to 399 and its model none beyond 99"):
        check(vocab_size=100)
    with pytest.raises(DataError, match="too few for 12 solved examples"):
        check(eval_tasks={"blimp": tasks["blimp"] | {"shots": 12}})


@pytest.mark.usefixtures("ray_session")
@pytest.mark.slow
def test_a_definition_that_does_not_fit_its_documents_is_refused_too(dataset: Artifact[TokenDataset], tasks: dict[str, dict[str, Any]]) -> None:
    config = load_config(PretrainConfig, CONFIG | KINDS["causal_lm"] | {"eval_tasks": {"blimp": {"path": tasks["lambada"]["path"], "limit": 3}}}, "base")
    with pytest.raises(ConfigError, match=r"base\.eval_tasks\.blimp: the task blimp cannot be put to its documents"):
        check_tasks(config, dataset.path / "tokenizer", 400, "base")


@pytest.mark.usefixtures("ray_session")
@pytest.mark.slow
def test_two_workers_ask_together_while_they_train(tmp_path: Path, tasks: dict[str, dict[str, Any]]) -> None:
    from tests.distributed.running import pretrain

    artifact = pretrain(tmp_path / "base", token_dataset(tmp_path / "corpus"), max_steps=10, eval_every_steps=5, eval_tasks=tasks, zero={"stage": 3})
    lines = read_metrics(artifact.path / METRICS)
    assert [line["step"] for line in lines if "eval/blimp/acc" in line] == [5, 10]
    config = load_config(EvaluateConfig, {"tasks": tasks, "num_cpus": 1, "control_rows": 1})
    told = put_tasks(config, "causal_lm", artifact.path, {name: draw(name, task, 0) for name, task in config.tasks.items()}, None)
    evaluated = {metric.name: metric.value for one in told.values() for metric in one.metrics}
    # The training computes in bf16, the evaluation in float32.
    assert lines[-1]["eval/perplexity/bits_per_byte"] == pytest.approx(evaluated["eval/perplexity/bits_per_byte"], rel=0.02)
