"""The event bus of one orchestrator (`ports.events.EventService`): who publishes, who reads, and what is kept of it.

Of several orchestrators each reads the shards that it owns, and `engine.events.cluster` joins the parts. The work is done by
its parts: `Consumers` (how one joins), `Groups` (which there are), `Audience` (who hears of new events), `Publisher`,
`DeadLetters`, `Projections` and `Topics`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from uuid import UUID

from onexflow.core.errors import InvalidArgument, InvalidTransition, UnknownTopic
from onexflow.core.ids import RunKey
from onexflow.core.payload import Payload
from onexflow.engine.background import Background
from onexflow.engine.events.audience import Audience
from onexflow.engine.events.checks import check_names
from onexflow.engine.events.consuming import Consumers
from onexflow.engine.events.dead import DeadLetters
from onexflow.engine.events.groups import Groups
from onexflow.engine.events.homes import Homes
from onexflow.engine.events.log import Log
from onexflow.engine.events.projections import Projections
from onexflow.engine.events.publishing import Publisher
from onexflow.engine.events.reader import Reader
from onexflow.engine.events.status import held_by, status_of, views_of
from onexflow.engine.events.topics import Topics
from onexflow.engine.kernel import Kernel
from onexflow.engine.shard import Entity, Shard
from onexflow.engine.stream import Stream
from onexflow.ports.clock import IdSource
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


class EventBook:
    """Implements `EventService`."""

    def __init__(
        self,
        kernel: Kernel,
        ids: IdSource,
        payload_limit: int,
        admit: Callable[[], None],
        cluster: Callable[[], EventService],
    ) -> None:
        """`cluster` is this service with those of the other orchestrators behind it."""
        self._kernel = kernel
        self._topics = Topics(kernel)
        self._log = Log(kernel, self._topics)
        self._publisher = Publisher(
            kernel,
            self._topics,
            self._log,
            ids,
            payload_limit,
            admit,
            lambda namespace, name, partitions: cluster().create_topic(namespace, name, partitions),
        )
        self._background = Background()
        self._homes = Homes(kernel)
        self._audience = Audience(kernel)
        self._groups = Groups(kernel, self._log, self._homes, self._audience.remove, self._forget_states)
        self._consumers = Consumers(
            kernel, self._log, self._homes, self._groups, self._audience, self._background.spawn
        )
        self._dead = DeadLetters(kernel, self._log, self._readers)
        self._projections = Projections(kernel, self._groups, self._homes)

    # ---- life

    async def start(self) -> None:
        """Know the topics and groups. After the shards are claimed, before anybody is served."""
        for shard in list(self._kernel.shards.values()):
            await self._topics.load(shard.id)
        for shard in list(self._kernel.shards.values()):
            await self._groups.load(shard)
        for shard in list(self._kernel.shards.values()):
            self._homes.known(shard)

    async def claimed(self, shard: Shard) -> None:
        """A shard was claimed while others are served: its topics and groups, and where the groups stand in it. Who reads
        here goes on with it."""
        await self._topics.load(shard.id)
        await self._groups.load(shard)
        await self._groups.load_standings(shard)
        shard.check()
        self._homes.known(shard)
        await self._consumers.claimed(shard)

    def left(self, shard: Shard) -> None:
        """The shard is not owned here any more."""
        self._homes.left(shard)
        for reader in {*self._groups, *self._audience}:
            reader.left(shard)

    def stop(self, error: SPIError) -> None:
        """The last word to all consumers."""
        self._consumers.stop(error)

    async def close(self) -> None:
        """After `stop`: nothing of it runs any more."""
        for reader in list(self._groups):
            await reader.stop()
        await self._background.stop()

    def _forget_states(self, namespace: str, name: str) -> None:
        self._background.spawn(self._projections.forget(namespace, name))

    def on_durable(self, entities: Sequence[tuple[Entity, int]]) -> None:
        """Events have become durable: tell the readers of their shards."""
        self._audience.on_durable(entities)

    # ---- events

    async def publish_event(self, request: Publish) -> Published:
        return await self._publisher.publish(request)

    async def read_events(
        self, key: RunKey, from_sequence: int = 1, to_sequence: int | None = None, limit: int = 1000
    ) -> Sequence[EventRecord]:
        return await self._publisher.read(key, from_sequence, to_sequence, limit)

    async def stream(self, key: RunKey) -> Stream | None:
        """The external stream of that key."""
        return await self._publisher.stream(key)

    async def find_event(self, namespace: str, event_id: UUID) -> EventStatus | None:
        found = await self._publisher.find(namespace, event_id)
        if found is None:
            return None
        self._kernel.owned(found[0])
        return await status_of(self._kernel, found, self._groups.of(namespace))

    # ---- consumers

    def consume(self, request: Consume, listener: ConsumeListener) -> Consumer:
        """Of several orchestrators: the part of this one, with the shards that it owns, as they come and go."""
        return self._consumers.begin(request, listener)

    def _readers(self, namespace: str, name: str) -> list[Reader]:
        """Who reads under that name: the group, or (no name) all that read for themselves now."""
        if name:
            known = self._groups.get(namespace, name)
            return [known] if known is not None else []
        return [one for one in self._audience if one.config is None and one.where.namespace == namespace]

    # ---- groups

    async def list_groups(self, namespace: str) -> Sequence[GroupView]:
        """Of several orchestrators: who reads, what is not answered, and dead letters, here alone."""
        return await views_of(self._kernel, self._groups, self._dead, namespace)

    async def delete_group(self, namespace: str, name: str) -> bool:
        """Of several orchestrators: that which keeps it. Every consumer of it has a part there."""
        check_names(namespace, name)
        await self._homes.wait_known("group", namespace, name)
        reader = self._groups.get(namespace, name)
        if reader is None:
            return False
        if reader.members or self._consumers.is_joining(namespace, name):
            raise InvalidTransition(
                f"group {name!r} is in use: end its subscriptions first (members: {len(reader.members)})",
                {"group": name, "current_state": "has members", "required_state": "no members"},
            )
        self._groups.remove(namespace, name)
        await self._kernel.lane.durable()
        await self._dead.discard(namespace, name)
        if reader.is_projection:
            await self._projections.forget(namespace, name)
        return True

    def held(self, shard: int, key: RunKey) -> int | None:
        """The first offset of a shard that a group or a projection may still have to read of that run; None when nobody
        needs anything. Who is too far behind, or was not seen for too long, holds nothing (`events.status`)."""
        return held_by(self._kernel, self._groups, shard, key)

    # ---- dead letters

    async def list_dead_letters(self, namespace: str, group: str, limit: int = 100) -> Sequence[DeadLetter]:
        check_names(namespace, group, needed=False)
        return await self._dead.letters(namespace, group, limit)

    async def requeue_dead_letters(self, namespace: str, group: str, positions: Sequence[Position] = ()) -> int:
        check_names(namespace, group, needed=False)
        if group and self._kernel.is_shared:
            await self._groups.find(namespace, group)
        return await self._dead.requeue(namespace, group, positions)

    async def discard_dead_letters(self, namespace: str, group: str, positions: Sequence[Position] = ()) -> int:
        check_names(namespace, group, needed=False)
        return await self._dead.discard(namespace, group, positions)

    # ---- topics

    async def create_topic(self, namespace: str, name: str, partitions: int) -> bool:
        check_names(namespace, name)
        if name.startswith("$"):
            raise InvalidArgument(f"{name!r} is no name of a topic", field="name")
        await self._homes.wait_known("topic", namespace, name)
        created = self._topics.create(namespace, name, partitions)
        await self._kernel.lane.durable()
        return created

    async def delete_topic(self, namespace: str, name: str) -> bool:
        check_names(namespace, name)
        await self._homes.wait_known("topic", namespace, name)
        deleted = await self._topics.delete(namespace, name)
        if deleted:
            error = UnknownTopic(f"topic {name!r} was deleted", {"topic": name})
            for reader in self._audience:
                if reader.where.namespace == namespace and name in reader.where.topics:
                    reader.end(error)
        await self._kernel.lane.durable()
        return deleted

    async def list_topics(self, namespace: str) -> Sequence[TopicView]:
        await self._kernel.lane.durable()
        return await self._topics.views(namespace)

    # ---- projections

    async def save_projection(
        self, namespace: str, name: str, shard: int, expected: int, offset: int, states: dict[RunKey, Payload]
    ) -> None:
        await self._projections.save(namespace, name, shard, expected, offset, states)

    async def load_projection(self, namespace: str, name: str, key: RunKey) -> ProjectionState:
        return await self._projections.load(namespace, name, key)

    async def reset_projection(self, namespace: str, name: str) -> None:
        await self._projections.reset(namespace, name)
