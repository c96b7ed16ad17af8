"""Several orchestrators over one store in one process, for tests in virtual time: kill, freeze and stop them, add others.

    async with MultiCluster(seed=1) as cluster:
        for name in ("a", "b", "c"):
            await cluster.add_orchestrator(name)
        await cluster.add_worker(worker)
        key = await cluster.start("order", {"order_id": "A1"})
        await cluster.kill("a")
        assert await cluster.result(key) == {"ok": True}

Calls go to the owner of the run, as the store has it, and are repeated as the client library would. At the end of a
block that raised nothing the store's log is audited, and no append may have been accepted out of turn.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from random import Random
from types import TracebackType
from typing import Any, Final, Self, TypeVar, cast
from uuid import UUID

from onexflow.audit import audit
from onexflow.codec.definitions import dump_definition
from onexflow.codec.payload import JsonCodec, decode_value, encode_value
from onexflow.core.definition import WorkflowDefinition
from onexflow.core.errors import Coded, DeadlineExceeded, RunFailed, Unavailable
from onexflow.core.ids import RunKey, shard_of_slot
from onexflow.engine.orchestrator import Orchestrator
from onexflow.engine.protocols import ServiceCaller
from onexflow.ports.client_link import (
    ControlRequest,
    EventView,
    OrchestratorService,
    RunOutcome,
    RunService,
    StartOutcome,
    StartRequest,
)
from onexflow.ports.event_store import EventStore
from onexflow.ports.registry import NodeRecord, kind_of
from onexflow.ports.worker_link import ROLES, Role
from onexflow.registry.memory import MemoryRegistry, MemoryRegistryHub
from onexflow.spi.exceptions import SPIError
from onexflow.storage.memory import MemoryStore
from onexflow.testing.calls import WorkerCalls
from onexflow.testing.clock import SeededIds, VirtualClock
from onexflow.testing.links import InProcessStream
from onexflow.testing.multi_members import ClusterMember, MemberRegistry, MemberStore, MultiWorker, Prober
from onexflow.worker.handlers import Worker
from onexflow.worker.runtime import WorkerRuntime

__all__ = ["ClusterMember", "MultiCluster", "MultiWorker"]

T = TypeVar("T")

_BEAT_SECONDS: Final = 0.5
_RETRY_SECONDS: Final = 0.05
#: After so long a worker knows that its orchestrator is silent (`rpc.worker_connection`).
_PING_SECONDS: Final = 5.0
#: How long a call is repeated, in virtual seconds.
PATIENCE: Final = 120.0


class MultiCluster:
    """Any number of orchestrators and workers over one memory store."""

    def __init__(
        self, *, seed: int = 0, shards: int = 8, namespace: str = "default", slowest: float = 0.0, audited: bool = True
    ) -> None:
        """`slowest`: a call of the store takes up to so many seconds, there and back. `audited`: False leaves it to the
        caller to judge the log."""
        self._audited = audited
        self._delays = Random(seed)
        self._slowest = slowest
        self.clock = VirtualClock()
        self.ids = SeededIds(seed)
        self.store = MemoryStore(self.clock, shards)
        self.namespace = namespace
        self.hub = MemoryRegistryHub(self.clock)
        #: By name; `lives` also has those that have ended.
        self.members: dict[str, ClusterMember] = {}
        self.lives: list[ClusterMember] = []
        self.workers: dict[str, MultiWorker] = {}
        #: Workers that there have been.
        self._made = 0
        self.fatal: list[Coded] = []
        #: The test breaks something that a watchdog repairs.
        self.expects_stalls = False
        self._beating: asyncio.Task[None] | None = None
        self._turn = 0

    # ---- life

    async def __aenter__(self) -> Self:
        await self.store.open()
        self._beating = asyncio.get_running_loop().create_task(self._beat())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for worker in self.workers.values():
            await worker.runtime.close()
            await worker.registry.close()
        for name in list(self.members):
            await (self.kill(name) if error is not None else self.stop(name))
        if self._beating is not None:
            self._beating.cancel()
            await asyncio.gather(self._beating, return_exceptions=True)
        if error is None and self._audited:
            report = await audit(self.store)
            assert report.is_consistent, "the log is not consistent:\n" + "\n".join(map(str, report.findings[:20]))
            self.check_fencing()
            stalls = {
                member.id: member.engine.watchdog.last for member in self.lives if member.engine.watchdog.repaired
            }
            assert self.expects_stalls or not stalls, f"a watchdog had to repair something: {stalls}"
        await self.store.close()

    def check_fencing(self) -> None:
        """Raise AssertionError when an append was accepted after one of a later epoch of its shard, or after a claim."""
        for member in self.lives:
            assert not member.store.deposed, (
                f"{member.id}, deposed, has stored (shard, epoch, now): {member.store.deposed}"
            )
        accepted = sorted((at, shard, epoch) for member in self.lives for at, shard, epoch in member.store.accepted)
        newest: dict[int, int] = {}
        for at, shard, epoch in accepted:
            assert epoch >= newest.get(shard, 0), (
                f"shard {shard}: epoch {epoch} was accepted at {at} after {newest[shard]}"
            )
            newest[shard] = epoch

    async def _beat(self) -> None:
        while True:
            for worker in self.workers.values():
                if not worker.is_dead:
                    worker.registry.beat()
            await self.clock.sleep(_BEAT_SECONDS)

    # ---- orchestrators

    async def add_orchestrator(self, name: str) -> ClusterMember:
        registry = MemberRegistry(self.hub)
        await registry.start()
        store = MemberStore(self.store, self._delays, self._slowest)
        incarnation = f"{name}.{len(self.lives) + 1}"
        engine = Orchestrator(
            cast("EventStore", store),
            registry,
            clock=self.clock,
            ids=self.ids,
            codec=JsonCodec(),
            orchestrator_id=name,
            incarnation=incarnation,
            prober=Prober(self.lives, self.workers),
            on_fatal=self.fatal.append,
            shared=True,
            peers=partial(self._peer, name),
        )
        member = ClusterMember(engine, registry, store)
        await engine.start()
        self.members[name] = member
        self.lives.append(member)
        await engine.announce(f"{name}:7411", incarnation)
        for worker in self.workers.values():
            self.connect(worker, member)
        return member

    def _peer(self, asking: str, address: str) -> Orchestrator:
        """What another orchestrator reaches at that address: itself, not its gateway."""
        if (mine := self.members.get(asking)) is not None and mine.state == "frozen":
            raise Unavailable(f"{asking} is frozen")
        member = self.members.get(address.partition(":")[0])
        if member is None:
            raise Unavailable(f"{address} refuses the connection")
        return member.engine

    async def kill(self, name: str) -> None:
        """`kill -9`: nothing is said, nothing more is stored, the port refuses."""
        member = self.members.pop(name)
        member.state = "dead"
        member.gone.set()
        member.store.is_dead = True
        member.store.thaw()
        for worker in self.workers.values():
            if (stream := worker.streams.pop(name, None)) is not None:
                stream.cut_worker_side()
        await member.engine.abandon()
        await member.registry.crash()

    async def stop(self, name: str) -> None:
        """SIGTERM: its shards are handed over."""
        member = self.members[name]
        member.gone.set()
        await member.engine.hand_over()
        del self.members[name]
        await member.engine.stop()
        for worker in self.workers.values():
            worker.streams.pop(name, None)
        await member.registry.close()
        member.state = "dead"

    def freeze(self, name: str) -> None:
        """SIGSTOP: it does nothing, and what is sent to it waits."""
        member = self.members[name]
        member.state = "frozen"
        member.gone.set()
        member.store.freeze()
        member.registry.freeze()
        for worker in self.workers.values():
            if (stream := worker.streams.get(name)) is not None:
                stream.held = True
        asyncio.get_running_loop().call_later(_PING_SECONDS, self._miss, member)

    def _miss(self, member: ClusterMember) -> None:
        """The workers' pings are not answered: they take their streams for lost."""
        for worker in self.workers.values():
            stream = worker.streams.get(member.id)
            if member.state == "frozen" and stream is not None and stream.is_open:
                stream.cut_worker_side()

    def thaw(self, name: str) -> None:
        """SIGCONT."""
        member = self.members[name]
        member.state = "running"
        member.gone = asyncio.Event()
        member.registry.thaw()
        member.store.thaw()
        for worker in self.workers.values():
            stream = worker.streams.get(name)
            if stream is not None and stream.is_open:
                stream.release()
            elif stream is not None:
                stream.cut_orchestrator_side()
                self.connect(worker, member)

    # ---- workers

    async def add_worker(self, worker: Worker, name: str = "", *, slots: dict[Role, int] | None = None) -> MultiWorker:
        self._made += 1
        number = self._made
        name = name or f"worker-{number}"
        incarnation = f"{name}.{number}"
        calls = WorkerCalls(self)
        runtime = WorkerRuntime(
            worker,
            worker_id=name,
            incarnation=incarnation,
            clock=self.clock,
            slots=slots,
            liveness=incarnation,
            caller=ServiceCaller(cast("RunService", calls), calls.close),
        )
        registry = MemoryRegistry(self.hub)
        await registry.start()
        runtime.open()
        for role in ROLES:
            handlers = tuple(handler.name for handler in worker.handlers if handler.role == role)
            if handlers:
                await registry.register(
                    NodeRecord(
                        kind=kind_of(role), node_id=name, incarnation=incarnation, liveness=incarnation,
                        handlers=handlers, started_at=self.clock.now(),
                    )
                )  # fmt: skip
        added = self.workers[name] = MultiWorker(runtime, registry)
        for member in self.members.values():
            self.connect(added, member)
        await runtime.initialize()
        return added

    async def stop_worker(self, name: str, within: float = 10.0) -> None:
        """SIGTERM: it takes nothing new, and what it runs has `within` seconds."""
        worker = self.workers[name]
        worker.is_leaving = True
        await worker.runtime.drain(within)
        del self.workers[name]
        await worker.registry.close()

    async def kill_worker(self, name: str) -> None:
        """`kill -9`: nothing is said, its port refuses, its lease runs out. What its handlers are at is cancelled, as they
        cannot be stopped without a word."""
        worker = self.workers.pop(name)
        worker.is_dead = True
        for stream in worker.streams.values():
            stream.cut_orchestrator_side()
        await worker.runtime.close()
        await worker.registry.crash()

    async def running_engine(self) -> tuple[OrchestratorService, asyncio.Event]:
        """The gateway of a running orchestrator, in turns, and what is set when that one does not run any more."""
        while True:
            running = [member for member in self.members.values() if not member.gone.is_set()]
            if running:
                self._turn += 1
                member = running[self._turn % len(running)]
                return member.engine.gateway, member.gone
            await self.clock.sleep(_RETRY_SECONDS)

    def connect(self, worker: MultiWorker, member: ClusterMember) -> None:
        """A new stream; what is sent to a frozen orchestrator waits. A worker that leaves connects to nobody any more."""
        if worker.is_leaving:
            return
        worker.streams[member.id] = stream = InProcessStream(member.engine.accept_worker, worker.runtime)
        stream.held = member.state == "frozen"

    # ---- calls

    def number_of(self, key: RunKey) -> int:
        """The shard of a run."""
        return shard_of_slot(key.slot, self.store.shards)

    async def owner_of(self, number: int) -> ClusterMember | None:
        """The member that the store says owns a shard."""
        owner = next(owner for shard, _, owner in await self.store.owners() if shard == number)
        return self.members.get(owner)

    async def owned(self) -> dict[str, list[int]]:
        """The shards of each member, as the store has them."""
        found: dict[str, list[int]] = {}
        for shard, _, owner in await self.store.owners():
            found.setdefault(owner, []).append(shard)
        return found

    async def settled(self) -> None:
        """Return when every shard has a running owner that has read it back."""
        async with asyncio.timeout(PATIENCE):
            while not await self._is_settled():
                await self.clock.sleep(_RETRY_SECONDS)

    async def _is_settled(self) -> bool:
        for shard, epoch, owner in await self.store.owners():
            member = self.members.get(owner)
            held = member.engine.shards.get(shard) if member is not None and member.state == "running" else None
            if held is None or held.epoch != epoch or held.early is not None:
                return False
        return True

    async def call(self, key: RunKey, work: Callable[[Orchestrator], Awaitable[T]]) -> T:
        """Ask the run's owner; again when that is another, or does not answer."""
        last: BaseException | None = None
        end = self.clock.monotonic() + PATIENCE
        while self.clock.monotonic() < end:
            member = await self.owner_of(self.number_of(key))
            if member is not None and member.state == "running":
                try:
                    async with asyncio.timeout(5.0):
                        return await work(member.engine)
                except (Unavailable, TimeoutError) as error:
                    last = error
            await self.clock.sleep(_RETRY_SECONDS)
        raise DeadlineExceeded(f"nobody answers for {key}: {last!r}")

    async def register(self, definition: WorkflowDefinition) -> None:
        """With all members, as every one keeps a catalog."""
        for member in self.members.values():
            await member.engine.register_definition(self.namespace, dump_definition(definition))

    async def start(self, workflow_type: str, input: Any = None, **fields: Any) -> RunKey:
        """Start a run, durably."""
        instance: UUID = fields.pop("instance_id", None) or self.ids.uuid()
        request = StartRequest(
            namespace=self.namespace,
            workflow_type=workflow_type,
            input=encode_value(input),
            instance_id=instance,
            **fields,
        )

        async def ask(engine: Orchestrator) -> StartOutcome:
            answer: asyncio.Future[StartOutcome | SPIError] = asyncio.get_running_loop().create_future()
            engine.start_run(request, lambda outcome: _tell(answer, outcome))
            return _value(await answer)

        key = RunKey(self.namespace, workflow_type, instance)
        return (await self.call(key, ask)).key

    async def wait(self, key: RunKey) -> RunOutcome:
        """How the run ended, once it has."""

        async def ask(engine: Orchestrator) -> RunOutcome:
            answer: asyncio.Future[RunOutcome | SPIError] = asyncio.get_running_loop().create_future()
            give_up = engine.wait_run(key, lambda outcome: _tell(answer, outcome))
            try:
                return _value(await answer)
            finally:
                give_up()

        return await self.call(key, ask)

    async def result(self, key: RunKey) -> Any:
        """The run's decoded result, once it has ended. Raises RunFailed when it has none."""
        outcome = await self.wait(key)
        if outcome.result is None:
            error = outcome.error
            raise RunFailed(error.message if error else outcome.state, {"state": outcome.state})
        return decode_value(outcome.result)

    async def history(self, key: RunKey) -> list[EventView]:
        return list(await self.call(key, lambda engine: engine.read_history(key, 1, 1000)))

    async def control(self, request: ControlRequest) -> Any:
        return await self.call(request.key, lambda engine: engine.control(request))


def _tell(answer: asyncio.Future[T], outcome: T) -> None:
    if not answer.done():  # who waited may have given up
        answer.set_result(outcome)


def _value(answer: T | SPIError) -> T:
    if isinstance(answer, SPIError):
        raise answer
    return answer
