"""Does every open run say what it waits for, all the time? Asked beside the load, through any orchestrator that answers."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Final, Protocol

from onexflow.client import Client
from onexflow.core.ids import RunKey
from onexflow.spi.exceptions import SPIError

from .figures import Figures
from .load import Load

#: Seconds from one look to the next, and that an orchestrator has for its answer: it gives an owner that is silent one.
EVERY: Final = 0.25
DEADLINE: Final = 1.5
#: Runs a look, those that are open longest.
AT_MOST: Final = 500
#: Seconds without a valid reason, at p99, as promised.
PROMISED: Final = 2.0


@dataclass
class Stretch:
    """Looks in a row at which a run had no valid reason: from the first of them to the first one after them. Times are
    UTC ns."""

    since: int
    until: int


class Stretches:
    """What the looks have shown. One that nobody answered shows nothing: a stretch lasts until there, and over it when the
    next answer says the same."""

    def __init__(self) -> None:
        #: Answers, a run each.
        self.samples = 0
        self.unanswered = 0
        self.by_run: dict[RunKey, list[Stretch]] = defaultdict(list)
        self._now: dict[RunKey, Stretch] = {}
        self._answered = True

    def answered(self, at: int, asked: Collection[RunKey], without: Collection[RunKey]) -> None:
        """A look at these runs, some of which had no valid reason. Who is not asked about any more has ended."""
        self.samples += len(asked)
        if self._answered:
            self._last_until(at)
        self._now = {key: stretch for key, stretch in self._now.items() if key in without}
        self._last_until(at)
        for key in without:
            if key not in self._now:
                self._now[key] = Stretch(at, at)
                self.by_run[key].append(self._now[key])
        self._answered = True

    def missed(self, at: int) -> None:
        """A look that no orchestrator answered."""
        self.unanswered += 1
        if self._answered:
            self._last_until(at)
        self._answered = False

    def seconds(self, ended: Mapping[RunKey, int]) -> list[float]:
        """The length of each stretch, without what came after the end of its run: a run that has ended is left out of the
        answers, and its client hears of the end a little later."""
        found = [
            (min(stretch.until, ended.get(key) or stretch.until) - stretch.since) / 1e9
            for key, stretches in self.by_run.items()
            for stretch in stretches
            if not ended.get(key) or ended[key] > stretch.since
        ]
        return sorted(found)

    def _last_until(self, at: int) -> None:
        for stretch in self._now.values():
            stretch.until = at


class Cluster(Protocol):
    """Who may be asked."""

    load: Load

    def askable(self) -> Iterable[Client]: ...


class Sampler:
    """Looks at the open runs of a load, from `begin` to `stop`."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._preferred: Client | None = None
        self._task: asyncio.Task[None] | None = None
        self.stretches = Stretches()

    def begin(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._run(), name="reasons")

    async def stop(self) -> None:
        """Returns when it has ended. What broke it is raised."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            try:
                await task
            except asyncio.CancelledError:
                if not task.cancelled():
                    raise

    async def report(self, figures: Figures) -> None:
        """Add what was seen to the figures. The load has ended, and the cluster works: the runs that seemed to have no
        reason are asked when they ended."""
        ended = {key: at for key in self.stretches.by_run if (at := await self._ended(key))}
        found = self.stretches.seconds(ended)
        figures.add("without a reason s", *(found or [0.0]))
        figures.add("samples of reasons", self.stretches.samples)
        figures.add("looks at reasons unanswered", self.stretches.unanswered)

    async def _ended(self, key: RunKey) -> int:
        """When that run ended, UTC ns; 0: it has not, or nobody knows it."""
        for client in self._cluster.askable():
            try:
                async with asyncio.timeout(DEADLINE):
                    return (await client.get(key.workflow_type, key.instance_id).state()).completed_at
            except (SPIError, TimeoutError):
                continue
        return 0

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + EVERY
            await self.look()
            await asyncio.sleep(max(0.0, due - loop.time()))

    async def look(self) -> None:
        """One look at the open runs."""
        load = self._cluster.load
        keys = load.open_longest(AT_MOST)
        if not keys:
            self.stretches.answered(time.time_ns(), (), ())
            return
        clients = sorted(self._cluster.askable(), key=lambda client: client is not self._preferred)
        for client in clients:
            try:
                async with asyncio.timeout(DEADLINE):
                    valid = {run.key async for run in client.blocked(keys=keys) if run.blocked.is_valid}
            except (SPIError, TimeoutError):
                continue
            self._preferred = client
            asked = [key for key in keys if load.is_open(key)]
            self.stretches.answered(time.time_ns(), asked, {key for key in asked if key not in valid})
            return
        self.stretches.missed(time.time_ns())
