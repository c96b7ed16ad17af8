"""What every scenario of a loaded cluster begins with, looks at, and ends with."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Iterable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import asyncpg

from onexflow.client import Client, connect
from onexflow.engine.placement import homes
from onexflow.spi.exceptions import SPIError
from onexflow.storage.postgres.embedded import DATABASE, USER

from .cluster import ChaosCluster, Node
from .figures import Figures
from .load import RATE, Load, Started
from .reasons import PROMISED, Sampler
from .trail import Ran, Trail, overlapping

#: Seconds of load before the first fault.
WARM = 2.0
EFFECTS = frozenset({"effect", "once"})


@dataclass(frozen=True)
class Options:
    """How often, and under what load. `quick`: faults no longer than they must be to be seen, for tests."""

    rounds: int = 1
    rate: float = RATE
    quick: bool = False


class Stage:
    """A cluster under load, its clients, its handlers' traces, and a connection that reads the store."""

    def __init__(
        self, name: str, options: Options, cluster: ChaosCluster, *, direct: bool = False, copies: bool = False
    ) -> None:
        """`direct`: clients go past the relays. `copies`: an effect that may run again may do so beside a worker that is
        silent and lives."""
        self.name = name
        self.options = options
        self.cluster = cluster
        self.figures = Figures()
        self.trail = Trail(cluster.folder)
        self.reasons = Sampler(self)
        self.clients: dict[str, Client] = {}
        #: Clients that know one orchestrator each.
        self._alone_at: dict[str, Client] = {}
        self.reader: asyncpg.Connection | None = None
        self._direct = direct
        self._alone = frozenset({"once"}) if copies else EFFECTS
        self._stack = AsyncExitStack()
        self._counts: dict[str, int] = {}

    async def __aenter__(self) -> Self:
        try:
            await self._stack.enter_async_context(self.cluster)
            for name in self.cluster.orchestrators:
                self.clients[name] = await self.cluster.client(name, direct=self._direct)
                self._stack.push_async_callback(self.clients[name].close)
                self._alone_at[name] = await connect([self.cluster.orchestrators[name].listen])
                self._stack.push_async_callback(self._alone_at[name].close)
            await self.connect()
            shards = len(await self.owners())
            self.load = Load(self.clients, shards, self.options.rate)
            await self.load.register()
            self.figures.promise("without a reason s", PROMISED, "p99")
            self.figures.promise("samples of reasons", 1, "min")
            self.load.begin()
            self.reasons.begin()
            await asyncio.sleep(WARM)
        except BaseException as error:
            await self.reasons.stop()
            await self._stack.__aexit__(type(error), error, error.__traceback__)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                await self._settle()
            else:
                await self.reasons.stop()
                await self.load.stop(0.0)
                for failure in self.load.failures[-10:]:
                    print(f"a client saw: {failure}", file=sys.stderr)
        except BaseException as broken:
            await self._stack.__aexit__(type(broken), broken, broken.__traceback__)
            raise
        finally:
            if self.reader is not None:
                self.reader.terminate()
        await self._stack.__aexit__(kind, error, trace)

    async def _settle(self) -> None:
        """The load ends, and what was promised to every client holds."""
        await self.load.stop()
        await self.reasons.stop()
        print(f"{self.name}: {self.load.summary()}", file=sys.stderr)
        lost = self.load.lost()
        for one in lost[:5]:
            print(f"lost: {one}: {await self._story(one)}", file=sys.stderr)
        assert not lost, f"{len(lost)} acknowledged starts gave no result, such as {lost[0]}"
        self.trail.read()
        assert not (twice := self.overlaps()), f"{len(twice)} effects ran twice at the same time, such as {twice[0]}"
        self.figures.add("tasks/s", self.load.tasks_a_second())
        self.figures.add("errors seen by clients", len(self.load.failures))
        self.figures.add("runs acknowledged", sum(bool(one.acked_ns) for one in self.load.started))
        self.figures.add("lost", 0)
        await self.reasons.report(self.figures)
        if self.figures.broken():
            print(self.cluster.logs(), file=sys.stderr)

    async def _story(self, one: Started) -> str:
        """What a living orchestrator says of a run without result."""
        try:
            view = await self.load.client().get(one.key.workflow_type, one.key.instance_id).state()
        except SPIError as error:
            return str(error)
        tasks = ", ".join(f"{task.name} {task.state} {task.blocked_because}" for task in view.tasks)
        return f"{view.state}, {view.blocked_because}: {tasks}"

    def at(self, orchestrator: str) -> Client:
        """A client of that orchestrator alone."""
        return self._alone_at[orchestrator]

    def askable(self) -> list[Client]:
        """Clients that begin with an orchestrator which lives, and which the load does not go past."""
        names = [
            name for name, node in self.cluster.orchestrators.items() if node.lives and name not in self.load.avoid
        ]
        return [self.clients[name] for name in names]

    def overlaps(self) -> list[list[Ran]]:
        """Effects whose body ran twice at the same time."""
        return [runs for runs in self.trail.again(self._alone) if overlapping(runs, self.cluster.killed)]

    def told(self, number: int) -> None:
        """Print what the round added."""
        print(f"{self.name} round {number + 1}: {self.figures.last(self._counts)}", file=sys.stderr, flush=True)
        self._counts = self.figures.counts()

    # ---- the store, read directly

    async def connect(self) -> None:
        if self.reader is not None:
            self.reader.terminate()
        server = self.cluster.postgres
        self.reader = await asyncpg.connect(
            host="127.0.0.1", port=server.port, user=USER, password=server.password, database=DATABASE,
            server_settings={"search_path": "onexflow"},
        )  # fmt: skip

    async def owners(self) -> dict[int, tuple[int, str]]:
        """(epoch, owner) by shard."""
        assert self.reader is not None
        rows = await self.reader.fetch("SELECT shard, epoch, owner FROM shards")
        return {row["shard"]: (row["epoch"], row["owner"].decode()) for row in rows}

    async def settled(self, seconds: float = 60.0) -> dict[int, int]:
        """Wait until each shard is where it should be, and none has to move. Returns the epochs."""
        names = sorted(self.cluster.orchestrators)
        async with asyncio.timeout(seconds):
            while True:
                owners = await self.owners()
                home = homes(len(owners), names)
                if all(owner == home[shard] for shard, (_, owner) in owners.items()):
                    return {shard: epoch for shard, (epoch, _) in owners.items()}
                await asyncio.sleep(0.2)

    async def most_loaded(self) -> Node:
        """The living orchestrator that owns most."""
        owned = [owner for _, owner in (await self.owners()).values()]
        living = [node for node in self.cluster.orchestrators.values() if node.lives]
        return max(living, key=lambda node: owned.count(node.name))

    async def taken_from(self, name: str, shards: Iterable[int], seconds: float = 30.0) -> tuple[int, dict[int, int]]:
        """Wait until others own these. Returns when that was seen, UTC ns, and their epochs."""
        wanted = set(shards)
        async with asyncio.timeout(seconds):
            while True:
                owners = await self.owners()
                if all(owners[shard][1] not in ("", name) for shard in wanted):
                    return time.time_ns(), {shard: owners[shard][0] for shard in wanted}
                await asyncio.sleep(0.01)

    async def rows_below(self, epochs: dict[int, int]) -> int:
        """Events in these shards that were appended under epochs below these."""
        assert self.reader is not None
        found = await self.reader.fetchval(
            "SELECT coalesce(sum(n), 0) FROM event_rows r JOIN unnest($1::int[], $2::bigint[]) AS w(shard, epoch)"
            " ON r.shard = w.shard WHERE r.epoch < w.epoch",
            list(epochs), list(epochs.values()),
        )  # fmt: skip
        return int(found)

    # ---- runs

    def resumed_at(self, one: Started, since_ns: int, epochs: dict[int, int]) -> int:
        """When a run whose shard went to another owner went on: its end, or a task begun by the new one; 0: not yet."""
        begun = [
            ran.start_ns for ran in self.trail.by_instance.get(one.instance, ())
            if ran.start_ns > since_ns and ran.epoch >= epochs[one.shard]
        ]  # fmt: skip
        return min([*begun, *([one.done_ns] if one.done_ns else [])], default=0)

    async def resumed(
        self, runs: Sequence[Started], since_ns: int, epochs: dict[int, int], seconds: float = 20.0
    ) -> list[float]:
        """Milliseconds until each of these went on."""
        give_up = time.monotonic() + seconds
        while True:
            self.trail.read()
            found = [self.resumed_at(one, since_ns, epochs) for one in runs]
            if all(found):
                return [(at - since_ns) / 1e6 for at in found]
            if time.monotonic() > give_up:
                stuck = next(one for one, at in zip(runs, found, strict=True) if not at)
                raise TimeoutError(f"{found.count(0)} runs did not go on within {seconds:g} s, such as {stuck}")
            await asyncio.sleep(0.02)
