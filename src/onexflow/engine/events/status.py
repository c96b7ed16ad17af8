"""What can be said of groups and of events that they read."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from onexflow.core.ids import RunKey
from onexflow.core.turn import SECOND
from onexflow.engine.events import names
from onexflow.engine.events.dead import DeadLetters
from onexflow.engine.events.groups import Groups
from onexflow.engine.events.log import Located
from onexflow.engine.events.names import GroupConfig, Standing
from onexflow.engine.events.reader import Reader
from onexflow.engine.events.registers import registers
from onexflow.engine.kernel import Kernel
from onexflow.engine.stream import is_stream
from onexflow.ports.events import EventStatus, GroupView, Position

#: A group or projection that is further behind in a shard, or has dealt with nothing for so long, no longer holds back
#: the cleaning of histories: it will be told OutOfRange.
HELD_EVENTS: Final = 1_000_000
HELD_SECONDS: Final = 7 * 86_400


async def views_of(kernel: Kernel, groups: Groups, dead: DeadLetters, namespace: str) -> list[GroupView]:
    """The groups of a namespace: all of them; of several orchestrators who reads, what is not answered, and dead letters,
    here alone."""
    await kernel.lane.durable()
    if kernel.is_shared:
        return await _shared_views(kernel, groups, dead, namespace)
    return [_view(kernel, reader, await dead.count(namespace, reader.name)) for reader in groups.of(namespace)]


async def _shared_views(kernel: Kernel, groups: Groups, dead: DeadLetters, namespace: str) -> list[GroupView]:
    """The groups as the store has them."""
    heads = await kernel.store.heads()
    views = []
    for name, config in sorted(await _stored_groups(kernel, namespace)):
        found = await kernel.store.find_register(names.position(namespace, name))
        standings = {number: names.decode(stored, Standing) for number, stored in found}
        letters = await dead.count(namespace, name)
        known = groups.get(namespace, name)
        views.append(_stored_view(namespace, name, config, standings, heads, letters, known))
    return views


async def _stored_groups(kernel: Kernel, namespace: str) -> list[tuple[str, GroupConfig]]:
    async def of(shard: int) -> list[tuple[str, GroupConfig]]:
        prefix = names.group_config(namespace, "")
        return [
            (names.parts_of(register)[1], names.decode(data, GroupConfig))
            async for register, data in registers(kernel, shard, prefix)
        ]

    shards = await asyncio.gather(*(of(shard) for shard in range(kernel.store.shards)))
    return [group for groups in shards for group in groups]


def _view(kernel: Kernel, reader: Reader, dead_letters: int) -> GroupView:
    lows = {shard: _low(reader, shard) for shard in reader.cursors}
    return GroupView(
        name=reader.name,
        filter=reader.where,
        projection=reader.is_projection,
        members=len(reader.members),
        positions=lows,
        lag=sum(max(0, kernel.shards[shard].durable - low) for shard, low in lows.items()),
        unanswered=sum(cursor.out for cursor in reader.cursors.values()),
        dead_letters=dead_letters,
    )


def _stored_view(
    namespace: str,
    name: str,
    config: GroupConfig,
    standings: Mapping[int, Standing],
    heads: Mapping[int, int],
    dead_letters: int,
    here: Reader | None,
) -> GroupView:
    """A group as the store has it, and who reads of it here."""
    lows = {
        shard: max(1, standing.next)
        if config.projection
        else min((at for at, _ in standing.open), default=standing.next)
        for shard, standing in standings.items()
        if standing.born == config.born
    }
    return GroupView(
        name=name,
        filter=config.where(namespace),
        projection=config.projection,
        members=len(here.members) if here is not None else 0,
        positions=lows,
        lag=sum(max(0, heads[shard] - low) for shard, low in lows.items()),
        unanswered=sum(cursor.out for cursor in here.cursors.values()) if here is not None else 0,
        dead_letters=dead_letters,
    )


def _low(reader: Reader, shard: int) -> int:
    cursor = reader.cursors[shard]
    return max(1, cursor.saved) if reader.is_projection else cursor.low


async def status_of(kernel: Kernel, found: tuple[int, Located], groups: Sequence[Reader]) -> EventStatus:
    """What the groups have made of a published event, which stands in that shard."""
    shard, located = found
    offset = located.offset
    said: dict[str, list[str]] = {"acknowledged": [], "pending": [], "dead": []}
    for reader in groups:
        cursor = reader.cursors.get(shard)
        where = reader.where
        if cursor is None:
            continue
        if where.topics and located.topic not in where.topics:
            continue
        if (where.event_types and located.event.type not in where.event_types) or offset < cursor.begins:
            continue
        dead = names.dead_letter(where.namespace, reader.name, offset)
        if await kernel.owned(shard).register(kernel.store, dead) is not None:
            said["dead"].append(reader.name)
        elif offset < _low(reader, shard) or (not reader.is_projection and _is_done(reader, shard, offset)):
            said["acknowledged"].append(reader.name)
        else:
            said["pending"].append(reader.name)
    await kernel.lane.durable()
    return EventStatus(
        event=located.event,
        position=Position(shard, offset),
        topic=located.topic,
        partition=located.partition,
        acknowledged=tuple(said["acknowledged"]),
        pending=tuple(said["pending"]),
        dead=tuple(said["dead"]),
    )


def _is_done(reader: Reader, shard: int, offset: int) -> bool:
    cursor = reader.cursors[shard]
    return offset in cursor.ahead or (offset < cursor.next and offset not in cursor.open)


def held_by(kernel: Kernel, groups: Iterable[Reader], shard: int, key: RunKey) -> int | None:
    """See `EventBook.held`. `key` is that of a run, or of a stream's entity (`engine.stream.stream_key`)."""
    external = is_stream(key.workflow_type)  # its events may stand in any topic
    head = kernel.shards[shard].durable
    now = kernel.now()
    lows = []
    for reader in groups:
        where = reader.where
        if where.namespace != key.namespace or (
            where.topics and not external and key.workflow_type not in where.topics
        ):
            continue
        if shard not in reader.cursors:
            continue
        low = _low(reader, shard)
        seen = now if reader.members else reader.standings.seen_at
        if low < head and head - low <= HELD_EVENTS and now - seen <= HELD_SECONDS * SECOND:
            lows.append(low)
    return min(lows, default=None)
