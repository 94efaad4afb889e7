"""The audit stage: harm, privacy and cost of a checkpoint, each figure beside its control. One file an audit."""

import json
import time
from collections.abc import Mapping
from pathlib import Path

from pydantic import Field, field_validator

from fmray.audit.base import Audit, Result, Subject
from fmray.cluster import call
from fmray.core.artifact import Artifact
from fmray.core.config import Config, runtime
from fmray.core.report import Report
from fmray.core.stage import Out, stage
from fmray.data.dataset import TokenDataset
from fmray.model.checkpoint import Checkpoint

EXAMPLES = "examples.jsonl"


class AuditConfig(Config):
    """Which audits to run, and with how much of the machine.

    Attributes:
        micro_batch_size: texts a forward pass.
        num_cpus: cores, and so torch threads, of the worker that runs them all.
        num_gpus: GPUs of that worker (0 or 1).
    """

    audits: tuple[Audit, ...] = Field(min_length=1)
    micro_batch_size: int = runtime(32, ge=1)
    num_cpus: int = runtime(2, ge=1)
    num_gpus: int = runtime(0, ge=0, le=1)

    @field_validator("audits")
    @classmethod
    def _once_each(cls, audits: tuple[Audit, ...]) -> tuple[Audit, ...]:
        types = [audit.type for audit in audits]
        twice = sorted({tag for tag in types if types.count(tag) > 1})
        if twice:
            raise ValueError(f"audit '{twice[0]}' is listed more than once, so its metric keys would clash")
        return audits


def plan(config: AuditConfig, upstream: Mapping[str, Config]) -> dict[str, str]:
    """The lines for `fmray check`."""
    return {"audits": ", ".join(audit.type for audit in config.audits)}


@stage("audit", version=1, recompute=True, plan=plan)
def audit(config: AuditConfig, checkpoint: Artifact[Checkpoint], out: Out, dataset: Artifact[TokenDataset] | None = None) -> Report:
    """Runs the audits in one worker process and reports their figures about this checkpoint.

    Raises:
        ConfigError: an audit needs something that the checkpoint or dataset does not have.
    """
    for item in config.audits:
        item.check(checkpoint, dataset)
    out.progress(f"auditing {checkpoint.name}: {', '.join(a.type for a in config.audits)}", done=0, total=1)
    started = time.monotonic()
    device = "cuda" if config.num_gpus else "cpu"
    subject = Subject(checkpoint, dataset, device, config.micro_batch_size)
    results = call(run_all, config.audits, subject, config.num_cpus, num_cpus=config.num_cpus, num_gpus=config.num_gpus)
    out.spend(device=device, count=config.num_gpus or config.num_cpus, seconds=time.monotonic() - started)
    write_examples(out.path / EXAMPLES, {a.type: r for a, r in zip(config.audits, results, strict=True)})
    metrics = tuple(metric for result in results for metric in result.metrics)
    findings = tuple(finding for result in results for finding in result.findings)
    out.progress(f"{len(metrics)} figures, {len(findings)} findings", done=1, total=1)
    return Report(subject=checkpoint.fingerprint, metrics=metrics, findings=findings, examples=EXAMPLES)


def run_all(audits: tuple[Audit, ...], subject: Subject, num_threads: int) -> list[Result]:
    """Runs the audits one after another in this process, so that the model is opened once."""
    import torch

    torch.set_num_threads(num_threads)
    # The model that `subject` opened ends with this process: only results travel back.
    return [item.run(subject) for item in audits]


def write_examples(path: Path, results: Mapping[str, Result]) -> None:
    """Writes every example row, tagged with its audit, as JSON lines."""
    rows = [{"audit": name} | row for name, result in results.items() for row in result.examples]
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
