"""One bridge process, from its settings to its end."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import ssl
from typing import Any

import structlog

from onexflow import __version__
from onexflow.app import exits, system, telemetry
from onexflow.app.signals import StopSignals
from onexflow.app.tuning import settle_memory
from onexflow.bridge.bridge import Bridge, Plan
from onexflow.bridge.message import subjects_of
from onexflow.client import connect
from onexflow.client.remote import RemoteService
from onexflow.config import BridgeSettings, NatsSettings
from onexflow.core.errors import InvalidConfiguration, NatsUnusable
from onexflow.telemetry import logging, metrics, names

_log = structlog.get_logger("onexflow.bridge")


async def serve(settings: BridgeSettings) -> int:
    """Publish until a signal. Raises what made a start impossible, and what ended it."""
    name = f"bridge-{system.host()}-{os.getpid()}"
    logging.configure(settings.log.level, settings.log.format, node=name)
    end_telemetry = telemetry.wire("onex-bridge", name)
    if importlib.util.find_spec("nats") is None:
        message = "The bridge needs nats-py, which is not installed."
        raise NatsUnusable(message, {"hint": "Install it: pip install 'onexflow[nats]'."})
    from onexflow.bridge.jetstream import JetStream, Target

    nats, events = settings.nats, settings.events
    target = Target(
        servers=nats.servers(),
        stream=nats.stream,
        subjects=subjects_of(settings.cluster),
        create=nats.create_stream,
        user=nats.user,
        password=nats.password.reveal(),
        token=nats.token.reveal(),
        tls=tls_of(nats),
    )
    plan = Plan(
        cluster=settings.cluster,
        stream=nats.stream,
        namespaces=events.namespaces,
        topics=events.topics,
        event_types=events.types,
        group=events.group,
        start=events.start,
        window=events.window,
    )
    with StopSignals() as stop:
        try:
            token = settings.token.reveal()
            connecting = connect(
                settings.orchestrators, client_id=name, tls=settings.tls, token=token, token_file=settings.token_file
            )
            async with await connecting as client:
                bridge = Bridge(RemoteService.of(client).events, JetStream(target).dial, plan)
                _observe(bridge)
                try:
                    await bridge.start()
                    settle_memory()
                    where = ", ".join(target.servers)
                    _log.info("bridge.serving", nats=where, stream=nats.stream, subjects=target.subjects,
                              namespaces=list(events.namespaces), version=__version__)  # fmt: skip
                    print(f"onex-bridge publishes {target.subjects} to {nats.stream} at {where}", flush=True)
                    await _until(stop.requested, bridge)
                finally:
                    await bridge.stop()
        finally:
            end_telemetry()
    if bridge.failed.done():
        raise bridge.failed.result()
    _log.info("bridge.stopped", reason=stop.reason, published=bridge.publisher.stored)
    return exits.OK


async def _until(requested: asyncio.Event, bridge: Bridge) -> None:
    """Return when a stop is asked for, or the bridge cannot go on."""
    asked: asyncio.Future[Any] = asyncio.ensure_future(requested.wait())
    waits: set[asyncio.Future[Any]] = {asked, bridge.failed}
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        asked.cancel()


def tls_of(settings: NatsSettings) -> ssl.SSLContext | None:
    """What the files make; None: no files are named. Raises InvalidConfiguration."""
    if not (settings.ca or settings.certificate):
        return None
    try:
        context = ssl.create_default_context(cafile=settings.ca or None)
        if settings.certificate:
            context.load_cert_chain(settings.certificate, settings.key)
    except (OSError, ssl.SSLError) as error:
        files = ", ".join(file for file in (settings.ca, settings.certificate, settings.key) if file)
        raise InvalidConfiguration(f"nats.ca, nats.certificate, nats.key: {files}: {error}") from error
    return context


def _observe(bridge: Bridge) -> None:
    """Let collectors read the bridge's books."""
    publisher = bridge.publisher
    metrics.observe(names.BRIDGE_PUBLISHED, lambda: [(publisher.stored, {})])
    metrics.observe(names.BRIDGE_REPEATED, lambda: [(publisher.repeated, {})])
    metrics.observe(names.BRIDGE_PARKED, lambda: [(publisher.parked, {})])
    metrics.observe(names.BRIDGE_WAITING, lambda: [(publisher.waiting, {})])
    metrics.observe(
        names.BRIDGE_MISSED, lambda: [(one.missed, {names.NAMESPACE: one.namespace}) for one in bridge.readings]
    )
    metrics.observe(names.BRIDGE_LAG, lambda: [(one.lag, {names.NAMESPACE: one.namespace}) for one in bridge.readings])
