"""The part of the node registry's suite that is about work: who gets tasks, whose run it is, and the figures of it."""

from __future__ import annotations

from uuid import uuid4

import pytest

from onexflow.engine.protocols import WorkflowNodeRegistry, WorkflowOrchestrator, WorkQueue
from onexflow.spi import InvalidProtocolStateError, RegistryError, WorkTask
from onexflow.testing.conformance.node_registry_kit import NodeRegistrySuite, Scene, capability, guest, ids, until


class NodeWorkConformance(NodeRegistrySuite):
    """What a node's health and an assignment mean for dispatch, and what is told of what it did."""

    async def test_an_unhealthy_worker_gets_no_new_tasks_until_it_is_healthy_again(
        self, scene: Scene, registry: WorkflowNodeRegistry, orchestrator: WorkflowOrchestrator
    ) -> None:
        one, two = scene.workers
        assert await registry.update_node_health(one, "unhealthy") is True
        assert await ids(registry, "where", healthy=True) == [two]
        places = set()
        for _ in range(20):
            instance = uuid4()
            await orchestrator.start_workflow("where", instance, {})
            places.add(await self.result(orchestrator, "where", instance))
        assert places == {"two"}
        assert await registry.update_node_health(two, "critical") is True
        instance = uuid4()
        await orchestrator.start_workflow("where", instance, {})
        assert (await orchestrator.get_workflow_state("where", instance)).current_state == "running"
        assert await registry.update_node_health(one, "warning") is True
        assert await self.result(orchestrator, "where", instance) == "one"

    # ---- figures

    async def test_figures_are_of_what_was_done(
        self, scene: Scene, registry: WorkflowNodeRegistry, orchestrator: WorkflowOrchestrator
    ) -> None:
        for kind in ("where", "where", "fail", "hold"):
            instance = uuid4()
            await orchestrator.start_workflow(kind, instance, {})
            if kind != "hold":
                await self.result(orchestrator, kind, instance)

        async def holds() -> bool:
            return sum([(await registry.get_node_metrics(name)).current_task_count for name in scene.workers]) == 1

        await until(holds)
        both = [await registry.get_node_metrics(name) for name in scene.workers]
        assert sum(metrics.completed for metrics in both) == 3
        assert sum(metrics.failed for metrics in both) == 1
        for metrics in both:
            assert metrics.health_status == "healthy"
            assert metrics.max_concurrent_tasks > 0
            assert metrics.resource_utilization["slots"] == metrics.max_concurrent_tasks
            assert metrics.resource_utilization["slots_in_use"] == metrics.current_task_count
            assert metrics.last_heartbeat is not None
            if metrics.completed:
                assert 0 <= metrics.duration.p50 <= metrics.duration.p99
                assert metrics.mean_duration_seconds >= 0

    async def test_a_guest_works_on_the_work_queue(self, scene: Scene) -> None:
        registry, queue = scene.registry(1.0), WorkQueue(scene.service)
        await registry.register_node(guest("agent"), [capability("paint")])
        for name in ("a", "b", "c"):
            await queue.enqueue_task(WorkTask(task_id=name, required_capability="paint", max_retries=0))
        assert await queue.dequeue_task("nobody") == []
        first, second = await queue.dequeue_task("agent", max_tasks=2)
        await queue.complete_task(first.task_id)
        metrics = await registry.get_node_metrics("agent")
        done = (metrics.current_task_count, metrics.completed, metrics.failed)
        assert done == (1, 1, 0)
        [node] = await registry.discover_nodes("paint")
        assert node.current_task_count == 1
        await registry.close()

        async def comes_back() -> bool:
            return (await queue.get_task_status(second.task_id)).state == "scheduled"

        await until(comes_back)
        assert await queue.complete_task(second.task_id) is False

    # ---- assignments

    async def test_an_assigned_run_is_known_and_ends_its_assignment(
        self, scene: Scene, registry: WorkflowNodeRegistry, orchestrator: WorkflowOrchestrator
    ) -> None:
        one, two = scene.workers
        first, second = uuid4(), uuid4()
        for instance in (first, second):
            await orchestrator.start_workflow("hold", instance, {})
            assert await registry.assign_workflow_to_node("hold", instance, one) is True
        assert await registry.assign_workflow_to_node("hold", first, one) is False
        assignments = await registry.get_workflow_assignments(one)
        assert {assignment.instance_id for assignment in assignments} == {first, second}
        for assignment in assignments:
            assert (assignment.workflow_type, assignment.node_id, assignment.state) == ("hold", one, "running")
            assert assignment.assigned_at is not None
            assert assignment.epoch > 0
        assert await registry.assign_workflow_to_node("hold", first, two) is True
        assert [one.instance_id for one in await registry.get_workflow_assignments(one)] == [second]
        assert [one.instance_id for one in await registry.get_workflow_assignments(two)] == [first]
        await orchestrator.cancel_workflow("hold", second)
        assert await registry.get_workflow_assignments(one) == []
        with pytest.raises(InvalidProtocolStateError) as refused:
            await registry.assign_workflow_to_node("hold", second, one)
        assert refused.value.context["current_state"] == "cancelled"

    async def test_dispatch_honours_it(
        self, scene: Scene, registry: WorkflowNodeRegistry, orchestrator: WorkflowOrchestrator
    ) -> None:
        for node, name in zip(scene.workers * 2, ("one", "two") * 2, strict=True):
            for each in scene.workers:
                assert await registry.update_node_health(each, "unavailable") is True
            instances = [uuid4() for _ in range(3)]
            for instance in instances:
                await orchestrator.start_workflow("where", instance, {})
                await orchestrator.pause_workflow("where", instance)
                assert await registry.assign_workflow_to_node("where", instance, node) is True
            for each in scene.workers:
                assert await registry.update_node_health(each, "healthy") is True
            for instance in instances:
                await orchestrator.resume_workflow("where", instance)
            assert [await self.result(orchestrator, "where", instance) for instance in instances] == [name] * 3

    async def test_runs_and_nodes_that_there_are_not(
        self, scene: Scene, registry: WorkflowNodeRegistry, orchestrator: WorkflowOrchestrator
    ) -> None:
        instance = uuid4()
        await orchestrator.start_workflow("hold", instance, {})
        for asked in (
            registry.assign_workflow_to_node("hold", instance, "nobody"),
            registry.assign_workflow_to_node("hold", uuid4(), scene.workers[0]),
            registry.assign_workflow_to_node("no-such-type", instance, scene.workers[0]),
        ):
            with pytest.raises(RegistryError):
                await asked

    async def test_an_assignment_is_given_back_when_its_node_goes(
        self, registry: WorkflowNodeRegistry, other: WorkflowNodeRegistry, orchestrator: WorkflowOrchestrator
    ) -> None:
        instance = uuid4()
        await orchestrator.start_workflow("hold", instance, {})
        await registry.register_node(guest(), [])
        assert await other.assign_workflow_to_node("hold", instance, "worker-node-1") is True
        assert len(await registry.get_workflow_assignments("worker-node-1")) == 1
        await registry.unregister_node("worker-node-1")

        async def given_back() -> bool:
            events = await orchestrator.get_workflow_history("hold", instance)
            moves = [(event.data or {}).get("node") for event in events if event.event_type == "state.transitioned"]
            return "worker-node-1" in moves and moves[-1] in {"", None}

        await until(given_back)
        await registry.register_node(guest(), [])
        assert await registry.get_workflow_assignments("worker-node-1") == []
