"""Orchestrators restarted one by one under load: clients see nothing of it, and nothing runs twice."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar
from uuid import UUID

import pytest

from onexflow.codec.payload import decode_value, encode_value
from onexflow.core.builder import WorkflowBuilder, workflow
from onexflow.core.errors import Draining, InvalidTransition, ShardMoved
from onexflow.core.ids import RunKey
from onexflow.ports.client_link import ControlRequest, OrchestratorService, StartOutcome, StartRequest
from onexflow.spi.exceptions import SPIError
from onexflow.testing.clock import virtual_time
from onexflow.testing.multi_cluster import MultiCluster
from support.engine_kit import Script

T = TypeVar("T")


def flow() -> WorkflowBuilder:
    made = workflow("steps")
    made.effect("first", handler="charge")
    made.compute("second", handler="calc", after="first")
    made.effect("third", handler="charge", after="second")
    return made


class Caller:
    """What the client library does: it goes on to another orchestrator when its own has gone, or says that it is not the one
    to ask. Every other error is one that its user would see."""

    def __init__(self, cluster: MultiCluster) -> None:
        self._cluster = cluster

    async def ask(self, work: Callable[[OrchestratorService], Awaitable[T]]) -> T:
        while True:
            engine, gone = await self._cluster.running_engine()
            asked = asyncio.ensure_future(work(engine))
            ended = asyncio.ensure_future(gone.wait())
            await asyncio.wait({asked, ended}, return_when=asyncio.FIRST_COMPLETED)
            ended.cancel()
            if not asked.done():
                asked.cancel()
                await asyncio.gather(asked, return_exceptions=True)
                continue
            try:
                return asked.result()
            except (Draining, ShardMoved):
                await self._cluster.clock.sleep(0.1)

    async def start(self, instance: UUID) -> RunKey:
        request = StartRequest(
            namespace="default",
            workflow_type="steps",
            input=encode_value(1),
            instance_id=instance,
            request_id=f"s{instance}",
        )
        started: StartOutcome = await self.ask(lambda engine: called(lambda reply: engine.start_run(request, reply)))
        return started.key

    async def result(self, key: RunKey) -> Any:
        outcome = await self.ask(lambda engine: called(lambda reply: engine.wait_run(key, reply)))
        return decode_value(outcome.result)

    async def control(self, key: RunKey, action: Any, number: int) -> None:
        request = ControlRequest(key=key, action=action, request_id=f"{action}-{number}-{key.instance_id}")
        await self.ask(lambda engine: engine.control(request))


async def called(call: Callable[[Callable[[Any], None]], Any]) -> Any:
    answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    stop = call(lambda outcome: None if answer.done() else answer.set_result(outcome))
    try:
        outcome = await answer
    finally:
        if stop is not None:
            stop()
    if isinstance(outcome, SPIError):
        raise outcome
    return outcome


@pytest.mark.parametrize("seed", range(2))
@virtual_time
async def test_a_rolling_restart_is_seen_by_no_client(seed: int) -> None:
    script = Script()
    async with MultiCluster(seed=seed, slowest=0.02 * seed) as cluster:
        names = ["a", "b", "c"]
        for name in names:
            await cluster.add_orchestrator(name)
        await cluster.register(flow().build())
        for name in ("w1", "w2"):
            await cluster.add_worker(script.worker(name), name)
        await cluster.settled()
        caller = Caller(cluster)
        over = asyncio.Event()
        keys: list[RunKey] = []
        done = 0

        async def load(number: int) -> None:
            nonlocal done
            while not over.is_set():
                key = await caller.start(cluster.ids.uuid())
                keys.append(key)
                if number % 3 == 0:
                    try:
                        await caller.control(key, "pause", number)
                        await cluster.clock.sleep(0.2)
                        await caller.control(key, "resume", number)
                    except InvalidTransition:  # it had ended before
                        continue
                assert await caller.result(key) == 1
                await cluster.clock.sleep(0.2)
                done += 1

        loads = [asyncio.ensure_future(load(number)) for number in range(3)]
        for name in names:
            await cluster.stop(name)
            await cluster.clock.sleep(1.0)
            await cluster.add_orchestrator(name)
            await cluster.clock.sleep(15.0)  # until it is given shards
            failed = [one.exception() for one in loads if one.done()]
            assert not failed, failed
        over.set()
        await asyncio.gather(*loads)
        assert done > 50
        assert [await caller.result(key) for key in keys] == [1] * len(keys)
        effects = Counter((call.task, call.token) for call in script.calls if call.handler == "charge")
        assert set(effects.values()) == {1}
        assert script.count("charge") == 2 * len(keys)
