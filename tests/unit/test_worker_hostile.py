"""Handlers that raise what should not be raised: each is a failed attempt, and the slot serves on."""

from __future__ import annotations

from typing import Any

import pytest

from onexflow.worker import Worker
from support.worker_kit import Assigner, connect, serving


class Strange(BaseException):
    """Not an Exception, as pytest's and trio's own are."""


@pytest.mark.parametrize("error", [Strange("why"), KeyboardInterrupt("why"), GeneratorExit("why"), SystemExit("why")])
@pytest.mark.parametrize("handler", ["on_the_loop", "in_a_thread"])
async def test_whatever_a_handler_raises_ends_its_attempt_alone(error: BaseException, handler: str) -> None:
    worker, assign = Worker("w"), Assigner()

    @worker.effect("on_the_loop")
    async def on_the_loop(contract: Any) -> str:
        if contract == "raise":
            raise error
        return "fine"

    @worker.effect("in_a_thread")
    def in_a_thread(contract: Any) -> str:
        if contract == "raise":
            raise error
        return "fine"

    async with serving(worker, effect=1) as running:
        link = connect(running)
        bad, good = assign("effect", handler, "raise"), assign("effect", handler)
        link.assign(bad)
        failed = await link.result(bad)
        assert failed.status == "failed"
        assert failed.error is not None
        assert "why" in failed.error.message
        link.assign(good)
        assert (await link.result(good)).status == "completed"
        assert running.statistics().running == {"effect": 0}
