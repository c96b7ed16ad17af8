"""How consumers come: each becomes a member of the reader it asks for, once that has begun and is durable."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

import structlog

from onexflow.core.errors import Coded, InternalError, OutOfRange, ShardMoved, Unavailable, UnknownGroup
from onexflow.engine.events.audience import Audience
from onexflow.engine.events.checks import check_consume
from onexflow.engine.events.groups import Groups, beginning, beginnings
from onexflow.engine.events.homes import Homes
from onexflow.engine.events.log import Log
from onexflow.engine.events.member import Member
from onexflow.engine.events.reader import Reader
from onexflow.engine.kernel import Kernel
from onexflow.engine.shard import Shard
from onexflow.ports.events import Consume, ConsumeListener
from onexflow.spi.exceptions import SPIError

log = structlog.get_logger("onexflow.events")


class Consumers:
    """Those of one orchestrator, until they have joined."""

    def __init__(
        self,
        kernel: Kernel,
        events: Log,
        homes: Homes,
        groups: Groups,
        audience: Audience,
        spawn: Callable[[Coroutine[Any, Any, None]], None],
    ) -> None:
        self._kernel = kernel
        self._log = events
        self._homes = homes
        self._groups = groups
        self._audience = audience
        self._spawn = spawn
        self._joining: dict[Member, None] = {}
        self._ended: Coded | None = None

    def begin(self, request: Consume, listener: ConsumeListener) -> Member:
        """See `EventService.consume`. Once it has begun, it is told where."""
        if self._ended is not None:
            raise self._ended
        check_consume(request)
        member = Member(request, listener)
        where, reader = request.filter, None
        if not request.group:
            cursors = beginnings(self._kernel, request)
            reader = Reader(self._kernel, self._log, where, "", None, cursors, self._audience.remove)
        elif self._homes.is_known("group", where.namespace, request.group):
            reader = self._groups.known_or_new(request)
        self._joining[member] = None
        self._spawn(self._begin(member, reader))
        return member

    def is_joining(self, namespace: str, group: str) -> bool:
        """Is a consumer of that group on its way in?"""
        return any((one.request.filter.namespace, one.request.group) == (namespace, group) for one in self._joining)

    async def claimed(self, shard: Shard) -> None:
        """A shard has come: who is here already reads in it too, or must say where he goes on."""
        self._audience.claimed(shard)
        for reader in self._audience:
            if shard.id in reader.cursors or not reader.members:
                continue
            if reader.config is None:  # where he goes on, who reads for himself must say
                reader.end(ShardMoved(f"shard {shard.id} has come to this orchestrator", {"shard": shard.id}))
            else:
                await self._groups.enter_shards(reader, reader.members[0].request)

    def stop(self, error: SPIError) -> None:
        """The last word to all consumers."""
        if self._ended is None:
            self._ended = error if isinstance(error, Coded) else Unavailable(str(error))
        for member in list(self._joining):
            member.tell(error)
        for reader in self._audience:
            reader.end(error)

    async def _begin(self, member: Member, reader: Reader | None) -> None:
        error: SPIError | None = None
        try:
            if reader is None:
                reader = await self._groups.enter(member.request)
            while True:
                if reader.config is not None:
                    await self._groups.enter_shards(reader, member.request)
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
        if error is None and reader is not None and self._is_gone(reader):
            error = UnknownGroup(f"group {reader.name!r} was deleted")
        if error is not None:
            member.tell(error)
        if member.is_over or reader is None:
            return
        member.reader = reader
        member.tell(reader.begun())
        self._audience.add(reader)
        reader.join(member)

    def _is_gone(self, reader: Reader) -> bool:
        """Is it a group that was deleted meanwhile?"""
        return reader.config is not None and self._groups.get(reader.where.namespace, reader.name) is not reader

    def _own_shards(self, reader: Reader, request: Consume) -> None:
        """One that reads for himself has no part in what comes and goes before he has begun."""
        for number in reader.cursors.keys() - self._kernel.shards.keys():
            del reader.cursors[number]
        for number, shard in self._kernel.shards.items():
            if number not in reader.cursors:
                reader.cursors[number] = beginning(self._kernel, shard, request)

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
