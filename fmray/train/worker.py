"""What one training worker does: build, resume, train, save, export. It runs inside Ray Train."""

import resource
import uuid
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fmray.core.artifact import load, write_json
from fmray.core.cursor import Cursor
from fmray.core.errors import ArtifactError
from fmray.data.dataset import TokenDataset
from fmray.data.ledger import LedgerWriter, next_attempt
from fmray.data.reader import TokenReader
from fmray.evaluate.lm_tasks.documents import Drawn
from fmray.model.architectures import Architecture, padded_vocab_size
from fmray.model.attention import FLASH, require_flash
from fmray.model.checkpoint import count_weights
from fmray.model.export import save_model
from fmray.model.flops import flops_per_token
from fmray.model.fresh import fresh_model
from fmray.model.positions import position_offset
from fmray.model.tensor_file import held_entry
from fmray.objectives import Setting, setting_for
from fmray.train import stopping
from fmray.train.batches import recorded, row_batches
from fmray.train.config import PretrainConfig
from fmray.train.deepspeed_engine import DeepSpeedEngine, prepare_process
from fmray.train.engine import Engine, StepStats, TorchEngine
from fmray.train.equip import equip
from fmray.train.evaluation import HeldOut
from fmray.train.fp16 import Fp16Engine
from fmray.train.layout import Saved
from fmray.train.loop import train
from fmray.train.metrics import METRICS, Meter, MetricsLog, Waited
from fmray.train.nonfinite import Heard, NonfiniteGuard
from fmray.train.profiling import PROFILE, Profiler
from fmray.train.ranks import RANKS, RankClock, rank_path
from fmray.train.remote import LEDGER_FOLDER, RemoteStates
from fmray.train.retention import EVAL_LOSS, Since
from fmray.train.saving import StateWriter
from fmray.train.state import TrainState, last_good_state, prune_states, state_folder
from fmray.train.storage import persist
from fmray.train.task_figures import TaskFigures
from fmray.train.watchdog import HANGS, Watchdog, next_hang
from fmray.train.watching import Watching

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

SUMMARY = "summary.json"


@dataclass(frozen=True)
class PretrainJob:
    """Everything a worker needs, in plain values and paths that every node can read.

    `model` is the config's, fitted to the dataset's images; a row has `seq_len` tokens and `positions` that are trained on (both are
    the same for text). `first_step` is where this round begins (0 in the first), `last_step` where it ends. `previous` is the folder of
    states whose last one it begins from, `init` a Hugging Face directory whose weights it begins from. `remote` is the URI that states are
    copied to as well. `drawn` are the documents of the tasks that are asked about while it trains.
    """

    config: PretrainConfig
    model: Architecture | None
    dataset: Path
    vocab_size: int
    seq_len: int
    positions: int
    special_ids: dict[str, int]
    out: Path
    states: Path
    first_step: int
    last_step: int
    previous: Path | None
    init: Path | None
    remote: str | None = None
    drawn: Mapping[str, Drawn] = field(default_factory=dict)

    @property
    def tokenizer(self) -> Path:
        """Whose files the exported model takes over: those of `init`, or of the dataset."""
        return self.init or self.dataset / "tokenizer"

    @property
    def ledger(self) -> Path:
        """Where workers put down which rows they read."""
        return self.out / LEDGER_FOLDER


@dataclass(frozen=True)
class Place:
    """Where this worker stands among the others."""

    rank: int
    world_size: int
    local_world_size: int


def build_model(job: PretrainJob) -> "PreTrainedModel":
    """The model with the weights that training begins with: drawn from the seed, or those of `init`.

    Raises:
        ArtifactError: `init` cannot be opened.
        ConfigError: flash attention is asked for and does not run here.
    """
    import torch
    import transformers

    config = job.config
    if config.attention == FLASH:
        require_flash()
    auto = getattr(transformers, config.objective.auto_class)
    # For fresh models, and for what the objective's class has and `init` lacks.
    torch.manual_seed(config.seed)
    if job.init is not None:
        try:
            begun_with = transformers.AutoConfig.from_pretrained(job.init, local_files_only=True)
            # Before the model is built: dropout is part of its modules.
            config.objective.configure(begun_with)
            model: PreTrainedModel = auto.from_pretrained(
                job.init, config=begun_with, dtype=torch.float32, attn_implementation=config.attention_for(begun_with.model_type), local_files_only=True, use_safetensors=True
            )
        except (OSError, ValueError, RuntimeError) as error:
            raise ArtifactError(f"cannot be opened ({str(error).splitlines()[0]})", where=str(job.init)) from error
        return model
    assert job.model is not None
    hf_config = job.model.hf_config(padded_vocab_size(job.vocab_size), job.seq_len)
    for name, token_id in job.special_ids.items():
        setattr(hf_config, f"{name}_token_id", token_id)
    if offset := position_offset(hf_config.to_dict()):
        hf_config.max_position_embeddings += offset
    config.objective.configure(hf_config)
    fresh: PreTrainedModel = fresh_model(auto, hf_config, attn_implementation=config.attention_for(hf_config.model_type))
    return fresh


def build_engine(job: PretrainJob, place: Place) -> Engine:
    """The engine of the config around the model."""
    config, steps = job.config, job.last_step - job.first_step

    def lr_at(step: int) -> float:
        return config.optim.lr_at(step - job.first_step, steps)

    model = build_model(job)
    equip(model, fused_loss=config.fused_loss, activation_checkpointing=config.activation_checkpointing, attention=config.attention_for(model.config.model_type))
    if config.engine == "torch":
        return TorchEngine(model, config.optim, lr_at, precision=config.precision, device="cuda" if config.use_gpu else "cpu", compile=config.compile)
    prepare_process(local_world_size=place.local_world_size, use_gpu=config.use_gpu)
    kind = Fp16Engine if config.precision == "fp16" else DeepSpeedEngine
    return kind(model, config.optim, lr_at, config=config.engine_config(), compile=config.compile)


def engine_name(config: PretrainConfig) -> str:
    """What wrote a state (`deepspeed zero 1 bf16`), for who looks at it: any layout reads it."""
    return f"torch {config.precision}" if config.engine == "torch" else f"deepspeed zero {config.zero.stage} {config.precision}"


def run_pretraining(job: PretrainJob, place: Place) -> None:
    """Trains from the last good state (of this run, of the previous round, or none) to the last step, and exports the model.

    Raises:
        Stopped: a worker was asked to stop, and the state of this step is written.
    """
    import torch

    # What depends on the number of workers follows how many there are now.
    job = replace(job, config=job.config.with_workers(place.world_size))
    config = job.config
    torch.set_num_threads(config.cpus_per_worker)
    engine = build_engine(job, place)
    cursor, attempt, name = _resume(job, place, engine)
    since = Since()
    reader = TokenReader(job.dataset, "train", config.seed, config.global_batch_size)
    ledger = _ledger(job, place, attempt, engine.step, reader.n_rows) if config.ledger else None
    hangs = next_hang(job.out / "work" / HANGS, rank=place.rank, world_size=place.world_size)
    watchdog = Watchdog(hangs, rank=place.rank, world_size=place.world_size, hang_after_s=config.hang_after_s)

    watching: Watching

    def on_step(step: int, stats: StepStats, behind: Cursor) -> None:
        watchdog.finished(step)
        watching.finished(step, stats)
        since.add(stats)
        writer.check()
        if step % config.checkpoint_every_steps == 0 or step == job.last_step or stats.stop:
            with watchdog.saving():
                if ledger is not None:
                    persist(ledger.sync, job.ledger)
                state = TrainState(step=step, cursor=behind, engine=engine_name(config), world_size=place.world_size, metrics=since.take() | ({} if watching.eval_loss is None else {EVAL_LOSS: watching.eval_loss}))
                writer.save(engine, state, wait=stats.stop or step == job.last_step)
            watching.saved()

    module: Any = engine.module
    payload, hf_config = load(job.dataset, TokenDataset).payload, module.config.to_dict()
    setting = setting_for(job.dataset, payload, hf_config, config.seed)
    rows = row_batches(reader, config.objective, setting, cursor, rank=place.rank, world_size=place.world_size, micro_batch_size=config.rows_per_pass)
    heard = Heard(config.objective, config.grad_accum_steps)
    guard = NonfiniteGuard(config.nonfinite, engine, job.out / "work" / "nonfinite", place.rank, heard if place.world_size > 1 else None)
    with closing(rows), _writer(job, place, name) as writer, watchdog:
        waited = Waited(rows if ledger is None else recorded(rows, ledger, cursor, engine.step))
        watching = _watching(job, place, engine, hf_config, setting, waited, watchdog)
        with watching.over(watchdog.watched(waited)) as batches:
            train(
                engine, heard, batches, max_steps=job.last_step, seed=config.seed, on_step=on_step, on_nonfinite=guard, stop_asked=stopping.asked,
                rank=place.rank, world_size=place.world_size,
            )  # fmt: skip
    if engine.step < job.last_step:
        raise stopping.Stopped(engine.step)
    fixed = engine.fixed_state_dict()
    if place.rank == 0:
        _export(job, engine, fixed)
        _summarise(job, engine)


def _watching(job: PretrainJob, place: Place, engine: Engine, hf_config: Mapping[str, Any], setting: Setting, waited: Waited[Any], watchdog: Watchdog) -> Watching:
    config, work = job.config, job.out / "work"
    log = _log(job, place, engine, hf_config, waited.take_s) if place.rank == 0 else None
    clock = RankClock(rank_path(work / RANKS, place.rank), rank=place.rank, waited_s=lambda: waited.total_s, use_gpu=config.use_gpu)
    held_out = HeldOut(config, job.dataset, setting, rank=place.rank, world_size=place.world_size)
    profiler = Profiler(config.profile, work / PROFILE, rank=place.rank, first_step=job.first_step, use_gpu=config.use_gpu)
    tasks = TaskFigures(config, job.drawn, job.tokenizer, rank=place.rank, world_size=place.world_size) if config.eval_tasks else None
    return Watching(engine, log, clock, held_out, profiler, last_step=job.last_step, hold=watchdog.saving, tasks=tasks)


def _writer(job: PretrainJob, place: Place, attempt: str) -> StateWriter:
    config, remote = job.config, RemoteStates(job.remote, job.out) if job.remote is not None else None
    return StateWriter(
        job.states, rank=place.rank, world_size=place.world_size, attempt=attempt, keep=config.keep_checkpoints,
        asynchronous=config.checkpoint_async, remote=remote,
    )  # fmt: skip


def _export(job: PretrainJob, engine: Engine, fixed: "Mapping[str, torch.Tensor]") -> None:
    """Writes the model from the last state, one tensor after the other: no worker ever holds all of its weights for that."""
    with Saved(state_folder(job.states, engine.step)) as saved:
        entries = saved.entries(engine.trained_shapes()) + [held_entry(name, tensor) for name, tensor in fixed.items()]
        save_model(job.out, engine.module, entries, job.tokenizer if job.init is not None or job.vocab_size else None)


def _log(job: PretrainJob, place: Place, engine: Engine, hf_config: Mapping[str, Any], waited_s: Callable[[], float]) -> MetricsLog:
    config, model = job.config, job.model
    n_params = model.count_params(int(hf_config.get("vocab_size") or 0), job.seq_len) if model is not None else count_weights(job.init) if job.init is not None else 0
    meter = Meter(place.world_size, job.last_step, flops_of(job, hf_config, n_params), config.device, lambda: _peak_gb(engine), waited_s)
    return MetricsLog(job.out / METRICS, from_step=engine.step, tokens_per_step=config.global_batch_size * job.positions, num_workers=place.world_size, meter=meter)


def flops_of(job: PretrainJob, hf_config: Mapping[str, Any], n_params: int) -> float | None:
    """FLOPs of a trained position; None where neither the architecture nor the config of a model from outside tells."""
    objective = job.config.objective
    if job.model is not None and job.model.family not in ("decoder", "encoder"):
        return job.model.flops_per_token(int(hf_config.get("vocab_size") or 0), job.positions, objective.reads)
    # Without a head the table of tokens is looked up and never multiplied.
    told = hf_config if objective.head != "encoder" else {**hf_config, "tie_word_embeddings": False}
    once = flops_per_token(told, n_params, job.seq_len)
    return None if once is None else once * objective.passes


def _ledger(job: PretrainJob, place: Place, attempt: int, step: int, n_rows: int) -> LedgerWriter:
    return LedgerWriter(job.ledger, attempt=attempt, rank=place.rank, world_size=place.world_size, from_step=step, n_rows=n_rows)


def _resume(job: PretrainJob, place: Place, engine: Engine) -> tuple[Cursor, int, str]:
    """Loads the state that rank 0 finds good on every worker; the cursor to read from, which attempt of the ledger this is, and a name for it."""
    import torch

    found: list[Any] = [None, 0, ""]
    if place.rank == 0:
        good = last_good_state(job.states) or (last_good_state(job.previous) if job.previous else None)
        # What is gone on from stays, whatever the policy says of states that may be damaged.
        prune_states(job.states, lambda states: job.config.keep_checkpoints.steps(states) | ({good[1].step} if good else set()))
        found = [good, next_attempt(job.ledger), uuid.uuid4().hex]
    if place.world_size > 1:
        torch.distributed.broadcast_object_list(found, src=0)
    good, attempt, name = found
    if good is None:
        return Cursor(epoch=0, row=0), attempt, name
    folder, state = good
    engine.load(folder)
    if engine.step != state.step:
        raise ArtifactError(f"holds step {engine.step}, not {state.step} as its state.json says", where=str(folder))
    if folder.parent == job.previous:
        engine.begin_round()
    return state.cursor, attempt, name


def _summarise(job: PretrainJob, engine: Engine) -> None:
    import torch

    device = torch.cuda.get_device_name() if engine.device.type == "cuda" else "cpu"
    write_json(job.out / "work" / SUMMARY, {"device": device, "worker_peak_gb": _peak_gb(engine)})


def _peak_gb(engine: Engine) -> float:
    """The most memory that this worker has held so far, on its GPU or else as a process, in 10^9 bytes."""
    import torch

    peak = torch.cuda.max_memory_allocated() if engine.device.type == "cuda" else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return peak / 1e9
