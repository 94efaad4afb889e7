"""All audits of one trained and of one untrained model, made once. They run in fresh Ray workers."""

import pytest

from fmray.audit.base import Audit
from fmray.core.artifact import Artifact
from fmray.core.report import Report
from tests.evaluate.lives import corpus, run, scratch, trained, untrained


@pytest.fixture(scope="session")
def report(ray_session: None) -> Artifact[Report]:
    """Every audit there is, of a model that has read the canaries."""
    audits = [{"type": name} for name in sorted(Audit.members())]
    return run("audit", {"audits": audits}, scratch() / "trained_audit", checkpoint=trained(), dataset=corpus())


@pytest.fixture(scope="session")
def untrained_report(ray_session: None) -> Artifact[Report]:
    """Bias and privacy of a model that has read nothing."""
    config = {"audits": [{"type": "bias"}, {"type": "privacy"}], "num_cpus": 1}
    return run("audit", config, scratch() / "untrained_audit", checkpoint=untrained(), dataset=corpus())
