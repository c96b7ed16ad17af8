"""Fed reducers: what workers are given of a mapped task's results while these arrive.

A fold rests on nothing that a crash may take back: items are given when their completion is durable, and the word that
there are no others when that of the task is. What an attempt was given is known by its worker's stream (`Cursor`), and is
as good as that stream: on another one, or under another epoch, the fold begins anew. Given and not taken is a window, so
that neither the stream nor the worker grows with the fan-out. Nothing here looks at clocks: what becomes durable, and what
a worker says, is all that moves it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import structlog

from onexflow.core.events import TaskCompleted
from onexflow.core.ids import Token
from onexflow.core.machine import TERMINAL_TASK_STATES
from onexflow.core.payload import Payload
from onexflow.core.turn import Turn
from onexflow.engine.run import Attempt, Run
from onexflow.engine.shard import Entity
from onexflow.ports.worker_link import FEED_WINDOW_BYTES, FEED_WINDOW_ITEMS, Fed, FedItem, Feed

if TYPE_CHECKING:
    from onexflow.engine.placing import Placing
    from onexflow.engine.sessions import WorkerSession

log = structlog.get_logger("onexflow.feeding")

#: Most items, and bytes, of one message: as for assignments.
BATCH_ITEMS: Final = 64
BATCH_BYTES: Final = 1 << 20
#: Attempts that one worker may say to take items, beyond any number of slots.
MOST_CURSORS: Final = 100_000


class Arrivals:
    """The results of one mapped task of a run, in the order in which they came."""

    __slots__ = ("_marks", "cursors", "durable", "is_whole", "order", "run", "task")

    def __init__(self, run: Run, task: int) -> None:
        self.run = run
        self.task = task
        state = run.state.tasks[task]
        #: Items by index. Those that were there when it was made are in no order: they came before anybody asked.
        self.order = (
            list(range(state.of))
            if state.status == "completed"
            else [index for index, item in enumerate(state.items) if item.status == "completed"]
        )
        #: How many of them are durable; and are they all that there will be?
        self.durable = 0
        self.is_whole = False
        #: (event of the run, items that had come by then), of what is not durable.
        self._marks: deque[tuple[int, int]] = deque([(run.state.seq, len(self.order))])
        #: Those that are given it.
        self.cursors: dict[Cursor, None] = {}
        self.stored(run.durable_seq)

    def came(self, items: Sequence[int], seq: int) -> None:
        """Items have completed with events up to `seq`."""
        self.order.extend(items)
        self._marks.append((seq, len(self.order)))

    def stored(self, seq: int) -> bool:
        """Events up to `seq` are durable. Is there anything new?"""
        durable, marks = self.durable, self._marks
        while marks and marks[0][0] <= seq:
            self.durable = marks.popleft()[1]
        was_whole = self.is_whole
        self.is_whole = not marks and self.run.state.tasks[self.task].status == "completed"
        return self.durable > durable or self.is_whole > was_whole

    def payload(self, index: int) -> Payload:
        """The result of an item that has come."""
        state = self.run.state.tasks[self.task]
        result = state.items[index].result if state.items else state.results[index]
        assert result is not None, "it has completed"
        return result


class Cursor:
    """How far one attempt is, on one stream. Made by the attempt's first word there."""

    __slots__ = ("arrivals", "given", "position", "session", "size", "token", "was_told_last")

    def __init__(self, session: WorkerSession, token: Token) -> None:
        self.session = session
        self.token = token
        #: None until it is given the first.
        self.arrivals: Arrivals | None = None
        self.position = 0
        self.was_told_last = False
        #: Sizes of what was given and is not taken, and their sum.
        self.given: deque[int] = deque()
        self.size = 0

    def has_room(self, size: int) -> bool:
        """For an item of so many bytes?"""
        return not self.given or (len(self.given) < FEED_WINDOW_ITEMS and self.size + size <= FEED_WINDOW_BYTES)

    def taken(self, count: int) -> None:
        for _ in range(count):
            self.size -= self.given.popleft()

    def close(self) -> None:
        if self.arrivals is not None:
            self.arrivals.cursors.pop(self, None)


class Feeding:
    """Of one orchestrator. An attempt is given items by the worker that holds it, and by no other."""

    def __init__(self, placing: Placing) -> None:
        self._placing = placing

    # ---- what happens

    def decided(self, run: Run, turn: Turn) -> None:
        """Results were recorded, of a run that somebody is fed from."""
        seq = run.state.seq
        for event in turn.events:
            arrivals = run.arrivals.get(event.task) if isinstance(event, TaskCompleted) else None
            if arrivals is not None and isinstance(event, TaskCompleted):
                arrivals.came(event.items, seq)
        for task in [task for task in run.arrivals if not self._is_wanted(run, task)]:
            for cursor in list(run.arrivals.pop(task).cursors):
                self.ended(cursor.session, cursor.token)

    @staticmethod
    def _is_wanted(run: Run, task: int) -> bool:
        return any(run.state.tasks[fed].status not in TERMINAL_TASK_STATES for fed in run.graph.feeds[task])

    def stored(self, entities: Sequence[tuple[Entity, int]]) -> None:
        """Events up to these have become durable."""
        for run, seq in entities:
            if isinstance(run, Run) and run.arrivals:
                for arrivals in run.arrivals.values():
                    if arrivals.stored(seq):
                        for cursor in list(arrivals.cursors):
                            self._guarded(cursor)

    def on_fed(self, session: WorkerSession, message: Fed) -> bool:
        """A worker begins a fold, or has taken items. False: it says what cannot be.

        What it said before it heard of the shard's epoch is of a fold that it has dropped since."""
        token = message.token
        if token.shard in session.asked:
            return True
        cursor = session.fed.get(token)
        if not message.count:
            if len(session.fed) >= MOST_CURSORS:
                return False
            self.ended(session, token)
            cursor = session.fed[token] = Cursor(session, token)
        elif cursor is None:
            return True
        elif message.count > len(cursor.given):
            return False
        else:
            cursor.taken(message.count)
        self._go_on(cursor)
        return True

    def look(self, session: WorkerSession, token: Token) -> None:
        """The attempt is (again) that worker's, or its run was read back: go on where it is there."""
        cursor = session.fed.get(token)
        if cursor is not None:
            self._go_on(cursor)

    def ended(self, session: WorkerSession, token: Token) -> None:
        """The attempt has ended there."""
        cursor = session.fed.pop(token, None)
        if cursor is not None:
            cursor.close()

    def cut_off(self, session: WorkerSession, shard: int = -1) -> None:
        """The worker drops what it folds: of that shard, or (its stream has ended) all."""
        for token in [token for token in session.fed if shard in {-1, token.shard}]:
            self.ended(session, token)

    # ---- what is asked

    def waits(self, attempt: Attempt) -> bool:
        """Has it taken all that there is, and waits for the mapped task?"""
        cursor = attempt.session.fed.get(attempt.token) if attempt.session is not None else None
        arrivals = cursor.arrivals if cursor is not None else None
        return (
            cursor is not None
            and arrivals is not None
            and not cursor.given
            and cursor.position == arrivals.durable
            and not cursor.was_told_last
        )

    def is_forgotten(self, attempt: Attempt) -> bool:
        """Is there something for it that nobody gives it? Never, unless by a fault of ours."""
        cursor = attempt.session.fed.get(attempt.token) if attempt.session is not None else None
        if cursor is None or cursor.was_told_last:
            return False
        arrivals = cursor.arrivals
        if arrivals is None or attempt.run.arrivals.get(arrivals.task) is not arrivals:
            return True
        if cursor.position == arrivals.durable:
            return arrivals.is_whole
        return cursor.has_room(len(arrivals.payload(arrivals.order[cursor.position]).data))

    # ---- feeding

    def _guarded(self, cursor: Cursor) -> None:
        """A fault of ours hurts this fold alone: the watchdog finds it."""
        try:
            self._go_on(cursor)
        except Exception:
            log.exception("feed.failed", token=str(cursor.token))

    def _go_on(self, cursor: Cursor) -> None:
        """Give it what there is and what fits, if the attempt is that worker's."""
        session, token = cursor.session, cursor.token
        attempt = self._placing.attempts.get(token)
        if attempt is None or attempt.session is not session or not attempt.sent or attempt.withdrawn:
            return
        run = attempt.run
        feeder = run.graph.fed_by[attempt.task]
        if feeder is None or run.is_broken:
            return
        arrivals = run.arrivals.get(feeder)
        if arrivals is None:
            arrivals = run.arrivals[feeder] = Arrivals(run, feeder)
        if cursor.arrivals is None:
            cursor.arrivals = arrivals
            arrivals.cursors[cursor] = None
        elif (
            cursor.arrivals is not arrivals
        ):  # the run was read back: in what order its items came is not known any more
            self.ended(session, token)
            session.cancels.append(token)
            self._placing.mark(session)
            return
        while self._give(cursor, arrivals):
            pass

    def _give(self, cursor: Cursor, arrivals: Arrivals) -> bool:
        """One message, if there is something for it."""
        items: list[FedItem] = []
        size = 0
        while cursor.position < arrivals.durable and len(items) < BATCH_ITEMS:
            index = arrivals.order[cursor.position]
            payload = arrivals.payload(index)
            bytes_ = len(payload.data)
            if not cursor.has_room(bytes_) or (items and size + bytes_ > BATCH_BYTES):
                break
            items.append(FedItem(index, payload))
            size += bytes_
            cursor.position += 1
            cursor.given.append(bytes_)
            cursor.size += bytes_
        is_last = arrivals.is_whole and cursor.position == arrivals.durable and not cursor.was_told_last
        if not items and not is_last:
            return False
        cursor.was_told_last = is_last
        cursor.session.send(Feed(cursor.token, items, is_last))
        return True
