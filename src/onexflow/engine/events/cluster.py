"""The event bus through any orchestrator (`ports.events.EventService`): consumers are joined from the parts of all owners
(`engine.events.joined`); what is about one shard is asked of its owner; what is about all is read from the store."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Final, Protocol, TypeVar
from uuid import UUID

import structlog

from onexflow.core.errors import Unavailable
from onexflow.core.identity import ON_BEHALF, Identity
from onexflow.core.ids import RunKey
from onexflow.core.payload import Payload
from onexflow.engine.events.joined import JoinedConsumer
from onexflow.ports.events import (
    Consume,
    ConsumeListener,
    Consumer,
    DeadLetter,
    EventRecord,
    EventService,
    EventStatus,
    GroupView,
    Position,
    ProjectionState,
    Publish,
    Published,
    TopicView,
)
from onexflow.spi.exceptions import SPIError

log = structlog.get_logger("onexflow.events")

#: Seconds between looks at who is there.
LOOK_SECONDS: Final = 0.2
#: Dead letters that come again, or are forgotten, in one call.
MAX_LETTERS: Final = 100_000

T = TypeVar("T")


class Owners(Protocol):
    """Asks whoever owns what a call is about."""

    def is_forwarded(self) -> bool:
        """Was the present call passed on? Then it is answered here, or not at all."""

    def caller(self) -> Identity | None:
        """For whom the present call is; None: this orchestrator's own."""

    async def ask(self, call: Callable[[EventService], Awaitable[T]]) -> T: ...

    def others(self) -> Mapping[str, EventService]:
        """The other orchestrators that are there, by their addresses."""


class ClusterEvents:
    """Implements `EventService`."""

    def __init__(self, local: EventService, owners: Owners, shards: Callable[[], int]) -> None:
        """`shards`: how many there are."""
        self._local = local
        self._owners = owners
        self._shards = shards
        self._consumers: dict[JoinedConsumer, None] = {}
        self._looking: asyncio.Task[None] | None = None

    def stop(self, error: SPIError) -> None:
        """The last word to all consumers."""
        for consumer in list(self._consumers):
            consumer.end(error)

    async def close(self) -> None:
        """After `stop`."""
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.gather(self._looking, return_exceptions=True)
            self._looking = None

    # ---- consumers

    def consume(self, request: Consume, listener: ConsumeListener) -> Consumer:
        if self._owners.is_forwarded():
            return self._local.consume(request, listener)
        caller = self._owners.caller()
        consumer = JoinedConsumer(request, listener, self._services, self._shards(), self._over, caller)
        self._consumers[consumer] = None
        if self._looking is None or self._looking.done():
            self._looking = asyncio.get_running_loop().create_task(self._look(), name="onexflow-consumers")
        consumer.look()
        return consumer

    def _services(self) -> Mapping[str, EventService]:
        return {"": self._local, **self._owners.others()}

    def _over(self, consumer: JoinedConsumer) -> None:
        self._consumers.pop(consumer, None)

    async def _look(self) -> None:
        while self._consumers:
            await asyncio.sleep(LOOK_SECONDS)
            for consumer in list(self._consumers):
                consumer.look()

    # ---- what is about one shard

    async def publish_event(self, request: Publish) -> Published:
        return await self._owners.ask(lambda bus: bus.publish_event(request))

    async def read_events(
        self, key: RunKey, from_sequence: int = 1, to_sequence: int | None = None, limit: int = 1000
    ) -> Sequence[EventRecord]:
        return await self._owners.ask(lambda bus: bus.read_events(key, from_sequence, to_sequence, limit))

    async def find_event(self, namespace: str, event_id: UUID) -> EventStatus | None:
        return await self._owners.ask(lambda bus: bus.find_event(namespace, event_id))

    async def create_topic(self, namespace: str, name: str, partitions: int) -> bool:
        return await self._owners.ask(lambda bus: bus.create_topic(namespace, name, partitions))

    async def delete_topic(self, namespace: str, name: str) -> bool:
        return await self._owners.ask(lambda bus: bus.delete_topic(namespace, name))

    async def save_projection(
        self, namespace: str, name: str, shard: int, expected: int, offset: int, states: dict[RunKey, Payload]
    ) -> None:
        await self._owners.ask(lambda bus: bus.save_projection(namespace, name, shard, expected, offset, states))

    async def load_projection(self, namespace: str, name: str, key: RunKey) -> ProjectionState:
        return await self._owners.ask(lambda bus: bus.load_projection(namespace, name, key))

    async def reset_projection(self, namespace: str, name: str) -> None:
        await self._owners.ask(lambda bus: bus.reset_projection(namespace, name))

    async def delete_group(self, namespace: str, name: str) -> bool:
        deleted = await self._owners.ask(lambda bus: bus.delete_group(namespace, name))
        if deleted and not self._owners.is_forwarded():
            await self.discard_dead_letters(namespace, name)
        return deleted

    # ---- what is about all: the store knows

    async def list_topics(self, namespace: str) -> Sequence[TopicView]:
        return await self._local.list_topics(namespace)

    async def list_dead_letters(self, namespace: str, group: str, limit: int = 100) -> Sequence[DeadLetter]:
        return await self._local.list_dead_letters(namespace, group, limit)

    async def list_groups(self, namespace: str) -> Sequence[GroupView]:
        """Positions are those of the store. Who reads is what those say that answer."""
        views = {view.name: view for view in await self._local.list_groups(namespace)}
        if self._owners.is_forwarded():
            return list(views.values())
        others = self._owners.others().values()
        behalf = ON_BEHALF.set(self._owners.caller())
        try:
            answers = await asyncio.gather(*(one.list_groups(namespace) for one in others), return_exceptions=True)
        finally:
            ON_BEHALF.reset(behalf)
        for answer in answers:
            if isinstance(answer, Unavailable):
                log.debug("groups.not_told", error=str(answer))
                continue
            if isinstance(answer, BaseException):
                raise answer
            for other in answer:
                if (view := views.get(other.name)) is not None:
                    views[view.name] = _with(view, other)
        return list(views.values())

    async def requeue_dead_letters(self, namespace: str, group: str, positions: Sequence[Position] = ()) -> int:
        if self._owners.is_forwarded():
            return await self._local.requeue_dead_letters(namespace, group, positions)
        count = 0
        shards = await self._letters(namespace, group, positions)
        for places in shards:
            count += await self._owners.ask(partial(_requeue, namespace, group, places))
        if not shards:  # says what is wrong with the group
            return await self._local.requeue_dead_letters(namespace, group, ())
        return count

    async def discard_dead_letters(self, namespace: str, group: str, positions: Sequence[Position] = ()) -> int:
        if self._owners.is_forwarded():
            return await self._local.discard_dead_letters(namespace, group, positions)
        count = 0
        for places in await self._letters(namespace, group, positions):
            count += await self._owners.ask(partial(_discard, namespace, group, places))
        return count

    async def _letters(self, namespace: str, group: str, positions: Sequence[Position]) -> list[list[Position]]:
        """These, or all that there are, shard by shard."""
        if not positions:
            letters = await self._local.list_dead_letters(namespace, group, MAX_LETTERS)
            positions = [letter.delivery.position for letter in letters]
        shards: dict[int, list[Position]] = {}
        for position in positions:
            shards.setdefault(position[0], []).append(position)
        return list(shards.values())


async def _requeue(namespace: str, group: str, places: Sequence[Position], bus: EventService) -> int:
    return await bus.requeue_dead_letters(namespace, group, places)


async def _discard(namespace: str, group: str, places: Sequence[Position], bus: EventService) -> int:
    return await bus.discard_dead_letters(namespace, group, places)


def _with(view: GroupView, other: GroupView) -> GroupView:
    return GroupView(
        name=view.name,
        filter=view.filter,
        projection=view.projection,
        members=max(view.members, other.members),  # every consumer has a part at each
        positions=view.positions,
        lag=view.lag,
        unanswered=view.unanswered + other.unanswered,
        dead_letters=view.dead_letters + other.dead_letters,
    )
