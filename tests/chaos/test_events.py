"""The event bus under kills, small, as a test."""

from __future__ import annotations

import pytest

from .events import kill_orchestrator_under_events

pytestmark = [pytest.mark.chaos, pytest.mark.slow, pytest.mark.timeout(120)]


async def test_a_killed_orchestrator_loses_no_event_and_repeats_none_that_was_acknowledged() -> None:
    figures = await kill_orchestrator_under_events(60, 2)
    assert figures["events"] == 480
