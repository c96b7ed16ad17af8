"""Consumers whose other end is the test: what an event service says, and what it is told, step by step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast
from uuid import uuid4

from onexflow.core.ids import RunKey
from onexflow.core.payload import Failure
from onexflow.ports.events import (
    Begun,
    Consume,
    ConsumeListener,
    Delivery,
    Done,
    EventRecord,
    EventService,
    GroupView,
    Position,
    Told,
)
from onexflow.spi.exceptions import SPIError

KEY = RunKey("default", "order", uuid4())


class ScriptedConsumer:
    """One consumer, as the service sees it."""

    def __init__(self, request: Consume, listener: ConsumeListener) -> None:
        self.request = request
        self.tell: ConsumeListener = listener
        self.acks: list[int] = []
        self.buried: list[tuple[int, Failure]] = []
        self.dones: list[Done] = []
        self.kept: list[Done] = []
        self.closed = False

    def ack(self, positions: Sequence[Position], done: Done | None = None) -> None:
        self.acks += [position.offset for position in positions]
        if done is not None:
            self.dones.append(done)

    def reject(self, position: Position, error: Failure, delay: float) -> None:
        raise AssertionError("nobody rejects here")

    def bury(self, position: Position, error: Failure, done: Done | None = None) -> None:
        self.buried.append((position.offset, error))
        if done is not None:
            self.kept.append(done)

    def close(self) -> None:
        self.closed = True

    def begin(self, position: int = 1) -> None:
        self.tell(Begun(positions={0: position}, heads={0: position}))

    def deliver(self, *offsets: int, attempt: int = 1, key: RunKey = KEY) -> None:
        self.tell([delivery(offset, attempt, key) for offset in offsets])


class ScriptedEvents:
    """As much of `EventService` as a subscription asks."""

    def __init__(self, *answers: Told) -> None:
        """`answers`: what consumers are told at once, one each; then nothing, until the test does."""
        self.consumers: list[ScriptedConsumer] = []
        self.answers = list(answers)

    @property
    def service(self) -> EventService:
        return cast("EventService", self)

    @property
    def last(self) -> ScriptedConsumer:
        return self.consumers[-1]

    async def list_groups(self, namespace: str) -> Sequence[GroupView]:
        return []

    def consume(self, request: Consume, listener: ConsumeListener) -> ScriptedConsumer:
        consumer = ScriptedConsumer(request, listener)
        self.consumers.append(consumer)
        if self.answers:
            answer = self.answers.pop(0)
            if isinstance(answer, SPIError) and getattr(answer, "at_once", False):
                raise answer
            listener(answer)
        return consumer


def delivery(offset: int, attempt: int = 1, key: RunKey = KEY) -> Delivery:
    event: dict[str, Any] = {"key": key, "type": "task.completed", "sequence": offset, "event_id": uuid4()}
    return Delivery(
        position=Position(0, offset),
        event=EventRecord(**event),
        topic=key.workflow_type,
        partition=0,
        partition_key=str(key.instance_id),
        attempt=attempt,
    )
