"""A whole cluster in one process, for tests: the real engine and real worker runtimes over memory ports.

    async with Cluster(seed=1) as cluster:
        await cluster.register(flow.build())
        await cluster.add_worker(worker)
        assert await cluster.run("order", {"order_id": "A1"}) == {"ok": True}

Run it under `run_virtual` (or `@virtual_time`): then an hour passes in milliseconds and the same seed gives the same run.
At the end of a block that raised nothing, the store's log is audited (`onexflow.audit`).
A store with threads or files needs a real loop, and a real clock: `Cluster(store=…, clock=…)`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from types import TracebackType
from typing import Any, Literal, Self, TypeVar, cast
from uuid import UUID

from onexflow.audit import audit
from onexflow.codec.definitions import dump_definition
from onexflow.codec.payload import JsonCodec, decode_value, encode_value
from onexflow.core.definition import WorkflowDefinition
from onexflow.core.errors import Coded, RunFailed, Unavailable
from onexflow.core.ids import RunKey
from onexflow.engine.orchestrator import Orchestrator
from onexflow.engine.protocols import ServiceCaller
from onexflow.ports.client_link import (
    Action,
    ControlOutcome,
    ControlRequest,
    DefinitionInfo,
    EventView,
    RunOutcome,
    RunService,
    RunView,
    StartOutcome,
    StartRequest,
    TaskView,
)
from onexflow.ports.clock import Clock, IdSource
from onexflow.ports.event_store import EventStore
from onexflow.ports.registry import NodeKind, NodeRecord, kind_of
from onexflow.ports.worker_link import ROLES, Role
from onexflow.registry.memory import MemoryRegistry, MemoryRegistryHub
from onexflow.spi.exceptions import HandlerInitializationError, SPIError
from onexflow.storage.memory import MemoryStore
from onexflow.testing.calls import WorkerCalls
from onexflow.testing.clock import SeededIds, VirtualClock
from onexflow.testing.faults.store import FaultyStore
from onexflow.testing.links import InProcessStream
from onexflow.worker.handlers import Worker
from onexflow.worker.runtime import WorkerRuntime

T = TypeVar("T")

#: Seconds between the beats that keep a living worker's lease.
_BEAT_SECONDS = 0.5


class ClusterWorker:
    """One worker process of the cluster."""

    def __init__(self, runtime: WorkerRuntime, registry: MemoryRegistry, calls: WorkerCalls) -> None:
        self._calls = calls
        self.runtime = runtime
        self.registry = registry
        self.stream: InProcessStream | None = None
        #: What answers at its liveness address: itself, nobody (it is dead), or silence.
        self.liveness: Literal["alive", "refused", "silent"] = "alive"

    @property
    def id(self) -> str:
        return self.runtime.worker_id

    def cut(self) -> None:
        """Break its stream, as a network would: both ends notice."""
        if self.stream is not None:
            self.stream.cut()

    def kill(self) -> None:
        """End it without a word: its port refuses, its lease runs out, what it ran is gone."""
        self.liveness = "refused"
        self._calls.killed.set()
        if self.stream is not None:
            self.stream.cut_orchestrator_side()

    def freeze(self) -> None:
        """As SIGSTOP: its stream stands, nothing comes out of it or gets in, nobody answers at its port. Its handlers go
        on here; what they say is held. Its lease is the caller's."""
        self.liveness = "silent"
        if self.stream is not None:
            self.stream.held = True

    def thaw(self) -> None:
        self.liveness = "alive"
        if self.stream is not None:
            self.stream.release()

    async def close(self) -> None:
        await self.runtime.close()
        await self.registry.close()


class _Prober:
    """`ports.registry.Prober` over the cluster's workers: a liveness address is the worker's incarnation."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    async def probe(self, address: str) -> str | None:
        worker = next((w for w in self._cluster.lives if w.runtime.incarnation == address), None)
        if worker is None or worker.liveness == "refused":
            return None
        if worker.liveness == "silent":
            raise Unavailable(f"no answer from {address}")
        return worker.runtime.incarnation


class Cluster:
    """One orchestrator, any number of workers. Errors come as `onexflow.core.errors`, as from the real client."""

    def __init__(
        self,
        *,
        seed: int = 0,
        store: EventStore | None = None,
        clock: Clock | None = None,
        ids: IdSource | None = None,
        namespace: str = "default",
        payload_limit: int = 2 * 1024 * 1024,
        speculation: bool = True,
        audited: bool = True,
    ) -> None:
        self.clock: Clock = clock or VirtualClock()
        self.ids: IdSource = ids or SeededIds(seed)
        self.store: EventStore = store or MemoryStore(self.clock)
        self.namespace = namespace
        self.hub = MemoryRegistryHub(self.clock)
        #: Workers by id; `lives` also has those that were killed.
        self.workers: dict[str, ClusterWorker] = {}
        self.lives: list[ClusterWorker] = []
        #: What the engine reported as the end of its store.
        self.fatal: Coded | None = None
        #: What the watchdogs have repaired. A test that breaks something on purpose sets `expects_stalls`.
        self.stalls: list[str] = []
        self.expects_stalls = False
        self._payload_limit = payload_limit
        self._speculation = speculation
        self._audited = audited
        self._engine: Orchestrator | None = None
        self._up = asyncio.Event()
        self._down = asyncio.Event()
        self._registry: MemoryRegistry | None = None
        self._beating: asyncio.Task[None] | None = None
        self._count = 0

    # ---- life

    async def __aenter__(self) -> Self:
        await self.restart_orchestrator()
        self._beating = asyncio.get_running_loop().create_task(self._beat())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for worker in self.lives:
            await worker.close()
        if self._engine is not None:
            # A failing test may leave the store held or failing: then there is nothing to wait for.
            await (self.crash_orchestrator() if error is not None else self.stop_orchestrator())
        if self._beating is not None:
            self._beating.cancel()
            await asyncio.gather(self._beating, return_exceptions=True)
        if error is None:
            assert self.expects_stalls or not self.stalls, f"the watchdog had to repair something: {self.stalls}"
        if error is None and self._audited:
            await self._audit()

    async def _audit(self) -> None:
        """Whatever happened, the log must tell one consistent story."""
        store = self.store.inner if isinstance(self.store, FaultyStore) else self.store
        await store.open()
        report = await audit(store)
        await store.close()
        assert report.is_consistent, "the log is not consistent:\n" + "\n".join(map(str, report.findings[:20]))

    async def _beat(self) -> None:
        while True:
            for worker in self.lives:
                if worker.liveness != "refused":
                    worker.registry.beat()
            await self.clock.sleep(_BEAT_SECONDS)

    # ---- the orchestrator

    @property
    def engine(self) -> Orchestrator:
        """The orchestrator that is running."""
        assert self._engine is not None, "the orchestrator is not running"
        return self._engine

    async def running_engine(self) -> tuple[Orchestrator, asyncio.Event]:
        """The orchestrator, once one is running, and what is set when it has ended."""
        await self._up.wait()
        return self.engine, self._down

    async def restart_orchestrator(self) -> Orchestrator:
        """Start an orchestrator on the store (again); workers that are alive connect to it."""
        assert self._engine is None, "the orchestrator is running: crash or stop it first"
        self._count += 1
        registry = MemoryRegistry(self.hub)
        await registry.start()
        engine = Orchestrator(
            self.store,
            registry,
            clock=self.clock,
            ids=self.ids,
            codec=JsonCodec(),
            orchestrator_id="orchestrator-1",
            incarnation=f"orchestrator-1.{self._count}",
            prober=_Prober(self),
            payload_limit=self._payload_limit,
            speculation=self._speculation,
            on_fatal=self._on_fatal,
        )
        await engine.start()
        await engine.announce("127.0.0.1:7411")
        self._engine, self._registry = engine, registry
        self._down = asyncio.Event()
        self._up.set()
        for worker in self.workers.values():
            self.reconnect(worker.id)
        return engine

    async def crash_orchestrator(self) -> None:
        """End it as `kill -9` would: what is not durable is lost, streams break, nothing is said."""
        engine, registry = self._take_down()
        for worker in self.workers.values():
            if worker.stream is not None:
                worker.stream.cut_worker_side()
        await engine.abandon()
        await registry.crash()

    async def stop_orchestrator(self) -> None:
        """End it in good order."""
        engine, registry = self._take_down()
        await engine.stop()
        await registry.close()

    def _take_down(self) -> tuple[Orchestrator, MemoryRegistry]:
        engine, registry = self.engine, self._registry
        assert registry is not None
        self.stalls += [engine.watchdog.last] * engine.watchdog.repaired
        self._engine = self._registry = None
        self._up.clear()
        self._down.set()
        return engine, registry

    def _on_fatal(self, error: Coded) -> None:
        self.fatal = error

    # ---- workers

    async def add_worker(
        self, worker: Worker, worker_id: str = "", *, slots: dict[Role, int] | None = None, connect: bool = True
    ) -> ClusterWorker:
        """Start a worker process with these handlers, registered and connected. Returns when its class nodes are
        initialised. Raises HandlerInitializationError when one cannot be: the worker has ended then."""
        number = len(self.lives) + 1
        name = worker_id or f"worker-{number}"
        calls = WorkerCalls(self)
        runtime = WorkerRuntime(
            worker,
            worker_id=name,
            incarnation=f"{name}.{number}",
            clock=self.clock,
            slots=slots,
            liveness=f"{name}.{number}",
            caller=ServiceCaller(cast("RunService", calls), calls.close),
        )
        runtime.open()
        registry = MemoryRegistry(self.hub)
        await registry.start()
        added = ClusterWorker(runtime, registry, calls)
        for role in ROLES:
            handlers = tuple(handler.name for handler in worker.handlers if handler.role == role)
            if handlers:
                await registry.register(self._node_record(kind_of(role), runtime, handlers))
        self.workers[name] = added
        self.lives.append(added)
        if connect and self._engine is not None:
            self.reconnect(name)
        try:
            await runtime.initialize()
        except HandlerInitializationError:
            await self.stop_worker(name)
            raise
        return added

    async def stop_worker(self, worker_id: str) -> None:
        """SIGTERM: it takes nothing new, ends what it runs, says goodbye."""
        worker = self.workers.pop(worker_id)
        await worker.runtime.drain(0.0)
        if worker.stream is not None:
            await worker.stream.ended.wait()
        await worker.close()

    def _node_record(self, kind: NodeKind, runtime: WorkerRuntime, handlers: tuple[str, ...]) -> NodeRecord:
        return NodeRecord(
            kind=kind,
            node_id=runtime.worker_id,
            incarnation=runtime.incarnation,
            liveness=runtime.liveness,
            handlers=handlers,
            started_at=self.clock.now(),
        )

    def kill_worker(self, worker_id: str) -> None:
        """`kill -9`: its streams break, its port refuses connections."""
        self.workers.pop(worker_id).kill()

    def cut(self, worker_id: str) -> None:
        """Break a worker's stream; both ends live on."""
        self.workers[worker_id].cut()

    def reconnect(self, worker_id: str) -> InProcessStream:
        """A new stream between a worker and the orchestrator."""
        worker = self.workers[worker_id]
        worker.stream = InProcessStream(self.engine.accept_worker, worker.runtime)
        return worker.stream

    # ---- clients

    async def register(self, definition: WorkflowDefinition) -> DefinitionInfo:
        return await self.engine.register_definition(self.namespace, dump_definition(definition))

    async def start(self, workflow_type: str, input: Any = None, **fields: Any) -> StartOutcome:
        """Start a run; `fields` are those of StartRequest."""
        request = StartRequest(
            namespace=self.namespace, workflow_type=workflow_type, input=encode_value(input), **fields
        )
        answer: asyncio.Future[StartOutcome | SPIError] = asyncio.get_running_loop().create_future()
        self.engine.start_run(request, answer.set_result)
        return _value(await answer)

    async def run(self, workflow_type: str, input: Any = None, **fields: Any) -> Any:
        """Start a run and return its result. Raises RunFailed when it has none."""
        return await self.result((await self.start(workflow_type, input, **fields)).key)

    async def wait(self, key: RunKey) -> RunOutcome:
        """How the run ended, once it has."""
        answer: asyncio.Future[RunOutcome | SPIError] = asyncio.get_running_loop().create_future()
        give_up = self.engine.wait_run(key, answer.set_result)
        try:
            return _value(await answer)
        finally:
            give_up()

    async def result(self, key: RunKey) -> Any:
        """The run's decoded result, once it has ended. Raises RunFailed when it has none."""
        outcome = await self.wait(key)
        if outcome.result is None:
            error = outcome.error
            raise RunFailed(
                error.message if error else f"the run ended as {outcome.state}",
                {"run": str(key), "state": outcome.state, "error": error.type if error else ""},
            )
        return decode_value(outcome.result)

    async def state(self, key: RunKey) -> RunView:
        return await self.engine.describe_run(key)

    async def task(self, key: RunKey, name: str) -> TaskView:
        """One task of the run as it stands."""
        view = await self.state(key)
        return next(task for task in view.tasks if task.name == name)

    async def history(self, key: RunKey) -> list[EventView]:
        """All events of the run."""
        events: list[EventView] = []
        while page := await self.engine.read_history(key, len(events) + 1):
            events.extend(page)
        return events

    async def control(self, key: RunKey, action: Action, **fields: Any) -> ControlOutcome:
        """Pause, resume, cancel or resolve; `fields` are those of ControlRequest, `result` as a plain value."""
        if "result" in fields:
            fields["result"] = encode_value(fields["result"])
        return await self.engine.control(ControlRequest(key=key, action=action, **fields))

    async def follow(self, key: RunKey, from_sequence: int = 1) -> AsyncIterator[EventView]:
        """The run's events as they become durable, to its last."""
        heard: asyncio.Queue[Sequence[EventView] | SPIError | None] = asyncio.Queue()
        stop = self.engine.follow_run(key, from_sequence, heard.put_nowait)
        try:
            while (events := await heard.get()) is not None:
                if isinstance(events, SPIError):
                    raise events
                for event in events:
                    yield event
        finally:
            stop()

    def key(self, workflow_type: str, instance_id: UUID) -> RunKey:
        return RunKey(self.namespace, workflow_type, instance_id)


def _value(answer: T | SPIError) -> T:
    if isinstance(answer, SPIError):
        raise answer
    return answer
