"""The groups of one orchestrator: those whose home is here, and those of other homes that are read here.

What a group is (`names.GroupConfig`) is kept in its home; an orchestrator that does not own it reads it from the store
when somebody joins. Where the group stands is kept shard by shard, by their owners.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Final

from onexflow.core.errors import InvalidTransition, Overloaded, ShardMoved, Unavailable, UnknownGroup
from onexflow.engine.events import names
from onexflow.engine.events.checks import MAX_GROUP_BYTES, MAX_GROUPS, size_of_group
from onexflow.engine.events.cursor import Cursor
from onexflow.engine.events.homes import Homes
from onexflow.engine.events.log import Log
from onexflow.engine.events.names import GroupConfig, Standing
from onexflow.engine.events.reader import Reader
from onexflow.engine.events.registers import registers
from onexflow.engine.kernel import Kernel
from onexflow.engine.shard import Shard
from onexflow.ports.events import Consume, Filter

#: Seconds in which a new group must have come to be in its home, and those between looks.
CREATED_WITHIN: Final = 10.0
LOOK_SECONDS: Final = 0.05


class Groups:
    """Each with its reader, by namespace and name."""

    def __init__(
        self,
        kernel: Kernel,
        log: Log,
        homes: Homes,
        on_idle: Callable[[Reader], None],
        forget_states: Callable[[str, str], None],
    ) -> None:
        """`on_idle` hears of a reader whose last member has left, `forget_states` of a projection that is gone."""
        self._kernel = kernel
        self._log = log
        self._homes = homes
        self._on_idle = on_idle
        self._forget_states = forget_states
        self._loop = asyncio.get_running_loop()
        self._groups: dict[tuple[str, str], Reader] = {}
        #: Held while cursors are made, so that none is made twice.
        self._entering = asyncio.Lock()

    def __iter__(self) -> Iterator[Reader]:
        return iter(self._groups.values())

    def get(self, namespace: str, name: str) -> Reader | None:
        """As it is known here; `find` looks at its home."""
        return self._groups.get((namespace, name))

    def of(self, namespace: str) -> list[Reader]:
        return [reader for (of, _), reader in sorted(self._groups.items()) if of == namespace]

    # ---- a shard comes

    async def load(self, shard: Shard) -> None:
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

    async def load_standings(self, shard: Shard) -> None:
        """Where the groups stand in a shard that was claimed: who reads here goes on with it."""
        async for register, data in registers(self._kernel, shard.id, names.POSITIONS):
            reader = await self.find(*names.parts_of(register))
            shard.check()
            standing = names.decode(data, Standing)
            if reader is not None and shard.id not in reader.cursors and _born(reader) == standing.born:
                cursor = Cursor(shard.id, 1)
                cursor.restore(standing)
                reader.gained(cursor)

    def _keep(self, namespace: str, group: str, reader: Reader) -> None:
        """From now on this is the group of that name; who reads in one that it was before is sent away."""
        before = self._groups.get((namespace, group))
        self._groups[namespace, group] = reader
        if before is not None:
            before.end(UnknownGroup(f"group {group!r} was deleted, and made anew"))

    # ---- a consumer comes

    def known_or_new(self, request: Consume) -> Reader:
        """The group, which is kept here; a new one if there is none."""
        where, name = request.filter, request.group
        known = self._groups.get((where.namespace, name))
        if known is not None:
            return _same(known, request)
        self._check_room(where, name)
        config = GroupConfig(self._kernel.now(), where.topics, where.event_types, request.projection)
        reader = self._reader(where, name, config, beginnings(self._kernel, request))
        self._groups[where.namespace, name] = reader
        home = self._kernel.shard_of(names.home("group", where.namespace, name))
        home.put(names.group_config(where.namespace, name), names.encode(config))
        for cursor in reader.cursors.values():
            reader.standings.begin(cursor)
        return reader

    async def enter(self, request: Consume) -> Reader:
        """The group, which another orchestrator keeps, or did a moment ago. A new one comes to be there: its consumer joins
        all orchestrators."""
        namespace, name = request.filter.namespace, request.group
        end = self._loop.time() + CREATED_WITHIN
        while True:
            try:
                await self._homes.wait_known("group", namespace, name)
            except ShardMoved:
                if (reader := await self.find(namespace, name)) is not None:
                    return _same(reader, request)
            else:
                return self.known_or_new(request)
            if self._loop.time() > end:
                raise Unavailable(f"group {name!r} has not come to be: the orchestrator that keeps it does not answer")
            await asyncio.sleep(LOOK_SECONDS)

    async def find(self, namespace: str, name: str) -> Reader | None:
        """The group of that name, as its home has it; None when there is none."""
        if self._homes.is_known("group", namespace, name):
            return self._groups.get((namespace, name))
        number = self._kernel.number_of(names.home("group", namespace, name))
        data = await self._kernel.store.get_register(number, names.group_config(namespace, name))
        config = names.decode(data, GroupConfig) if data else None
        if self._homes.is_known("group", namespace, name):  # it has come here meanwhile
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

    def _forget(self, namespace: str, name: str, reader: Reader) -> None:
        """It is gone from its home: what it has here counts no more."""
        for number in reader.cursors:
            self._kernel.shards[number].put(names.position(namespace, name), b"")
        self._kernel.lane.mark()
        if reader.is_projection:
            self._forget_states(namespace, name)

    async def enter_shards(self, reader: Reader, request: Consume) -> None:
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
                    cursor = beginning(self._kernel, shard, request)
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

    # ---- and goes

    def remove(self, namespace: str, name: str) -> None:
        """A group whose home is here is no more, with the next append."""
        del self._groups[namespace, name]
        self._kernel.shard_of(names.home("group", namespace, name)).put(names.group_config(namespace, name), b"")
        for shard in self._kernel.shards.values():
            shard.put(names.position(namespace, name), b"")
        self._kernel.lane.mark()

    def _reader(self, where: Filter, name: str, config: GroupConfig, cursors: dict[int, Cursor]) -> Reader:
        return Reader(self._kernel, self._log, where, name, config, cursors, self._on_idle)


def beginnings(kernel: Kernel, request: Consume) -> dict[int, Cursor]:
    """Where a new reader begins."""
    return {number: beginning(kernel, shard, request) for number, shard in kernel.shards.items()}


def beginning(kernel: Kernel, shard: Shard, request: Consume) -> Cursor:
    """Where it begins in one shard. Of what was cut before he came he is not told."""
    given = request.positions.get(shard.id)
    first = 1 if request.start == "earliest" else shard.durable
    cursor = Cursor(shard.id, first if given is None else max(1, given))
    if given is None or request.group:
        cursor.told = kernel.now()
        cursor.cuts = shard.cuts
    return cursor


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


def _words(where: Filter) -> str:
    return f"topics {', '.join(where.topics) or '*'}; types {', '.join(where.event_types) or '*'}"
