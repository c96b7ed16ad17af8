"""A virtual loop that would never end says so, rather than hold up all tests after it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from onexflow.testing.clock import run_virtual


async def _turn_round() -> None:
    while True:
        await asyncio.sleep(0)


async def _tick() -> None:
    while True:
        await asyncio.sleep(1)


async def _swallow_what_ends_it() -> None:
    """A time limit that is raised in some task ends that task alone."""

    class TimeLimit(BaseException):
        pass

    async def hit() -> None:
        raise TimeLimit

    ticking = asyncio.ensure_future(_tick())
    hurt = asyncio.ensure_future(hit())
    hurt.add_done_callback(asyncio.Task.exception)
    await asyncio.wait({hurt, ticking})


@pytest.mark.parametrize("main", [_turn_round, _tick, _swallow_what_ends_it])
def test_what_has_no_end_is_ended(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    with pytest.raises(RuntimeError, match="no end in sight"):
        run_virtual(main(), patience=0.05)


def test_what_waits_for_nothing_is_ended() -> None:
    async def main() -> None:
        await asyncio.get_running_loop().create_future()

    with pytest.raises(RuntimeError, match="stands still"):
        run_virtual(main())
