"""Where a reader stands, as it is written: for a group, its place in each of its shards."""

from __future__ import annotations

import asyncio

import msgspec

from onexflow.engine.events import names
from onexflow.engine.events.cursor import Cursor
from onexflow.engine.events.names import GroupConfig
from onexflow.engine.kernel import Kernel
from onexflow.engine.shard import Shard
from onexflow.ports.events import Done, Filter


class Standings:
    """What a group is and where it stands is written with the next append, all that is said in one turn of the loop
    together. `config` None: a consumer for itself, of whom nothing is written."""

    def __init__(self, kernel: Kernel, where: Filter, name: str, config: GroupConfig | None) -> None:
        self.config = config
        #: Store time of the last sign of life, as far as it is stored.
        self.seen_at = config.born if config is not None else 0
        self._kernel = kernel
        self._where = where
        self._name = name
        self._loop = asyncio.get_running_loop()
        self._dirty: dict[int, Cursor] = {}
        self._dones: list[Done] = []
        self._flushing = False

    @property
    def is_projection(self) -> bool:
        return self.config is not None and self.config.projection

    @property
    def is_group(self) -> bool:
        """Its positions are stored as they are acknowledged."""
        return self.config is not None and not self.config.projection

    # ---- with the next append

    def changed(self, cursor: Cursor) -> None:
        if self.is_group:
            self._dirty[cursor.shard] = cursor
            self._soon()

    def when_written(self, done: Done | None) -> None:
        """Say `done` when what was changed so far is durable; at once when nothing of it is written."""
        if done is None:
            return
        if self.is_group:
            self._dones.append(done)
            self._soon()
        else:
            done(None)

    def _soon(self) -> None:
        """What is said in one turn of the loop is written together."""
        if not self._flushing:
            self._flushing = True
            self._loop.call_soon(self.flush)

    def flush(self) -> None:
        """Write now what has changed."""
        self._flushing = False
        dirty, self._dirty = self._dirty, {}
        dones, self._dones = self._dones, []
        for cursor in dirty.values():
            self.write(cursor)
        for done in dones:
            self._kernel.lane.when_durable(done)

    def left(self, shard: Shard) -> None:
        """The shard is not owned here any more: what is said and not written yet has to be said to its next owner."""
        if self._dirty.pop(shard.id, None) is not None:
            dones, self._dones = self._dones, []
            for done in dones:
                done(shard.moved)

    # ---- at once

    def write(self, cursor: Cursor) -> None:
        """Write where the group stands with the next append."""
        assert self.config is not None, "a consumer for itself has no positions"
        standing = cursor.standing(self.config.born, self._kernel.now())
        if self.is_projection:
            standing = msgspec.structs.replace(standing, next=cursor.saved, open=[])
        cursor.written = cursor.next
        self.seen_at = standing.at
        self._kernel.shards[cursor.shard].put(
            names.position(self._where.namespace, self._name), names.encode(standing)
        )  # fmt: skip
        self._kernel.lane.mark()

    def begin(self, cursor: Cursor) -> None:
        """Write where a group begins that was never in this shard."""
        cursor.saved = cursor.next if cursor.next > 1 else 0
        self.write(cursor)
