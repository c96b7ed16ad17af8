"""What the open runs of one orchestrator wait for (`core.blocked`), judged from what is in memory at that moment.

Nothing is kept for it: a run, its attempts, the dispatcher, the streams and the timers are looked at when somebody asks.
What nothing accounts for is `stalled`, and that is what the watchdog looks for (`engine.watchdog`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Final

import msgspec

from onexflow.core.blocked import RANK, SECOND, Blocked
from onexflow.core.ids import Token
from onexflow.core.machine import TERMINAL_TASK_STATES, TERMINAL_WORKFLOW_STATES
from onexflow.core.state import ItemState
from onexflow.core.timers import is_void
from onexflow.engine.attempts import AttemptBook
from onexflow.engine.kernel import Kernel
from onexflow.engine.readback import item_timers
from onexflow.engine.run import Attempt, Run
from onexflow.engine.sessions import Sessions, WorkerSession
from onexflow.engine.shard import Shard
from onexflow.engine.suspects import PROBE_SECONDS
from onexflow.ports.event_store import ParkedRecord

#: A timer that is due for so long has been forgotten.
LATE_SECONDS: Final = 0.5
_LATE: Final = int(LATE_SECONDS * SECOND)

#: Since when a shard that is not owned here has had no owner that lives (loop time; None: it has one, as far as is known).
FreeSince = Callable[[int], float | None]


class Blocking:
    """Answers for the shards of one orchestrator."""

    def __init__(
        self, kernel: Kernel, book: AttemptBook, sessions: Sessions, owner: str, is_full: Callable[[], bool]
    ) -> None:
        self.kernel = kernel
        self.book = book
        self.sessions = sessions
        self.owner = owner
        self.is_full = is_full
        self.free_since: FreeSince = _owned

    def look(self) -> Look:
        """A look at this moment, for any number of runs. Good until something is awaited."""
        return Look(self)


class Look:
    """How things stand now."""

    def __init__(self, blocking: Blocking) -> None:
        self._kernel = blocking.kernel
        self._book = blocking.book
        self._sessions = blocking.sessions
        self._owner = blocking.owner
        self._is_full = blocking.is_full
        self._free_since = blocking.free_since
        self.now = blocking.kernel.store.now()
        self._loop_now = asyncio.get_running_loop().time()
        #: The attempts in each queue that was looked into.
        self._queued: dict[tuple[str, str], frozenset[int]] = {}

    # ---- runs

    def run(self, run: Run) -> Blocked | None:
        """What says most of why the run is still open; None when it has ended."""
        state = run.state
        if state.status in TERMINAL_WORKFLOW_STATES:
            return None
        found = self._whole(run)
        if found is None:
            found = self._most_telling(run)
            if found is None:
                waits = "is ready to be scheduled" if state.ready else "has ended"
                return _stalled(f"all that the run waits for {waits}")
        ends_at = state.timeout_at if state.status not in {"compensating", "pending"} else 0
        if ends_at and found.is_valid:
            if ends_at + _LATE < self.now:
                return _stalled("its time limit has passed")
            wake = min(found.next_wake_at, ends_at) if found.next_wake_at else ends_at
            found = msgspec.structs.replace(found, next_wake_at=wake)
        return found

    def _whole(self, run: Run) -> Blocked | None:
        """What holds the run as a whole."""
        state, shard = run.state, run.shard
        if shard.moved is not None:
            return self.elsewhere(shard.id)
        if run.is_broken:
            is_waited_for = self._kernel.lane.commits < run.mended_after
            return self._recovering(shard) if is_waited_for else _stalled("a decision about it has failed")
        if shard.early is not None:
            return self._recovering(shard)
        match state.status:
            case "pending":
                return self._timer(Blocked(kind="delayed", until=state.start_at, next_wake_at=state.start_at))
            case "paused":
                return Blocked(kind="paused", reason=state.reason, by=state.paused_by)
            case "retrying":
                return self._timer(Blocked(kind="run_retry", until=state.retry_at, next_wake_at=state.retry_at))
        return None

    def _most_telling(self, run: Run) -> Blocked | None:
        found: Blocked | None = None
        wakes = []
        for index, task in enumerate(run.state.tasks):
            if task.status in TERMINAL_TASK_STATES or task.status == "blocked":
                continue
            one = self.task(run, index)
            if one is None:
                continue
            if one.next_wake_at:
                wakes.append(one.next_wake_at)
            if found is None or RANK[one.kind] < RANK[found.kind]:
                found = msgspec.structs.replace(one, task=run.graph.names[index])
        if found is not None and wakes:
            found = msgspec.structs.replace(found, next_wake_at=min(wakes))
        return found

    def durable(self, run: Run) -> Blocked | None:
        """As `run`, for those who may be told of nothing that is not durable."""
        if run.durable_seq < run.state.seq and run.shard.moved is None and not run.is_broken:
            return self._store(run.shard)
        return self.run(run)

    # ---- tasks

    def task(self, run: Run, index: int) -> Blocked | None:
        """What the task waits for: of a mapped one, the item that says most. None when it has ended."""
        state, graph, task = run.state, run.graph, run.state.tasks[index]
        if task.status in TERMINAL_TASK_STATES:
            return None
        if task.status == "blocked" and graph.is_undo(index):
            if state.awaited:
                names = [graph.names[p] for p in graph.undone if state.tasks[p].status not in TERMINAL_TASK_STATES]
            else:
                names = [graph.names[graph.undo[state.undoable[-1]]]] if state.undoable else []
            return Blocked(kind="dependencies", names=tuple(names))
        if task.status == "blocked":
            first = [p for p in graph.parents(index) if state.tasks[p].status not in TERMINAL_TASK_STATES]
            first = first or [p for p in graph.setup if state.tasks[p].status not in TERMINAL_TASK_STATES]
            return Blocked(kind="dependencies", names=tuple(graph.names[p] for p in first))
        if task.status == "pending" or not task.items:
            held = self._held_back(run, index)
            return held if held is not None else _stalled("it is ready, and was not scheduled")
        found: Blocked | None = None
        for number, item in enumerate(task.items):
            if item.status not in TERMINAL_TASK_STATES:
                one = self.item(run, index, number, item)
                if found is None or RANK[one.kind] < RANK[found.kind]:
                    found = one
        return found or _stalled("all its items have ended, and it has not")

    def _held_back(self, run: Run, index: int) -> Blocked | None:
        """Why nothing of the task may leave now."""
        state = run.state
        if run.may_dispatch(index):
            return None
        whole = self._whole(run)
        return whole if whole is not None else Blocked(kind="run", reason=state.status)

    def item(self, run: Run, index: int, number: int, item: ItemState) -> Blocked:
        if item.status == "waiting_for_input":
            return Blocked(
                kind="unknown_outcome", worker=item.worker, attempt=item.attempt, since=item.started_at,
                next_wake_at=self._wake(run, index, number, item),
            )  # fmt: skip
        if item.status == "running":
            return self._running(run, index, number, item)
        held = self._held_back(run, index)
        if held is not None:
            return held
        if item.status == "retrying":
            if not item.due_at:
                return self._timer(Blocked(kind="run_retry", until=run.state.retry_at, next_wake_at=run.state.retry_at))
            retry = Blocked(kind="retry", attempt=item.attempt + 1, until=item.due_at, next_wake_at=item.due_at)
            return self._timer(retry)
        return self._scheduled(run, index, number, item)

    def _running(self, run: Run, index: int, number: int, item: ItemState) -> Blocked:
        """An effect that was authorised."""
        attempt = run.attempts.get(Token(run.shard.id, item.epoch, item.offset, number))
        if attempt is None:
            return _stalled("nobody watches the attempt")
        found = self._placed(run, attempt, item)
        if not found.is_valid:
            return found
        wake = self._wake(run, index, number, item)
        if wake and wake + _LATE < self.now:
            return _stalled("a timeout of its attempt has passed")
        if item.stopping:
            found = Blocked(kind="stopping", worker=item.worker, attempt=item.attempt, reason=item.stopping)
        return msgspec.structs.replace(found, next_wake_at=wake or found.next_wake_at)

    def _scheduled(self, run: Run, index: int, number: int, item: ItemState) -> Blocked:
        task, spec = run.state.tasks[index], run.graph.specs[index]
        if number >= task.window:
            return Blocked(kind="dependencies", names=(run.graph.names[index],))
        attempt = run.attempts.get(Token(run.shard.id, item.epoch, item.offset, number))
        if attempt is None or attempt.withdrawn:
            return _stalled("it was scheduled, and not dispatched")
        if attempt.session is not None or attempt.sent:
            found = self._placed(run, attempt, item)
            if found.kind == "running" and spec.feed:
                found = self._fed(run, index, attempt, found)
        elif run.shard.adopting is not None and any(one is attempt for one in run.shard.adopting):
            found = self._recovering(run.shard)
        else:
            found = self._waiting(attempt, spec.role, item)
        wake = self._wake(run, index, number, item)
        if wake and wake + _LATE < self.now and not attempt.sent:
            return _stalled("a timeout of its attempt has passed")
        if wake > self.now and found.is_valid:
            found = msgspec.structs.replace(found, next_wake_at=wake)
        return found

    # ---- attempts

    def _fed(self, run: Run, index: int, attempt: Attempt, running: Blocked) -> Blocked:
        """A fed reducer that is with a worker waits for the next items when it has taken what there is."""
        feeder = run.graph.fed_by[index]
        if self._book.feeding.is_forgotten(attempt):
            return _stalled("items have come, and it was not given them")
        if feeder is None or not self._book.feeding.waits(attempt):
            return running
        if run.state.tasks[feeder].status in TERMINAL_TASK_STATES:  # its end is not durable yet
            return self._store(run.shard)
        return Blocked(kind="dependencies", names=(run.graph.names[feeder],))

    def _placed(self, run: Run, attempt: Attempt, item: ItemState) -> Blocked:
        """An attempt that is with a worker, or on its way there."""
        session = attempt.session
        if session is None:
            worker = self._sessions.suspects.whose_orphan(attempt)
            if worker is None:
                return _stalled("nobody watches its worker")
            wake = self.now + int(PROBE_SECONDS * SECOND)
            since = self._since(attempt.sent_at)
            return Blocked(kind="out_of_sight", worker=worker, attempt=item.attempt, since=since, next_wake_at=wake)
        if not self._is_there(session) or session.inflight.get(attempt.token) is not attempt:
            return _stalled("its stream has gone")
        if attempt.sent:
            since = item.started_at or self._since(attempt.sent_at)
            return Blocked(kind="running", worker=session.worker_id, attempt=item.attempt, since=since)
        if self._kernel.lane.commits < attempt.leaves_with:  # which may be one of other runs
            return self._commit()
        return _stalled("it was given to a worker, and not sent")

    def _waiting(self, attempt: Attempt, role: str, item: ItemState) -> Blocked:
        """An attempt that waits for a worker."""
        dispatcher, handler = self._book.dispatcher, attempt.info.handler
        key = role, handler
        if key not in self._queued:
            self._queued[key] = dispatcher.queued(role, handler)
        if id(attempt) not in self._queued[key]:
            return _stalled("it waits in no queue for a worker")
        there = [session for session in dispatcher.sessions_of(role, handler) if self._is_there(session)]
        if not there:
            return Blocked(kind="no_worker", role=role, handler=handler, since=item.scheduled_at)
        if not any(session.takes_work for session in there):
            reason = "those that have it take nothing new"
            return Blocked(kind="no_worker", role=role, handler=handler, reason=reason, since=item.scheduled_at)
        node = attempt.run.state.node
        own = [session for session in there if session.takes_work and session.worker_id == node]
        served = own or [session for session in there if session.takes_work]
        if any(session.credits.get(role, 0) > 0 for session in served):
            return _stalled("a worker has a free slot for it")
        return Blocked(kind="no_slot", role=role, handler=handler, node=node if own else "", since=item.scheduled_at)

    def _is_there(self, session: WorkerSession) -> bool:
        return session.is_open and self._sessions.by_worker.get(session.worker_id) is session

    def _wake(self, run: Run, index: int, number: int, item: ItemState) -> int:
        """When the next timer of the item is due; 0 when it has none. A heartbeat's moves with its progress, and that of a
        pure attempt is the engine's own."""
        attempt = run.attempts.get(Token(run.shard.id, item.epoch, item.offset, number))
        ignored = (
            {"heartbeat", "start_to_close"} if item.stopping else {"heartbeat"}
        )  # it has been told to stop for that
        dues = [
            timer.due_at
            for timer in item_timers(run, index, number, item)
            if timer.kind not in ignored and not is_void(run.graph, run.state, index, item, timer.kind)
        ]
        if attempt is not None and attempt.sent:
            timeouts, beat = run.graph.specs[index].timeouts, run.graph.specs[index].timeouts.heartbeat
            if attempt.role != "effect" and timeouts.start_to_close:
                dues.append(self._since(attempt.sent_at) + int(timeouts.start_to_close * SECOND))
            if beat and not item.stopping:
                dues.append(self._since(attempt.progress_at) + int(beat * SECOND))
        return min(dues, default=0)

    def _since(self, loop_time: float) -> int:
        """A time of the loop as one of the store."""
        return self.now - int((self._loop_now - loop_time) * SECOND)

    def _timer(self, found: Blocked) -> Blocked:
        if found.until + _LATE < self.now:
            return _stalled("its timer has passed")
        return found

    # ---- shards and the store

    def _store(self, shard: Shard) -> Blocked:
        if not shard.is_dirty and not shard.is_in_flight:
            return _stalled("what was decided is not on its way to the store")
        return self._commit()

    def _commit(self) -> Blocked:
        began = self._kernel.lane.pending_since
        reason = "it is full" if self._is_full() else ""
        return Blocked(kind="store", since=self._since(began) if began else self.now, reason=reason)

    def _recovering(self, shard: Shard) -> Blocked:
        return Blocked(kind="recovering", owner=self._owner, shard=shard.id)

    def absent(self, shard: Shard, iid: int, parked: ParkedRecord | None) -> Blocked:
        """Of an open run that is not in memory, and was not when `parked` was read."""
        if shard.moved is not None:
            return self.elsewhere(shard.id)
        if parked is not None:
            found = decode_parked(parked.reason, parked.wake_at)
            is_late = 0 < parked.wake_at < self.now - _LATE
            return _stalled("it is paged out, and its timer has passed") if is_late else found
        if (why := self._kernel.loader.unreadable.get((shard.id, iid))) is not None:
            return Blocked(kind="unreadable", reason=why)
        if shard.early is not None or self._kernel.is_reading(shard, iid):
            return self._recovering(shard)
        if shard.is_dirty or shard.is_in_flight:  # its row, or its end, may be on the way
            return self._store(shard)
        return _stalled("it is neither in memory nor paged out")

    def elsewhere(self, number: int) -> Blocked:
        """Of a run in a shard that is not owned here."""
        owner, _ = self._kernel.claims.locate(number)
        free_since = self._free_since(number)
        since = self._since(free_since) if free_since is not None else 0
        return Blocked(kind="moving", owner=owner, shard=number, since=since)


def each_stalled(look: Look, run: Run) -> Iterator[tuple[int, int]]:
    """(task, item) of each item of the run that nothing accounts for."""
    for index, task in enumerate(run.state.tasks):
        if task.status not in TERMINAL_TASK_STATES:
            for number, item in enumerate(task.items):
                if item.status not in TERMINAL_TASK_STATES and not look.item(run, index, number, item).is_valid:
                    yield index, number


def encode_parked(found: Blocked) -> str:
    """For the row of a run that is paged out."""
    return msgspec.json.encode(found).decode()


def decode_parked(reason: str, wake_at: int) -> Blocked:
    """What such a row says; those of earlier releases are in words."""
    try:
        found = msgspec.json.decode(reason, type=Blocked)
    except msgspec.DecodeError:
        found = Blocked(kind="run", reason=reason)
    return msgspec.structs.replace(found, next_wake_at=wake_at)


def _stalled(reason: str) -> Blocked:
    return Blocked(kind="stalled", reason=reason)


def _owned(_: int) -> float | None:
    return None
