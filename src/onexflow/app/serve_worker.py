"""One worker process, from its settings to its end."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable, Iterable, Sequence
from typing import Final

import structlog

from onexflow import __version__
from onexflow.app import adapters, exits, system, telemetry
from onexflow.app.handlers import check_serves, load_workers
from onexflow.app.signals import StopSignals
from onexflow.app.system import SystemClock, SystemIds
from onexflow.app.tuning import settle_memory
from onexflow.client.security import security_of
from onexflow.config import WorkerSettings
from onexflow.core.address import split_address
from onexflow.ports.orchestration import NodeCaller
from onexflow.ports.registry import MemberEvent, NodeRecord, Registry, kind_of
from onexflow.ports.worker_link import ROLES, Role
from onexflow.rpc.liveness import LivenessServer
from onexflow.rpc.tls import ClientSecurity
from onexflow.rpc.worker_connection import WorkerConnections, connect_worker
from onexflow.spi.exceptions import HandlerInitializationError, SPIError
from onexflow.telemetry import logging, metrics, names
from onexflow.worker import Worker
from onexflow.worker.runtime import WorkerRuntime

_log = structlog.get_logger("onexflow.worker")
#: Seconds between beats: the lease is renewed while the last is younger than two seconds.
_BEAT: Final = 0.5
#: Seconds without any orchestrator after which that is said, and said again.
_LONELY: Final = 10.0
#: Seconds in which orchestrators are told of a node that cannot be initialised.
_TOLD_WITHIN: Final = 1.0


async def serve(settings: WorkerSettings) -> int:
    """Serve until a signal. Raises what made a start impossible."""
    clock, ids = SystemClock(), SystemIds()
    name = settings.worker_id or f"worker-{system.host()}-{os.getpid()}"
    incarnation = ids.uuid().hex
    logging.configure(settings.log.level, settings.log.format, node=name)
    end_telemetry = telemetry.wire("onex-worker", name)
    adapters.make_importable(os.getcwd())  # noqa: PTH109 - sys.path holds strings
    worker = load_workers(settings.modules, name)
    check_serves(worker, settings.roles)
    slots = _slots(settings)
    registry = adapters.registry_of(settings.registry, settings.cluster, clock)
    liveness = LivenessServer(incarnation)
    security = security_of(settings)
    connections: WorkerConnections | None = None
    connecting: asyncio.Task[WorkerConnections | None] | None = None
    runtime = WorkerRuntime(
        worker,
        worker_id=name,
        incarnation=incarnation,
        slots=slots,
        clock=clock,
        build_id=__version__,
        caller=_caller(
            worker, settings, lambda: {*runtime.orchestrators, *(connections.connected if connections else ())}
        ),
    )
    _observe(runtime)
    with StopSignals() as stop:
        background: list[asyncio.Task[None]] = []
        try:
            await registry.start()
            runtime.liveness = await liveness.start(*(split_address(settings.liveness) or ()))
            runtime.open()
            background.append(asyncio.create_task(_beat(registry), name="onexflow-beat"))
            # Beside the nodes' initialize(), so that the orchestrators can tell callers of it.
            connecting = asyncio.create_task(
                _connect(runtime, settings, security, registry, stop), name="onexflow-connecting"
            )
            await _initialize(runtime, connecting)
            records = _records(worker, name, incarnation, runtime.liveness, slots, clock.now())
            for record in records:
                await registry.register(record)
            connections = await connecting
            if connections is not None:
                _follow(registry, connections)
                background.append(asyncio.create_task(_watch(connections), name="onexflow-connections"))
                settle_memory()
                roles = ",".join(record.kind for record in records)
                _log.info("worker.serving", modules=list(settings.modules), roles=roles, liveness=runtime.liveness)
                print(f"onex-worker {name} serves {roles}", flush=True)
                await stop.requested.wait()
            await runtime.drain(settings.drain_timeout)
        finally:
            for task in background:
                task.cancel()
            await asyncio.gather(*background, return_exceptions=True)
            await runtime.close()
            await _disconnect(connecting)
            await registry.close()
            await liveness.stop()
            end_telemetry()
    _log.info("worker.stopped", reason=stop.reason)
    return exits.OK


async def _initialize(runtime: WorkerRuntime, connecting: asyncio.Task[WorkerConnections | None]) -> None:
    """Initialise the nodes. When one fails, the orchestrators hear of it before this process ends, if they are there."""
    try:
        await runtime.initialize()
    except HandlerInitializationError:
        with contextlib.suppress(SPIError, TimeoutError):
            async with asyncio.timeout(_TOLD_WITHIN):
                connections = await asyncio.shield(connecting)
                if connections is not None:
                    await connections.wait_connected(_TOLD_WITHIN)
        raise


async def _disconnect(connecting: asyncio.Task[WorkerConnections | None] | None) -> None:
    if connecting is None:
        return
    connecting.cancel()
    (connections,) = await asyncio.gather(connecting, return_exceptions=True)
    if isinstance(connections, WorkerConnections):
        await connections.close()


def _caller(worker: Worker, settings: WorkerSettings, addresses: Callable[[], Iterable[str]]) -> NodeCaller | None:
    """How orchestrations call. Workers without any do not load the client for it."""
    if not any(handler.role == "orchestrator" for handler in worker.handlers):
        return None
    from onexflow.app.calling import caller_over

    return caller_over(addresses, tls=settings.tls, token=settings.token.reveal(), token_file=settings.token_file)


def _observe(runtime: WorkerRuntime) -> None:
    """Let collectors read the worker's books."""

    def slots() -> list[tuple[float, metrics.Attributes]]:
        seen = runtime.statistics()
        return [
            (count, {names.ROLE: role, names.STATE: state})
            for role, total in seen.slots.items()
            for state, count in (("running", seen.running[role]), ("free", total - seen.running[role]))
        ]

    def results() -> list[tuple[float, metrics.Attributes]]:
        seen = runtime.statistics()
        return [(seen.completed, {names.OUTCOME: "completed"}), (seen.failed, {names.OUTCOME: "failed"})]

    metrics.observe(names.WORKER_SLOTS, slots)
    metrics.observe(names.WORKER_RESULTS, results)


def _slots(settings: WorkerSettings) -> dict[Role, int]:
    """Tasks at once, by role; 0 for roles that are not served."""
    wanted = {
        "effect": settings.slots.effect,
        "compute": settings.slots.compute or os.cpu_count() or 1,
        "reducer": settings.slots.reducer,
        "orchestrator": settings.slots.orchestrator,
    }
    return {role: wanted[role] if not settings.roles or role in settings.roles else 0 for role in ROLES}


def _records(
    worker: Worker, name: str, incarnation: str, liveness: str, slots: dict[Role, int], now: int
) -> Sequence[NodeRecord]:
    """What the process registers: a node for each role that it serves."""
    return [
        NodeRecord(
            kind=kind_of(role),
            node_id=name,
            incarnation=incarnation,
            liveness=liveness,
            handlers=handlers,
            slots=slots[role],
            version=__version__,
            started_at=now,
        )
        for role in ROLES
        if slots[role] and (handlers := tuple(h.name for h in worker.handlers if h.role == role))
    ]


async def _connect(
    runtime: WorkerRuntime,
    settings: WorkerSettings,
    security: ClientSecurity,
    registry: Registry,
    stop: StopSignals,
) -> WorkerConnections | None:
    """Streams to the orchestrators that are named, or that the registry knows of; None when told to stop meanwhile."""
    addresses = settings.endpoints() or await _discovered(registry, stop)
    return await connect_worker(runtime, addresses, security=security) if addresses else None


async def _discovered(registry: Registry, stop: StopSignals) -> tuple[str, ...]:
    """Addresses of the orchestrators in the registry, once there are any; () when told to stop meanwhile."""
    known = asyncio.Event()

    def on_change(_event: MemberEvent) -> None:
        known.set()

    unsubscribe = registry.subscribe(on_change)
    try:
        while not stop.requested.is_set():
            addresses = tuple(member.address for member in registry.members("orchestrator") if member.address)
            if addresses:
                return addresses
            _log.info("worker.waiting", why="no orchestrator is registered yet")
            known.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LONELY):
                    await _either(known, stop.requested)
        return ()
    finally:
        unsubscribe()


def _follow(registry: Registry, connections: WorkerConnections) -> None:
    """Connect to every orchestrator that the registry comes to know, also one that comes back elsewhere."""

    def on_change(event: MemberEvent) -> None:
        if event.record.kind == "orchestrator" and event.type != "down" and event.record.address:
            connections.learn((event.record.address,))

    registry.subscribe(on_change)
    connections.learn(member.address for member in registry.members("orchestrator") if member.address)


async def _either(*events: asyncio.Event) -> None:
    """Return when one of the events is set."""
    waits = [asyncio.ensure_future(event.wait()) for event in events]
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()


async def _beat(registry: Registry) -> None:
    """The lease is renewed only while this loop turns."""
    while True:
        registry.beat()
        await asyncio.sleep(_BEAT)


async def _watch(connections: WorkerConnections) -> None:
    """Say so when there is no orchestrator, and when there is one again."""
    alone = False
    while True:
        try:
            await connections.wait_connected(_LONELY)
            if alone:
                _log.info("orchestrator.connected", orchestrators=sorted(connections.connected.values()))
            alone = False
        except SPIError as error:
            alone = True
            _log.warning("orchestrator.missing", error=str(error))
        await asyncio.sleep(_BEAT)
