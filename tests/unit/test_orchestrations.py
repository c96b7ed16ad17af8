"""Orchestrations: code that calls nodes and workflows, run again after a loss, with each of its calls made once."""

from __future__ import annotations

import asyncio
from random import Random
from typing import Any

import msgspec
import pytest

from onexflow import onex
from onexflow.core.builder import workflow
from onexflow.core.definition import RetryPolicy, WorkflowDefinition
from onexflow.core.errors import (
    InvalidArgument,
    InvalidTransition,
    RoleNotSupported,
    RunFailed,
    Unavailable,
    UnknownRun,
    UnknownTask,
)
from onexflow.core.ids import RunKey
from onexflow.engine import asking
from onexflow.engine.protocols import OrchestratorNode, find_node
from onexflow.ports.client_link import Caller, ControlOutcome, ControlRequest, StartRequest
from onexflow.ports.worker_link import Role
from onexflow.testing import Cluster, virtual_time
from onexflow.worker.context import Context
from onexflow.worker.handlers import Worker
from support.engine_kit import Script, single, until

SLOTS: dict[Role, int] = {"effect": 8, "compute": 8, "reducer": 8, "orchestrator": 8}


class Conductor:
    """An orchestration by a test's word, counted."""

    def __init__(self) -> None:
        self.begun = 0
        self.code: Any = None

    def worker(self, name: str = "conductor") -> Worker:
        worker = Worker(name)

        @worker.orchestrator("conduct")
        async def conduct(contract: Any, ctx: Context) -> Any:
            self.begun += 1
            return await self.code(contract, ctx)

        return worker


def flow(**options: Any) -> WorkflowDefinition:
    made = workflow("flow")
    made.orchestrator("lead", "conduct", **options)
    return made.build()


async def begin(cluster: Cluster, script: Script, conductor: Conductor, **options: Any) -> None:
    await cluster.add_worker(script.worker("hands"), "hands", slots=SLOTS)
    await cluster.add_worker(conductor.worker(), "conductor", slots=SLOTS)
    await cluster.register(flow(**options))
    await cluster.register(single("compute", "calc").build())


async def children(cluster: Cluster, of: RunKey) -> list[Any]:
    """The runs that a run has called."""
    found, _ = await cluster.engine.list_runs("default")
    views = [await cluster.state(run.key) for run in found]
    return [view for view in views if (await cluster.history(view.key))[0].data.get("causation_id") == str(of)]


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
