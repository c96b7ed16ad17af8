"""Orchestrations whose workers and orchestrators die, drain, or are cancelled: no call is made twice, none is left behind."""

from __future__ import annotations

import asyncio
from random import Random
from typing import Any

import pytest

from onexflow.codec.definitions import dump_definition
from onexflow.core.errors import Unavailable
from onexflow.core.ids import RunKey
from onexflow.ports.client_link import ControlOutcome, ControlRequest
from onexflow.testing import Cluster, virtual_time
from onexflow.testing.multi_cluster import MultiCluster
from onexflow.worker.context import Context
from onexflow.worker.handlers import Worker
from support.engine_kit import Script, single, until
from support.orchestration_kit import SLOTS, Conductor, begin, children, flow


@virtual_time
async def test_a_lost_worker_repeats_no_call_and_gets_the_results_of_those_that_were_made() -> None:
    async def code(contract: Any, ctx: Context) -> Any:
        first = await (await ctx.node("charge", "effect")).execute_effect({"n": 1})
        send = await ctx.node("send", "effect")
        side = await asyncio.gather(*(send.execute_effect(n) for n in range(3)))
        last = await (await ctx.node("work", "compute")).execute_compute({"n": 2})
        return [first, side, last]

    script, conductor = Script(), Conductor()
    conductor.code = code
    gate = script.gate("work")
    async with Cluster() as cluster:
        await begin(cluster, script, conductor)
        key = (await cluster.start("flow")).key
        await until(lambda: script.running["work"] == 1)
        cluster.kill_worker("conductor")
        await cluster.add_worker(conductor.worker(), "second", slots=SLOTS)
        await until(lambda: conductor.begun == 2)
        gate.set()
        assert await cluster.result(key) == [{"n": 1}, [0, 1, 2], {"n": 2}]
        assert (script.count("charge"), script.count("send"), script.count("work")) == (1, 3, 1)
        assert len(await children(cluster, key)) == 5


@pytest.mark.parametrize("conductor_dies", [False, True])
@virtual_time
async def test_cancelling_it_cancels_what_it_waits_for(conductor_dies: bool) -> None:
    async def code(contract: Any, ctx: Context) -> Any:
        await (await ctx.node("send", "effect")).execute_effect(0)
        node = await ctx.node("calc", "compute")
        return await asyncio.gather(node.execute_compute(1), ctx.run("single", 2))

    script, conductor = Script(), Conductor()
    conductor.code = code
    script.gate("calc")
    async with Cluster() as cluster:
        await begin(cluster, script, conductor)
        key = (await cluster.start("flow")).key
        await until(lambda: script.running["calc"] == 2)
        if conductor_dies:
            cluster.kill_worker("conductor")
        await cluster.control(key, "cancel", reason="no more")
        ends = [await cluster.wait(view.key) for view in await children(cluster, key)]
        assert {end.key.workflow_type: end.state for end in ends} == {
            "node.effect.send": "completed", "node.compute.calc": "cancelled", "single": "cancelled",
        }  # fmt: skip
        assert script.cancelled["calc"] == 2
        assert conductor.begun == 1


@virtual_time
async def test_what_a_crash_kept_from_being_cancelled_is_cancelled_at_the_next_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def code(contract: Any, ctx: Context) -> Any:
        return await (await ctx.node("calc", "compute")).execute_compute(1)

    async def nothing(caller: RunKey) -> None:
        return None

    script, conductor = Script(), Conductor()
    conductor.code = code
    script.gate("calc")
    async with Cluster() as cluster:
        await begin(cluster, script, conductor)
        key, other = [(await cluster.start("flow")).key for _ in range(2)]
        await until(lambda: script.running["calc"] == 2)
        monkeypatch.setattr(cluster.engine._calls, "close", nothing)
        await cluster.control(key, "cancel")
        await cluster.crash_orchestrator()
        await cluster.restart_orchestrator()
        (call,) = await children(cluster, key)
        assert (await cluster.wait(call.key)).state == "cancelled"
        (call,) = await children(cluster, other)
        assert call.state == "running"
        script.gates["calc"].set()
        assert await cluster.result(other) == 1


@virtual_time
async def test_a_call_that_cannot_be_cancelled_now_is_cancelled_later() -> None:
    async def code(contract: Any, ctx: Context) -> Any:
        nodes = [await ctx.node("calc", "compute") for _ in range(3)]
        return await asyncio.gather(*(node.execute_compute(n) for n, node in enumerate(nodes)))

    script, conductor = Script(), Conductor()
    conductor.code = code
    script.gate("calc")
    async with Cluster() as cluster:
        await begin(cluster, script, conductor)
        key = (await cluster.start("flow")).key
        await until(lambda: script.running["calc"] == 3)
        calls = cluster.engine._calls
        control = calls._control
        refused: list[RunKey] = []

        async def later(request: ControlRequest) -> ControlOutcome:
            if len(refused) < 2:
                refused.append(request.key)
                raise Unavailable("the run is being read back")
            return await control(request)

        calls._control = later
        await cluster.control(key, "cancel")
        ends = [await cluster.wait(view.key) for view in await children(cluster, key)]
        assert [end.state for end in ends] == ["cancelled"] * 3
        assert len(refused) == 2


@virtual_time
async def test_an_orchestrator_that_dies_takes_no_call_with_it() -> None:
    async def code(contract: Any, ctx: Context) -> Any:
        node = await ctx.node("charge", "effect")
        return [await node.execute_effect(n) for n in range(5)]

    script, conductor = Script(), Conductor()
    conductor.code = code
    async with Cluster() as cluster:
        await begin(cluster, script, conductor)
        key = (await cluster.start("flow")).key
        for count in (1, 3):
            await script.called("charge", count)
            await cluster.crash_orchestrator()
            await cluster.restart_orchestrator()
        assert await cluster.result(key) == [0, 1, 2, 3, 4]
        assert script.count("charge") == 5
        assert conductor.begun == 1  # it was adopted, and its calls were asked for again


@virtual_time
async def test_a_worker_that_drains_gives_its_orchestrations_to_others_at_once() -> None:
    async def code(contract: Any, ctx: Context) -> Any:
        node = await ctx.node("charge", "effect")
        return [await node.execute_effect(1), await (await ctx.node("work", "compute")).execute_compute(2)]

    script, conductor = Script(), Conductor()
    conductor.code = code
    script.gate("work")
    async with Cluster() as cluster:
        await begin(cluster, script, conductor)
        key = (await cluster.start("flow")).key
        await until(lambda: script.running["work"] == 1)
        await cluster.add_worker(conductor.worker(), "second", slots=SLOTS)
        began = asyncio.get_running_loop().time()
        await cluster.workers["conductor"].runtime.drain(3600.0)
        assert asyncio.get_running_loop().time() - began < 5.0
        await until(lambda: conductor.begun == 2)
        script.gates["work"].set()
        assert await cluster.result(key) == [1, 2]
        assert (script.count("charge"), script.count("work")) == (1, 1)
        assert (await cluster.task(key, "lead")).attempt == 2


class _Program:
    """A random orchestration: calls in a row and side by side, nested, and what it gives."""

    def __init__(self, random: Random) -> None:
        self.calls = 0
        self.tree = self._grow(random, 3)

    def _grow(self, random: Random, depth: int) -> Any:
        if depth == 0 or random.random() < 0.3:
            self.calls += 1
            return self.calls
        kind = random.choice(["row", "side"])
        return [kind, *(self._grow(random, depth - 1) for _ in range(random.randint(1, 3)))]

    async def run(self, node: Any, tree: Any) -> Any:
        if isinstance(tree, int):
            return await node.execute_effect(tree)
        if tree[0] == "row":
            return [await self.run(node, part) for part in tree[1:]]
        return list(await asyncio.gather(*(self.run(node, part) for part in tree[1:])))

    def result(self, tree: Any) -> Any:
        return tree if isinstance(tree, int) else [self.result(part) for part in tree[1:]]


@pytest.mark.parametrize("seed", range(25))
@virtual_time
async def test_whatever_it_calls_and_whenever_its_workers_die_each_call_is_made_once(seed: int) -> None:
    random = Random(seed)
    program = _Program(random)
    made: list[int] = []

    async def code(contract: Any, ctx: Context) -> Any:
        return await program.run(await ctx.node("pay", "effect"), program.tree)

    async def pay(contract: Any) -> Any:
        made.append(contract)
        await asyncio.sleep(random.uniform(0.0, 2.0))
        return contract

    conductor = Conductor()
    conductor.code = code
    hands = Worker("hands")
    hands.effect("pay")(pay)
    async with Cluster(seed=seed) as cluster:
        await cluster.add_worker(hands, "hands", slots=SLOTS)
        await cluster.add_worker(conductor.worker(), "lead-0", slots=SLOTS)
        await cluster.register(flow())
        key = (await cluster.start("flow")).key
        for number in range(2):
            await asyncio.sleep(random.uniform(0.0, 3.0))
            cluster.kill_worker(f"lead-{number}")
            if random.random() < 0.5:
                await cluster.crash_orchestrator()
                await cluster.restart_orchestrator()
            await cluster.add_worker(conductor.worker(), f"lead-{number + 1}", slots=SLOTS)
        assert await cluster.result(key) == program.result(program.tree)
        assert sorted(made) == list(range(1, program.calls + 1))


@virtual_time
async def test_a_call_of_what_was_registered_through_another_orchestrator_is_made() -> None:
    """Found by `scripts/simulate calls`, seed 28: it was named twice, and refused for having a name."""

    async def code(contract: Any, ctx: Context) -> Any:
        return await ctx.run("single", contract)

    script, conductor = Script(), Conductor()
    conductor.code = code
    async with MultiCluster() as cluster:
        for name in ("a", "b"):
            await cluster.add_orchestrator(name)
        await cluster.register(flow())
        await cluster.add_worker(script.worker(), slots=SLOTS)
        await cluster.add_worker(conductor.worker(), slots=SLOTS)
        await cluster.settled()
        inner = dump_definition(single("compute", "calc").build())
        await cluster.members["a"].engine.register_definition("default", inner)
        keys = [await cluster.start("flow", number) for number in range(8)]
        owners = {await cluster.owner_of(cluster.number_of(key)) for key in keys}
        assert cluster.members["b"] in owners
        assert [await cluster.result(key) for key in keys] == list(range(8))
