"""Tasks put to a model: lm-eval's own figures and answers, the step's report and files, and the same from several workers."""

import json
from pathlib import Path

import pytest

from fmray.core.artifact import Artifact
from fmray.core.config import load_config
from fmray.core.errors import FmrayError
from fmray.core.report import Report
from fmray.evaluate.config import EvaluateConfig
from fmray.evaluate.lm_tasks.asking import answers, setup
from fmray.evaluate.lm_tasks.documents import draw
from fmray.evaluate.lm_tasks.opened import OpenTask
from fmray.evaluate.lm_tasks.run import put_tasks
from fmray.evaluate.lm_tasks.workers import Workers
from tests.evaluate.lives import imported, run
from tests.evaluate.lm_tasks.small import documents, save
from tests.models import smollm2

DATA = Path(__file__).parents[4] / "shared" / "data" / "lmeval"


def config(tasks: dict, **more) -> EvaluateConfig:
    return load_config(EvaluateConfig, {"tasks": tasks, "num_cpus": 1, "control_rows": 4, **more})


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("llama"), "llama")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict:
    return documents(tmp_path_factory.mktemp("data") / "tasks")


@pytest.mark.parametrize("shots", [0, 2])
def test_answers_are_lm_evals_own(model: Path, data: dict, shots):
    from lm_eval.models.huggingface import HFLM

    tasks = config({name: {**entry, "shots": 0 if name == "perplexity" else shots} for name, entry in data.items()}).tasks
    workers = Workers("causal_lm", model, None, 1, 1, 0)
    ready = setup("causal_lm", model, workers, 4)
    lm = HFLM(pretrained=str(model), dtype="float32", batch_size=4, device="cpu")
    for name, task in tasks.items():
        opened = OpenTask(name, task, draw(name, task, 0))
        given, _ = answers(task.output, opened.asks, ready, workers)
        instances = opened.task.instances
        own = getattr(lm, instances[0].request_type)(instances, disable_tqdm=True)
        if task.output == "generate_until":
            assert given == own
        elif task.output == "loglikelihood_rolling":
            assert given == pytest.approx(own, abs=2e-3), "texts are longer than the model's positions"
        else:
            assert [logprob for logprob, _ in given] == pytest.approx([logprob for logprob, _ in own], abs=5e-4)
            assert [greedy for _, greedy in given] == [greedy for _, greedy in own]


def test_figures_come_with_all_that_is_needed_to_trust_and_repeat_them(model: Path, data: dict):
    tasks = config({"arc_easy": {**data["arc_easy"], "shots": 1, "limit": 8}, "perplexity": data["perplexity"]})
    drawn = {name: draw(name, task, 0) for name, task in tasks.tasks.items()}
    told = put_tasks(tasks, "causal_lm", model, drawn, None)
    metrics = {metric.name: metric for one in told.values() for metric in one.metrics}
    accuracy = metrics["eval/arc_easy/acc"]
    assert (accuracy.n, accuracy.higher_is_better) == (8, True)
    examples = told["arc_easy"].examples
    assert accuracy.value == pytest.approx(sum(example["metrics"]["acc"] for example in examples) / 8)
    assert accuracy.lower <= accuracy.value <= accuracy.upper
    assert accuracy.control is not None
    assert told["arc_easy"].summary["prompt_hash"][:12] in accuracy.note
    assert told["arc_easy"].summary["shot_documents"][0] not in [example["document"] for example in examples]
    assert metrics["eval/arc_easy/contaminated"].value is None
    bits = metrics["eval/perplexity/bits_per_byte"]
    assert bits.lower <= bits.value <= bits.upper
    assert not bits.higher_is_better
    again = put_tasks(tasks, "causal_lm", model, drawn, None)
    assert [one.metrics for one in again.values()] == [one.metrics for one in told.values()]


def test_what_tasks_cannot_be_put_to_is_refused(tmp_path: Path, data: dict):
    bert, llama = imported(save(tmp_path / "b", "bert"), "task_bert"), imported(save(tmp_path / "l", "llama"), "task_llama")
    other = llama.path / "tokenizer.json"
    state = json.loads(other.read_text())
    state["model"]["vocab"]["zzz"] = 4000
    other.write_text(json.dumps(state))
    for checkpoint, task, said in ((bert, "lambada_generate", "a masked model writes no text"), (llama, "arc_easy", "ids up to 4000 and its model none beyond")):
        with pytest.raises(FmrayError, match=said) as error:
            run("evaluate", {"tasks": {task: data[task]}}, tmp_path / "refused", checkpoint=checkpoint)
        assert error.value.exit_code == 2


@pytest.mark.slow
def test_several_workers_give_the_same_report_as_one(tmp_path: Path, model: Path, data: dict):
    checkpoint = imported(model, "task_sharded")
    made: dict[int, Artifact[Report]] = {}
    for n in (1, 2):
        tasks = {**{name: data[name] for name in ("arc_easy", "perplexity")}, "few": {"task": "winogrande", **data["winogrande"], "shots": 2}}
        made[n] = run("evaluate", {"tasks": tasks, "num_workers": n, "num_cpus": 1, "control_rows": 4}, tmp_path / f"by{n}", checkpoint=checkpoint)
    assert made[1].fingerprint == made[2].fingerprint
    assert made[1].payload == made[2].payload
    assert (made[1].path / "examples.jsonl").read_bytes() == (made[2].path / "examples.jsonl").read_bytes()


@pytest.mark.slow
@pytest.mark.skipif(not DATA.is_dir(), reason="no shared data beside the project")
def test_smollm2_has_lm_evals_own_figures():
    import torch
    from lm_eval.models.huggingface import HFLM

    from benchmarks.evaluation import measured, tasks

    threads, path = torch.get_num_threads(), smollm2()
    workers = Workers("causal_lm", path, None, 1, threads, 0)
    ready = setup("causal_lm", path, workers, 16)
    assert ready.shares
    lm = HFLM(pretrained=str(path), dtype="float32", batch_size=4, device="cpu")
    for names, shots in ((("lambada", "piqa", "adjunct_island"), 0), (("arc_easy", "wsc"), 1)):
        for name, task in tasks(DATA, names, 8, shots).items():
            row = measured(name, task, ready, workers, lm, ours_first=True)
            assert row["same"], row
            assert row["nats"] < 1e-3
