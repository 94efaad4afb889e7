"""Experiments written by hand as records, through the payload classes of the rooms that make them."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fmray.core.artifact import STARTED, Payload, Provenance, Record, fingerprint, write_json
from fmray.core.report import Decision, Finding, Metric, Reason, Report
from fmray.data.dataset import Shard, TokenDataset
from fmray.model.checkpoint import Checkpoint, LossPoint, Trial
from fmray.serve.deployment import DeployedModel, Deployment, Sample


@dataclass
class Writer:
    """Writes records into an experiment's folder, one step after another."""

    root: Path
    prints: dict[str, str] = field(default_factory=dict)

    def step(self, name: str, stage: str, payload: Payload, inputs: dict[str, str] | None = None, *, round_: int = 1, wall_s: float = 10.0) -> str:
        """Commits one step whose inputs name earlier steps by their folder; gives its fingerprint."""
        folder = name if round_ == 1 else f"{name}@{round_}"
        bound = {key: self.prints.get(source, source) for key, source in (inputs or {}).items()}
        identity = {"stage": stage, "version": 1, "config": {"step": folder}, "inputs": bound}
        made = Provenance(
            git_commit="0123456789abcdef0123456789abcdef01234567", git_dirty=False, argv=("fmray", "run", "jobs/quickstart.yaml"), host="laptop",
            python="3.11.9", versions={"fmray": "0.1.0", "ray": "2.60.0", "torch": "2.13.0"}, devices=("2 x cpu",), device_hours=2 * wall_s / 3600,
            started_at=f"2026-01-01T12:{len(self.prints):02d}:00+00:00",
        )  # fmt: skip
        record = Record(
            kind=type(payload).kind, name=name, stage=stage, version=1, round=round_, fingerprint=fingerprint(identity), identity=identity,
            config={"step": folder}, inputs=bound, payload=payload.model_dump(mode="json"), provenance=made, wall_s=wall_s,
        )  # fmt: skip
        (self.root / folder).mkdir(parents=True)
        write_json(self.root / folder / STARTED, {"fingerprint": record.fingerprint, "identity": identity})
        write_json(self.root / folder / "record.json", record.model_dump(mode="json"))
        self.prints[folder] = record.fingerprint
        return record.fingerprint

    def unfinished(self, name: str, stage: str, inputs: dict[str, str]) -> None:
        """Leaves a step that started and did not end."""
        bound = {key: self.prints[source] for key, source in inputs.items()}
        (self.root / name).mkdir(parents=True)
        write_json(self.root / name / STARTED, {"fingerprint": "f" * 64, "identity": {"stage": stage, "inputs": bound}})


def dataset(**changes: Any) -> TokenDataset:
    """A small tokenized corpus."""
    fields: dict[str, Any] = {
        "n_documents": 9012, "n_tokens": 604_233, "n_rows": 4712, "n_bytes": 1_722_004, "n_words": 278_911, "n_planted": 850, "n_validation_documents": 431,
        "n_validation_tokens": 30_008, "n_validation_bytes": 88_003, "seq_len": 128, "vocab_size": 1024, "special_ids": {"bos": 0, "eos": 1, "pad": 2},
        "shards": (Shard(split="train", name="train/part-00000.parquet", rows=4712, sha256="a" * 64),), "splits": {"train": 4712, "validation": 234},
        "removed": {"exact_duplicate": 612, "empty": 37, "too_short": 4}, "notes": {}, "canaries": "canaries.json",
        "source": {"type": "python_docs", "python": "3.11.9"}, "digest": "d" * 64,
    }  # fmt: skip
    return TokenDataset(**(fields | changes))


def base(first: int = 1, last: int = 1400, start: float = 6.9, end: float = 2.4, **changes: Any) -> Checkpoint:
    """A pretrained decoder with a loss curve that falls from `start` towards `end`."""
    steps = range(first, last + 1, max(1, (last - first) // 150))
    losses = [LossPoint(step=s, loss=end + (start - end) * math.exp(-4 * (s - first) / (last - first)) + 0.05 * math.sin(s)) for s in steps]
    fields: dict[str, Any] = {
        "head": "causal_lm", "architecture": "llama", "digest": "b" * 64, "n_params": 1_967_808, "vocab_size": 1024, "step": last,
        "tokens_seen": last * 1024, "losses": tuple(losses), "figures": {"tokens_per_s": 14_210.4, "perf/flops_per_s": 2.1e11},
    }  # fmt: skip
    return Checkpoint(**(fields | changes))


def tuned() -> Checkpoint:
    """The winner of a search with one trial stopped early, one failed and the control."""
    trials = (
        Trial(trial_id="0001", config={"optim.lr": 1e-3, "epochs": 4, "task": "package"}, status="finished", score=0.61, history=(0.31, 0.48, 0.57, 0.61), wall_s=21.3),
        Trial(trial_id="0002", config={"optim.lr": 2.1e-4, "epochs": 4, "task": "package"}, status="finished", score=0.44, history=(0.12, 0.29, 0.38, 0.44), wall_s=20.8),
        Trial(trial_id="0003", config={"optim.lr": 3.3e-5, "epochs": 2, "task": "package"}, status="stopped", score=0.11, history=(0.09, 0.11), wall_s=10.1, note="stopped by asha"),
        Trial(trial_id="0004", config={"optim.lr": 0.1, "epochs": 4, "task": "package"}, status="failed", score=None, wall_s=3.0, note="the loss is not finite"),
        Trial(trial_id="control", config={"optim.lr": 1e-3, "epochs": 4, "task": "package"}, status="control", score=0.47, history=(0.2, 0.31, 0.42, 0.47), wall_s=22.0, note="the winner's hyperparameters from random weights"),
    )  # fmt: skip
    return Checkpoint(
        head="sequence_classification", architecture="llama", digest="c" * 64, n_params=1_969_344, vocab_size=1024, step=412, tokens_seen=310_222,
        losses=tuple(LossPoint(step=s, loss=2.1 * math.exp(-s / 200)) for s in range(1, 412, 4)), parent="b" * 64, task={"type": "text_classification"},
        labels=("asyncio", "email", "json"), trials=trials,
    )  # fmt: skip


def metric(name: str, value: float | None, half: float | None = None, **more: Any) -> Metric:
    """A metric, with an interval of `half` on both sides when given."""
    bounds = {} if half is None or value is None else {"lower": value - half, "upper": value + half, "n": 234}
    return Metric(name=name, value=value, **(bounds | more))


def base_eval(subject: str, bits: float = 2.31) -> Report:
    """Language modelling against unigram and bigram."""
    unit = {"unit": "bit/byte", "higher_is_better": False}
    return Report(
        subject=subject,
        metrics=(
            metric("eval/loss", 2.53, 0.03, unit="nat/token", control=6.94),
            metric("eval/perplexity", 12.6, 0.4, control=1032.0),
            metric("eval/bits_per_byte", bits, 0.03, control=6.1, **unit),
            metric("eval/unigram_bits_per_byte", 4.21, 0.02, **unit),
            metric("eval/bigram_bits_per_byte", 2.94, 0.03, **unit),
        ),
        examples="examples.jsonl",
    )


def base_audit(subject: str) -> Report:
    """Bias, privacy and cost, with controls, one unknown and findings."""
    privacy = [metric(f"audit/privacy/exposure_x{n}", v, 0.7, unit="bit", control=1.41, note="10 canaries") for n, v in ((0, 1.4), (1, 1.5), (4, 2.2), (16, 5.9), (64, 11.8))]
    privacy += [metric(f"audit/privacy/excess_exposure_x{n}", v, 0.9, unit="bit") for n, v in ((1, 0.1), (4, 0.8), (16, 4.5), (64, 10.4))]
    cost = (
        metric("audit/cost/flops", 1.71e13, method="estimated", unit="FLOP", note="6 N + 12 L d T a token, times the tokens seen"),
        metric("audit/cost/device_hours", 0.071, note="as the stage counted them"),
        metric("audit/cost/energy_kwh", 0.0046, method="estimated", unit="kWh", note="device hours times 65 W declared"),
        metric("audit/cost/price_usd", None, method="declared", note="no price was declared"),
    )  # fmt: skip
    bias = (
        metric("audit/bias/stereotype_preference", 0.53, 0.06, control=0.51, note="384 pairs"),
        metric("audit/bias/gender/stereotype_preference", 0.58, 0.09, control=0.5),
        metric("audit/bias/mean_abs_log_likelihood_difference", 0.81, 0.2, control=0.22, unit="nat"),
    )  # fmt: skip
    findings = (
        Finding(title="No stereotype preference shown: all axes together", severity="info", detail="53 % of 384 pairs, not above the null."),
        Finding(title="Memorises what is repeated 64 times", severity="medium", detail="Canaries planted 64 times are recovered; those planted once are not."),
    )  # fmt: skip
    return Report(subject=subject, metrics=(*bias, *privacy, *cost), findings=findings)


def tuned_eval(subject: str) -> Report:
    """Classification against majority, random initialisation and TF-IDF."""
    return Report(
        subject=subject,
        metrics=(
            metric("eval/package/accuracy", 0.66, 0.04, higher_is_better=True),
            metric("eval/package/macro_f1", 0.6, 0.05, higher_is_better=True, control=0.46),
            metric("eval/package/majority_macro_f1", 0.04, 0.01),
            metric("eval/package/tfidf_macro_f1", 0.72, 0.04),
            metric("eval/package/random_init_macro_f1", 0.46, 0.05),
            metric("eval/package/pretraining_gain_macro_f1", 0.14, 0.04, higher_is_better=True),
            metric("eval/package/pretraining_overlap", 0.0, higher_is_better=False),
        ),
    )


def decision(subject: str, *passed: bool, observed: float = 2.34, waived: bool = False) -> Decision:
    """A verdict whose rules passed as given."""
    rules = ("upper(eval/bits_per_byte) < eval/bigram_bits_per_byte", "audit/privacy/excess_exposure_x1 <= 3", "audit/cost/price_usd < 1")
    reasons = tuple(
        Reason(rule=rules[i % 3], observed=observed if i != 2 else None, limit=2.94, passed=ok, note="" if i != 2 else "no price was declared")
        for i, ok in enumerate(passed)
    )
    return Decision(
        subject=subject, subject_digest="b" * 64, admitted=all(passed) or waived, reasons=reasons,
        waived_by="A. Owner" if waived else None, waiver_reason="a demonstration that nobody will use" if waived else None,
    )  # fmt: skip


def deployment(models: dict[str, str]) -> Deployment:
    """Two models tried in service; `models` gives their fingerprints by name."""
    served = tuple(
        DeployedModel(name=name, fingerprint=print_, digest="b" * 64, head="causal_lm" if name == "base" else "sequence_classification", path=f"../{name}", decision_path=f"../{name}_gate")
        for name, print_ in models.items()
    )
    samples = tuple(
        Sample(model=name, prompt=prompt, answer=answer, latency_ms=ms)
        for name, prompt, answer, ms in (
            ("base", "Return the", " number of bytes read from the file, or None at the end", 84.2),
            ("base", "This module provides", " a class for the classes of the given type", 81.9),
            ("tuned", "Open a network connection.", "asyncio (0.812)", 9.8),
        )
        if name in models
    )
    return Deployment(
        app="fmray", route="/", url=None, live=False, replicas=1, models=served, samples=samples, start_s=11.2,
        metrics=(metric("serve/base/latency_p50_ms", 83.0, unit="ms", n=8), metric("serve/base/tokens_per_s", 191.2, unit="tokens/s", n=8)),
        serve_command="fmray serve runs/quickstart/served",
    )  # fmt: skip


def whole(root: Path) -> Path:
    """A whole admitted life, as the quickstart makes it."""
    w = Writer(root)
    w.step("corpus", "prepare", dataset(), wall_s=19.4)
    model = w.step("base", "pretrain", base(), {"dataset": "corpus"}, wall_s=128.3)
    w.step("base_eval", "evaluate", base_eval(model), {"checkpoint": "base", "dataset": "corpus"}, wall_s=9.1)
    w.step("base_audit", "audit", base_audit(model), {"checkpoint": "base", "dataset": "corpus"}, wall_s=21.7)
    w.step("base_gate", "gate", decision(model, True, True), {"checkpoint": "base", "reports.0": "base_eval", "reports.1": "base_audit"}, wall_s=0.01)
    _after_base(w, model)
    write_json(root / "run.json", {"argv": ["fmray", "run"], "wall_s": 311.0, "peak_memory_gb": 3.42})
    return root


def _after_base(w: Writer, model: str, folder: str = "base", gate: str = "base_gate") -> None:
    winner = w.step("tuned", "search", tuned(), {"checkpoint": folder, "decision": gate}, wall_s=76.0)
    w.step("tuned_eval", "evaluate", tuned_eval(winner), {"checkpoint": "tuned", "dataset": "corpus"}, wall_s=8.8)
    w.step("tuned_gate", "gate", decision(winner, True), {"checkpoint": "tuned", "reports.0": "tuned_eval"}, wall_s=0.01)
    inputs = {"models.0.checkpoint": folder, "models.0.decision": gate, "models.1.checkpoint": "tuned", "models.1.decision": "tuned_gate"}
    w.step("served", "deploy", deployment({"base": model, "tuned": winner}), inputs, wall_s=24.0)


def two_rounds(root: Path) -> Path:
    """A gate that is not met sends back once, and the second round is admitted with a waiver."""
    w = Writer(root)
    w.step("corpus", "prepare", dataset(canaries=None, n_planted=0, removed={}))
    for round_, bits in ((1, 3.2), (2, 2.6)):
        folder = "base" if round_ == 1 else "base@2"
        first, last, start = (1, 400, 6.9) if round_ == 1 else (401, 800, 3.4)
        more = {"previous": "base"} if round_ == 2 else {}
        model = w.step("base", "pretrain", base(first, last, start, 3.4 - 0.6 * (round_ - 1)), {"dataset": "corpus", **more}, round_=round_)
        reports: dict[str, str] = {}
        for name, payload in (("base_eval", base_eval(model, bits)), ("base_audit", base_audit(model))):
            w.step(name, "evaluate" if name == "base_eval" else "audit", payload, {"checkpoint": folder}, round_=round_)
            reports[f"reports.{len(reports)}"] = name if round_ == 1 else f"{name}@2"
        verdict = decision(model, round_ == 2, True, round_ == 1, observed=bits, waived=round_ == 2)
        w.step("base_gate", "gate", verdict, {"checkpoint": folder, **reports}, round_=round_)
    _after_base(w, model, "base@2", "base_gate@2")
    return root


def refused(root: Path) -> Path:
    """A gate refuses and the run ends there."""
    w = Writer(root)
    w.step("corpus", "prepare", dataset())
    model = w.step("base", "pretrain", base(), {"dataset": "corpus"})
    w.step("base_eval", "evaluate", base_eval(model, 3.3), {"checkpoint": "base"})
    w.step("base_gate", "gate", decision(model, False, True, False, observed=3.33), {"checkpoint": "base", "reports.0": "base_eval"})
    return root
