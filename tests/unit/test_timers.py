"""Timers of runs: what is set again when it was early never turns round and round."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from onexflow.core.commands import FireTimer
from onexflow.core.turn import SECOND
from onexflow.engine.timers import Timers, again_at
from onexflow.testing.clock import VirtualClock, run_virtual


@pytest.mark.parametrize("left", [1e-17, 1e-10, 9e-4, 0.25])
def test_a_timer_that_is_found_early_fires_once_more_and_no_sooner(left: float) -> None:
    """Less than a nanosecond may be left by the loop's clock, which the store's cannot tell."""
    clock = VirtualClock()
    fired: list[int] = []
    run: Any = object()
    command = FireTimer("heartbeat", 0, 0, 1, 1)

    async def main() -> None:
        over = asyncio.Event()

        def fire(_: Any, __: FireTimer) -> None:
            fired.append(clock.now())
            if len(fired) == 1:
                timers.add(again_at(clock.now(), left), run, command)
            else:
                over.set()

        timers = Timers(clock.now, fire, lambda _: True)
        timers.add(clock.now() + SECOND, run, command)
        await over.wait()

    run_virtual(main(), patience=5)
    assert fired[1] - fired[0] >= int(left * SECOND)


def test_a_timer_that_is_set_again_is_later_than_now() -> None:
    assert again_at(1000, 1e-17) > 1000
    assert again_at(0, 2.0) == 2 * SECOND
