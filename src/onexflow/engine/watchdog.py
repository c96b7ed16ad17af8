"""Looks for open runs that nothing accounts for, and repairs them: no run stalls in silence.

Every run in memory is looked at in turn, so many a turn of the loop. One that has got events since the last look is at
work. Of one that has not, something must account for it (`engine.blocking`); when nothing does at two looks in a row, the
fault is ours: it is logged as `stall.repaired` with its story, counted, and repaired, by dispatching what was forgotten,
arming what was not armed, or reading the run back from the log. Runs that are paged out have their row in the store, which
is read by the clock (`engine.housekeeping`).

What is judged costs a few microseconds a run and round; a round takes LOOK_SECONDS for up to some 1,000 idle runs, and
longer for more.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import structlog

from onexflow.core.commands import SettleRun
from onexflow.core.ids import RunKey
from onexflow.engine.blocking import Blocking, Look, each_stalled
from onexflow.engine.ownership import Ownership
from onexflow.engine.queue import Queue
from onexflow.engine.queue_book import QueueBook
from onexflow.engine.queue_bridge import QueueBridge
from onexflow.engine.run import Run
from onexflow.engine.shard import Shard
from onexflow.spi.exceptions import SPIError

log = structlog.get_logger("onexflow.watchdog")

#: Seconds between turns, and at least those of a round.
TURN_SECONDS: Final = 0.2
LOOK_SECONDS: Final = 0.4
#: What a turn may cost: a run at work costs 1, one that is judged JUDGED and one for each of its tasks.
TURN_COST: Final = 5000
JUDGED: Final = 10
#: A repair that did not help is tried again after so long, and after twice as long each time.
REPAIR_AGAIN_SECONDS: Final = 1.0
REPAIR_AGAIN_AT_MOST: Final = 64.0


@dataclass(slots=True)
class _Suspect:
    """Something that nothing accounted for at the last look."""

    seq: int
    again_at: float
    repairs: int = 0


class Watchdog:
    """Of one orchestrator."""

    def __init__(self, blocking: Blocking, queues: QueueBook, bridge: QueueBridge, ownership: Ownership) -> None:
        self._blocking = blocking
        self._kernel = blocking.kernel
        self._book = blocking.book
        self._queues = queues
        self._bridge = bridge
        self._ownership = ownership
        self._suspects: dict[tuple[RunKey | Shard, str], _Suspect] = {}
        self._round: Iterator[Run] = iter(())
        self._round_at = 0.0
        self._task: asyncio.Task[None] | None = None
        #: Stalls that were repaired, and the last one in words.
        self.repaired = 0
        self.last = ""
        #: Open runs in memory by what they wait for, as of the last round that was asked for.
        self._counts: dict[str, int] = {}
        self._counting: Counter[str] | None = None
        self._is_count_wanted = False

    def start(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._run(), name="watchdog")

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    def details(self) -> dict[str, str]:
        """For the health answer."""
        return {"watchdog": f"{self.repaired} stalls repaired, the last: {self.last}"} if self.repaired else {}

    def counts(self) -> dict[str, int]:
        """Open runs in memory by what they wait for, as they were counted after the last call: a figure that nobody asks
        for costs nothing. May be called on any thread."""
        self._is_count_wanted = True
        return self._counts

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(TURN_SECONDS)
            try:
                self.turn()
            except Exception:
                log.exception("watchdog.failed")

    def turn(self) -> None:
        """Look at as many runs as a turn may."""
        now = asyncio.get_running_loop().time()
        look = self._blocking.look()
        cost = 0
        while cost < TURN_COST:
            run = next(self._round, None)
            if run is None:
                if now - self._round_at < LOOK_SECONDS:
                    return
                self._begin_round(now)
                return
            cost += self._look_at(look, run, now)

    def _begin_round(self, now: float) -> None:
        self._round_at = now
        if self._counting is not None:
            self._counts, self._counting = dict(self._counting), None
        if self._is_count_wanted:
            self._is_count_wanted, self._counting = False, Counter()
        for place, suspect in list(self._suspects.items()):
            if now - suspect.again_at > REPAIR_AGAIN_AT_MOST:  # it has ended, or has gone on elsewhere
                del self._suspects[place]
        for queue in list(self._kernel.queues()):
            self._look_at_queue(queue, now)
        for shard in self._ownership.unserved():
            if self._is_due((shard, "unserved"), shard.epoch, now):
                self._count("a shard is not read back", shard=shard.id, epoch=shard.epoch)
                self._ownership.serve(shard)
        self._round = self._each()

    # ---- runs

    def _each(self) -> Iterator[Run]:
        """The runs in memory, one after the other as long as they are there: a round must not keep them."""
        for shard in list(self._kernel.shards.values()):
            for iid in list(shard.runs) if shard.runs else ():
                run = shard.runs.get(iid)
                if run is not None:
                    yield run

    def _look_at(self, look: Look, run: Run, now: float) -> int:
        """Returns what it has cost."""
        seq = run.state.seq
        is_at_work = run.looked_seq != seq
        run.looked_seq = seq
        if run.shard.moved is not None or (is_at_work and self._counting is None):
            return 1
        blocked = look.run(run)
        if blocked is None:
            return JUDGED
        if self._counting is not None:
            self._counting[blocked.kind] += 1
        place = run.key, ""
        if blocked.is_valid or is_at_work:
            if self._suspects:
                self._suspects.pop(place, None)
        elif self._is_due(place, seq, now):
            self._repair(look, run, blocked.task, blocked.reason)
        return JUDGED + len(run.state.tasks)

    def _is_due(self, place: tuple[RunKey | Shard, str], seq: int, now: float) -> bool:
        """Is it to be repaired now? Not at the first look."""
        suspect = self._suspects.get(place)
        if suspect is None or suspect.seq != seq:
            self._suspects[place] = _Suspect(seq, now)
            return False
        if now < suspect.again_at:
            return False
        suspect.again_at = now + min(REPAIR_AGAIN_AT_MOST, REPAIR_AGAIN_SECONDS * 2**suspect.repairs)
        suspect.repairs += 1
        return True

    def _repair(self, look: Look, run: Run, task: str, reason: str) -> None:
        items = list(each_stalled(look, run))
        state, suspect = run.state, self._suspects[run.key, ""]
        self._count(
            reason, run=str(run.key), state=state.status, seq=state.seq, task=task, tries=suspect.repairs,
            items=[f"{run.graph.names[index]}[{number}]" for index, number in items[:10]],
        )  # fmt: skip
        self._kernel.lane.mark()
        self._book.timers.wake()
        self._book.dispatcher.pump_all()
        if not items and not run.is_broken:
            try:
                if self._kernel.decide(run, SettleRun()).events:
                    return
            except SPIError as error:
                log.warning("stall.not_settled", run=str(run.key), error=str(error))
        for index, number in items:
            self._book.forget(run, index, number)
        self._kernel.read_anew(run)

    def _count(self, reason: str, **story: object) -> None:
        self.repaired += 1
        self.last = reason
        log.error("stall.repaired", reason=reason, **story)

    # ---- work queues

    def _look_at_queue(self, queue: Queue, now: float) -> None:
        seq = queue.state.seq
        for reason, fault in (
            ("a lease is held by nobody", self._bridge.lacks(queue)),
            ("a lease or a delay has ended", self._queues.is_late(queue)),
        ):
            place = queue.key, reason
            if not fault:
                self._suspects.pop(place, None)
            elif self._is_due(place, seq, now):
                self._count(reason, queue=str(queue.key), seq=seq)
                self._bridge.adopt(queue)
                self._queues.look(queue)
