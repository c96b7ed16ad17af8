"""Two orchestrators over one store, served over gRPC: any of them answers, and what it passes on is passed on once."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import NamedTuple

import msgspec
import pytest

import onexflow
from onexflow.app.system import SystemClock, SystemIds
from onexflow.client.peers import PeerPool
from onexflow.client.stream import ConnectStream
from onexflow.codec.payload import JsonCodec
from onexflow.core.errors import ShardMoved, Unavailable
from onexflow.core.ids import RunKey
from onexflow.engine.orchestrator import Orchestrator
from onexflow.registry.memory import MemoryRegistry, MemoryRegistryHub
from onexflow.rpc.server import GrpcServer
from onexflow.rpc.worker_connection import connect_worker
from onexflow.spi import WorkTask
from onexflow.storage.memory import MemoryStore
from onexflow.worker.runtime import WorkerRuntime
from support.engine_kit import Script, single


class Served(NamedTuple):
    engine: Orchestrator
    address: str
    server: GrpcServer
    registry: MemoryRegistry

    async def kill(self) -> None:
        """Nothing is said, nothing more is stored, the port refuses."""
        await self.engine._kernel.abandon()
        await self.server.stop(0.0)
        await self.engine.abandon()
        await self.registry.crash()


@asynccontextmanager
async def orchestrator(store: MemoryStore, hub: MemoryRegistryHub, name: str) -> AsyncIterator[Served]:
    registry, peers = MemoryRegistry(hub), PeerPool(name)
    await registry.start()
    engine = Orchestrator(
        store, registry, clock=SystemClock(), ids=SystemIds(), codec=JsonCodec(), orchestrator_id=name,
        incarnation=f"{name}.1", shared=True, peers=peers,
    )  # fmt: skip
    await engine.start()
    server = GrpcServer(engine.gateway, "127.0.0.1:0")
    address = await server.start()
    await engine.announce(address)
    try:
        yield Served(engine, address, server, registry)
    finally:
        if not engine._kernel.lane.is_over:
            await engine.hand_over()
        await server.stop(1.0)
        await engine.stop()
        await peers.close()
        await registry.close()


@asynccontextmanager
async def pair() -> AsyncIterator[tuple[Served, Served, Script, MemoryStore]]:
    """Two that own four of eight shards each, and a worker."""
    store = MemoryStore(SystemClock())
    hub = MemoryRegistryHub(SystemClock())
    await store.open()
    for number in range(8):  # as if each had been here before
        assert await store.claim(number, 0, "ab"[number % 2]) is not None
    script = Script()
    async with orchestrator(store, hub, "a") as one, orchestrator(store, hub, "b") as two:
        async with asyncio.timeout(10):
            while len(one.engine.shards) + len(two.engine.shards) < 8:
                await asyncio.sleep(0.01)
        runtime = WorkerRuntime(script.worker(), worker_id="w", incarnation="w.1", clock=SystemClock())
        async with runtime:
            connections = await connect_worker(runtime, [one.address, two.address])
            await connections.wait_connected(5)
            yield one, two, script, store
            await connections.close()
    await store.close()


@pytest.mark.timeout(60)
async def test_a_client_of_one_orchestrator_has_all_runs_queues_and_states() -> None:
    async with pair() as (one, two, script, _):
        assert one.engine.shards
        assert two.engine.shards
        async with await onexflow.connect(one.address) as client:
            await client.register(single("effect", "send").build())
            handles = [await client.start("single", number) for number in range(16)]
            assert {client_shard(one, handle.key) for handle in handles} == {True, False}
            assert [await handle.result() for handle in handles] == list(range(16))
            for handle in handles:
                assert (await handle.state()).state == "completed"
                assert len(await handle.history()) > 3
            assert len([run async for run in client.list("single")]) == 16
            for number in range(4):
                queue = client.work_queue(f"q{number}")
                await queue.enqueue_task(WorkTask(task_id="t", task_name="nobody", payload=number))
                assert [task.task_id for task in await queue.dequeue_task("me")] == ["t"]
        assert script.count("send") == 16


def client_shard(served: Served, key: RunKey) -> bool:
    """Is the run of that orchestrator?"""
    return key.slot * 8 // 4096 in served.engine.shards


@pytest.mark.timeout(60)
async def test_what_all_open_runs_wait_for_is_told_by_any_orchestrator() -> None:
    async with pair() as (one, _, script, __):
        gate = script.gate("send")
        async with await onexflow.connect(one.address) as client:
            await client.register(single("effect", "send").build())
            await client.register(single("effect", "nobody", name="alone").build())
            handles = [await client.start("single", number) for number in range(16)]
            alone = [await client.start("alone", number) for number in range(8)]
            keys = [handle.key for handle in handles + alone]
            assert {client_shard(one, key) for key in keys} == {True, False}
            await script.called("send")

            async def kinds() -> Counter[str]:
                return Counter([run.blocked.kind async for run in client.blocked(keys=keys)])

            async with asyncio.timeout(10):
                while (found := await kinds())["running"] + found["no_slot"] != 16 or found["no_worker"] != 8:
                    await asyncio.sleep(0.02)
            listed = [run async for run in client.blocked()]
            assert {run.key for run in listed} == set(keys)
            assert all(run.state == "running" and run.blocked.ended_by for run in listed)
            assert {run.blocked.handler for run in listed if run.blocked.kind == "no_worker"} == {"nobody"}
            assert len([run async for run in client.blocked("alone", limit=3)]) == 3
            view = await alone[0].state()
            assert view.blocked is not None
            assert (view.blocked.kind, view.blocked.task) == ("no_worker", view.tasks[0].name)
            gate.set()
            for handle in handles:
                await handle.result()
            assert {run.key async for run in client.blocked(keys=keys)} == {handle.key for handle in alone}


@pytest.mark.timeout(60)
async def test_what_was_passed_on_is_refused_by_who_does_not_own_it_and_says_who_does() -> None:
    async with pair() as (one, two, _, __):
        key = RunKey("default", "single", SystemIds().uuid())
        while client_shard(one, key):
            key = msgspec.structs.replace(key, instance_id=SystemIds().uuid())
        pool = PeerPool("test")
        with pytest.raises(ShardMoved) as moved:
            await pool(one.address).describe_run(key)
        assert moved.value.context["owner"] == two.engine.orchestrator_id
        assert moved.value.context["address"] == two.address
        await pool.close()


@pytest.mark.timeout(60)
async def test_a_pool_is_closed_at_any_moment_of_a_connection_that_nobody_answers() -> None:
    for turns in range(12):
        pool = PeerPool("test")
        asked = asyncio.ensure_future(pool("127.0.0.1:9").describe_run(RunKey("d", "w", SystemIds().uuid())))
        for _ in range(turns * turns):
            await asyncio.sleep(0)
        async with asyncio.timeout(5):
            await pool.close()
        with pytest.raises((Unavailable, asyncio.CancelledError)):
            await asked


@pytest.mark.timeout(60)
async def test_what_is_passed_on_to_one_that_has_gone_is_given_back_after_one_try(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whoever waits for a run of a killed owner is answered by the next one, not kept at the dead one's door."""
    tries = 0
    once = ConnectStream.once

    async def counted(stream: ConnectStream) -> None:
        nonlocal tries
        tries += 1
        await once(stream)

    monkeypatch.setattr(ConnectStream, "once", counted)
    pool = PeerPool("test")
    heard: asyncio.Future[object] = asyncio.get_running_loop().create_future()
    pool("127.0.0.1:9").wait_run(RunKey("d", "w", SystemIds().uuid()), heard.set_result)
    assert isinstance(await heard, Unavailable)
    assert tries == 1
    await pool.close()
