"""What holds for every test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import structlog
from hypothesis import HealthCheck, settings

# A busy test machine is neither a slow example nor a slow strategy.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")


@pytest.fixture(autouse=True)
def _logs_as_they_come() -> Iterator[None]:
    """A command that a test runs in this process sets the level of the logs; the next test is not to inherit it."""
    yield
    structlog.reset_defaults()
