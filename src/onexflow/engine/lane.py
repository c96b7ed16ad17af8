"""Group commit: everything that was decided while one append was under way goes into the next.

One lane is one append in flight. An idle lane commits at once when somebody waits for it, a busy one in large batches, and
the larger these are the longer it rests between them.
What nobody waits for (the start of a run whose end is waited for, a pure task's result in the middle of a run, an ack)
lingers for LINGER_SECONDS at most, and goes with what comes (docs/decisions/0008-commits-that-nobody-waits-for.md).
What must not be seen before it is durable (replies, acknowledgements, effects, cancels, query answers) is handed to
`when_durable` and released, in order, by the commit that covers it.

Failures: space missing → the same batch again until it fits, and `on_full` refuses new work meanwhile. Unknown outcome
→ the same batch again: the store compares heads, so it is stored once. Clients whose answers wait for either are told
so and may ask again (`answer_when_durable`): what was decided for them stays decided. A shard that another owner has
claimed → that shard alone is given up (`on_moved`), and who waits for it gets the error; the others are stored. A store
that can no longer be trusted → every waiting release gets the error, and `on_lost` ends this owner; nothing is undone in
memory.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import structlog

from onexflow.core.errors import Coded, InternalError, ShardMoved, StoreFull, StoreUnavailable
from onexflow.engine.shard import Entity, Shard
from onexflow.ports.event_store import AppendOutcome, EventStore, ShardAppend

log = structlog.get_logger("onexflow.lane")

#: Called once: with None when durable, with the error when it never will be.
Release = Callable[[Coded | None], None]
#: With the shard that it waits for; None: for all that is decided.
_Waiting = tuple[Release, Shard | None]

RETRY_SECONDS = 0.25
#: What nobody waits for is committed after so long: some round trips to a worker, and less than a person or a disk notices.
LINGER_SECONDS = 0.002
#: A lane that is kept busy rests for so long for each run that it has just stored and that is open, and no longer in all than the next
#: says: commits are fewer then, and a run that begins and ends meanwhile has one listing entry and not two. Shorter rests are
#: none.
REST_A_RUN = 0.00003
REST_SECONDS = 0.006
LEAST_REST = 0.001
#: A store that has not confirmed a write for so long is away.
AWAY_SECONDS = 2.0
#: Seconds between looks at that.
_LOOK_SECONDS = 0.25


class CommitLane:
    """The one writer of its shards."""

    def __init__(
        self,
        store: EventStore,
        *,
        on_stored: Callable[[Sequence[tuple[Entity, int]]], None],
        on_full: Callable[[bool], None],
        on_lost: Callable[[Coded], None],
        on_moved: Callable[[Shard, Coded], bool],
    ) -> None:
        """`on_moved` gives up one shard; False when this owner cannot go on without it."""
        self._store = store
        self._on_stored = on_stored
        self._on_full = on_full
        self._on_lost = on_lost
        self._on_moved = on_moved
        #: Shards that have something for the next append, and those of the append under way.
        self._touched: list[Shard] = []
        self._under_way: list[Shard] = []
        self._wake = asyncio.Event()
        self._collecting: list[_Waiting] = []
        self._in_flight: list[_Waiting] | None = None
        #: Answers to clients, who need not wait for a store that is away.
        self._answers: list[_Waiting] = []
        self._answers_in_flight: list[_Waiting] = []
        self._watcher: asyncio.Task[None] | None = None
        #: Why who waits for everything that was decided waits in vain: a part of it was of a shard given up since.
        self._spoiled: Coded | None = None
        self._spoiled_in_flight: Coded | None = None
        #: Something was decided since the append under way was begun.
        self.is_marked = False
        self._linger: asyncio.TimerHandle | None = None
        self._lost: Coded | None = None
        self._task: asyncio.Task[None] | None = None
        self._idle = asyncio.Event()
        self._idle.set()
        #: Loop time at which the append under way was begun; 0 when there is none.
        self.pending_since = 0.0
        #: The store has not confirmed a write for AWAY_SECONDS.
        self.is_away = False
        self.commits = 0
        self.events = 0

    def start(self) -> None:
        loop = asyncio.get_running_loop()
        self._task = loop.create_task(self._run(), name="commit-lane")
        self._watcher = loop.create_task(self._watch(), name="commit-lane-watch")

    async def stop(self, within: float) -> None:
        """Commit what is decided, then end; give it up when the store does not take it `within` seconds."""
        if self._task is None:
            return
        try:
            async with asyncio.timeout(within):
                self._hurry()
                if self._lost is None:
                    await self._idle.wait()
        except TimeoutError:
            log.error("commit.abandoned", seconds=within)  # noqa: TRY400 - no traceback of ours says more
            await self.abort()
            return
        await self._end()

    async def abort(self) -> None:
        """End at once, as a killed process would: what is not durable now never will be."""
        await self._end()
        if self._lost is None:
            self._give_up(StoreUnavailable("the orchestrator was ended"), self._in_flight or [])

    async def _end(self) -> None:
        self._linger_no_more()
        tasks = [task for task in (self._task, self._watcher) if task is not None]
        self._task = self._watcher = None
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    @property
    def is_over(self) -> bool:
        """It was given up as a whole: nothing becomes durable any more."""
        return self._lost is not None

    @property
    def covering(self) -> int:
        """How many commits there will have been (`commits`) when all that is decided now is durable."""
        return self.commits + (self._in_flight is not None) + self.is_marked

    def touched(self, shard: Shard) -> None:
        """The shard has something for the next append."""
        self._touched.append(shard)

    @property
    def undurable(self) -> int:
        """Events that are decided and not durable yet, of all shards."""
        waiting = sum(shard.next - shard.durable for shard in self._touched if shard.lost is None)
        return waiting + sum(
            shard.next - shard.durable for shard in self._under_way if not shard.is_dirty and shard.lost is None
        )

    def mark(self) -> None:
        """Something was decided: commit it soon."""
        if not self.is_marked:
            self.is_marked = True
            self._idle.clear()
            if self._linger is None:
                self._linger = asyncio.get_running_loop().call_later(LINGER_SECONDS, self._hurry)

    def _hurry(self) -> None:
        """Commit what is decided now."""
        self._linger_no_more()
        if self.is_marked:
            self._wake.set()

    def _linger_no_more(self) -> None:
        if self._linger is not None:
            self._linger.cancel()
            self._linger = None

    def when_durable(self, release: Release, shard: Shard | None = None, *, patient: bool = False) -> None:
        """Call `release` once everything decided so far is durable: now, if it is. With a `shard`: it is told an error
        only when that shard is given up; else when any of those is whose decisions it waited with. `patient`: nobody is
        kept waiting by it, so it does not make the lane commit at once."""
        error = self._lost or (shard.lost if shard is not None else None)
        if error is not None:
            _tell(release, error)
        elif self.is_marked:
            self._collecting.append((release, shard))
            if not (patient or self._wake.is_set()):
                self._hurry()
        elif self._in_flight is not None:
            self._in_flight.append((release, shard))
        else:
            _tell(release, None)

    def answer_when_durable(self, release: Release, shard: Shard, *, patient: bool = False) -> None:
        """As `when_durable`, of an answer to a client: it is told an error, too, when the store is full or away, and does
        not know then whether what was decided will be stored."""
        if self._lost is not None or shard.lost is not None or not (self.is_marked or self._in_flight is not None):
            self.when_durable(release, shard)
        elif self.is_marked:
            self._answers.append((release, shard))
            if not (patient or self._wake.is_set()):
                self._hurry()
        else:
            self._answers_in_flight.append((release, shard))

    async def _watch(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            if self.pending_since and loop.time() - self.pending_since > AWAY_SECONDS:
                self.is_away = True
                self._send_away(self.away())

    @staticmethod
    def away() -> StoreUnavailable:
        """What clients are told while the store is away."""
        return StoreUnavailable(
            f"the store has confirmed nothing for {AWAY_SECONDS:g} s; what was asked for may still be stored",
            {"retry_after": 1.0},
        )

    def _send_away(self, error: Coded) -> None:
        answers = [*self._answers_in_flight, *self._answers]
        self._answers_in_flight.clear()
        self._answers.clear()
        for release, _ in answers:
            _tell(release, error)

    async def durable_answer(self, shard: Shard) -> None:
        """As `durable`, for an answer to a client: raises, too, when the store is full or away."""
        if self.is_away:
            raise self.away()
        await self._wait(lambda release: self.answer_when_durable(release, shard))

    async def durable(self, shard: Shard | None = None) -> None:
        """Return when everything decided so far (for that shard, if one is named) is durable. Raises when it never will
        be."""
        await self._wait(lambda release: self.when_durable(release, shard))

    async def _wait(self, ask: Callable[[Release], None]) -> None:
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def release(error: Coded | None) -> None:
            if not done.done():
                if error is None:
                    done.set_result(None)
                else:
                    done.set_exception(error)

        ask(release)
        await done

    def give_up(self, shard: Shard) -> None:
        """The shard is lost (`shard.lost` says why): what was decided for it is not stored any more."""
        if shard.is_in_flight:
            self._spoiled_in_flight = shard.lost
        if self.is_marked and (shard.is_dirty or shard.is_in_flight):
            self._spoiled = shard.lost

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._wake.wait()
            self._wake.clear()
            self._linger_no_more()
            self.is_marked = False
            releases, self._collecting = self._collecting, []
            self._answers_in_flight, self._answers = self._answers, []
            self._spoiled, self._spoiled_in_flight = None, self._spoiled
            self._in_flight = releases
            self.pending_since = loop.time()
            try:
                parts = self._take(loop.time())
                if parts:
                    await self._append(parts)
            except Coded as error:
                self._give_up(error, releases)
                return
            except Exception as error:
                log.exception("commit.failed")
                self._give_up(InternalError(f"a commit failed: {error!r}"), releases)
                return
            self.pending_since = 0.0
            self.is_away = False
            self._in_flight = None
            self._under_way = []
            for shard, append in parts:
                shard.stored(append)
                self.events += append.next - append.head
            self.commits += 1
            self._stored(self._taken_runs)
            self._release(releases)
            if self._answers_in_flight:
                self._release(self._answers_in_flight)
                self._answers_in_flight = []
            if self.is_marked:
                await self._rest()
            else:
                self._idle.set()

    async def _rest(self) -> None:
        """More is decided already: wait for more of the runs that go on. In any case for one turn of the loop: who was just
        told passes it on before the next append is packed, and what follows from it is in that."""
        seconds = min(REST_SECONDS, REST_A_RUN * sum(not run.is_over for run, _ in self._taken_runs))
        await asyncio.sleep(seconds if seconds >= LEAST_REST else 0)

    def _stored(self, runs: list[tuple[Entity, int]]) -> None:
        if self._spoiled_in_flight is not None:
            runs = [(run, seq) for run, seq in runs if run.shard.lost is None]
        self._on_stored(runs)

    def _release(self, releases: list[_Waiting]) -> None:
        spoiled = self._spoiled_in_flight
        for release, shard in releases:
            _tell(release, spoiled if shard is None else shard.lost)

    def _take(self, now: float) -> list[tuple[Shard, ShardAppend]]:
        self._taken_runs: list[tuple[Entity, int]] = []
        self._under_way, self._touched = [one for one in self._touched if one.lost is None], []
        parts = []
        for shard in self._under_way:
            self._taken_runs += [(run, run.state.seq) for run in shard.pending.runs.values()]
            parts.append((shard, shard.take(now)))
        return parts

    async def _append(self, parts: list[tuple[Shard, ShardAppend]]) -> None:
        """Send the same parts until each is known to be stored, or its shard is given up. Removes the latter."""
        full = False
        left = parts
        while left:
            try:
                outcome = await self._store.append([append for _, append in left])
            except StoreFull:
                if not full:
                    full = True
                    self._on_full(True)
                self._send_away(StoreFull("the store is full; what was asked for may be stored when there is room"))
            except StoreUnavailable as error:
                if error.context.get("fatal"):
                    raise
            else:
                left = [part for part in left if not self._is_settled(*part, outcome)]
                if full:
                    full = False
                    self._on_full(False)
            left = [part for part in left if part[0].lost is None]
            if left:
                await asyncio.sleep(RETRY_SECONDS)
        parts[:] = [part for part in parts if part[0].lost is None]

    def _is_settled(self, shard: Shard, append: ShardAppend, outcome: AppendOutcome) -> bool:
        """Is it known what became of this part? Raises when this owner cannot go on."""
        if append.shard in outcome.stored or shard.lost is not None:
            return True
        epoch, head = outcome.refused.get(append.shard, (0, 0))
        if epoch == append.epoch and head in {append.next, append.head}:
            return head == append.next  # stored before; else its row was locked: again
        error = ShardMoved(
            f"shard {append.shard} has epoch {epoch} and head {head} in the store",
            {"shard": append.shard, "epoch": append.epoch, "head": append.head},
        )
        if epoch <= append.epoch or not self._on_moved(shard, error):
            raise error  # nobody has claimed it: the store has lost what it acknowledged
        return True

    def _give_up(self, error: Coded, releases: list[_Waiting]) -> None:
        self._lost = error
        self._in_flight = None
        self._idle.set()
        waiting = [*releases, *self._collecting, *self._answers_in_flight, *self._answers]
        self._collecting, self._answers_in_flight, self._answers = [], [], []
        self._on_lost(error)
        for release, _ in waiting:
            _tell(release, error)


def _tell(release: Release, error: Coded | None) -> None:
    """One that waits must not hurt the others, nor the lane."""
    try:
        release(error)
    except Exception:
        log.exception("release.failed")
