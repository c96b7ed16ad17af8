"""The event bus of one orchestrator (`ports.events.EventService`): who publishes, who reads, and what is kept of it.

Of several orchestrators each reads the shards that it owns, and `engine.events.cluster` joins the parts. What a group is
(`names.GroupConfig`) is kept in its home, a shard that one of them owns; the others read it from the store when somebody
joins. Where the group stands is kept shard by shard, by their owners.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Final
from uuid import UUID

import structlog

from onexflow.core.errors import (
    Coded,
    InternalError,
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
from onexflow.engine.events.status import held_by, status_of, stored_view, view_of
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

log = structlog.get_logger("onexflow.events")

#: Seconds in which a new group must have come to be in its home, and those between looks.
CREATED_WITHIN: Final = 10.0
LOOK_SECONDS: Final = 0.05


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
        self._projections = Projections(kernel, self._groups, self._find_reader, self._home)
        self._loop = asyncio.get_running_loop()
        #: Readers that have members: who must hear of new events.
        self._active: dict[Reader, None] = {}
        self._heads: dict[int, int] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._joining: dict[Member, None] = {}
        self._ended: Coded | None = None
        #: Set for a shard whose topics and groups are known.
        self._known: dict[Shard, asyncio.Event] = {}
        #: Held while cursors are made, so that none is made twice.
        self._entering = asyncio.Lock()

    # ---- life

    async def start(self) -> None:
        """Know the topics and groups. After the shards are claimed, before anybody is served."""
        for shard in list(self._kernel.shards.values()):
            await self._topics.load(shard.id)
        for shard in list(self._kernel.shards.values()):
            await self._load_groups(shard)
        for shard in list(self._kernel.shards.values()):
            self._gate(shard).set()

    async def claimed(self, shard: Shard) -> None:
        """A shard was claimed while others are served: its topics and groups, and where the groups stand in it. Who reads
        here goes on with it."""
        await self._topics.load(shard.id)
        await self._load_groups(shard)
        async for register, data in registers(self._kernel, shard.id, names.POSITIONS):
            reader = await self._find_reader(*names.parts_of(register))
            shard.check()
            standing = names.decode(data, Standing)
            if reader is not None and shard.id not in reader.cursors and _born(reader) == standing.born:
                cursor = Cursor(shard.id, 1)
                cursor.restore(standing)
                reader.gained(cursor)
        shard.check()
        self._gate(shard).set()
        self._heads[shard.id] = shard.durable
        for reader in list(self._active):
            if shard.id in reader.cursors or not reader.members:
                continue
            if reader.config is None:  # where he goes on, who reads for himself must say
                reader.end(ShardMoved(f"shard {shard.id} has come to this orchestrator", {"shard": shard.id}))
            else:
                await self._enter_shards(reader, reader.members[0].request)

    async def _load_groups(self, shard: Shard) -> None:
        """Those whose home is that shard, and where they stand in the shards that were there before it."""
        async for register, data in registers(self._kernel, shard.id, names.GROUPS):
            namespace, group = names.parts_of(register)
            config = names.decode(data, GroupConfig)
            shard.check()
            known = self._groups.get((namespace, group))
            if known is not None and _born(known) == config.born:
                continue
            reader = self._reader(config.where(namespace), group, config, {})
            seen: list[int] = []
            for number, stored in await self._kernel.store.find_register(names.position(namespace, group)):
                standing = names.decode(stored, Standing)
                if standing.born == config.born and number in self._kernel.shards:
                    reader.cursors[number] = cursor = Cursor(number, 1)
                    cursor.restore(standing)
                    seen.append(standing.at)
            if not self._kernel.is_shared:
                for number in self._kernel.shards:
                    reader.cursors.setdefault(number, Cursor(number, 1))
            reader.standings.seen_at = max(seen, default=config.born)
            self._keep(namespace, group, reader)

    def _keep(self, namespace: str, group: str, reader: Reader) -> None:
        """From now on this is the group of that name; who reads in one that it was before is sent away."""
        before = self._groups.get((namespace, group))
        self._groups[namespace, group] = reader
        if before is not None:
            before.end(UnknownGroup(f"group {group!r} was deleted, and made anew"))

    def _gate(self, shard: Shard) -> asyncio.Event:
        return self._known.setdefault(shard, asyncio.Event())

    async def _home(self, kind: str, namespace: str, name: str) -> Shard:
        """The shard that keeps the group or topic, once it is known what it keeps. Raises ShardMoved."""
        shard = self._kernel.shard_of(names.home(kind, namespace, name))
        await self._gate(shard).wait()
        shard.check()
        return shard

    def left(self, shard: Shard) -> None:
        """The shard is not owned here any more."""
        self._gate(shard).set()  # who waits sees that it has gone
        del self._known[shard]
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
            head = self._kernel.owned(shard).durable
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
        self._kernel.owned(found[0])
        groups = [reader for (of, _), reader in sorted(self._groups.items()) if of == namespace]
        return await status_of(self._kernel, found, groups)

    # ---- consumers

    def consume(self, request: Consume, listener: ConsumeListener) -> Consumer:
        """Of several orchestrators: the part of this one, with the shards that it owns, as they come and go."""
        if self._ended is not None:
            raise self._ended
        check_consume(request)
        member = Member(request, listener)
        reader: Reader | None = None
        if not request.group:
            reader = self._reader(request.filter, "", None, self._beginnings(request))
        elif self._is_home(request):
            reader = self._reader_for(request)
        self._joining[member] = None
        self._spawn(self._begin(member, reader))
        return member

    def _is_home(self, request: Consume) -> bool:
        """Is the group kept here, and is it known what is kept?"""
        number = self._kernel.number_of(names.home("group", request.filter.namespace, request.group))
        shard = self._kernel.shards.get(number)
        return shard is not None and self._gate(shard).is_set()

    def _reader_for(self, request: Consume) -> Reader:
        """The group, which is kept here; a new one if there is none."""
        where, name = request.filter, request.group
        known = self._groups.get((where.namespace, name))
        if known is not None:
            return _same(known, request)
        self._check_room(where, name)
        config = GroupConfig(self._kernel.now(), where.topics, where.event_types, request.projection)
        reader = self._reader(where, name, config, self._beginnings(request))
        self._groups[where.namespace, name] = reader
        home = self._kernel.shard_of(names.home("group", where.namespace, name))
        home.put(names.group_config(where.namespace, name), names.encode(config))
        for cursor in reader.cursors.values():
            reader.standings.begin(cursor)
        return reader

    async def _enter(self, request: Consume) -> Reader:
        """The group, which another orchestrator keeps, or did a moment ago. A new one comes to be there: its consumer joins
        all orchestrators."""
        namespace, name = request.filter.namespace, request.group
        end = self._loop.time() + CREATED_WITHIN
        while True:
            try:
                await self._home("group", namespace, name)
            except ShardMoved:
                if (reader := await self._find_reader(namespace, name)) is not None:
                    return _same(reader, request)
            else:
                return self._reader_for(request)
            if self._loop.time() > end:
                raise Unavailable(f"group {name!r} has not come to be: the orchestrator that keeps it does not answer")
            await asyncio.sleep(LOOK_SECONDS)

    async def _find_reader(self, namespace: str, name: str) -> Reader | None:
        """The group of that name, as its home has it; None when there is none."""
        home = self._kernel.shards.get(self._kernel.number_of(names.home("group", namespace, name)))
        known = self._groups.get((namespace, name))
        if home is not None and self._gate(home).is_set():
            return known
        number = self._kernel.number_of(names.home("group", namespace, name))
        data = await self._kernel.store.get_register(number, names.group_config(namespace, name))
        config = names.decode(data, GroupConfig) if data else None
        if self._is_kept(namespace, name):  # it has come here meanwhile
            return self._groups.get((namespace, name))
        known = self._groups.get((namespace, name))
        if config is not None and known is not None and _born(known) >= config.born:
            return known
        if known is not None:
            del self._groups[namespace, name]
            known.end(UnknownGroup(f"group {name!r} was deleted"))
            self._forget(namespace, name, known)
        if config is None:
            return None
        reader = self._reader(config.where(namespace), name, config, {})
        self._groups[namespace, name] = reader
        return reader

    def _is_kept(self, namespace: str, name: str) -> bool:
        home = self._kernel.shards.get(self._kernel.number_of(names.home("group", namespace, name)))
        return home is not None and self._gate(home).is_set()

    def _forget(self, namespace: str, name: str, reader: Reader) -> None:
        """It is gone from its home: what it has here counts no more."""
        for number in reader.cursors:
            self._kernel.shards[number].put(names.position(namespace, name), b"")
        self._kernel.lane.mark()
        if reader.is_projection:
            self._spawn(self._projections.forget(namespace, name))

    async def _enter_shards(self, reader: Reader, request: Consume) -> None:
        """Know where the group stands in all shards that are owned here; it begins, durably, where it never was."""
        async with self._entering:
            for shard in list(self._kernel.shards.values()):
                if shard.id in reader.cursors or not self._has(shard):
                    continue
                name = names.position(reader.where.namespace, reader.name)
                stored = await shard.register(self._kernel.store, name)
                standing = names.decode(stored, Standing) if stored else None
                if not self._has(shard):
                    continue
                if standing is not None and standing.born == _born(reader):
                    cursor = Cursor(shard.id, 1)
                    cursor.restore(standing)
                else:
                    cursor = self._beginning(shard, request)
                    reader.standings.begin(cursor)
                    try:
                        await self._kernel.lane.durable(shard)
                    except ShardMoved:
                        continue
                if self._has(shard) and shard.id not in reader.cursors:
                    reader.gained(cursor)

    def _has(self, shard: Shard) -> bool:
        return self._kernel.shards.get(shard.id) is shard

    def _check_room(self, where: Filter, name: str) -> None:
        """Groups are kept in memory, and told in one message."""
        positions = 16 * len(self._kernel.shards)
        size = size_of_group(name, where) + positions
        size += sum(known.size + positions for known in self._groups.values())
        if len(self._groups) >= MAX_GROUPS or size > MAX_GROUP_BYTES:
            raise Overloaded(f"there are {len(self._groups):,} groups: no room for another one", {"group": name})

    def _beginnings(self, request: Consume) -> dict[int, Cursor]:
        """Where a new reader begins."""
        return {number: self._beginning(shard, request) for number, shard in self._kernel.shards.items()}

    def _beginning(self, shard: Shard, request: Consume) -> Cursor:
        """Where it begins in one shard. Of what was cut before he came he is not told."""
        given = request.positions.get(shard.id)
        first = 1 if request.start == "earliest" else shard.durable
        cursor = Cursor(shard.id, first if given is None else max(1, given))
        if given is None or request.group:
            cursor.told = self._kernel.now()
            cursor.cuts = shard.cuts
        return cursor

    def _reader(
        self, where: Filter, name: str, config: GroupConfig | None, cursors: dict[int, Cursor]
    ) -> Reader:  # fmt: skip
        return Reader(self._kernel, self._log, where, name, config, cursors, self._idle)

    def _idle(self, reader: Reader) -> None:
        self._active.pop(reader, None)

    async def _begin(self, member: Member, reader: Reader | None) -> None:
        error: SPIError | None = None
        try:
            if reader is None:
                reader = await self._enter(member.request)
            while True:
                if reader.config is not None:
                    await self._enter_shards(reader, member.request)
                error = await self._ready(reader)
                if reader.config is None:
                    self._own_shards(reader, member.request)
                if error is not None or self._kernel.shards.keys() == reader.cursors.keys():
                    break  # else shards have come meanwhile
        except SPIError as failed:
            error = failed
        except Exception as failed:
            log.exception("consumer.not_begun", group=member.request.group)
            error = InternalError(f"the consumer cannot begin: {failed!r}")
        del self._joining[member]
        is_gone = reader is not None and reader.config is not None and self._groups.get(_name_of(reader)) is not reader
        if error is None and reader is not None and is_gone:
            error = UnknownGroup(f"group {reader.name!r} was deleted")
        if error is not None:
            member.tell(error)
        if member.is_over or reader is None:
            return
        member.reader = reader
        member.tell(reader.begun())
        if not self._active:
            self._heads = {shard.id: shard.durable for shard in self._kernel.shards.values()}
        self._active[reader] = None
        reader.join(member)

    def _own_shards(self, reader: Reader, request: Consume) -> None:
        """One that reads for himself has no part in what comes and goes before he has begun."""
        for number in reader.cursors.keys() - self._kernel.shards.keys():
            del reader.cursors[number]
        for number, shard in self._kernel.shards.items():
            if number not in reader.cursors:
                reader.cursors[number] = self._beginning(shard, request)

    async def _ready(self, reader: Reader) -> SPIError | None:
        """A new group is durable before it begins; who goes on is told of what was cut meanwhile."""
        if reader.config is not None:
            await self._kernel.lane.durable()
        errors: list[OutOfRange] = []
        for cursor in list(reader.cursors.values()):
            shard = self._kernel.shards.get(cursor.shard)
            if shard is not None and shard.cuts != cursor.cuts and cursor.owner is None:
                cuts = shard.cuts
                error = await reader.lost(cursor)
                cursor.cuts = cuts
                if error is not None:
                    errors.append(error)
        if not errors:
            return None
        first = errors[0]  # each shard tells of its own but once, so this error speaks for all
        first.context["events"] = sum(error.context["events"] for error in errors)
        return first

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
        """Of several orchestrators: who reads, what is not answered, and dead letters, here alone."""
        await self._kernel.lane.durable()
        if self._kernel.is_shared:
            return await self._shared_groups(namespace)
        readers = [reader for (of, _), reader in sorted(self._groups.items()) if of == namespace]
        return [view_of(self._kernel, reader, await self._dead.count(namespace, reader.name)) for reader in readers]

    async def _shared_groups(self, namespace: str) -> list[GroupView]:
        """The groups as the store has them."""
        heads = await self._kernel.store.heads()
        views = []
        for name, config in sorted(await self._stored_groups(namespace)):
            found = await self._kernel.store.find_register(names.position(namespace, name))
            standings = {number: names.decode(stored, Standing) for number, stored in found}
            dead = await self._dead.count(namespace, name)
            known = self._groups.get((namespace, name))
            views.append(stored_view(namespace, name, config, standings, heads, dead, known))
        return views

    async def _stored_groups(self, namespace: str) -> list[tuple[str, GroupConfig]]:
        async def of(shard: int) -> list[tuple[str, GroupConfig]]:
            prefix = names.group_config(namespace, "")
            return [
                (names.parts_of(register)[1], names.decode(data, GroupConfig))
                async for register, data in registers(self._kernel, shard, prefix)
            ]

        shards = await asyncio.gather(*(of(shard) for shard in range(self._kernel.store.shards)))
        return [group for groups in shards for group in groups]

    async def delete_group(self, namespace: str, name: str) -> bool:
        """Of several orchestrators: that which keeps it. Every consumer of it has a part there."""
        check_names(namespace, name)
        await self._home("group", namespace, name)
        reader = self._groups.get((namespace, name))
        if reader is None:
            return False
        joining = any(_group_of(member) == (namespace, name) for member in self._joining)
        if reader.members or joining:
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
        if group and self._kernel.is_shared:
            await self._find_reader(namespace, group)
        return await self._dead.requeue(namespace, group, positions)

    async def discard_dead_letters(self, namespace: str, group: str, positions: Sequence[Position] = ()) -> int:
        check_names(namespace, group, needed=False)
        return await self._dead.discard(namespace, group, positions)

    # ---- topics

    async def create_topic(self, namespace: str, name: str, partitions: int) -> bool:
        check_names(namespace, name)
        if name.startswith("$"):
            raise InvalidArgument(f"{name!r} is no name of a topic", field="name")
        await self._home("topic", namespace, name)
        created = self._topics.create(namespace, name, partitions)
        await self._kernel.lane.durable()
        return created

    async def delete_topic(self, namespace: str, name: str) -> bool:
        check_names(namespace, name)
        await self._home("topic", namespace, name)
        deleted = await self._topics.delete(namespace, name)
        if deleted:
            error = UnknownTopic(f"topic {name!r} was deleted", {"topic": name})
            for reader in list(self._active):
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


def _name_of(reader: Reader) -> tuple[str, str]:
    return reader.where.namespace, reader.name


def _group_of(member: Member) -> tuple[str, str]:
    return member.request.filter.namespace, member.request.group


def _born(reader: Reader) -> int:
    return reader.config.born if reader.config is not None else 0


def _same(known: Reader, request: Consume) -> Reader:
    """The group, if it is what is asked for."""
    where, name = request.filter, request.group
    if known.where != where or known.is_projection != request.projection:
        what = "a projection" if known.is_projection else "a group"
        raise InvalidTransition(
            f"{name!r} is {what} with another filter, or of another kind",
            {"group": name, "current_state": _words(known.where), "required_state": _words(where)},
        )
    return known


def _concerns(where: Filter, namespace: str, topic: str) -> bool:
    return where.namespace == namespace and (not where.topics or not topic or topic in where.topics)


def _words(where: Filter) -> str:
    return f"topics {', '.join(where.topics) or '*'}; types {', '.join(where.event_types) or '*'}"
