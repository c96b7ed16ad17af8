"""What all tests share: how many rounds random tests run, and what is never left behind."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable
from typing import Final

import pytest
from hypothesis import HealthCheck, settings

PROFILE: Final = os.environ.get("ONEXFLOW_TEST_PROFILE", "short")

_SUPPRESSED = (HealthCheck.too_slow, HealthCheck.data_too_large)
settings.register_profile("short", max_examples=60, deadline=None, suppress_health_check=_SUPPRESSED)
settings.register_profile("long", max_examples=600, deadline=None, suppress_health_check=_SUPPRESSED, print_blob=True)
settings.load_profile(PROFILE)


@pytest.fixture(scope="session")
def rounds() -> Callable[..., int]:
    """`rounds(short, long)`: how often to repeat something random, by the profile (`./scripts/test --long`)."""

    def choose(short: int, long: int) -> int:
        return long if PROFILE == "long" else short

    return choose


def pytest_unconfigure() -> None:
    """End what gRPC still holds while the interpreter is whole: its thread complains on stderr when cut off later."""
    gc.collect()
