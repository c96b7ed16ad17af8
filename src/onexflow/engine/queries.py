"""The read side: describe, history, list, follow. Every answer shows durable state only.

Events are read from the store, never from memory: what is there is durable, whoever owns the shard. A view of a run in
memory is taken at once and given out when everything that it shows is durable.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

import msgspec

from onexflow.core.blocked import Blocked
from onexflow.core.errors import Coded, InvalidArgument, OutOfRange, Unavailable, UnknownRun
from onexflow.core.ids import RunKey
from onexflow.core.machine import TERMINAL_WORKFLOW_STATES, WORKFLOW_STATE_INDEX, WORKFLOW_STATES
from onexflow.core.queue_state import is_system_type
from onexflow.engine import views
from onexflow.engine.blocking import Blocking
from onexflow.engine.cuts import earliest_kept
from onexflow.engine.kernel import Kernel
from onexflow.engine.loader import READ_TOGETHER
from onexflow.engine.recovery import graph_of
from onexflow.engine.run import Run
from onexflow.engine.shard import Entity, Shard
from onexflow.ports.client_link import BlockedRun, EventView, RunSummary, RunView
from onexflow.ports.event_store import Row, RunFilter, RunRecord
from onexflow.spi.exceptions import SPIError

FollowListener = Callable[[Sequence[EventView] | SPIError | None], None]

#: Events of one message of a follower, and of one page of a history.
PAGE = 1000
#: An owner that shares its store reads nothing out when the store has not confirmed its epochs for so long.
CONFIRMED_SECONDS = 1.5
#: Who asks what runs wait for hears after so long that the store does not answer.
STORE_SECONDS = 0.5
_UNCONFIRMED = Blocked(kind="store", reason="it does not answer")


class Queries:
    """Reads of one orchestrator."""

    def __init__(self, kernel: Kernel, blocking: Blocking, owner: str) -> None:
        self._kernel = kernel
        self._blocking = blocking
        self._owner = owner
        self._wakes: dict[RunKey, set[asyncio.Event]] = {}
        self._followers: set[asyncio.Task[None]] = set()
        self._lost: Coded | None = None
        #: The open runs that a task of a run has called.
        self.called: Callable[[RunKey, str], Awaitable[tuple[str, ...]]] = _nothing

    def on_durable(self, runs: Sequence[tuple[Entity, int]]) -> None:
        """Wake the followers of runs that have new durable events."""
        if self._wakes:
            for run, _ in runs:
                for wake in self._wakes.get(run.key, ()):
                    wake.set()

    async def durable(self, key: RunKey, *, patient: bool = False) -> None:
        """Return when everything decided so far for the run's shard is durable, and the shard is certain to be this
        owner's. Raises StoreUnavailable, StoreFull or ShardMoved when it never will be, or not now; `patient`: who waits
        for a store that is full or away does not hear of it."""
        shard = self._kernel.shard_of(key)
        await (self._kernel.lane.durable(shard) if patient else self._kernel.lane.durable_answer(shard))
        await self._kernel.claims.confirm(CONFIRMED_SECONDS)
        shard.check()

    async def describe(self, key: RunKey) -> RunView:
        run = await self._kernel.find(key)
        view = views.view_of(run, self._blocking.look(), self._owner)
        await self.durable(key)
        called = {}
        for task in view.tasks:
            if task.role == "orchestrator" and task.blocked is not None and task.blocked.kind == "running":
                called[task.name] = await self.called(key, task.name)
        return views.with_called(view, called) if any(called.values()) else view

    async def _record(self, key: RunKey) -> RunRecord:
        await self.durable(key)
        record = await self._kernel.store.find_run(self._kernel.shard_of(key).id, key.to_bytes())
        if record is None or is_system_type(key.workflow_type):
            raise UnknownRun(f"there is no run {key}", {"run": str(key)})
        return record

    async def history(self, key: RunKey, from_sequence: int, limit: int) -> list[EventView]:
        if from_sequence < 0:
            raise InvalidArgument("from_sequence must not be negative", field="from_sequence")
        record = await self._record(key)
        shard = self._kernel.shard_of(key).id
        events: list[EventView] = []
        graph = await graph_of(self._kernel.store, self._kernel.catalog, shard, record.iid)
        start = max(1, from_sequence)
        while len(events) < limit:
            rows = await self._rows(shard, record.iid, start, min(limit, PAGE))
            events.extend(views.event_views(rows, shard, graph, start))
            if not rows:
                break
            start = rows[-1].seq + rows[-1].count
        return events[:limit]

    async def _rows(self, shard: int, iid: int, start: int, limit: int) -> list[Row]:
        """Rows of a run from event `start` on. Raises OutOfRange when that was cut."""
        rows = await self._kernel.store.read_run(shard, iid, start, limit)
        if not rows or rows[0].seq > start:
            earliest = await earliest_kept(self._kernel.store, shard, iid)
            if earliest > start:
                raise OutOfRange(
                    f"the events below {earliest} were cut out of the history", {"earliest": earliest, "asked": start}
                )
        return rows

    async def list_runs(
        self, namespace: str, workflow_type: str, states: Sequence[str], cursor: str, limit: int
    ) -> tuple[list[RunSummary], str]:
        for state in states:
            if state not in WORKFLOW_STATE_INDEX:
                raise InvalidArgument(
                    f"{state!r} is not a workflow state: {', '.join(WORKFLOW_STATE_INDEX)}", field="states"
                )
        if not 1 <= limit <= 1000:
            raise InvalidArgument("limit must be between 1 and 1,000", field="page_size")
        where = RunFilter(namespace, workflow_type, frozenset(WORKFLOW_STATE_INDEX[state] for state in states))
        shards = self._kernel.shards
        found: list[RunSummary] = []
        while True:  # a page may be all entries that are no runs
            page = await self._kernel.store.list_runs(where, cursor, limit - len(found))
            found.extend(
                views.summary_of(self.current(shards.get(shard), record))
                for shard, record in page.runs
                if not is_system_type(RunKey.from_bytes(record.key).workflow_type)
            )
            cursor = page.cursor
            if not cursor or len(found) == limit:
                return found, cursor

    @staticmethod
    def current(shard: Shard | None, record: RunRecord) -> RunRecord:
        """The listing entry as of the run's last event, which the stored one may lag behind (engine.shard)."""
        run = shard.runs.get(record.iid) if shard is not None else None
        if run is None or run.durable_seq != run.state.seq or WORKFLOW_STATES[record.state] != run.state.status:
            return record
        return msgspec.structs.replace(record, head=run.state.seq, updated_at=run.state.updated_at)

    # ---- what is waited for

    async def explain(self, keys: Sequence[RunKey]) -> list[BlockedRun]:
        """What these runs wait for, as far as their shards are owned here: of the others, that their shard is moving."""
        is_confirmed = True
        try:
            async with asyncio.timeout(STORE_SECONDS):
                await self._kernel.claims.confirm(CONFIRMED_SECONDS)
        except (Unavailable, TimeoutError):
            is_confirmed = False
        look = self._blocking.look()
        found, absent = [], []
        for key in keys:
            number = self._kernel.number_of(key)
            shard = self._kernel.shards.get(number)
            if shard is None:
                found.append(BlockedRun(key=key, state="", blocked=look.elsewhere(number)))
            elif not is_confirmed:
                found.append(BlockedRun(key=key, state="", blocked=_UNCONFIRMED))
            elif (run := shard.by_key.get(key)) is None:
                absent.append((shard, key))
            elif (blocked := look.durable(run)) is not None:
                found.append(_blocked_run(run, blocked))
        for first in range(0, len(absent), READ_TOGETHER):
            part = absent[first : first + READ_TOGETHER]
            answers = await asyncio.gather(*(self._explain_absent(shard, key) for shard, key in part))
            found.extend(answer for answer in answers if answer is not None)
        return found

    async def _explain_absent(self, shard: Shard, key: RunKey) -> BlockedRun | None:
        """Of a run that is not in memory."""
        store = self._kernel.store
        try:
            async with asyncio.timeout(STORE_SECONDS):
                record = await store.find_run(shard.id, key.to_bytes())
                if record is None or is_system_type(key.workflow_type):
                    return None
                parked = await store.get_parked(shard.id, record.iid)
                again = await store.find_run(shard.id, key.to_bytes())
        except (Unavailable, TimeoutError):
            return BlockedRun(key=key, state="", blocked=_UNCONFIRMED)
        state = WORKFLOW_STATES[(again or record).state]
        if state in TERMINAL_WORKFLOW_STATES:
            return None
        look, run = self._blocking.look(), shard.by_key.get(key)
        if run is not None:
            blocked = look.durable(run)
            return None if blocked is None else _blocked_run(run, blocked)
        return BlockedRun(key=key, state=state, blocked=look.absent(shard, record.iid, parked))

    # ---- follow

    def follow(self, key: RunKey, from_sequence: int, listener: FollowListener) -> Callable[[], None]:
        """Start telling `listener`; returns the way to stop."""
        task = asyncio.get_running_loop().create_task(self._follow(key, max(1, from_sequence), listener))
        self._followers.add(task)
        task.add_done_callback(self._followers.discard)

        def stop() -> None:
            task.cancel()

        return stop

    async def _follow(self, key: RunKey, start: int, listener: FollowListener) -> None:
        wake = asyncio.Event()
        self._wakes.setdefault(key, set()).add(wake)
        try:
            owned = self._kernel.shard_of(key)
            shard = owned.id
            iid = (await self._record(key)).iid
            graph = await graph_of(self._kernel.store, self._kernel.catalog, shard, iid)
            while True:
                wake.clear()
                record = (await self._kernel.store.get_runs(shard, [iid]))[0]
                while rows := await self._rows(shard, iid, start, PAGE):
                    listener(views.event_views(rows, shard, graph, start))
                    start = rows[-1].seq + rows[-1].count
                if WORKFLOW_STATES[record.state] in TERMINAL_WORKFLOW_STATES:
                    listener(None)
                    return
                await wake.wait()
                if self._lost is not None:
                    raise self._lost
                owned.check()
        except SPIError as error:
            listener(error)
        finally:
            self._wakes[key].discard(wake)
            if not self._wakes[key]:
                del self._wakes[key]

    def fail(self, error: Coded) -> None:
        """Nothing more will become durable: tell the followers."""
        self._lost = error
        self.look_again()

    def look_again(self) -> None:
        """A shard is not owned any more: have the followers look whether it was theirs."""
        for wakes in self._wakes.values():
            for wake in wakes:
                wake.set()

    async def stop(self) -> None:
        followers = list(self._followers)
        for follower in followers:
            follower.cancel()
        await asyncio.gather(*followers, return_exceptions=True)


async def _nothing(*_: object) -> tuple[str, ...]:
    """Until the orchestrator sets the real one."""
    return ()


def _blocked_run(run: Run, blocked: Blocked) -> BlockedRun:
    if run.durable_seq == run.state.seq:
        state = run.state.status
    else:  # the one that was listed last, unless that entry is on its way, too
        state = run.listed_state if run.listed_seq <= run.durable_seq else ""
    return BlockedRun(key=run.key, state=state, blocked=blocked)
