"""A work queue without an engine, at a time that the test sets; its rows are kept as a store would."""

from __future__ import annotations

from typing import Any

from onexflow.codec.rows import encode_row
from onexflow.core import queue
from onexflow.core.payload import NULL, Payload
from onexflow.core.queue import QueueTurn, Taker
from onexflow.core.queue_state import SECOND, QueueIndex, TaskSpec, queue_key
from onexflow.engine.queue import decode_queue, encode_queue, fold_queue
from onexflow.ports.event_store import Row

T0 = 1_767_225_600_000_000_000


class Model:
    """A queue without an engine, at a time that the test sets."""

    def __init__(self) -> None:
        self.now = T0
        turn = QueueTurn.first(queue_key("default", "q"), "q", T0, lambda: 0.5)
        self.state, self.index = turn.state, turn.index
        self.rows: list[Row] = []
        self.offset = 1
        self.store(turn)

    def turn(self) -> QueueTurn:
        return QueueTurn(self.state, self.index, self.now, lambda: 0.5)

    def store(self, turn: QueueTurn) -> None:
        if turn.events:
            seq = self.state.seq - len(turn.events) + 1
            self.rows.append(Row(self.offset, len(turn.events), 1, 1, seq, encode_row(turn.now, turn.events)))
            self.offset += len(turn.events)

    def enqueue(self, task_id: str, **fields: Any) -> None:
        turn = self.turn()
        spec = TaskSpec(task_id, **{"lease": 300 * SECOND, **fields})
        queue.enqueue(turn, spec, NULL)
        self.store(turn)

    def take(self, *takers: Taker) -> list[list[str]]:
        turn = self.turn()
        queue.hand_out(turn, takers)
        self.store(turn)
        return [[task.spec.task_id for task in taker.got] for taker in takers]

    def one(self, worker: str = "w", *capabilities: str) -> str:
        got = self.take(Taker(worker, frozenset(capabilities), "", 1))[0]
        return got[0] if got else ""

    def complete(self, task_id: str, token: str = "") -> bool:
        turn = self.turn()
        done = queue.complete(turn, task_id, token, Payload(b"1"))
        self.store(turn)
        return done

    def fail(self, task_id: str) -> None:
        turn = self.turn()
        queue.fail(turn, task_id, "", "no", None)
        self.store(turn)

    def restart(self, *, snapshot: bool) -> None:
        """What a new owner has: the rows, or a snapshot."""
        kept = decode_queue(encode_queue(self.state)) if snapshot else fold_queue(None, self.rows)
        assert kept is not None
        self.state = kept
        self.index = QueueIndex(kept)
