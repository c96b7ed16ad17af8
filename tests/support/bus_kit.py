"""A consumer for tests: keeps what it is told, answers as it is told to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from uuid import UUID

from onexflow.codec.payload import decode_value, encode_value
from onexflow.core.ids import RunKey, derived_uuid
from onexflow.core.payload import Failure
from onexflow.engine.cuts import cut_history
from onexflow.ports.event_store import SnapshotRecord
from onexflow.ports.events import (
    Begun,
    Consume,
    Consumer,
    Delivery,
    EventRecord,
    EventService,
    Filter,
    Position,
    Publish,
    Published,
    Reached,
    Told,
)
from onexflow.spi.exceptions import SPIError
from onexflow.testing import Cluster
from support.engine_kit import until

OOPS = Failure("Oops", "it went wrong")


def stream(name: str = "a", workflow_type: str = "ext", namespace: str = "default") -> RunKey:
    """The key of an external stream."""
    return RunKey(namespace, workflow_type, derived_uuid(f"test:{name}"))


async def publish(service: EventService, key: RunKey, value: Any = None, **fields: Any) -> Published:
    """Publish an event; `topic` and `partition_key` are those of Publish, all else of EventRecord."""
    where = {name: fields.pop(name) for name in ("topic", "partition_key") if name in fields}
    record = EventRecord(key=key, type=fields.pop("type", "task.completed"), payload=encode_value(value), **fields)
    return await service.publish_event(Publish(event=record, **where))


class Reader:
    """One consumer."""

    def __init__(self, service: EventService, *, auto: bool = False, **fields: Any) -> None:
        where = {name: fields.pop(name) for name in ("namespace", "topics", "event_types") if name in fields}
        self.request = Consume(filter=Filter(**where), **fields)
        self.begun: Begun | None = None
        self.got: list[Delivery] = []
        self.reached: dict[int, int] = {}
        self.error: SPIError | None = None
        self.done: list[SPIError | None] = []
        self._auto = auto
        self.consumer: Consumer = service.consume(self.request, self._told)

    def _told(self, told: Told) -> None:
        assert self.error is None, "an error is the last word"
        match told:
            case Begun():
                assert self.begun is None
                self.begun = told
            case Reached():
                self.reached.update(told.positions)
            case SPIError():
                self.error = told
            case _:
                self.got.extend(told)
                if self._auto:
                    self.consumer.ack([delivery.position for delivery in told])

    @property
    def values(self) -> list[Any]:
        return [decode_value(delivery.event.payload) for delivery in self.got]

    @property
    def places(self) -> list[Position]:
        return [delivery.position for delivery in self.got]

    async def begin(self) -> Reader:
        await until(lambda: self.begun is not None or self.error is not None)
        return self

    async def have(self, count: int) -> list[Any]:
        """The values of what came, once it is so many."""
        await until(lambda: len(self.got) >= count or self.error is not None)
        return self.values

    async def fails(self) -> SPIError:
        await until(lambda: self.error is not None)
        assert self.error is not None
        return self.error

    async def ack(self, *places: Position) -> None:
        """Acknowledge these, or all, and wait until that is durable."""
        count = len(self.done)
        self.consumer.ack(places or self.places, self.done.append)
        await until(lambda: len(self.done) > count)
        assert self.done[-1] is None

    def reject(self, place: Position, delay: float = 0.0) -> None:
        self.consumer.reject(place, OOPS, delay)

    async def bury(self, place: Position) -> None:
        count = len(self.done)
        self.consumer.bury(place, OOPS, self.done.append)
        await until(lambda: len(self.done) > count)

    def close(self) -> None:
        self.consumer.close()


async def cut(cluster: Cluster, key: RunKey, before: int) -> None:
    """Cut an external stream as persistence does it, whatever it asks first. `before`: its inner sequence number."""
    kernel = cluster.engine._kernel
    external = await cluster.engine.events.stream(key)
    assert external is not None
    snapshot = SnapshotRecord(external.iid, external.state.seq, external.snapshot())
    await cut_history(kernel.store, kernel.lane, external.shard, external.iid, before, snapshot)


async def quiet(reader: Reader, head: Callable[[int], int]) -> None:
    """Return when the reader was told that it has all up to these heads."""
    await until(lambda: all(position >= head(shard) for shard, position in reader.reached.items()))


def uuid(text: str) -> UUID:
    return derived_uuid(f"event:{text}")
