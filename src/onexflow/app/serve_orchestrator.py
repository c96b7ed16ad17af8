"""One orchestrator process, from its settings to its end."""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING, Any, Final

import structlog

from onexflow import __version__
from onexflow.app import adapters, exits, security, system, telemetry
from onexflow.app.signals import StopSignals
from onexflow.app.system import SystemClock, SystemIds
from onexflow.app.tuning import settle_memory
from onexflow.codec.payload import JsonCodec
from onexflow.config import OrchestratorSettings
from onexflow.core.address import is_every, is_loopback, split_address, without_password
from onexflow.core.errors import Coded
from onexflow.engine.orchestrator import Orchestrator
from onexflow.ports.registry import MemberEvent
from onexflow.rpc.liveness import LivenessServer, TcpProber
from onexflow.rpc.server import GrpcServer
from onexflow.rpc.tls import ClientSecurity
from onexflow.telemetry import logging

if TYPE_CHECKING:
    from onexflow.client.peers import PeerPool

_log = structlog.get_logger("onexflow.orchestrator")
#: The writer's thread waits for the interpreter's lock at most this long when the loop is busy (default: 5 ms).
_SWITCH_INTERVAL: Final = 0.0005


async def serve(settings: OrchestratorSettings) -> int:
    """Serve until a signal, or until the store is lost. Raises what made a start impossible."""
    clock, ids = SystemClock(), SystemIds()
    shared = adapters.is_shared(settings.store)
    name = settings.node_id or _name(settings.listen, shared=shared)
    incarnation = ids.uuid().hex
    logging.configure(settings.log.level, settings.log.format, node=name)
    end_telemetry = telemetry.wire("onex-orchestrator", name)
    lost: asyncio.Future[Coded] = asyncio.get_running_loop().create_future()

    def on_fatal(error: Coded) -> None:
        if not lost.done():
            lost.set_result(error)

    registry = adapters.registry_of(settings.registry, settings.cluster, clock)
    liveness = LivenessServer(incarnation)
    policy = security.access_policy(settings)
    peer_security = security.peer_security(settings, shared=shared)
    peers = _peers(name, peer_security) if shared else None
    orchestrator = Orchestrator(
        adapters.store_of(settings.store, clock),
        registry,
        clock=clock,
        ids=ids,
        codec=JsonCodec(),
        orchestrator_id=name,
        incarnation=incarnation,
        prober=TcpProber(here=is_loopback(settings.listen)),
        lease_ttl=settings.registry.lease_ttl,
        payload_limit=settings.limits.payload,
        speculation=settings.speculation,
        on_fatal=on_fatal,
        shared=shared,
        peers=peers,
    )

    def on_member(event: MemberEvent) -> None:
        if peers is not None and event.type == "down" and event.record.kind == "orchestrator":
            peers.forget(event.record.address)

    registry.subscribe(on_member)
    if shared and not settings.registry.url.startswith("etcd3:"):
        _log.warning("registry.alone", registry=settings.registry.url,
                     hint="other orchestrators on this store need an etcd to see each other, or they take shards from each other")  # fmt: skip
    server = GrpcServer(
        orchestrator.gateway, settings.listen, reflection=settings.reflection, allow_insecure=settings.insecure,
        tls=security.port_tls(settings), policy=policy,
    )  # fmt: skip
    with StopSignals() as stop:
        try:
            await registry.start()
            await orchestrator.start(version=__version__)
            address = await server.start()
            security.tell(settings, policy, address, shared=shared)
            answering = await _answer(liveness, settings)
            await orchestrator.announce(settings.advertise or address, answering)
            sys.setswitchinterval(_SWITCH_INTERVAL)
            settle_memory()
            _log.info("orchestrator.serving", address=address, store=without_password(settings.store.url),
                      registry=settings.registry.url, version=__version__)  # fmt: skip
            print(f"onex-orchestrator {name} serves on {address}", flush=True)
            await _until(stop.requested, lost)
            if not lost.done():
                orchestrator.drain()
                await server.drain()
                await orchestrator.hand_over()
        finally:
            await server.stop(settings.drain_timeout)
            await orchestrator.stop()
            if peers is not None:
                await peers.close()
            await registry.close()
            await liveness.stop()
            end_telemetry()
    if lost.done():
        raise lost.result()
    _log.info("orchestrator.stopped", reason=stop.reason)
    return exits.OK


def _peers(name: str, security: ClientSecurity) -> PeerPool:
    """How the others are asked. An orchestrator that has its store to itself does not load the client for it."""
    from onexflow.client.peers import PeerPool

    return PeerPool(name, security)


def _name(listen: str, *, shared: bool) -> str:
    """The name of an orchestrator that was given none. Those that share a store on one machine need one each."""
    name = f"orchestrator-{system.host()}"
    _, port = split_address(listen) or ("", 0)
    return f"{name}-{port}" if shared and port else name


async def _answer(liveness: LivenessServer, settings: OrchestratorSettings) -> str:
    """Where this process is to be probed, once it answers there; "" when nobody can."""
    if settings.liveness:
        return await liveness.start(*(split_address(settings.liveness) or ()))
    if is_every(settings.listen):
        return ""
    host, _ = split_address(settings.listen) or ("127.0.0.1", 0)
    return await liveness.start(host)


async def _until(requested: asyncio.Event, lost: asyncio.Future[Coded]) -> None:
    """Return when a stop is asked for, or the store is lost."""
    asked: asyncio.Future[Any] = asyncio.ensure_future(requested.wait())
    waits: set[asyncio.Future[Any]] = {asked, lost}
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        asked.cancel()
