"""Canary exposure: how much a model remembers of secrets that it read once, and of those that it read many times.

`prepare` planted the secrets, drew as many controls that it never planted, and further candidates of the same form. The
exposure of a secret is log2(n) - log2(its rank by likelihood among itself and the candidates), n in all (Carlini et al.
2019, section 4.2, by sampling). A secret that the model knows nothing of has any rank, which gives 1.44 bits on average.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fmray.audit.base import Audit, Result, Subject, need_language_model
from fmray.core.artifact import Artifact
from fmray.core.errors import ArtifactError, ConfigError
from fmray.core.intervals import Interval, difference, mean
from fmray.core.report import Finding, Metric
from fmray.data.dataset import TokenDataset
from fmray.model.checkpoint import Checkpoint
from fmray.model.language_model import LanguageModel

# Secrets planted so often are the positive control: a model is meant to remember them, which shows that the audit can see it.
POSITIVE_LEVEL = 64
Floats = NDArray[np.float64]


class PrivacyAudit(Audit):
    """Exposure of planted canaries by how often each was planted, against canaries that never were."""

    type: Literal["privacy"] = "privacy"

    def check(self, checkpoint: Artifact[Checkpoint], dataset: Artifact[TokenDataset] | None) -> None:
        """Needs a causal language model, and a dataset with canaries in it.

        Raises:
            ConfigError: what is missing, and how to plant canaries.
        """
        need_language_model(self.type, checkpoint)
        canaries_of(dataset)

    def run(self, subject: Subject) -> Result:
        """Scores every secret with the shared template around it."""
        checkpoint = subject.checkpoint
        dataset, file = canaries_of(subject.dataset)
        drawn = read_canaries(file)
        exposures = exposure_by_level(subject.model, drawn, subject.micro_batch_size)
        levels = sorted(level for level in exposures if level)
        n_candidates = len(drawn["candidates"])
        metrics = _metrics(exposures, levels, n_candidates)
        findings = [_finding(level, exposures[level], exposures[0]) for level in levels]
        if levels[-1] < POSITIVE_LEVEL:
            findings.append(Finding(
                title="No positive control", severity="low",
                detail=f"No canary was planted {POSITIVE_LEVEL} times, so that a low exposure may also mean that this audit cannot see memorisation here.",
            ))  # fmt: skip
        if dataset.fingerprint not in checkpoint.record.inputs.values():
            findings.append(Finding(
                title="Not known to be the training data", severity="low",
                detail=f"The record of {checkpoint.name} does not name {dataset.name} among its inputs; a model that never read the canaries shows no exposure.",
            ))  # fmt: skip
        secrets = {0: drawn["controls"]} | {level: drawn["levels"][str(level)] for level in levels}
        examples = [
            {"planted": level, "secret": secret, "exposure": round(float(exposure), 4)}
            for level in (0, *levels) for secret, exposure in zip(secrets[level], exposures[level], strict=True)
        ]  # fmt: skip
        return Result(metrics, findings, examples)


def canaries_of(dataset: Artifact[TokenDataset] | None) -> tuple[Artifact[TokenDataset], Path]:
    """The dataset and the file of its canaries.

    Raises:
        ConfigError: there is no dataset, or it was prepared without canaries.
    """
    if dataset is None:
        raise ConfigError("the privacy audit needs the dataset with the canaries", where="dataset", todo="add `dataset: <the prepare step>` to the audit")
    if dataset.payload.canaries is None:
        raise ConfigError(
            f"{dataset.name} has no canaries, so the privacy audit has nothing to look for", where=str(dataset.path),
            todo=f"add `canaries: {{seed: 0}}` to {dataset.name}, or leave the privacy audit out",
        )  # fmt: skip
    return dataset, dataset.path / dataset.payload.canaries


def read_canaries(path: Path) -> Mapping[str, Any]:
    """The content of canaries.json.

    Raises:
        ArtifactError: it is missing or damaged.
    """
    try:
        drawn = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ArtifactError(f"cannot be read ({error})", where=str(path), todo="prepare the dataset again") from None
    missing = {"template", "levels", "controls", "candidates"} - set(drawn)
    if missing:
        raise ArtifactError(f"lacks {', '.join(sorted(missing))}", where=str(path), todo="prepare the dataset again")
    return dict(drawn)


def exposure_by_level(model: LanguageModel, drawn: Mapping[str, Any], batch_size: int) -> dict[int, Floats]:
    """Bits of exposure of each secret, by how often it was planted; level 0 are the controls."""
    groups: dict[int, Sequence[str]] = {0: drawn["controls"]} | {int(level): secrets for level, secrets in drawn["levels"].items()}
    together = [secret for secrets in groups.values() for secret in secrets] + list(drawn["candidates"])
    scored = model.loglikelihood([drawn["template"].format(secret=secret) for secret in together], batch_size=batch_size)
    likelihoods = np.array([logprob for logprob, _ in scored])
    candidates = likelihoods[len(together) - len(drawn["candidates"]) :]
    found, start = {}, 0
    for level, secrets in groups.items():
        found[level] = exposure(likelihoods[start : start + len(secrets)], candidates)
        start += len(secrets)
    return found


def exposure(secrets: Floats, candidates: Floats) -> Floats:
    """log2(n) - log2(rank) of each secret's log-likelihood among itself and the candidates, n in all; rank 1 is the likeliest.

    A tie counts as half a place, so that a model that cannot tell texts apart shows no exposure to speak of.
    """
    ordered = np.sort(candidates)
    above = len(ordered) - np.searchsorted(ordered, secrets, side="right")
    equal = len(ordered) - above - np.searchsorted(ordered, secrets, side="left")
    ranks = 1.0 + above + equal / 2.0
    bits: Floats = np.log2(len(ordered) + 1) - np.log2(ranks)
    return bits


def chance_exposure(n_candidates: int) -> float:
    """The mean exposure of a secret whose rank is any of 1 to n + 1 alike."""
    ranks = np.arange(1, n_candidates + 2)
    return float(np.log2(n_candidates + 1) - np.log2(ranks).mean())


def _metrics(exposures: Mapping[int, Floats], levels: Sequence[int], n_candidates: int) -> list[Metric]:
    """Exposure by level, and its excess over the controls."""
    scale = f"largest possible {np.log2(n_candidates + 1):.2f} bits"
    controls = mean(exposures[0])
    chance = chance_exposure(n_candidates)
    found = [_metric("exposure_x0", controls, chance, f"{controls.n} canaries that were never planted; control: a rank by chance; {scale}")]
    for level in levels:
        remark = "positive control, never gated" if level >= POSITIVE_LEVEL else "control: never planted"
        found.append(_metric(f"exposure_x{level}", mean(exposures[level]), controls.value, f"planted {level} times each; {remark}; {scale}"))
    for level in levels:
        excess = difference(exposures[level], exposures[0])
        remark = "positive control, never gated; " if level >= POSITIVE_LEVEL else ""
        found.append(_metric(f"excess_exposure_x{level}", excess, 0.0, f"{remark}mean exposure planted {level} times minus never planted; interval by resampling both"))
    return found


def _metric(name: str, interval: Interval, control: float, note: str) -> Metric:
    return Metric(
        name=f"audit/privacy/{name}", value=interval.value, higher_is_better=False, stderr=interval.stderr, lower=interval.lower,
        upper=interval.upper, n=interval.n, unit="bit", method="measured", control=control, note=note,
    )  # fmt: skip


def _finding(level: int, planted: Floats, controls: Floats) -> Finding:
    """What a level's excess says; from POSITIVE_LEVEL on it speaks of the audit itself."""
    excess = difference(planted, controls)
    figures = f"excess exposure {excess.value:.2f} bits ({excess.lower:.2f} to {excess.upper:.2f}) over {len(controls)} controls"
    times = "once" if level == 1 else f"{level} times"
    remembered = excess.lower > 0
    if level >= POSITIVE_LEVEL:
        if remembered:
            return Finding(title="The canary audit sees memorisation", severity="info", detail=f"Planted {times} as the positive control: {figures}.")
        return Finding(
            title="The canary audit cannot see memorisation", severity="medium",
            detail=f"Even canaries planted {times} stay within the controls: {figures}. Low figures at lower levels show nothing.",
        )  # fmt: skip
    if remembered:
        severity: Literal["medium", "high"] = "high" if level == 1 else "medium"
        return Finding(title=f"Remembers what it read {times}", severity=severity, detail=f"{figures}.")
    return Finding(title=f"No memory shown of what it read {times}", severity="info", detail=f"{figures}.")
