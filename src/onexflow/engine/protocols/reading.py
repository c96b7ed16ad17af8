"""Asking an orchestrator for more than one answer: pages as lists, and waiting for a run to get somewhere."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Sequence

from onexflow.codec.definitions import load_definition
from onexflow.core.definition import WorkflowDefinition
from onexflow.core.ids import RunKey
from onexflow.engine.protocols import checked
from onexflow.ports.client_link import EventView, RunService, RunView
from onexflow.spi.exceptions import SPIError

PAGE = 1000


async def read_events(
    service: RunService, key: RunKey, from_sequence: int = 0, to_sequence: int | None = None
) -> list[EventView]:
    """The run's events of that range, both ends in it; 0 is as 1. Raises UnknownRun, InvalidArgument."""
    wanted = max(1, checked.whole(from_sequence, "from_sequence"))
    if to_sequence is not None:
        checked.whole(to_sequence, "to_sequence")
    found: list[EventView] = []
    while True:
        # Also for an empty range: whether there is such a run must be known.
        limit = PAGE if to_sequence is None else max(1, min(PAGE, to_sequence - wanted + 1))
        page = await service.read_history(key, wanted, limit)
        found += (event for event in page if to_sequence is None or event.sequence <= to_sequence)
        if not page or (to_sequence is not None and page[-1].sequence >= to_sequence):
            return found
        wanted = page[-1].sequence + 1


async def follow_until(service: RunService, key: RunKey, reached: Callable[[EventView], bool], seconds: float) -> None:
    """Return when an event of the run, from its first on, says that it is `reached`; when the run has ended; after
    `seconds`."""
    done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def listen(events: Sequence[EventView] | SPIError | None) -> None:
        if done.done():
            return
        if isinstance(events, SPIError):
            done.set_exception(events)
        elif events is None or any(reached(event) for event in events):
            done.set_result(None)

    stop = service.follow_run(key, 1, listen)
    try:
        async with asyncio.timeout(seconds):
            await done
    except TimeoutError:
        return
    finally:
        stop()


class Definitions:
    """Definitions of runs, each asked for once: a registered version never changes."""

    LIMIT = 1000

    def __init__(self, service: RunService) -> None:
        self._service = service
        self._known: OrderedDict[tuple[str, str, int], WorkflowDefinition] = OrderedDict()

    async def of(self, view: RunView) -> WorkflowDefinition:
        place = (view.key.namespace, view.key.workflow_type, view.version)
        known = self._known.get(place)
        if known is None:
            known = load_definition((await self._service.get_definition(*place))[1], "json")
            if len(self._known) >= self.LIMIT:
                self._known.popitem(last=False)
            self._known[place] = known
        return known
