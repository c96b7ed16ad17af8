"""The event bus of one orchestrator (`ports.events.EventService`): who publishes, who reads, and what is kept of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any
from uuid import UUID

from onexflow.core.errors import (
    Coded,
    InvalidArgument,
    InvalidTransition,
    OutOfRange,
    Overloaded,
    ShardMoved,
    Unavailable,
    UnknownGroup,
    UnknownTopic,
)
from onexflow.core.ids import RunKey
from onexflow.core.payload import Payload
from onexflow.engine.events import names
from onexflow.engine.events.checks import (
    MAX_GROUP_BYTES,
    MAX_GROUPS,
    check_consume,
    check_names,
    size_of_group,
)
from onexflow.engine.events.cursor import Cursor
from onexflow.engine.events.dead import DeadLetters
from onexflow.engine.events.log import Log
from onexflow.engine.events.member import Member
from onexflow.engine.events.names import GroupConfig, Standing
from onexflow.engine.events.projections import Projections
from onexflow.engine.events.publishing import Publisher
from onexflow.engine.events.reader import Reader
from onexflow.engine.events.registers import registers
from onexflow.engine.events.status import held_by, status_of, view_of
from onexflow.engine.events.topics import Topics
from onexflow.engine.kernel import Kernel
from onexflow.engine.shard import Entity, Shard
from onexflow.engine.stream import Stream, is_stream
from onexflow.ports.clock import IdSource
from onexflow.ports.events import (
    Consume,
    ConsumeListener,
    Consumer,
    DeadLetter,
    EventRecord,
    EventService,
    EventStatus,
    Filter,
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
        self._groups: dict[tuple[str, str], Reader] = {}
        self._dead = DeadLetters(kernel, self._log, self._readers)
        self._projections = Projections(kernel, self._groups)
        #: Readers that have members: who must hear of new events.
        self._active: dict[Reader, None] = {}
        self._heads: dict[int, int] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._joining: dict[Member, None] = {}
        self._ended: Coded | None = None

    # ---- life

    async def start(self) -> None:
        """Know the topics and groups. After the shards are claimed, before anybody is served."""
        for number in list(self._kernel.shards):
            await self._topics.load(number)
        for number in list(self._kernel.shards):
            await self._load_groups(number)

    async def claimed(self, shard: Shard) -> None:
        """A shard was claimed while others are served: its topics and groups, and where the known groups stand in it."""
        await self._topics.load(shard.id)
        await self._load_groups(shard.id)
        for (namespace, name), reader in list(self._groups.items()):
            if shard.id in reader.cursors or reader.config is None:
                continue
            stored = await self._kernel.store.get_register(shard.id, names.position(namespace, name))
            standing = names.decode(stored, Standing) if stored else None
            shard.check()
            cursor = Cursor(shard.id, 1)
            if standing is not None and standing.born == reader.config.born:
                cursor.restore(standing)
            reader.cursors[shard.id] = cursor
        for reader in list(self._active):  # who consumes begins again, with the new shard
            reader.end(ShardMoved(f"shard {shard.id} has come to this orchestrator", {"shard": shard.id}))

    async def _load_groups(self, shard: int) -> None:
        """Those whose home is that shard."""
        async for name, data in registers(self._kernel, shard, names.GROUPS):
            namespace, group = names.parts_of(name)
            config = names.decode(data, GroupConfig)
            cursors = {number: Cursor(number, 1) for number in self._kernel.shards}
            seen: list[int] = []
            for number, stored in await self._kernel.store.find_register(names.position(namespace, group)):
                standing = names.decode(stored, Standing)
                if standing.born == config.born and number in cursors:
                    cursors[number].restore(standing)
                    seen.append(standing.at)
            reader = self._reader(config.where(namespace), group, config, cursors)
            reader.seen_at = max(seen, default=config.born)
            self._groups[namespace, group] = reader

    def left(self, shard: Shard) -> None:
        """The shard is not owned here any more. Who consumes is sent away: it begins again with its owners of now."""
        for reader in {*self._groups.values(), *self._active}:
            reader.left(shard)

    def stop(self, error: SPIError) -> None:
        """The last word to all consumers."""
        if self._ended is None:
            self._ended = error if isinstance(error, Coded) else Unavailable(str(error))
        for member in list(self._joining):
            member.tell(error)
        for reader in list(self._active):
            reader.end(error)

    async def close(self) -> None:
        """After `stop`: nothing of it runs any more."""
        for reader in self._groups.values():
            await reader.stop()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def on_durable(self, entities: Sequence[tuple[Entity, int]]) -> None:
        """Events have become durable: tell the readers of their shards."""
        if not self._active:
            return
        touched: dict[int, set[tuple[str, str]]] = {}
        for entity, _ in entities:
            key = entity.key
            topic = "" if is_stream(key.workflow_type) else key.workflow_type  # a stream's events name their topics
            touched.setdefault(entity.shard.id, set()).add((key.namespace, topic))
        for shard, kinds in touched.items():
            head = self._kernel.shards[shard].durable
            before = self._heads.get(shard, 0)
            self._heads[shard] = head
            for reader in list(self._active):
                concerns = any(_concerns(reader.where, *kind) for kind in kinds)
                reader.on_commit(shard, before, head, concerns=concerns)

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
        groups = [reader for (of, _), reader in sorted(self._groups.items()) if of == namespace]
        return await status_of(self._kernel, found, groups)

    # ---- consumers

    def consume(self, request: Consume, listener: ConsumeListener) -> Consumer:
        if self._ended is not None:
            raise self._ended
        if not self._kernel.owns_all:
            raise Unavailable(
                "subscriptions need an orchestrator that owns all shards: those of several are not joined yet",
                {"owned": len(self._kernel.shards)},
            )
        check_consume(request)
        reader = self._reader_for(request)
        member = Member(reader, request, listener)
        self._joining[member] = None
        self._spawn(self._begin(member, reader))
        return member

    def _reader_for(self, request: Consume) -> Reader:
        where, name = request.filter, request.group
        if not name:
            return self._reader(where, "", None, self._beginnings(request))
        known = self._groups.get((where.namespace, name))
        if known is not None:
            if known.where != where or known.is_projection != request.projection:
                what = "a projection" if known.is_projection else "a group"
                raise InvalidTransition(
                    f"{name!r} is {what} with another filter, or of another kind",
                    {"group": name, "current_state": _words(known.where), "required_state": _words(where)},
                )
            return known
        self._check_room(where, name)
        config = GroupConfig(self._kernel.now(), where.topics, where.event_types, request.projection)
        reader = self._reader(where, name, config, self._beginnings(request))
        self._groups[where.namespace, name] = reader
        home = self._kernel.shard_of(names.home("group", where.namespace, name))
        home.put(names.group_config(where.namespace, name), names.encode(config))
        for cursor in reader.cursors.values():
            cursor.saved = cursor.next if cursor.next > 1 else 0
            reader.write(cursor)
        return reader

    def _check_room(self, where: Filter, name: str) -> None:
        """Groups are kept in memory, and told in one message."""
        positions = 16 * len(self._kernel.shards)
        size = size_of_group(name, where) + positions
        size += sum(known.size + positions for known in self._groups.values())
        if len(self._groups) >= MAX_GROUPS or size > MAX_GROUP_BYTES:
            raise Overloaded(f"there are {len(self._groups):,} groups: no room for another one", {"group": name})

    def _beginnings(self, request: Consume) -> dict[int, Cursor]:
        """Where a new reader begins. Of what was cut before he came he is not told."""
        cursors = {}
        for number, shard in self._kernel.shards.items():
            given = request.positions.get(number)
            first = 1 if request.start == "earliest" else shard.durable
            cursor = cursors[number] = Cursor(number, first if given is None else max(1, given))
            if given is None or request.group:
                cursor.told = self._kernel.now()
                cursor.cuts = shard.cuts
        return cursors

    def _reader(
        self, where: Filter, name: str, config: GroupConfig | None, cursors: dict[int, Cursor]
    ) -> Reader:  # fmt: skip
        return Reader(self._kernel, self._log, where, name, config, cursors, self._idle)

    def _idle(self, reader: Reader) -> None:
        self._active.pop(reader, None)

    async def _begin(self, member: Member, reader: Reader) -> None:
        try:
            error = await self._ready(reader)
        except SPIError as failed:
            error = failed
        del self._joining[member]
        if error is None and reader.config is not None and self._groups.get(_name_of(reader)) is not reader:
            error = UnknownGroup(f"group {reader.name!r} was deleted")
        if error is not None:
            member.tell(error)
        if member.is_over:
            return
        member.tell(reader.begun())
        if not self._active:
            self._heads = {shard.id: shard.durable for shard in self._kernel.shards.values()}
        self._active[reader] = None
        reader.join(member)

    async def _ready(self, reader: Reader) -> SPIError | None:
        """A new group is durable before it begins; who goes on is told of what was cut meanwhile."""
        if reader.config is not None:
            await self._kernel.lane.durable()
        errors: list[OutOfRange] = []
        for cursor in reader.cursors.values():
            cuts = self._kernel.shards[cursor.shard].cuts
            if cuts != cursor.cuts and cursor.owner is None:
                error = await reader.lost(cursor)
                cursor.cuts = cuts
                if error is not None:
                    errors.append(error)
        return errors[0] if errors else None

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _readers(self, namespace: str, name: str) -> list[Reader]:
        """Who reads under that name: the group, or (no name) all that read for themselves now."""
        if name:
            known = self._groups.get((namespace, name))
            return [known] if known is not None else []
        return [one for one in self._active if one.config is None and one.where.namespace == namespace]

    # ---- groups

    async def list_groups(self, namespace: str) -> Sequence[GroupView]:
        await self._kernel.lane.durable()
        readers = [reader for (of, _), reader in sorted(self._groups.items()) if of == namespace]
        return [view_of(self._kernel, reader, await self._dead.count(namespace, reader.name)) for reader in readers]

    async def delete_group(self, namespace: str, name: str) -> bool:
        check_names(namespace, name)
        reader = self._groups.get((namespace, name))
        if reader is None:
            return False
        if reader.members or any(member.reader is reader for member in self._joining):
            raise InvalidTransition(
                f"group {name!r} is in use: end its subscriptions first (members: {len(reader.members)})",
                {"group": name, "current_state": "has members", "required_state": "no members"},
            )
        del self._groups[namespace, name]
        self._kernel.shard_of(names.home("group", namespace, name)).put(names.group_config(namespace, name), b"")
        for shard in self._kernel.shards.values():
            shard.put(names.position(namespace, name), b"")
        self._kernel.lane.mark()
        await self._kernel.lane.durable()
        await self._dead.discard(namespace, name)
        if reader.is_projection:
            await self._projections.forget(namespace, name)
        return True

    def held(self, shard: int, key: RunKey) -> int | None:
        """The first offset of a shard that a group or a projection may still have to read of that run; None when nobody
        needs anything. Who is too far behind, or was not seen for too long, holds nothing (`events.status`)."""
        return held_by(self._kernel, self._groups.values(), shard, key)

    # ---- dead letters

    async def list_dead_letters(self, namespace: str, group: str, limit: int = 100) -> Sequence[DeadLetter]:
        check_names(namespace, group, needed=False)
        return await self._dead.letters(namespace, group, limit)

    async def requeue_dead_letters(self, namespace: str, group: str, positions: Sequence[Position] = ()) -> int:
        check_names(namespace, group, needed=False)
        return await self._dead.requeue(namespace, group, positions)

    async def discard_dead_letters(self, namespace: str, group: str, positions: Sequence[Position] = ()) -> int:
        check_names(namespace, group, needed=False)
        return await self._dead.discard(namespace, group, positions)

    # ---- topics

    async def create_topic(self, namespace: str, name: str, partitions: int) -> bool:
        check_names(namespace, name)
        if name.startswith("$"):
            raise InvalidArgument(f"{name!r} is no name of a topic", field="name")
        created = self._topics.create(namespace, name, partitions)
        await self._kernel.lane.durable()
        return created

    async def delete_topic(self, namespace: str, name: str) -> bool:
        check_names(namespace, name)
        deleted = self._topics.delete(namespace, name)
        if deleted:
            error = UnknownTopic(f"topic {name!r} was deleted", {"topic": name})
            for reader in list(self._active):
                if reader.where.namespace == namespace and name in reader.where.topics:
                    reader.end(error)
        await self._kernel.lane.durable()
        return deleted

    async def list_topics(self, namespace: str) -> Sequence[TopicView]:
        await self._kernel.lane.durable()
        return self._topics.views(namespace)

    # ---- projections

    async def save_projection(
        self, namespace: str, name: str, shard: int, expected: int, offset: int, states: dict[RunKey, Payload]
    ) -> None:
        await self._projections.save(namespace, name, shard, expected, offset, states)

    async def load_projection(self, namespace: str, name: str, key: RunKey) -> ProjectionState:
        return await self._projections.load(namespace, name, key)

    async def reset_projection(self, namespace: str, name: str) -> None:
        await self._projections.reset(namespace, name)


def _name_of(reader: Reader) -> tuple[str, str]:
    return reader.where.namespace, reader.name


def _concerns(where: Filter, namespace: str, topic: str) -> bool:
    return where.namespace == namespace and (not where.topics or not topic or topic in where.topics)


def _words(where: Filter) -> str:
    return f"topics {', '.join(where.topics) or '*'}; types {', '.join(where.event_types) or '*'}"
