"""The bridge to NATS under kills: runs and streams go on while the bridge, the orchestrator and NATS die, in any order."""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from nats_support import NatsServer
from onexflow import Client
from onexflow.client.remote import RemoteService
from onexflow.codec.payload import encode_value
from onexflow.core.errors import Unavailable
from onexflow.core.ids import RunKey, derived_uuid
from onexflow.examples import greet
from onexflow.ports.events import EventRecord, Publish
from support.nats_kit import first_seen, ids

from .processes import Processes, until
from .scenarios import chain

VICTIMS: Final = ("bridge", "orchestrator", "nats", "frozen nats")
STREAMS: Final = [RunKey("default", "chaos-bridged", derived_uuid(f"bridged:{number}")) for number in range(4)]


class _Bridge:
    """A bridge process that is started again whenever it has ended, as a supervisor does."""

    def __init__(self, cluster: Processes, server: NatsServer) -> None:
        self._cluster = cluster
        self._flags = ("--orchestrators", cluster.address, "--nats-url", server.url, "--nats-create-stream",
                       "--events-window", "64")  # fmt: skip
        self.process: asyncio.subprocess.Process | None = None
        self.starts = 0

    async def keep(self) -> None:
        while True:
            self.process = await self._cluster.spawn("bridge", "onexflow.app.bridge", *self._flags)
            self.starts += 1
            await self.process.wait()

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._cluster.kill(self.process)


@asynccontextmanager
async def _kept(cluster: Processes, server: NatsServer) -> AsyncIterator[_Bridge]:
    bridge = _Bridge(cluster, server)
    keeping = asyncio.create_task(bridge.keep())
    try:
        await until(lambda: bridge.process is not None, "the bridge's process")
        yield bridge
    finally:
        keeping.cancel()
        await asyncio.wait([keeping])
        if bridge.process is not None and bridge.process.returncode is None:
            bridge.process.kill()
            await bridge.process.wait()


async def kill_around_the_bridge(count: int = 200, kills: int = 8, seed: int | None = None) -> dict[str, float]:
    """kill -9 of bridge, orchestrator and NATS at random moments (another seed each time, unless one is given): every event
    of every run and stream is in JetStream, in order the first time, and none but those that NATS may repeat stands there
    twice."""
    chance = random.Random(seed)
    published = 0
    definition = chain("calculate", "compute", 3)
    async with NatsServer() as server, Processes() as cluster, _kept(cluster, server) as bridge:
        await cluster.start_worker("w1")
        async with await cluster.client() as client:
            await cluster.wait_for_workers(client, 1)
            await client.register(definition)
            service = RemoteService.of(client).events

            async def publish(key: RunKey) -> None:
                nonlocal published
                for number in range(1, count + 1):
                    event = EventRecord(key=key, type="task.completed", event_id=derived_uuid(f"{key}:{number}"),
                                        payload=encode_value(number))  # fmt: skip
                    while True:
                        try:
                            await service.publish_event(Publish(event=event))
                            break
                        except Unavailable:
                            await asyncio.sleep(0.05)  # until it is durable, as a caller that wants it does
                    published += 1

            work = [asyncio.create_task(publish(key)) for key in STREAMS]
            runs = [await client.start(definition.workflow_type) for _ in range(count // 4)]
            total = count * len(STREAMS)
            for victim in chance.sample(VICTIMS * (-(-kills // len(VICTIMS))), kills):
                mark = published + chance.randrange(1, max(2, total // (2 * kills)))
                await until(lambda mark=mark: published >= min(mark, total), "events under way")  # type: ignore[misc]  # a default
                await _strike(victim, cluster, server, bridge)
            await asyncio.gather(*work)
            for run in runs:
                await run.result(timeout=60)
            wanted = {key: list(range(1, count + 1)) for key in STREAMS}
            for run in runs:
                wanted[run.key] = [event.sequence for event in await run.history()]
            found = await _all_of(server, sum(map(len, wanted.values())))
            await _acknowledged(client)
    seen = first_seen(found)
    assert seen.keys() == wanted.keys()
    assert [key for key in wanted if seen[key] != wanted[key]] == [], "lost, or not in order"
    return {
        "events": sum(map(len, wanted.values())),
        "stored twice": len(found) - len(set(ids(found))),
        "bridge starts": bridge.starts,
    }


async def freeze_one_bridge_of_two(count: int = 200) -> dict[str, float]:
    """SIGSTOP a bridge while another one is there: the other one gets its shards when its stream is found dead, and what the
    first one had in hand when it wakes changes nothing."""
    async with (
        NatsServer() as server,
        Processes() as cluster,
        _kept(cluster, server) as first,
        _kept(cluster, server),
        await cluster.client() as client,
    ):
        service = RemoteService.of(client).events

        async def publish(numbers: range) -> None:
            for number in numbers:
                event = EventRecord(
                    key=STREAMS[number % len(STREAMS)], type="task.completed", payload=encode_value(number)
                )
                await service.publish_event(Publish(event=event))

        async with asyncio.timeout(30):
            while sum(group.members for group in await service.list_groups("default")) < 2:
                await asyncio.sleep(0.05)
        await publish(range(count))
        await client.register(greet.definition())
        run = await client.start("greet", {"name": "Ada"})
        assert first.process is not None
        first.process.send_signal(signal.SIGSTOP)
        try:
            await publish(range(count, 2 * count))
            began = time.monotonic()
            begun = len(await run.history())
            await _all_of(server, 2 * count + begun)
            took = time.monotonic() - began
        finally:
            first.process.send_signal(signal.SIGCONT)
        await _acknowledged(client)
        found = await server.stored()
    assert len(found) == 2 * count + begun
    assert all(numbers == sorted(numbers) for numbers in first_seen(found).values())
    return {"all arrived after s": took}


async def _strike(victim: str, cluster: Processes, server: NatsServer, bridge: _Bridge) -> None:
    if victim == "bridge":
        bridge.kill()
    elif victim == "orchestrator":
        assert cluster.orchestrator is not None
        cluster.kill(cluster.orchestrator)
        await cluster.orchestrator.wait()
        await cluster.start_orchestrator()
    elif victim == "nats":
        server.kill()
        await server.start()
    else:
        server.freeze()
        try:
            bridge.kill()  # and it comes back while NATS hangs
            starts = bridge.starts
            await until(lambda: bridge.starts > starts, "the bridge to be started again")
        finally:
            server.thaw()


async def _all_of(server: NatsServer, count: int) -> list[object]:
    """What is in the stream, once so many different events are."""
    give_up = time.monotonic() + 60  # not by a cancellation, which the NATS library may swallow
    while True:
        found = await server.stored()
        if len(set(ids(found))) >= count:
            return found
        assert time.monotonic() < give_up, f"{len(set(ids(found)))} of {count} events have arrived"
        await asyncio.sleep(0.2)


async def _acknowledged(client: Client) -> None:
    """The group has nothing left."""
    async with asyncio.timeout(30):
        while any(group.lag for group in await RemoteService.of(client).events.list_groups("default")):
            await asyncio.sleep(0.05)


SCENARIOS: Final = {
    "kill-around-the-bridge": kill_around_the_bridge,
    "freeze-one-bridge-of-two": freeze_one_bridge_of_two,
}
