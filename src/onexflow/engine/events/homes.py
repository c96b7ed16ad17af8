"""The homes of topics and groups: a register without a run has its place in one shard, which one orchestrator owns."""

from __future__ import annotations

import asyncio

from onexflow.engine.events import names
from onexflow.engine.kernel import Kernel
from onexflow.engine.shard import Shard


class Homes:
    """Which homes are here, and whether it is known yet what they keep: it is read after the shard is claimed."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        #: Set for a shard whose topics and groups are known.
        self._known: dict[Shard, asyncio.Event] = {}

    def known(self, shard: Shard) -> None:
        """From now on it is known what that shard keeps."""
        self._gate(shard).set()

    def left(self, shard: Shard) -> None:
        """The shard is not owned here any more."""
        self._gate(shard).set()  # who waits sees that it has gone
        del self._known[shard]

    async def wait_known(self, kind: str, namespace: str, name: str) -> Shard:
        """The shard that keeps the group or topic, once it is known what it keeps. Raises ShardMoved."""
        shard = self._kernel.shard_of(names.home(kind, namespace, name))
        await self._gate(shard).wait()
        shard.check()
        return shard

    def is_known(self, kind: str, namespace: str, name: str) -> bool:
        """Is the group or topic kept here, and is it known what is kept?"""
        shard = self._kernel.shards.get(self._kernel.number_of(names.home(kind, namespace, name)))
        return shard is not None and self._gate(shard).is_set()

    def _gate(self, shard: Shard) -> asyncio.Event:
        return self._known.setdefault(shard, asyncio.Event())
