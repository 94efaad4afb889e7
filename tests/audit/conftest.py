"""Audits run in fresh Ray workers, so every test of them needs Ray."""

import pytest


@pytest.fixture(scope="session", autouse=True)
def _cluster(ray_session: None) -> None:
    """Ray, before any of these tests."""
