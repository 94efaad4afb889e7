"""The command line: argv to one call; every error that a user may meet is one line and an exit code.

Exit codes: 0 done, 1 a fault in a run, 2 bad input, 3 a gate refused, 130 interrupted, 143 terminated.
"""

import contextlib
import json
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

import fmray
from fmray import cluster
from fmray.core import provenance
from fmray.core.artifact import local_path, write_json
from fmray.core.errors import ConfigError, FmrayError, GateRefused
from fmray.core.experiment import Experiment, Outcome, load_experiment
from fmray.evaluate import comparison
from fmray.live import LiveRun, quiet_terminal
from fmray.memory import PeakMemory
from fmray.model.conversion import export_checkpoint
from fmray.report.html import write_report
from fmray.report.scaling.fit import fit
from fmray.report.scaling.runs import read_runs
from fmray.report.scaling.show import Rates, summary
from fmray.report.scaling.show import show as show_scaling
from fmray.report.terminal import show_artifact, show_experiment, summary_table
from fmray.serve import status as registry_status
from fmray.serve.admission import Waiver
from fmray.serve.foreground import bases_of, check_serve_config, print_serve_config, serve_foreground
from fmray.submit import submit as submit_job

# What Ray sets for the driver of a submitted job.
RAY_JOB_VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"
RUN_FILE = "run.json"

app = typer.Typer(add_completion=False, no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False, help=fmray.__doc__)

File = Annotated[str, typer.Argument(metavar="FILE", help="experiment file, such as jobs/quickstart.yaml")]
Rest = Annotated[list[str] | None, typer.Argument(metavar="[STEP ...] [step.key=value ...]", help="steps to run (default: all) and overrides")]
Storage = Annotated[str, typer.Option("--storage", help="folder that holds the experiments' artifacts")]
Name = Annotated[str | None, typer.Option("--name", help="another name for the experiment, so that both are kept")]
Redo = Annotated[list[str] | None, typer.Option("--redo", help="make this step again, and what depends on it; the old one is kept aside")]


def _tell_version(asked: bool) -> None:
    if asked:
        print(f"fmray {fmray.__version__}")
        raise typer.Exit


@app.callback()
def every_command(
    version: Annotated[bool, typer.Option("--version", callback=_tell_version, is_eager=True, help="show the version and exit")] = False,
) -> None:
    """What holds for every command."""


@app.command()
def run(file: File, rest: Rest = None, storage: Storage = "runs", name: Name = None, redo: Redo = None) -> None:
    """Run an experiment: finished steps answer from cache, an interrupted one goes on where it was."""
    if os.environ.get(RAY_JOB_VARIABLE) and not Path(storage.removeprefix("file://")).is_absolute():
        raise ConfigError(f"'{storage}' is relative, and this job's folder vanishes with the job", where="--storage", todo="give an absolute path or URI")
    targets, overrides = split_rest(rest)
    experiment = load_experiment(file, overrides, storage=storage, name=name)
    experiment.upstream(targets)
    experiment.upstream(redo or ())
    root, began, outcomes = experiment.root, time.monotonic(), list[Outcome]()
    refused: GateRefused | None = None
    with quiet_terminal(root / "logs" / "ray.log") as console, PeakMemory() as memory:
        console.print(f"[bold]{experiment.name}[/]  {experiment.where} → {root}", soft_wrap=True)
        try:
            _produce(experiment, targets, redo or (), console, outcomes)
        except GateRefused as error:
            refused = error
        except FmrayError as error:
            if error.exit_code == 1:
                error.todo = error.todo or f"see {root / 'logs'}; the same command goes on from what is complete"
            raise
        finally:
            # While Ray's last words still go to the log.
            cluster.close()
            _finish(experiment, began, memory, outcomes)
        console.print(summary_table(root, outcomes=outcomes, run=_last_run(root)))
    if refused is not None:
        raise refused


def _produce(experiment: Experiment, targets: Sequence[str], redo: Sequence[str], console: Console, outcomes: list[Outcome]) -> None:
    with LiveRun(console) as live:

        def done(outcome: Outcome) -> None:
            outcomes.append(outcome)
            live.on_done(outcome)

        experiment.run(targets, redo=redo, watcher=live, on_step=live.on_step, on_done=done)


def _finish(experiment: Experiment, began: float, memory: PeakMemory, outcomes: Sequence[Outcome]) -> None:
    """Writes the figures of this run, unless everything came from cache, and the report."""
    root = experiment.root
    if any(outcome.state == "done" for outcome in outcomes):
        figures = {"argv": provenance.redact_argv(sys.argv), "wall_s": round(time.monotonic() - began, 1), "peak_memory_gb": memory.peak_gb}
        write_json(root / RUN_FILE, figures)
    if outcomes:
        write_report(root, planned=tuple(experiment.steps.values()))


def _last_run(root: Path) -> dict[str, Any]:
    with contextlib.suppress(OSError, ValueError):
        return dict(json.loads((root / RUN_FILE).read_text()))
    return {}


@app.command()
def check(
    file: File,
    rest: Rest = None,
    storage: Storage = "runs",
    name: Name = None,
    try_micro_batch: Annotated[bool, typer.Option("--try-micro-batch", help="also find the largest micro-batch that fits, by taking real steps")] = False,
) -> None:
    """Validate an experiment without running it, and print its plan."""
    targets, overrides = split_rest(rest)
    experiment = load_experiment(file, overrides, storage=storage, name=name)
    wanted = experiment.upstream(targets)
    table = Table(title=f"{experiment.name}: {file}", title_justify="left", box=None, padding=(0, 2, 0, 0))
    for column in ("step", "stage", "plan"):
        table.add_column(column, overflow="fold")
    planned = [(step, lines) for step, lines in experiment.plan() if step.name in wanted]
    tried = {step.name: lines for step, lines in experiment.trials(wanted)} if try_micro_batch else {}
    for step, told in planned:
        lines = told | tried.get(step.name, {})
        table.add_row(step.name, step.spec.name, "\n".join(f"{label}: {text}" for label, text in lines.items()))
    Console(highlight=False).print(table)


@app.command()
def show(path: Annotated[str, typer.Argument(help="an experiment's folder or one artifact")], as_json: Annotated[bool, typer.Option("--json", help="as JSON")] = False) -> None:
    """Show an experiment (steps, fingerprints, lineage, figures) or one artifact."""
    root = local_path(path)
    shower = show_artifact if (root / "record.json").exists() else show_experiment
    shown = shower(root, as_json=as_json)
    if as_json:
        print(json.dumps(shown, indent=2, ensure_ascii=False))
    else:
        Console(highlight=False).print(shown)


@app.command()
def report(path: Annotated[str, typer.Argument(help="an experiment's folder, such as runs/quickstart")]) -> None:
    """Write report.html anew from the records and print its path."""
    print(write_report(local_path(path)))


@app.command()
def scaling(
    runs: Annotated[list[str], typer.Argument(metavar="RUNS ...", help="experiments' folders, or one CSV file with columns n_params, tokens, loss")],
    flops: Annotated[list[float] | None, typer.Option("--flops", help="a budget to find the best N and D for; may be given again")] = None,
    target_loss: Annotated[list[float] | None, typer.Option("--target-loss", help="a loss to find the price of; may be given again")] = None,
    flops_per_device_s: Annotated[float | None, typer.Option("--flops-per-device-s", help="FLOP/s that training reaches on a device")] = None,
    usd_per_device_hour: Annotated[float | None, typer.Option("--usd-per-device-hour")] = None,
    resamples: Annotated[int, typer.Option("--resamples", min=20, help="of the bootstrap")] = 500,
    as_json: Annotated[bool, typer.Option("--json", help="as JSON")] = False,
) -> None:
    """Fit L(N, D) to finished runs; say the best N and D for a budget, and what a target loss would cost."""
    declared: list[tuple[str, Sequence[float | None] | None]] = [
        ("--flops", flops), ("--target-loss", target_loss), ("--flops-per-device-s", [flops_per_device_s]), ("--usd-per-device-hour", [usd_per_device_hour]),
    ]  # fmt: skip
    for name, values in declared:
        if any(value is not None and not 0 < value < float("inf") for value in values or ()):
            raise ConfigError("must be positive", where=name)
    rates = Rates(flops_per_device_s, usd_per_device_hour)
    found = read_runs([local_path(path) for path in runs])
    said = summary(found, fit(found.runs, resamples=resamples), flops or [], target_loss or [], rates)
    if as_json:
        print(json.dumps(said, indent=2))
    else:
        Console(highlight=False).print(show_scaling(said))


@app.command()
def compare(
    a: Annotated[str, typer.Argument(metavar="A", help="a report of evaluate, or the checkpoint that one beside it is about")],
    b: Annotated[str, typer.Argument(metavar="B", help="the same of what A is held against")],
    examples: Annotated[int, typer.Option("--examples", min=0, help="show so many examples that A won and lost, of each figure")] = 3,
    seed: Annotated[int, typer.Option("--seed", min=0, help="of the bootstrap")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="as JSON instead of Markdown")] = False,
) -> None:
    """Hold two evaluated models against each other, example by example."""
    ours, theirs = (comparison.find_report(local_path(path)) for path in (a, b))
    said = comparison.summary(ours, theirs, comparison.compare(ours, theirs, seed=seed), examples)
    print(json.dumps(said, indent=2, ensure_ascii=False) if as_json else comparison.markdown(said))


@app.command()
def submit(
    file: File,
    rest: Rest = None,
    storage: Annotated[str, typer.Option("--storage", help="absolute path or URI that every node can write to")] = "runs",
    name: Name = None,
    redo: Redo = None,
    address: Annotated[str | None, typer.Option("--address", help="the cluster's dashboard, such as http://127.0.0.1:8265")] = None,
    working_dir: Annotated[str, typer.Option("--working-dir", help="folder to send along (.rayignore keeps things out)")] = ".",
) -> None:
    """Run an experiment as a Ray job with the same arguments, follow its log, and end with its exit code."""
    _, overrides = split_rest(rest)
    load_experiment(Path(working_dir) / file, overrides, name=name)
    argv = [file, *(rest or ())]
    argv += ["--name", name] if name else []
    for step in redo or ():
        argv += ["--redo", step]
    raise typer.Exit(submit_job(argv, storage=storage, address=address, working_dir=working_dir))


@app.command()
def serve(
    targets: Annotated[list[str] | None, typer.Argument(metavar="DIR ...", help="checkpoints (or one deployment) to serve")] = None,
    host: Annotated[str, typer.Option("--host")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port")] = 8000,
    replicas: Annotated[int, typer.Option("--replicas", min=1)] = 1,
    decision: Annotated[str | None, typer.Option("--decision", help="the gate's artifact that admits the checkpoint")] = None,
    waive: Annotated[str | None, typer.Option("--waive", metavar="REASON", help="serve without an admitting decision; recorded")] = None,
    by: Annotated[str | None, typer.Option("--by", metavar="NAME", help="who waives")] = None,
    feedback: Annotated[str | None, typer.Option("--feedback", metavar="FILE", help="JSONL that POST /v1/feedback appends to")] = None,
    request_log: Annotated[str | None, typer.Option("--request-log", metavar="FILE", help="JSONL with a line a request, without its text")] = None,
    log_prompts: Annotated[bool, typer.Option("--log-prompts", help="put the text of requests in the request log too")] = False,
    api_keys: Annotated[str | None, typer.Option("--api-keys", metavar="FILE", help="lines of NAME:SHA256; also from FMRAY_API_KEYS")] = None,
    open_to_all: Annotated[bool, typer.Option("--open-to-all", help="serve other machines without API keys")] = False,
    adapter: Annotated[list[str] | None, typer.Option("--adapter", metavar="NAME=BASE", help="serve NAME as an adapter on BASE's weights (repeat for more)")] = None,
    max_loaded: Annotated[int | None, typer.Option("--max-loaded", min=1, help="models that a replica holds at once, loaded when asked for")] = None,
    print_config: Annotated[bool, typer.Option("--print-config", help="print the YAML for `serve deploy` or a RayService, and end")] = False,
    check_config: Annotated[str | None, typer.Option("--check-config", metavar="FILE", help="check such a YAML strictly, and end")] = None,
) -> None:
    """Serve checkpoints in the foreground, under the same gate rule as deploy."""
    if check_config is not None:
        print(f"{check_config}: {check_serve_config(local_path(check_config))}")
        return
    if not targets:
        raise ConfigError("name what to serve: a checkpoint's or a deployment's folder", where="serve")
    files = [local_path(file) if file else None for file in (feedback, request_log, api_keys)]
    run = print_serve_config if print_config else serve_foreground
    run(
        [local_path(target) for target in targets], host=host, port=port, decision=local_path(decision) if decision else None, waive=waive, by=by,
        replicas=replicas, feedback=files[0], request_log=files[1], log_prompts=log_prompts, api_keys=files[2], open_to_all=open_to_all,
        adapters=bases_of(adapter or []), max_loaded=max_loaded,
    )  # fmt: skip


Model = Annotated[str, typer.Argument(metavar="MODEL", help="a registered model's name")]
AsJson = Annotated[bool, typer.Option("--json", help="as JSON")]


@app.command()
def status(
    model: Annotated[str | None, typer.Argument(metavar="[MODEL]", help="one model (default: all)")] = None, storage: Storage = "runs", as_json: AsJson = False
) -> None:
    """Show the registered models: versions, champion, candidate, the canary under way, and the last change."""
    said = registry_status.status(registry_status.registry_of(local_path(storage)), model)
    if as_json:
        print(json.dumps(said, indent=2, ensure_ascii=False))
    else:
        Console(highlight=False).print(registry_status.table(said))


@app.command()
def promote(
    model: Model,
    storage: Storage = "runs",
    waive: Annotated[str | None, typer.Option("--waive", metavar="REASON", help="although its canary has not admitted it; recorded")] = None,
    by: Annotated[str | None, typer.Option("--by", metavar="NAME", help="who waives")] = None,
    as_json: AsJson = False,
) -> None:
    """Make a model's candidate its champion: running applications follow within a second."""
    registry = registry_status.registry_of(local_path(storage))
    _print(registry_status.changed(registry, model, registry.promote(model, waiver=Waiver.of(waive, by)), as_json))


@app.command()
def rollback(
    model: Model,
    storage: Storage = "runs",
    reason: Annotated[str | None, typer.Option("--reason", help="recorded in the model's history")] = None,
    by: Annotated[str | None, typer.Option("--by", metavar="NAME", help="who rolls back")] = None,
    as_json: AsJson = False,
) -> None:
    """Take a model's candidate out of traffic, or, where there is none, go back to the champion before."""
    registry = registry_status.registry_of(local_path(storage))
    _print(registry_status.changed(registry, model, registry.rollback(model, reason=reason, by=by), as_json))


def _print(said: dict[str, Any] | str) -> None:
    print(said if isinstance(said, str) else json.dumps(said, indent=2, ensure_ascii=False))


@app.command()
def export(
    checkpoint: Annotated[str, typer.Argument(metavar="CHECKPOINT", help="a checkpoint's folder, such as runs/quickstart/base")],
    out: Annotated[str, typer.Argument(metavar="OUT", help="folder to make, or for gguf the file")],
    form: Annotated[str, typer.Option("--format", help="safetensors (a Hugging Face directory) or gguf (one file, decoders of the Llama type)")] = "safetensors",
    dtype: Annotated[str | None, typer.Option("--dtype", help="float32, bfloat16 or float16 (default: as stored)")] = None,
    shard_size: Annotated[str, typer.Option("--shard-size", help="of a safetensors file at most")] = "5GB",
) -> None:
    """Write a checkpoint's model in another form or precision."""
    export_checkpoint(local_path(checkpoint), local_path(out), form=form, dtype=dtype, shard_size=shard_size)
    print(local_path(out))


def split_rest(rest: Sequence[str] | None) -> tuple[list[str], list[str]]:
    """Steps and overrides of the arguments that follow the file."""
    items = list(rest or ())
    return [item for item in items if "=" not in item], [item for item in items if "=" in item]


def main() -> None:
    """The `fmray` command."""
    code = guarded(lambda: app(standalone_mode=False))
    if cluster.is_lost():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def guarded(command: Callable[[], Any]) -> int:
    """Runs a command and turns however it ends into an exit code, with at most one line on standard error."""
    try:
        code = command()
    except FmrayError as error:
        return _say(str(error), error.exit_code)
    except typer.TyperException as error:
        return _say(error.format_message(), 2)
    except (KeyboardInterrupt, typer.Abort):
        return _say("interrupted; the same command goes on where this one stopped", 130)
    except Exception as error:
        path = _save_traceback()
        return _say(f"a fault that fmray did not expect: {type(error).__name__}: {' '.join(str(error).split())[:300]}; the traceback is in {path}", 1)
    return code if isinstance(code, int) else 0


def _say(line: str, code: int) -> int:
    print(f"fmray: {line}", file=sys.stderr)
    return code


def _save_traceback() -> Path:
    descriptor, name = tempfile.mkstemp(prefix="fmray-fault-", suffix=".log")
    with os.fdopen(descriptor, "w") as file:
        traceback.print_exc(file=file)
    return Path(name)
