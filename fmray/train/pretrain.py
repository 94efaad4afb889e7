"""The stage pretrain: a TokenDataset becomes a Checkpoint."""

import functools
import json
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from fmray.core.artifact import Artifact, write_json
from fmray.core.config import dump
from fmray.core.errors import ArtifactError, ConfigError, FmrayError, RunError
from fmray.core.provenance import redact
from fmray.core.report import Cost
from fmray.core.stage import Job, Out, stage
from fmray.data.dataset import TokenDataset
from fmray.data.ledger import check_ledger
from fmray.model.architectures import Architecture
from fmray.model.architectures.hf_config import FAMILIES, PACKING, HFConfig
from fmray.model.attention import check_attention
from fmray.model.checkpoint import Checkpoint, count_weights, hf_digest, read_hf_config
from fmray.model.positions import max_positions, patch_size
from fmray.objectives import Objective, setting_for
from fmray.train import faults
from fmray.train.config import PretrainConfig
from fmray.train.evaluation import check_evaluation
from fmray.train.launch import RUN, launch
from fmray.train.layout import rank_file
from fmray.train.metrics import METRICS, loss_points, read_metrics
from fmray.train.overrides import check_overrides
from fmray.train.plan import plan
from fmray.train.remote import RemoteStates
from fmray.train.seen import check_profile, figures_seen, seen
from fmray.train.state import latest_state, prune_states
from fmray.train.task_figures import check_tasks
from fmray.train.trackers import TrackedRun
from fmray.train.tracking import Tracking
from fmray.train.trying import trial_lines
from fmray.train.worker import SUMMARY, PretrainJob, flops_of, run_pretraining

LEDGER = "ledger.json"


def trial(job: Job) -> dict[str, str]:
    """What `fmray check --try-micro-batch` says: the largest micro-batch that fits a worker, found by taking steps."""
    config, arguments = cast(PretrainConfig, job.config), job.arguments
    with tempfile.TemporaryDirectory(prefix="fmray-try-") as folder:
        out = Out(Path(folder), "", job.name, Path(folder) / "log")
        return trial_lines(_job(config, arguments["dataset"], out, None, arguments.get("init")))


@stage("pretrain", version=3, plan=plan, trial=trial)
def pretrain(
    config: PretrainConfig,
    dataset: Artifact[TokenDataset],
    out: Out,
    previous: Artifact[Checkpoint] | None = None,
    init: Artifact[Checkpoint] | None = None,
) -> Checkpoint:
    """Trains on Ray Train workers and leaves a Hugging Face directory at `out.path`.

    A killed run goes on from its last complete state. A round that a gate sent back goes on from the last state of the `previous` one.

    Raises:
        ConfigError: the config does not fit the dataset, `init` or an unfinished attempt.
        ResourceError: the cluster cannot hold the workers.
        RunError: workers were lost too often, or the loss is not finite.
    """
    job = _job(config, dataset, out, previous, init)
    if job.remote is not None:
        out.progress(f"looking for states at {job.remote}")
        RemoteStates(job.remote, job.out).fetch(job.states)
    for states in (job.states, job.previous):
        _check_readable(states)
    if job.previous is not None and latest_state(job.states) is None and latest_state(job.previous) is None:
        raise ArtifactError("holds no state to go on from", where=str(job.previous), todo="bring its work folder back, or train on from its checkpoint as `init`")
    begun, fresh = time.time(), latest_state(job.states) is None
    tracking = Tracking(config.trackers, TrackedRun(out.path.parent.name, out.name, out.work, redact(dump(config))), out.path / METRICS)
    try:
        with tracking:
            launch(
                functools.partial(run_pretraining, job),
                folder=out.work,
                num_workers=config.num_workers,
                cpus_per_worker=config.cpus_per_worker,
                use_gpu=config.use_gpu,
                max_failures=config.max_failures,
                max_faults_per_node=config.max_faults_per_node,
                wait_s=config.wait_s,
                watch=functools.partial(_watch, out, job.last_step, {}),
            )
    except FmrayError as error:
        if error.exit_code == 2 and fresh and latest_state(job.states) is not None:
            # Refused input leaves nothing behind; what shows only after steps were saved is a fault of the run, and they are kept.
            raise RunError(error.what, where=error.where, todo=error.todo) from error
        raise
    prune_states(job.states, config.keep_checkpoints.model_copy(update={"last": 1}).steps)
    read = _check_ledger(job, dataset.payload.n_rows, previous) if config.ledger else {}
    return _checkpoint(job, out, previous, init, begun, read, tracking.notes)


def _job(
    config: PretrainConfig, dataset: Artifact[TokenDataset], out: Out, previous: Artifact[Checkpoint] | None, init: Artifact[Checkpoint] | None
) -> PretrainJob:
    data, objective = dataset.payload, config.objective
    if (config.model is None) == (init is None):
        raise ConfigError("needs either `model` or `init`, a checkpoint to continue from", where=out.name)
    if config.global_batch_size > data.n_rows:
        raise ConfigError(
            f"global_batch_size {config.global_batch_size} is more than the {data.n_rows} rows of the training split",
            where=out.name, todo="lower it or prepare more text",
        )  # fmt: skip
    if data.modality != objective.modality:
        raise ConfigError(
            f"objective {objective.type} trains on {objective.modality}, and {dataset.name} holds {data.modality}",  # type: ignore[attr-defined]
            where=out.name, todo="choose an objective for it",
        )  # fmt: skip
    if init is not None:
        _check_init(init, dataset, objective, out.name)
    if config.engine == "deepspeed":
        check_overrides(config.engine_config(), config.deepspeed, f"{out.name}.deepspeed")
    try:
        model = config.model.fit(data.image_shape) if config.model is not None else None
        objective.check(setting_for(dataset.path, data, {}, config.seed), data.seq_len)
        if model is not None:
            model.check(data.seq_len)
    except ConfigError as error:
        raise ConfigError(error.what, where=f"{out.name}.{error.where}", todo=error.todo) from None
    _check_rows(config, dataset, read_hf_config(init.path) if init is not None else None, out.name)
    check_attention(config.attention, _told(config.model, init), out.name)
    check_evaluation(config, data, out.name)
    drawn = check_tasks(config, init.path if init is not None else dataset.path / "tokenizer", data.vocab_size, out.name)
    check_profile(config, config.total_steps(data.n_rows), out.name)
    first_step = previous.payload.step if previous is not None else 0
    return PretrainJob(
        config=config, model=model, dataset=dataset.path, vocab_size=data.vocab_size, seq_len=data.seq_len, positions=_positions(model, init, data), special_ids=data.special_ids, out=out.path,
        states=out.work / RUN, first_step=first_step, last_step=first_step + config.total_steps(data.n_rows),
        previous=previous.path / "work" / RUN if previous is not None else None, init=init.path if init is not None else None,
        remote=f"{config.states}/{out.name}-{out.fingerprint[:16]}" if config.states is not None else None, drawn=drawn,
    )  # fmt: skip


def _told(model: Architecture | None, init: Artifact[Checkpoint] | None) -> Mapping[str, Any]:
    """What is known of the model's Hugging Face config before it is built; of a named size its type alone."""
    if init is not None:
        return read_hf_config(init.path)
    return model.read() if isinstance(model, HFConfig) else {"model_type": model.type}  # type: ignore[union-attr]


def _positions(model: Architecture | None, init: Artifact[Checkpoint] | None, data: TokenDataset) -> int:
    """Positions of a row that are trained on: tokens, or patches of an image."""
    if model is not None:
        return model.positions(data.seq_len)
    assert init is not None
    side = patch_size(read_hf_config(init.path))
    return data.seq_len if data.image_shape is None else (data.image_shape[0] // side) * (data.image_shape[1] // side)


def _check_rows(config: PretrainConfig, dataset: Artifact[TokenDataset], init: Mapping[str, Any] | None, where: str) -> None:
    """Refuses rows in which documents could not be kept apart."""
    if dataset.payload.packing == "unpacked":
        return
    kind = None if init is None else init.get("model_type")
    if kind not in (None, "esm", *FAMILIES["decoder"], *PACKING):
        raise ConfigError(f"it is not known whether models of the type {kind} keep documents apart that share a row, and {dataset.name} packs several", where=where, todo="prepare it with packing: {type: unpacked}")
    if config.objective.family != "encoder":
        return
    if config.attention == "eager":
        raise ConfigError("an encoder keeps documents that share a row apart with attention sdpa only", where=f"{where}.attention", todo="leave it out")
    if (config.model is not None and not config.model.packs) or kind == "esm":
        raise ConfigError(f"this encoder reads one document a row, and {dataset.name} packs several", where=where, todo="prepare it with packing: {type: unpacked}")


def _check_init(init: Artifact[Checkpoint], dataset: Artifact[TokenDataset], objective: Objective, where: str) -> None:
    if hf_digest(init.path) != init.payload.digest:
        raise ArtifactError("its files are not those that its record was written for (sha256)", where=str(init.path), todo="make or import it again, or take it from where it was copied")
    if init.payload.head not in (objective.head, *objective.continues):
        raise ConfigError(f"{init.name} holds a {init.payload.head} head and cannot be pretrained further with an objective for {objective.head}", where=where)
    hf_config = read_hf_config(init.path)
    if dataset.payload.image_shape is not None:
        _check_images(hf_config, dataset.payload.image_shape, init.name, where)
        return
    positions = max_positions(hf_config)
    if positions is not None and dataset.payload.seq_len > positions:
        raise ConfigError(f"rows of {dataset.payload.seq_len} positions are longer than the {positions} of {init.name}", where=where, todo="lower seq_len of the dataset")
    theirs, ours = (_vocabulary(folder) for folder in (init.path, dataset.path / "tokenizer"))
    if dataset.payload.vocab_size > init.payload.vocab_size or theirs != ours:
        raise ConfigError(f"{dataset.name} was tokenized with another vocabulary than that of {init.name}", where=where, todo=f"prepare it with tokenizer: {{type: pretrained, path: {init.path}}}")


def _check_images(hf_config: Mapping[str, Any], shape: tuple[int, int, int], name: str, where: str) -> None:
    size = hf_config.get("image_size")
    theirs = (*((size, size) if isinstance(size, int) else tuple(size or ())), hf_config.get("num_channels"))
    if theirs != shape:
        raise ConfigError(f"{name} reads images of {theirs} and the dataset holds {shape} (height, width, channels)", where=where, todo="prepare images of its size")


def _vocabulary(folder: Path) -> object:
    try:
        return json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
    except (OSError, ValueError, KeyError) as error:
        raise ArtifactError(f"has no tokenizer.json with a vocabulary ({type(error).__name__})", where=str(folder)) from None


def _check_readable(states: Path | None) -> None:
    """Refuses before any worker starts a state that no layout of workers reads.

    Raises:
        ConfigError: the state to go on from is in the form of the engine that wrote it.
    """
    found = latest_state(states) if states is not None else None
    if found is not None and rank_file(0) not in found[1].files:
        folder, state = found
        raise ConfigError(
            f"the state to go on from was written by {state.world_size} workers with {state.engine} in that engine's own form",
            where=str(folder), todo="finish it with the fmray that began it, or begin anew with --redo",
        )  # fmt: skip


def _watch(out: Out, last_step: int, told: dict[str, Any]) -> None:
    """Shows the latest line; `told` keeps what not every line tells."""
    lines = read_metrics(out.path / METRICS, tail=True)
    if lines:
        speed = statistics.median(line["tokens_per_s"] for line in lines)
        losses = [line["loss"] for line in lines if line["loss"] is not None]
        known = {name: lines[-1][name] for name in ("mfu", "cost_usd", "eta_s") if lines[-1].get(name) is not None}
        if evaluated := [line["eval_loss"] for line in lines if line.get("eval_loss") is not None]:
            told["eval_loss"] = evaluated[-1]
        out.progress(done=lines[-1]["step"], total=last_step, **({"loss": losses[-1]} if losses else {}), **told, tokens_per_s=speed, **known)
    else:
        out.progress("starting workers")


def _check_ledger(job: PretrainJob, n_rows: int, previous: Artifact[Checkpoint] | None) -> dict[str, float]:
    """Leaves `ledger.json` beside the model: whether each row was read once an epoch; and its figures."""
    found = check_ledger(
        job.ledger, n_rows=n_rows, global_batch_size=job.config.global_batch_size, last_step=job.last_step, first_step=job.first_step,
        start=previous.payload.cursor if previous is not None else None,
    )  # fmt: skip
    write_json(job.out / LEDGER, found.plain())
    return {"data/rows_read": found.n_read, "data/rows_repeated": found.n_repeated, "data/rows_missing": found.n_missing}


def _checkpoint(
    job: PretrainJob, out: Out, previous: Artifact[Checkpoint] | None, init: Artifact[Checkpoint] | None, begun: float, read: dict[str, float], notes: Sequence[str]
) -> Checkpoint:
    config, lines, found = job.config, read_metrics(job.out / METRICS), latest_state(job.states)
    summary = json.loads((out.work / SUMMARY).read_text())
    hf_config, n_params = read_hf_config(job.out), count_weights(job.out)
    tokens_per_step = config.global_batch_size * job.positions
    tokens = (job.last_step - job.first_step) * tokens_per_step
    steps_s = [tokens_per_step / line["tokens_per_s"] for line in lines]
    devices = 1 if config.use_gpu else config.cpus_per_worker
    device_s = devices * _workers_s(lines, steps_s, begun)
    devices *= lines[-1]["num_workers"]
    out.spend(device=summary["device"], count=devices, seconds=device_s / devices)
    points = loss_points(lines)
    return Checkpoint(
        head=config.objective.head,
        architecture=str(hf_config["model_type"]),
        digest=hf_digest(job.out),
        n_params=n_params,
        vocab_size=int(hf_config.get("vocab_size") or 0),
        step=job.last_step,
        tokens_seen=tokens + (previous.payload.tokens_seen if previous is not None else 0),
        cursor=found[1].cursor if found is not None else None,
        losses=points,
        objective=dump(config.objective),
        parent=previous.fingerprint if previous is not None else init.fingerprint if init is not None else None,
        figures=({"train/loss": points[-1].loss} if points else {})
        | {
            "train/steps_s": sum(steps_s),
            "perf/tokens_per_s": statistics.median(line["tokens_per_s"] for line in lines),
            "perf/worker_peak_gb": summary["worker_peak_gb"],
            "perf/data_wait_s": sum(line.get("data_wait_s", 0.0) for line in lines),
            "perf/checkpoint_s": sum(line.get("checkpoint_s", 0.0) for line in lines),
        }
        | faults.figures(out.work)
        | ({"train/skipped_steps": float(skipped)} if (skipped := sum("skipped" in line for line in lines)) else {})
        | ({"perf/mfu": statistics.median(mfus)} if (mfus := [line["mfu"] for line in lines if line.get("mfu") is not None]) else {})
        # Only an attempt that took the first step itself knows how long it took to get there.
        | read
        | figures_seen(lines)
        | ({"perf/start_s": lines[0]["time"] - begun} if lines[0]["time"] > begun else {}),
        watched=seen(lines, out.work, notes),
        cost=_cost(flops_of(job, hf_config, n_params), tokens, device_s / 3600, previous),
    )


def _workers_s(lines: Sequence[Mapping[str, Any]], steps_s: Sequence[float], begun: float) -> float:
    """Seconds that workers were held, summed over workers. Attempts that ended before `begun` count with the steps that were kept of them."""
    total, last = 0.0, begun
    for line, seconds in zip(lines, steps_s, strict=True):
        if line["time"] < begun:
            total += seconds * line["num_workers"]
        else:
            total += (line["time"] - last) * line["num_workers"]
            last = line["time"]
    return total + (time.time() - last) * lines[-1]["num_workers"]


def _cost(per_token: float | None, tokens: int, device_hours: float, previous: Artifact[Checkpoint] | None) -> Cost:
    """What all rounds cost so far; energy and price are the audit's to estimate."""
    before = Cost(flops=0.0, device_hours=0.0) if previous is None else previous.payload.cost or Cost()
    return Cost(
        flops=None if per_token is None or before.flops is None else before.flops + per_token * tokens,
        device_hours=None if before.device_hours is None else before.device_hours + device_hours,
        notes="flops: 6 N + 12 L d T a trained position; device_hours: devices times the time they were held, start-up included",
    )
