"""A bridge beside the engine, on the test's own loop, to a real NATS."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID

import msgspec

from nats_support import NatsServer
from onexflow.app.system import SystemClock, SystemIds
from onexflow.bridge.bridge import Bridge, Plan
from onexflow.bridge.jetstream import JetStream, Target
from onexflow.bridge.message import subjects_of
from onexflow.core.ids import RunKey
from onexflow.ports.events import EventService
from onexflow.testing import Cluster

PLAN = Plan(cluster="local", stream="onexflow", namespaces=("default",))


def real_cluster(**options: Any) -> Cluster:
    """The engine in real time: NATS knows no other."""
    return Cluster(clock=SystemClock(), ids=SystemIds(), **options)


def target(server: NatsServer | str, **fields: Any) -> Target:
    url = server if isinstance(server, str) else server.url
    return Target(
        **{"servers": (url,), "stream": "onexflow", "subjects": subjects_of("local"), "create": True, **fields}
    )


@asynccontextmanager
async def bridging(
    service: EventService, to: Target, *, gently: bool = True, **plan: Any
) -> AsyncIterator[Bridge]:  # fmt: skip
    """A bridge that runs; at the end it is stopped in good order, or else cut off in the middle."""
    bridge = Bridge(service, JetStream(to).dial, msgspec.structs.replace(PLAN, **plan))
    try:
        await bridge.start()
        yield bridge
        if gently:
            assert not bridge.failed.done(), bridge.failed.result()
    finally:
        if gently:
            await bridge.stop()
        else:
            await cut_off(bridge)


async def cut_off(bridge: Bridge) -> None:
    """End it as a kill would: nothing more is said to either side."""
    for reading in bridge.readings:
        reading._stored.clear()
        reading.close()
    tasks = list(bridge._tasks)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await bridge.publisher.close()


async def within(condition: Callable[[], Any], what: str, seconds: float = 20.0) -> None:
    """Return when it holds, which it must before the deadline."""
    give_up = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < give_up, f"waited {seconds:g} s for {what}"
        await asyncio.sleep(0.005)


def key_of(message: Any) -> RunKey:
    body = msgspec.json.decode(message.data)
    return RunKey(body["namespace"], body["workflow_type"], UUID(body["instance_id"]))


def first_seen(messages: Iterable[Any]) -> dict[RunKey, list[int]]:
    """The numbers of each run's events, in the order in which they came first."""
    found: dict[RunKey, list[int]] = defaultdict(list)
    for message in messages:
        body = msgspec.json.decode(message.data)
        numbers = found[key_of(message)]
        if body["sequence"] not in numbers:
            numbers.append(body["sequence"])
    return dict(found)


def ids(messages: Iterable[Any]) -> list[str]:
    return [message.headers["Nats-Msg-Id"] for message in messages]
