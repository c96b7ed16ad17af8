"""Orchestrations: code that calls nodes and workflows, each of its calls by a number."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from onexflow import onex
from onexflow.core.builder import workflow
from onexflow.core.definition import RetryPolicy
from onexflow.core.errors import (
    InvalidArgument,
    InvalidTransition,
    RoleNotSupported,
    RunFailed,
    UnknownRun,
    UnknownTask,
)
from onexflow.engine import asking
from onexflow.engine.protocols import OrchestratorNode, find_node
from onexflow.ports.client_link import Caller, StartRequest
from onexflow.testing import Cluster, virtual_time
from onexflow.worker.context import Context
from onexflow.worker.handlers import Worker
from support.engine_kit import Script, single, until
from support.orchestration_kit import SLOTS, Conductor, begin, children


@virtual_time
async def test_it_calls_nodes_and_workflows_of_every_role() -> None:
    async def code(contract: Any, ctx: Context) -> Any:
        sent = await (await ctx.node("send")).execute_effect({"order": contract.order})
        ones = [await ctx.node("calc", "compute") for _ in range(3)]
        squares = await asyncio.gather(*(node.execute_compute(n) for n, node in enumerate(ones)))
        total = await (await ctx.node("sum", "reducer")).execute_reduction(squares)
        return {"sent": sent, "total": total, "child": await ctx.run("single", 7), "contract": contract}

    script, conductor = Script(), Conductor()
    script.answers["calc"] = lambda n: n * n
    script.answers["sum"] = sum
    conductor.code = code
    async with Cluster() as cluster:
        await begin(cluster, script, conductor)
        started = await cluster.start("flow", {"order": "A1"}, correlation_id="req-1")
        assert await cluster.result(started.key) == {
            "sent": {"order": "A1"}, "total": 5, "child": 49, "contract": {"order": "A1"},
        }  # fmt: skip
        made = await children(cluster, started.key)
        assert sorted(view.key.workflow_type for view in made) == [
            "node.compute.calc", "node.compute.calc", "node.compute.calc", "node.effect.send", "node.reducer.sum",
            "single",
        ]  # fmt: skip
        assert {view.correlation_id for view in made} == {"req-1"}
        assert conductor.begun == 1


@pytest.mark.parametrize("wide", [False, True])
@virtual_time
async def test_chains_of_calls_side_by_side_keep_their_numbers_whichever_is_faster(wide: bool) -> None:
    async def code(contract: Any, ctx: Context) -> Any:
        async def chain(name: str) -> list[Any]:
            node = await ctx.node("charge", "effect")
            return [await node.execute_effect([name, step]) for step in range(3)]

        async def wide(name: str) -> list[Any]:
            node = await ctx.node("charge", "effect")
            return [list(await asyncio.gather(*(node.execute_effect([name, step]) for _ in (0, 1)))) for step in (0, 1)]

        sides = await asyncio.gather(*((wide if contract else chain)(name) for name in "ab"))
        return [*sides, await (await ctx.node("work", "compute")).execute_compute("end")]

    script, conductor = Script(), Conductor()
    conductor.code = code
    slow = {"first": "a"}

    async def wait(contract: Any) -> Any:
        # In the first execution one chain is faster, in the second all results are there at once.
        await asyncio.sleep(1.0 if contract[0] == slow["first"] else 0.1)
        return contract

    gate = script.gate("work")
    async with Cluster() as cluster:
        await begin(cluster, script, conductor)
        hands = Worker("slow")
        hands.effect("charge")(wait)
        cluster.kill_worker("hands")
        await cluster.add_worker(hands, "slow", slots=SLOTS)
        helper = Worker("work")
        helper.compute("work")(script._handler("work", "work"))
        await cluster.add_worker(helper, "work", slots=SLOTS)
        key = (await cluster.start("flow", wide)).key
        await until(lambda: script.running["work"] == 1)
        cluster.kill_worker("conductor")
        await cluster.add_worker(conductor.worker(), "second", slots=SLOTS)
        await until(lambda: conductor.begun == 2)
        gate.set()
        sides: list[Any] = [[[name, step] for step in range(3)] for name in "ab"]
        if wide:
            sides = [[[[name, step]] * 2 for step in range(2)] for name in "ab"]
        assert await cluster.result(key) == [*sides, "end"]
        assert len(await children(cluster, key)) == (9 if wide else 7)


@pytest.mark.parametrize("change", ["contract", "node"])
@virtual_time
async def test_another_call_under_the_same_number_is_not_deterministic(change: str) -> None:
    async def code(contract: Any, ctx: Context) -> Any:
        handler = "charge" if conductor.begun == 1 or change == "contract" else "send"
        node = await ctx.node(handler, "effect")
        return await node.execute_effect(conductor.begun if change == "contract" else 0)

    script, conductor = Script(), Conductor()
    conductor.code = code
    script.gate("charge")
    async with Cluster() as cluster:
        await begin(cluster, script, conductor)
        key = (await cluster.start("flow")).key
        await until(lambda: script.running["charge"] == 1)
        cluster.kill_worker("conductor")
        await cluster.add_worker(conductor.worker(), "second", slots=SLOTS)
        outcome = await cluster.wait(key)
        assert outcome.error is not None
        assert (outcome.state, outcome.error.type, outcome.error.code) == ("failed", "NotDeterministic", "OXF-3004")
        assert "not deterministic" in outcome.error.message
        assert (outcome.error.context or {})["call"] == "1"
        assert script.count("send") == 0
        assert conductor.begun == 2  # it is not tried again


@virtual_time
async def test_a_failure_of_a_call_is_recorded_and_the_orchestration_may_go_on() -> None:
    async def code(contract: Any, ctx: Context) -> Any:
        node = await ctx.node("charge", "effect")
        try:
            await node.execute_effect(1)
        except onex.ProtocolHandlerError as error:
            return [error.context["error"], await node.execute_effect(2)]

    script, conductor = Script(), Conductor()
    script.errors["charge"] = [ValueError("no")]
    conductor.code = code
    async with Cluster() as cluster:
        await begin(cluster, script, conductor)
        assert await cluster.run("flow") == ["ValueError", 2]
        assert conductor.begun == 1


@virtual_time
async def test_one_that_fails_is_not_tried_again_unless_it_says_so_and_then_repeats_no_call() -> None:
    async def code(contract: Any, ctx: Context) -> Any:
        await (await ctx.node("charge", "effect")).execute_effect(1)
        if conductor.begun < 3:
            raise OSError("no")
        return "done"

    script, conductor = Script(), Conductor()
    conductor.code = code
    async with Cluster() as cluster:
        await begin(cluster, script, conductor)
        with pytest.raises(RunFailed, match="no"):
            await cluster.run("flow")
        assert (conductor.begun, script.count("charge")) == (1, 1)
    conductor.begun = 0
    async with Cluster() as cluster:
        await begin(cluster, script, conductor, retry=RetryPolicy(max_attempts=3))
        assert await cluster.run("flow") == "done"
        assert (conductor.begun, script.count("charge")) == (3, 2)


@virtual_time
async def test_a_node_that_nobody_serves_yet_is_looked_for_again() -> None:
    async def code(contract: Any, ctx: Context) -> Any:
        return await (await ctx.node("late")).execute_effect(contract)

    script, conductor = Script(), Conductor()
    conductor.code = code
    late = Worker("late")

    @late.effect("late")
    async def serve(contract: Any) -> Any:
        return contract

    async with Cluster() as cluster:
        await begin(cluster, script, conductor)
        key = (await cluster.start("flow", 1)).key
        await until(lambda: conductor.begun == 2)
        await cluster.add_worker(late)
        assert await cluster.result(key) == 1


@virtual_time
async def test_a_call_is_refused_that_no_open_orchestration_makes() -> None:
    async def code(contract: Any, ctx: Context) -> Any:
        return None

    script, conductor = Script(), Conductor()
    conductor.code = code
    async with Cluster() as cluster:
        await begin(cluster, script, conductor)
        key = (await cluster.start("flow")).key
        await cluster.result(key)

        async def call(caller: Caller, **fields: Any) -> Any:
            request = StartRequest(workflow_type="single", caller=caller, **fields)
            return await asking.start(cluster.engine, request)

        with pytest.raises(InvalidTransition):
            await call(Caller(key, "lead", 0, "1"))
        with pytest.raises(UnknownTask):
            await call(Caller(key, "nobody", 0, "1"))
        with pytest.raises(UnknownRun):
            await call(Caller(msgspec.structs.replace(key, workflow_type="other"), "lead", 0, "1"))
        for wrong in ({"instance_id": key.instance_id}, {"correlation_id": "c"}, {"causation_id": "c"}):
            with pytest.raises(InvalidArgument):
                await call(Caller(key, "lead", 0, "1"), **wrong)
        with pytest.raises(InvalidArgument):
            await call(Caller(key, "lead", 0, "1." * 200))


@virtual_time
async def test_only_orchestrations_call() -> None:
    worker = Worker("w")

    @worker.effect("eager")
    async def eager(contract: Any, ctx: Context) -> Any:
        return await ctx.run("single", 1)

    async with Cluster() as cluster:
        await cluster.add_worker(worker)
        await cluster.register(single("effect", "eager").build())
        with pytest.raises(RunFailed, match="no orchestration"):
            await cluster.run("single")


@virtual_time
async def test_a_caller_gets_a_node_or_a_workflow_by_one_name() -> None:
    async def code(contract: Any, ctx: Context) -> Any:
        inner = await ctx.node("single", "orchestrator")
        return [contract, await inner.execute_orchestration(5)]

    script, conductor = Script(), Conductor()
    conductor.code = code
    async with Cluster() as cluster:
        await begin(cluster, script, conductor)
        node = await find_node(cluster.engine, "conduct")
        assert isinstance(node, OrchestratorNode)
        assert await node.execute_orchestration(3) == [3, 5]
        outer = await find_node(cluster.engine, "flow", "ORCHESTRATOR")
        assert isinstance(outer, OrchestratorNode)
        assert await outer.execute_orchestration(4) == [4, 5]
        views = await cluster.engine.list_nodes()
        assert {view.kind for view in views if "conduct" in view.handlers} == {"orchestrator-node"}
        with pytest.raises(onex.RegistryError):
            await find_node(cluster.engine, "flow")


def test_an_orchestration_is_async() -> None:
    worker = Worker("w")
    with pytest.raises(RoleNotSupported, match="not async"):
        worker.orchestrator("lead")(lambda contract: contract)


def test_a_graph_may_hold_an_orchestration_among_other_tasks() -> None:
    made = workflow("mixed")
    first = made.compute("first")
    made.orchestrator("lead", depends_on=[first])
    assert [task.role for task in made.build().tasks] == ["compute", "orchestrator"]


@virtual_time
async def test_items_of_a_mapped_orchestration_have_calls_of_their_own() -> None:
    async def code(contract: Any, ctx: Context) -> Any:
        assert ctx.item in {0, 1, 2}
        return await (await ctx.node("calc", "compute")).execute_compute(contract)

    script, conductor = Script(), Conductor()
    script.answers["calc"] = lambda n: n * n
    conductor.code = code
    async with Cluster() as cluster:
        await begin(cluster, script, conductor)
        made = workflow("mapped")
        made.orchestrator("lead", "conduct", map="input")
        await cluster.register(made.build())
        assert await cluster.run("mapped", [2, 3, 4]) == [4, 9, 16]
        assert script.count("calc") == 3


@virtual_time
async def test_a_node_object_outlives_the_store_that_it_was_registered_in() -> None:
    script = Script()

    class Latest:
        """Whichever cluster is there: an orchestrator that came back with an empty store."""

        cluster: Cluster

        def __getattr__(self, name: str) -> Any:
            return getattr(self.cluster.engine, name)

    service: Any = Latest()
    node = OrchestratorNode(service, "conduct")
    conductor = Conductor()

    async def code(contract: Any, ctx: Context) -> Any:
        return contract

    conductor.code = code
    for seed in range(2):
        async with Cluster(seed=seed) as cluster:
            service.cluster = cluster
            await begin(cluster, script, conductor)
            assert await node.execute_orchestration(seed) == seed


@virtual_time
async def test_an_orchestration_says_which_runs_it_waits_for() -> None:
    async def code(contract: Any, ctx: Context) -> Any:
        await (await ctx.node("send")).execute_effect({"order": 1})  # has ended by then
        return await ctx.run("single", 2)

    script, conductor = Script(), Conductor()
    conductor.code = code
    gate = script.gate("calc")
    async with Cluster() as cluster:
        await begin(cluster, script, conductor)
        key = (await cluster.start("flow", {})).key
        await script.called("calc")
        view = await cluster.state(key)
        [child] = [child for child in await children(cluster, key) if child.state == "running"]
        name = f"single/{child.key.instance_id}"
        for blocked in (view.blocked, view.tasks[0].blocked):
            assert blocked is not None
            assert (blocked.kind, blocked.names, blocked.worker) == ("called_run", (name,), "conductor")
        assert view.blocked_because == f"lead: waits for {name} (its code is on conductor)"
        gate.set()
        await cluster.result(key)
