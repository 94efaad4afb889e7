"""Figures as people read them: numbers with units, names of metrics, and the key figures of each kind of artifact."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from fmray.core.artifact import Record
from fmray.core.report import Decision, Metric, Report

_WORDS = {"f1": "F1", "mcc": "Matthews", "ece": "calibration error", "tfidf": "TF-IDF", "usd": "", "kwh": "", "kg": "", "ms": "", "flops": "FLOPs", "s": "second", "p50": "median", "p95": "95th percentile"}
_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
UNKNOWN = "unknown"
CONTROL = "control"  # the id of a search's control trial, from random weights


def number(value: float | None, unit: str = "") -> str:
    """A number to about four significant digits with its unit; `unknown` for None."""
    if value is None:
        return UNKNOWN
    if unit.lower() == "usd":
        return f"${_digits(value)}"
    if unit == "s":
        return duration(value)
    return f"{_digits(value)} {unit}".strip()


def _digits(value: float, significant: int = 4) -> str:
    if not math.isfinite(value):
        return "not a number" if math.isnan(value) else "∞" if value > 0 else "-∞"
    size = abs(value)
    if size >= 1e7 or 0 < size < 1e-3:
        mantissa, exponent = f"{value:.2e}".split("e")
        return f"{mantissa.rstrip('0').rstrip('.')}×10{str(int(exponent)).translate(_SUPERSCRIPT)}"
    if float(value).is_integer():
        return f"{int(value):,}"
    return f"{value:,.0f}" if size >= 1000 else f"{value:.{significant}g}"


def count(value: float | None) -> str:
    """A count with a short suffix: 1,958 · 58.6 k · 1.77 M · 3.2 B."""
    if value is None:
        return UNKNOWN
    for limit, suffix in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= limit:
            scale = 1e3 if suffix == "k" else limit
            return f"{value / scale:.3g} {suffix}"
    return f"{value:,.0f}"


def duration(seconds: float | None) -> str:
    """A wall time: 0.4 s · 12 s · 3 min 07 s · 2 h 05 min."""
    if seconds is None:
        return UNKNOWN
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min"


def spell(name: str) -> str:
    """The last part of a metric key in words: `eval/imdb/macro_f1` is macro F1, `exposure_x64` is exposure ×64.

    Units at the end are left out, for they stand beside the figure.
    """
    words = [_WORDS.get(word, word) for word in name.rsplit("/", 1)[-1].split("_")]
    return " ".join(f"×{word[1:]}" if word[:1] == "x" and word[1:].isdigit() else word for word in words if word)


def figure(key: str, value: float) -> tuple[str, str]:
    """A figure's name and value in words, the unit read from its key: `steps_s` in seconds, `worker_peak_gb` in GiB."""
    leaf = key.rsplit("/", 1)[-1]
    if leaf.endswith("_s") and not leaf.endswith("_per_s"):
        return spell(leaf.removesuffix("_s")), duration(value)
    if leaf.endswith("_usd"):
        return spell(leaf), number(value, "USD")
    if leaf.endswith("_kwh"):
        return spell(leaf), number(value, "kWh")
    if leaf.endswith("_gb"):
        return spell(leaf.removesuffix("_gb")), number(value, "GiB")
    return spell(leaf), number(value)


def interval(metric: Metric) -> str:
    """The figure with its 95 % interval, or with its standard error, as far as known."""
    shown = number(metric.value, metric.unit)
    if metric.value is None:
        return f"{UNKNOWN} ({metric.note})" if metric.note else UNKNOWN
    if metric.lower is not None and metric.upper is not None:
        return f"{shown} [{_digits(metric.lower, 3)}, {_digits(metric.upper, 3)}]"
    return f"{shown} ± {_digits(metric.stderr, 3)}" if metric.stderr is not None else shown


def metrics_of(payload: Mapping[str, Any]) -> tuple[Metric, ...]:
    """The metrics of a report's payload."""
    return Report.model_validate(dict(payload)).metrics


def with_baselines(metrics: Sequence[Metric]) -> list[tuple[Metric, tuple[Metric, ...]]]:
    """Pairs each metric under `eval/` with the baselines of its folder, called `<baseline>_<metric>`; a gain is no baseline."""
    metrics = [m for m in metrics if m.name.startswith("eval/")]

    def is_baseline_of(other: Metric, main: Metric) -> bool:
        folder, _, leaf = main.name.rpartition("/")
        other_folder, _, other_leaf = other.name.rpartition("/")
        return folder == other_folder and other_leaf.endswith(f"_{leaf}") and "gain" not in other_leaf.split("_")

    pairs = [(m, tuple(o for o in metrics if is_baseline_of(o, m))) for m in metrics]
    taken = {o.name for _, others in pairs for o in others}
    return [(main, others) for main, others in pairs if main.name not in taken]


def baseline_name(main: Metric, baseline: Metric) -> str:
    """What a baseline's key has before the metric's own name, in words: bigram, random init."""
    leaf, own = baseline.name.rsplit("/", 1)[-1], main.name.rsplit("/", 1)[-1]
    return spell(leaf.removesuffix(own).strip("_"))


def key_figures(record: Record) -> list[tuple[str, str]]:
    """The few figures that say what an artifact is, as (label, value) pairs, most telling first."""
    makers = {"token_dataset": _dataset, "checkpoint": _checkpoint, "report": _report, "decision": _decision, "deployment": _deployment}
    maker = makers.get(record.kind)
    return maker(record.payload) if maker else []


def _dataset(payload: Mapping[str, Any]) -> list[tuple[str, str]]:
    removed = sum(payload.get("removed", {}).values())
    if payload.get("modality") == "image":
        shape = " x ".join(str(n) for n in payload.get("image_shape") or ())
        return [("images", count(payload.get("n_rows"))), ("of", shape), ("removed", f"{removed:,} images")]
    return [
        ("documents", count(payload.get("n_documents"))),
        ("words", count(payload.get("n_words"))),
        ("tokens", count(payload.get("n_tokens"))),
        ("rows", f"{count(payload.get('n_rows'))} of {payload.get('seq_len')}"),
        ("vocabulary", f"{payload.get('vocab_size', 0):,}"),
        ("removed", f"{removed:,} documents"),
    ]


def _checkpoint(payload: Mapping[str, Any]) -> list[tuple[str, str]]:
    figures = [("parameters", count(payload.get("n_params")))]
    trials = [t for t in payload.get("trials", ()) if t["trial_id"] != CONTROL]
    if trials:
        scores = [t["score"] for t in trials if t["score"] is not None]
        figures.append(("trials", str(len(trials))))
        figures.append(("best score", number(max(scores)) if scores else UNKNOWN))
    if payload.get("step"):
        figures.append(("steps", count(payload["step"])))
    if payload.get("tokens_seen"):
        figures.append(("tokens seen", count(payload["tokens_seen"])))
    if payload.get("losses"):
        figures.append(("last loss", number(payload["losses"][-1]["loss"])))
    if evaluated := (payload.get("watched") or {}).get("curves", {}).get("eval_loss"):
        figures.append(("held-out loss", number(evaluated[-1][1])))
    return figures


def _report(payload: Mapping[str, Any]) -> list[tuple[str, str]]:
    metrics = metrics_of(payload)
    figures: list[tuple[str, str]] = []
    for main, others in with_baselines(metrics):
        if others:
            figures.append((spell(main.name), interval(main)))
            figures.extend((baseline_name(main, o), number(o.value)) for o in others)
    exposures = [m for m in metrics if m.name.startswith("audit/privacy/exposure_x") and m.control is not None and not m.name.endswith("_x0")]
    whole = [m for m in metrics if m.name.startswith("audit/") and m.name.count("/") == 2 and m.control is not None and m.name.split("/")[1] not in ("privacy", "cost")]
    for metric in [*exposures[:1], *(exposures[1:] and exposures[-1:]), *whole[:1]]:
        figures.append((spell(metric.name), f"{number(metric.value)} (control {number(metric.control)})"))
    figures += [(spell(m.name), number(m.value, m.unit)) for m in metrics if m.name.startswith("audit/cost/") and m.value is not None]
    return figures or [(spell(m.name), interval(m)) for m in metrics[:4]]


def _decision(payload: Mapping[str, Any]) -> list[tuple[str, str]]:
    decision = Decision.model_validate(dict(payload))
    met = sum(reason.passed for reason in decision.reasons)
    figures = [("verdict", verdict_word(decision)), ("rules met", f"{met} of {len(decision.reasons)}")]
    return [*figures, ("waived by", f"{decision.waived_by}: {decision.waiver_reason}")] if decision.waived_by else figures


def verdict_word(decision: Decision) -> str:
    """admitted, refused or waived."""
    if decision.waived_by:
        return "waived"
    return "admitted" if decision.admitted else "refused"


def _deployment(payload: Mapping[str, Any]) -> list[tuple[str, str]]:
    names = [model["name"] for model in payload["models"]]
    figures = [("models", ", ".join(names)), ("state", "live" if payload["live"] else "tried, not live")]
    return [*figures, *((f"{model} median latency", number(m.value, m.unit)) for model, m in median_latencies(payload))]


def median_latencies(payload: Mapping[str, Any]) -> list[tuple[str, Metric]]:
    """The measured median latency of each model of a deployment, by the model's name."""
    metrics = [Metric.model_validate(m) for m in payload["metrics"]]
    return [(m.name.split("/")[1], m) for m in metrics if m.name.endswith("/latency_p50_ms")]
