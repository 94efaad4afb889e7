"""Evaluation while training, in two real processes: the same figure as in one, and not a bit of what is trained changes, at every ZeRO stage."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp

from fmray.core.artifact import load
from fmray.core.config import load_config
from fmray.core.cursor import Cursor
from fmray.data.dataset import TokenDataset
from fmray.data.reader import TokenReader
from fmray.evaluate.lm_tasks.documents import draw
from fmray.objectives import setting_for
from fmray.train.batches import row_batches
from fmray.train.config import PretrainConfig
from fmray.train.deepspeed_engine import prepare_process
from fmray.train.engine import StepStats, TorchEngine
from fmray.train.evaluation import HeldOut
from fmray.train.loop import train
from fmray.train.task_figures import TaskFigures
from fmray.train.worker import Place, PretrainJob, build_engine, build_model
from tests.evaluate.lm_tasks.small import documents
from tests.train.dataset import token_dataset

pytestmark = pytest.mark.slow
SMALL = {"num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 2, "intermediate_size": 128}
# Of 8 held-out rows 5 are measured: two workers' shares differ, and so do their passes.
LM = {"model": {"type": "decoder", **SMALL}, "global_batch_size": 4, "micro_batch_size": 1, "max_steps": 5, "eval_every_steps": 2, "eval_rows": 5}
PAIRS = {"model": {"type": "encoder", **SMALL}, "objective": {"type": "contrastive"}, "global_batch_size": 4, "max_steps": 5, "eval_every_steps": 2}
CASES: dict[str, dict[str, Any]] = {f"{precision} {stage}": LM | {"precision": precision, "zero": {"stage": stage}} for precision, stage in (("fp32", 0), ("bf16", 1), ("fp32", 2), ("fp32", 3))}
CASES["contrastive"] = PAIRS | {"precision": "fp32"}


def trained(config: PretrainConfig, dataset: Path, place: Place, *, watch: bool) -> dict[str, Any]:
    """Losses, held-out losses, figures of tasks, and a sum over the weights, of a run with or without evaluations."""
    payload = load(dataset, TokenDataset).payload
    nowhere = Path("nowhere")
    job = PretrainJob(config, config.model, dataset, payload.vocab_size, 32, 32, payload.special_ids, nowhere, nowhere, 0, 5, None, None)
    engine = build_engine(job, place)
    setting = setting_for(dataset, payload, engine.module.config.to_dict(), config.seed)  # type: ignore[union-attr]
    held_out, losses, evaluated = HeldOut(config, dataset, setting, rank=place.rank, world_size=place.world_size), [], {}
    drawn = {name: draw(name, task, 0) for name, task in config.eval_tasks.items()}
    tasks, told = TaskFigures(config, drawn, dataset / "tokenizer", rank=place.rank, world_size=place.world_size), {}

    def on_step(step: int, stats: StepStats, cursor: Cursor) -> None:
        losses.append((stats.loss, stats.grad_norm))
        if watch and held_out.due(step, 5):
            evaluated[step] = held_out.loss(engine)
            told[step] = tasks.figures(engine) if config.eval_tasks else {}

    reader = TokenReader(dataset, "train", config.seed, config.global_batch_size)
    rows = row_batches(reader, config.objective, setting, Cursor(epoch=0, row=0), rank=place.rank, world_size=place.world_size, micro_batch_size=config.rows_per_pass)
    train(engine, config.objective, rows, max_steps=5, seed=0, on_step=on_step)
    rows.close()
    weights = engine.part().tensors
    return {"losses": losses, "evaluated": evaluated, "tasks": told, "weights": [float(value.double().sum()) for value in weights.values()]}


def asked(name: str, folder: Path) -> dict[str, Any]:
    """Tasks of an odd number of asks, for models of language."""
    return {} if name == "contrastive" else {"eval_tasks": {"lambada": {"path": str(folder / "tasks" / "context.jsonl"), "limit": 5}}}


def _process(rank: int, world_size: int, folder: str, datasets: dict[str, str]) -> None:
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(world_size), LOCAL_RANK=str(rank))
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world_size)
    prepare_process(local_world_size=world_size, use_gpu=False)
    found = {}
    for name, fields in CASES.items():
        config = load_config(PretrainConfig, fields | asked(name, Path(folder)), "base").with_workers(world_size)
        found[name] = [trained(config, Path(datasets[name]), Place(rank, world_size, world_size), watch=watch) for watch in (True, False)]
    (Path(folder) / f"found-{rank}.json").write_text(json.dumps(found))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def test_two_workers_measure_what_one_does_and_train_what_they_would_without(tmp_path: Path) -> None:
    packed, lone = token_dataset(tmp_path / "packed").path, token_dataset(tmp_path / "lone", unpacked=True).path
    documents(tmp_path / "tasks")
    datasets = {name: lone if name == "contrastive" else packed for name in CASES}
    mp.spawn(_process, (2, str(tmp_path), {name: str(path) for name, path in datasets.items()}), nprocs=2)
    first, second = (json.loads((tmp_path / f"found-{rank}.json").read_text()) for rank in (0, 1))
    for name, fields in CASES.items():
        watched, plain = first[name]
        assert watched["losses"] == plain["losses"], name
        assert watched["weights"] == plain["weights"], name
        assert list(watched["evaluated"]) == ["2", "4", "5"]
        assert watched["evaluated"] == second[name][0]["evaluated"], name
        assert plain["evaluated"] == {}
        assert watched["tasks"] == second[name][0]["tasks"], name
        assert all(set(told) == ({"eval/lambada/perplexity", "eval/lambada/acc"} if asked(name, tmp_path) else set()) for told in watched["tasks"].values())
        if fields["precision"] == "fp32" and name != "contrastive":
            # Contrastive workers draw other dropouts, so they train other weights than one does.
            alone = trained(load_config(PretrainConfig, fields | {"engine": "torch", "num_workers": 1, "zero": {}} | asked(name, tmp_path), "base"), packed, Place(0, 1, 1), watch=True)
            for step, loss in alone["evaluated"].items():
                assert watched["evaluated"][str(step)] == pytest.approx(loss, rel=1e-5), (name, step)
                assert watched["tasks"][str(step)] == pytest.approx(alone["tasks"][step], rel=1e-4), (name, step)


def test_the_contrastive_loss_of_the_same_weights_is_that_of_one_worker(tmp_path: Path) -> None:
    dataset = token_dataset(tmp_path / "lone", unpacked=True).path
    mp.spawn(_untrained, (2, str(tmp_path), str(dataset)), nprocs=2)
    alone = untrained(dataset, Place(0, 1, 1))
    assert [float((tmp_path / f"loss-{rank}").read_text()) for rank in (0, 1)] == pytest.approx([alone, alone], rel=1e-5)
    assert alone > 0.1


def untrained(dataset: Path, place: Place) -> float:
    """The held-out loss of fresh weights, by plain torch on every worker."""
    payload = load(dataset, TokenDataset).payload
    config = load_config(PretrainConfig, PAIRS | {"precision": "fp32"}, "base").with_workers(place.world_size)
    job = PretrainJob(config, config.model, dataset, payload.vocab_size, 32, 32, payload.special_ids, dataset, dataset, 0, 5, None, None)
    engine = TorchEngine(build_model(job), config.optim, lambda step: 1e-3, precision="fp32")
    return HeldOut(config, dataset, setting_for(dataset, payload, {}, 0), rank=place.rank, world_size=place.world_size).loss(engine)


def _untrained(rank: int, world_size: int, folder: str, dataset: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world_size)
    (Path(folder) / f"loss-{rank}").write_text(repr(untrained(Path(dataset), Place(rank, world_size, world_size))))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
