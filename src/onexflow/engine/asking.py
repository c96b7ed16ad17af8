"""Starting a run and waiting for its end as awaitables: `RunService` takes callbacks."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

from onexflow.core.ids import RunKey
from onexflow.ports.client_link import RunOutcome, RunService, StartOutcome, StartRequest
from onexflow.spi.exceptions import SPIError

Outcome = TypeVar("Outcome", StartOutcome, RunOutcome)


async def start(service: RunService, request: StartRequest) -> StartOutcome:
    """The answer to a start. Raises what the orchestrator answered."""
    answer: asyncio.Future[StartOutcome] = asyncio.get_running_loop().create_future()
    service.start_run(request, _into(answer))
    return await answer


async def end_of(service: RunService, key: RunKey) -> RunOutcome:
    """How the run ended, once it has."""
    answer: asyncio.Future[RunOutcome] = asyncio.get_running_loop().create_future()
    give_up = service.wait_run(key, _into(answer))
    try:
        return await answer
    finally:
        give_up()


def _into(answer: asyncio.Future[Outcome]) -> Callable[[Outcome | SPIError], None]:
    def reply(outcome: Outcome | SPIError) -> None:
        if answer.done():
            return
        if isinstance(outcome, SPIError):
            answer.set_exception(outcome)
        else:
            answer.set_result(outcome)

    return reply
