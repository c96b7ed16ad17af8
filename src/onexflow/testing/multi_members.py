"""The processes of a `MultiCluster`, as far as they can be frozen and killed: members with their ways to the store and to the
registry, and workers."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Mapping, Sequence
from math import inf
from random import Random
from typing import Any, Literal

from onexflow.core.errors import StoreUnavailable, Unavailable
from onexflow.engine.orchestrator import Orchestrator
from onexflow.ports.event_store import EventStore
from onexflow.registry.memory import MemoryRegistry
from onexflow.testing.links import InProcessStream
from onexflow.worker.runtime import WorkerRuntime


class MemberStore:
    """One member's way to the store: calls wait while the member is frozen, and fail once it is dead."""

    def __init__(self, inner: EventStore, delays: Random, slowest: float) -> None:
        #: May be replaced, by a `FaultyStore` over it.
        self.inner = inner
        self._delays = delays
        self._slowest = slowest
        #: Seconds that every call takes longer, there and back each: this member alone is far away.
        self.delay = 0.0
        self._runs = asyncio.Event()
        self._runs.set()
        self.is_dead = False
        #: (shard, epoch) of each part of an append that was accepted, and loop time.
        self.accepted: list[tuple[float, int, int]] = []
        #: Parts that were refused as another's.
        self.rejected = 0
        #: (shard, epoch, the store's epoch) of each part that was accepted though another owner had claimed the shard.
        self.deposed: list[tuple[int, int, int]] = []

    def freeze(self) -> None:
        self._runs.clear()

    def thaw(self) -> None:
        self._runs.set()

    async def _turn(self) -> None:
        if self._slowest or self.delay:
            await asyncio.sleep(self.delay + self._delays.uniform(0, self._slowest))
        await self._runs.wait()
        if self.is_dead:
            raise StoreUnavailable("the process is dead", {"fatal": True})

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.inner, name)
        if not inspect.iscoroutinefunction(found) or name == "close":
            return found

        async def guarded(*arguments: Any, **named: Any) -> Any:
            await self._turn()
            owners = {shard: epoch for shard, epoch, _ in await self.inner.owners()} if name == "append" else {}
            answer = await found(*arguments, **named)
            if name == "append":
                now = asyncio.get_running_loop().time()
                parts = [part for part in arguments[0] if part.shard in answer.stored]
                self.accepted.extend((now, part.shard, part.epoch) for part in parts)
                self.rejected += len(answer.refused)
                self.deposed.extend(
                    (part.shard, part.epoch, owners[part.shard]) for part in parts if part.epoch < owners[part.shard]
                )
            await self._turn()  # what a frozen process asked for before is answered later
            return answer

        return guarded


class MemberRegistry(MemoryRegistry):
    """One member's registry: a frozen process renews nothing."""

    _is_frozen = False

    def beat(self) -> None:
        if not self._is_frozen:
            super().beat()

    def freeze(self) -> None:
        self._is_frozen = True
        self._beat = -inf  # not even once more, for the beat that came before

    def thaw(self) -> None:
        self._is_frozen = False


class ClusterMember:
    """One orchestrator process."""

    def __init__(self, engine: Orchestrator, registry: MemberRegistry, store: MemberStore) -> None:
        self.engine = engine
        self.registry = registry
        self.store = store
        self.state: Literal["running", "frozen", "dead"] = "running"
        #: Set while it does not run.
        self.gone = asyncio.Event()

    @property
    def id(self) -> str:
        return self.engine.orchestrator_id


class MultiWorker:
    """One worker process, with a stream to each orchestrator."""

    def __init__(self, runtime: WorkerRuntime, registry: MemoryRegistry) -> None:
        self.runtime = runtime
        self.registry = registry
        self.streams: dict[str, InProcessStream] = {}
        self.is_dead = False
        #: It is stopping.
        self.is_leaving = False


class Prober:
    """Liveness addresses are incarnations."""

    def __init__(self, lives: Sequence[ClusterMember], workers: Mapping[str, MultiWorker]) -> None:
        """Of processes that come and go."""
        self._lives = lives
        self._workers = workers

    async def probe(self, address: str) -> str | None:
        for member in self._lives:
            if member.engine.incarnation == address and member.state != "dead":
                if member.state == "frozen":
                    raise Unavailable(f"no answer from {address}")
                return address
        alive = any(w.runtime.incarnation == address and not w.is_dead for w in self._workers.values())
        return address if alive else None
