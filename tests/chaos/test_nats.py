"""The bridge to NATS under kills of either side and of itself, small, as a test."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from .nats import freeze_one_bridge_of_two, kill_around_the_bridge

pytestmark = [pytest.mark.chaos, pytest.mark.slow, pytest.mark.timeout(240)]


async def test_whoever_is_killed_around_the_bridge_every_event_arrives(rounds: Callable[..., int]) -> None:
    for seed in range(rounds(1, 20)):
        figures = await kill_around_the_bridge(100, 8, seed)
        assert figures["events"] > 400
        assert figures["stored twice"] == 0, "within JetStream's window nothing is stored twice"


async def test_a_frozen_bridge_holds_up_no_other() -> None:
    figures = await freeze_one_bridge_of_two()
    assert figures["all arrived after s"] < 40, "a dead stream is found after 10 + 5 s"
