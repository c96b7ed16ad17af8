"""What a simulation does to its cluster: faults of a closed list, chosen and timed by a seed. Each heals by itself after a
while, as a supervisor, a network or a disk would, and `calm` waits until all have; but a clock stays where it jumped to."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Coroutine, Sequence
from random import Random
from typing import Any, Final

from onexflow.testing.faults.store import Fault, FaultyStore
from onexflow.testing.links import InProcessStream
from onexflow.testing.multi_cluster import MultiCluster

#: Seconds between two faults, on average.
_EVERY: Final = 1.5
#: An end of a stream that gets no answer for so long takes it for lost (`rpc.worker_connection`, `rpc.worker_session`).
_SILENCE: Final = 5.0
#: A fault of the store that lasts, lasts so long at most; longer than after which clients are told that it is away.
_STORE_SECONDS: Final = 4.0
#: Workers that may be killed in one storm: a task that has lost three is failed, as it should be.
_WORKERS: Final = 2
WORKER_KILLED: Final = "worker killed"


class Storm:
    """`add_worker` adds one more to the cluster, with handlers of its own."""

    def __init__(
        self,
        cluster: MultiCluster,
        chance: Random,
        faults: Sequence[str],
        add_worker: Callable[[], Awaitable[None]],
        died: Callable[[str], None],
    ) -> None:
        """`died` is told the name of a worker that is about to be killed."""
        self.story: list[str] = []
        self.counts: Counter[str] = Counter()
        self._cluster = cluster
        self._chance = chance
        self._faults = [FAULTS[name] for name in faults]
        self._names = list(faults)
        self._add_worker = add_worker
        self._died = died
        #: What heals in a while, or has.
        self._healing: list[asyncio.Task[None]] = []
        #: Orchestrators and workers that something is done to already.
        self._busy: set[str] = set()

    async def blow(self, seconds: float) -> None:
        """Faults for so long, some of them at the same time."""
        clock = self._cluster.clock
        end = clock.monotonic() + seconds
        while self._faults:
            await clock.sleep(self._chance.expovariate(1 / _EVERY))
            if clock.monotonic() >= end:
                return
            which = self._chance.randrange(len(self._faults))
            if (victim := self._faults[which](self)) is not None:
                name = self._names[which]
                self.counts[name] += 1
                self.story.append(f"{clock.monotonic():8.3f} s  {name}: {victim}")

    async def calm(self) -> None:
        """Return when all is healed. Raises what a healing has raised."""
        await asyncio.gather(*self._healing)

    def _heal(self, healing: Coroutine[Any, Any, None]) -> None:
        self._healing.append(asyncio.get_running_loop().create_task(healing))

    def _on_one(self, of: Collection[str], healing: Callable[[str], Coroutine[Any, Any, None]]) -> str | None:
        """Choose one, and leave it alone until it is healed."""
        names = sorted(set(of) - self._busy)
        if not names:
            return None
        name = self._chance.choice(names)
        self._busy.add(name)

        async def heal() -> None:
            try:
                await healing(name)
            finally:
                self._busy.discard(name)

        self._heal(heal())
        return name

    async def _pause(self, least: float, most: float) -> None:
        await self._cluster.clock.sleep(self._chance.uniform(least, most))

    def _replace(
        self,
        of: Collection[str],
        end: Callable[[str], Awaitable[object]],
        begin: Callable[[str], Awaitable[object]],
        most: float,
    ) -> str | None:
        """End one, and begin it, or another in its place, after so many seconds at most."""

        async def replace(name: str) -> None:
            await end(name)
            await self._pause(0.2, most)
            await begin(name)

        return self._on_one(of, replace)

    # ---- orchestrators

    def kill_orchestrator(self) -> str | None:
        return self._replace(self._cluster.members, self._cluster.kill, self._cluster.add_orchestrator, 8.0)

    def stop_orchestrator(self) -> str | None:
        return self._replace(self._cluster.members, self._cluster.stop, self._cluster.add_orchestrator, 8.0)

    def freeze_orchestrator(self) -> str | None:
        async def freeze(name: str) -> None:
            self._cluster.freeze(name)
            await self._pause(0.2, 15.0)
            self._cluster.thaw(name)

        return self._on_one(self._cluster.members, freeze)

    def lose_registry(self) -> str | None:
        async def lose(name: str) -> None:
            registry = self._cluster.members[name].registry
            registry.freeze()
            await self._pause(0.5, 12.0)
            registry.thaw()

        return self._on_one(self._cluster.members, lose)

    # ---- the store, as one orchestrator sees it

    def _on_store(self, fault: Callable[[FaultyStore], Awaitable[None]]) -> str | None:
        async def break_it(name: str) -> None:
            member = self._cluster.members[name]
            faulty = FaultyStore(member.store.inner)
            member.store.inner = faulty
            await fault(faulty)
            faulty.heal()
            member.store.inner = faulty.inner

        return self._on_one(self._cluster.members, break_it)

    def lose_answer(self) -> str | None:
        return self._fail_appends(Fault.UNANSWERED)

    def lose_append(self) -> str | None:
        return self._fail_appends(Fault.LOST)

    def fill_disk(self) -> str | None:
        return self._fail_appends(Fault.FULL)

    def _fail_appends(self, fault: Fault) -> str | None:
        async def fail(store: FaultyStore) -> None:
            store.fail(fault, None)
            await self._pause(0.0, _STORE_SECONDS)

        return self._on_store(fail)

    def hold_store(self) -> str | None:
        async def hold(store: FaultyStore) -> None:
            store.hold()
            await self._pause(0.0, _STORE_SECONDS)

        return self._on_store(hold)

    # ---- workers and their streams

    def kill_worker(self) -> str | None:
        async def kill(name: str) -> None:
            self._died(name)
            await self._cluster.kill_worker(name)

        if self.counts[WORKER_KILLED] >= _WORKERS:
            return None
        return self._replace(self._cluster.workers, kill, lambda _: self._add_worker(), 5.0)

    def stop_worker(self) -> str | None:
        return self._replace(self._cluster.workers, self._cluster.stop_worker, lambda _: self._add_worker(), 5.0)

    def _stream(self) -> tuple[str, str, InProcessStream] | None:
        found = [
            (worker, member, stream)
            for worker, held in sorted(self._cluster.workers.items())
            for member, stream in sorted(held.streams.items())
            if stream.is_open and not stream.held and member in self._cluster.members
        ]
        return self._chance.choice(found) if found else None

    def cut_stream(self) -> str | None:
        found = self._stream()
        if found is None:
            return None
        worker, member, stream = found
        stream.cut()

        async def mend() -> None:
            await self._pause(0.05, 2.0)
            self._connect(worker, member)

        self._heal(mend())
        return f"{worker} - {member}"

    def hold_stream(self) -> str | None:
        found = self._stream()
        if found is None:
            return None
        worker, member, stream = found
        stream.held = True

        async def mend() -> None:
            seconds = self._chance.uniform(0.1, 3 * _SILENCE)
            await self._cluster.clock.sleep(min(seconds, _SILENCE))
            if seconds < _SILENCE:
                if stream.is_open and self._is_running(member):
                    stream.release()
                return
            if stream.is_open:
                stream.cut_worker_side()
                stream.cut_orchestrator_side()
            await self._cluster.clock.sleep(seconds - _SILENCE)
            self._connect(worker, member)

        self._heal(mend())
        return f"{worker} - {member}"

    def _is_running(self, name: str) -> bool:
        return name in self._cluster.members and self._cluster.members[name].state == "running"

    def _connect(self, worker: str, member: str) -> None:
        """Unless one of them is gone, or another stream is there; who is frozen is connected when it goes on."""
        ends = self._cluster.workers.get(worker), self._cluster.members.get(member)
        if ends[0] is None or ends[1] is None or ends[1].state != "running":
            return
        stream = ends[0].streams.get(member)
        if stream is None or not stream.is_open:
            self._cluster.connect(ends[0], ends[1])

    # ---- time

    def jump_clock(self) -> str | None:
        seconds = self._chance.uniform(-30.0, 30.0)
        self._cluster.clock.skew += seconds
        return f"{seconds:+.1f} s"


#: The faults by name. Each strikes if it can, and says whom.
FAULTS: Final[dict[str, Callable[[Storm], str | None]]] = {
    "orchestrator killed": Storm.kill_orchestrator,
    "orchestrator restarted": Storm.stop_orchestrator,
    "orchestrator frozen": Storm.freeze_orchestrator,
    "registry away": Storm.lose_registry,
    "store's answer lost": Storm.lose_answer,
    "store's write lost": Storm.lose_append,
    "store full": Storm.fill_disk,
    "store slow": Storm.hold_store,
    WORKER_KILLED: Storm.kill_worker,
    "worker restarted": Storm.stop_worker,
    "stream cut": Storm.cut_stream,
    "stream silent": Storm.hold_stream,
    "clock jumps": Storm.jump_clock,
}
