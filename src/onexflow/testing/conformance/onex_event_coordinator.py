"""What every ProtocolWorkflowEventCoordinator of ours must do. Subclass `EventCoordinatorConformance`, give it what
`EventBusConformance` needs, and a `coordinator`."""

from __future__ import annotations

import asyncio
import inspect
import threading
from types import SimpleNamespace
from typing import Any, cast
from uuid import uuid4

import pytest

from onexflow.engine.protocols import WorkflowOrchestrator
from onexflow.engine.protocols.coordinator import WorkflowEventCoordinator
from onexflow.engine.protocols.event_bus import WorkflowEventBus
from onexflow.ports.client_link import RunService
from onexflow.spi import Context, OnexResult, ProtocolWorkflowEventCoordinator, WorkflowEvent
from onexflow.testing.conformance.onex_event_bus import ORDER, BusSuite, Connect, Seen, event, until

FIELDS = ("success", "message", "error", "error_code", "result_data", "timestamp")


def facts(result: OnexResult) -> dict[str, Any]:
    assert isinstance(result.result_data, dict)
    return result.result_data


class ForeignBase:
    """A base bus that is not ours."""

    def __init__(self) -> None:
        self.published: list[Any] = []
        self.handlers: dict[str, list[Any]] = {}

    async def publish(self, event: Any) -> None:
        self.published.append(event)
        for handler in self.handlers.get(event.event_type, ()):
            await handler(event)

    async def publish_envelope(self, envelope: Any, topic: str) -> None:
        self.published.append(envelope)

    async def subscribe(self, topic: str, handler: Any) -> Any:
        self.handlers.setdefault(topic, []).append(handler)
        return lambda: self.handlers[topic].remove(handler)

    async def start_consuming(self, timeout_seconds: float | None = None) -> None: ...

    async def stop_consuming(self, timeout_seconds: float = 30.0) -> None: ...

    async def health_check(self) -> Any:
        return {"healthy": True}


class WorkflowRegistry:
    """As much of a workflow node registry as a coordinator asks."""

    async def get_node_capabilities(self, node_id: str) -> list[Any]:
        return []

    async def discover_nodes(self, capability: str | None = None, healthy_only: bool = True) -> list[Any]:
        nodes = [SimpleNamespace(node_id="n1", node_type="compute"), SimpleNamespace(node_id="n2", node_type="effect")]
        return nodes[:1] if healthy_only or capability == "adding" else nodes


class BaseRegistry:
    """As much of a base registry."""

    async def discover_nodes(self, node_type: str | None = None, environment: str | None = None) -> list[Any]:
        return [
            SimpleNamespace(node_id="b1", health_status="healthy"),
            SimpleNamespace(node_id="b2", health_status="error"),
        ]


class EventCoordinatorConformance(BusSuite):
    """The contract, member by member."""

    # ---- shape

    def test_it_is_one(self, coordinator: WorkflowEventCoordinator) -> None:
        assert isinstance(coordinator, ProtocolWorkflowEventCoordinator)

    def test_the_setters_are_sync(self, coordinator: WorkflowEventCoordinator) -> None:
        assert not inspect.iscoroutinefunction(coordinator.set_registry)
        assert not inspect.iscoroutinefunction(coordinator.set_event_bus)

    # ---- coordinate

    async def test_events_of_instances_nobody_started_are_external_streams(
        self, coordinator: WorkflowEventCoordinator, bus: WorkflowEventBus
    ) -> None:
        seen, first, second = Seen(), uuid4(), uuid4()
        await bus.subscribe_to_workflow_events(ORDER, handler=seen)
        events = [event(first, "task.started"), event(second), event(first, "task.completed")]
        result = await coordinator.coordinate_events(
            workflow_events=events, scenario_id="order-flow-001", correlation_id="req-abc123"
        )
        assert (result.success, result.error, result.error_code) == (True, None, None)
        data = facts(result)
        assert (data["published"], data["failed"], data["scenario_id"]) == (3, 0, "order-flow-001")
        assert [one["event_id"] for one in data["events"]] == [str(one.event_id) for one in events]
        assert [one["sequence_number"] for one in data["events"]] == [1, 1, 2]
        await seen.got(3)
        assert {one.metadata["scenario_id"] for one in seen.events} == {"order-flow-001"}
        assert {one.metadata["correlation_id"] for one in seen.events} == {"req-abc123"}
        assert [one.event_type for one in seen.events if one.instance_id == first] == ["task.started", "task.completed"]

    async def test_one_that_fails_does_not_keep_the_others(
        self, coordinator: WorkflowEventCoordinator, service: RunService
    ) -> None:
        run, other = uuid4(), uuid4()
        await WorkflowOrchestrator(service).start_workflow(ORDER, run, {})
        events = [
            event(run, "workflow.paused"),
            cast("Any", "no event"),
            event(other),
            cast(
                "Any", SimpleNamespace(workflow_type="", instance_id=other, event_id=uuid4(), event_type="task.started")
            ),
        ]
        result = await coordinator.coordinate_events(events, "s", str(uuid4()))
        assert (result.success, result.message) == (False, result.error)
        data = facts(result)
        assert [one["success"] for one in data["events"]] == [False, False, True, False]
        assert data["events"][0]["error_code"] == "OXF-3002"
        assert data["events"][1]["error_code"] == "OXF-1001"
        assert all(one["error"] for one in data["events"] if not one["success"])
        assert result.error_code == "OXF-3002"

    async def test_nothing_is_raised(self, coordinator: WorkflowEventCoordinator) -> None:
        for wrong in (None, 7, {"a": 1}, [None]):
            result = await coordinator.coordinate_events(cast("Any", wrong), cast("Any", None), cast("Any", None))
            assert not result.success
            assert result.error_code
        result = await coordinator.coordinate_events([], "s", "c")
        assert (result.success, facts(result)["events"]) == (True, [])

    # ---- publish

    async def test_publish_says_where_it_stands(self, coordinator: WorkflowEventCoordinator) -> None:
        instance, correlation = uuid4(), uuid4()
        given = event(instance, data={"n": 1})
        result = await coordinator.publish_workflow_event(given, str(correlation))
        for name in FIELDS:
            assert hasattr(result, name)
        assert (result.success, result.error) == (True, None)
        assert (facts(result)["sequence_number"], facts(result)["topic"]) == (1, ORDER)
        status = await coordinator.get_event_status(str(given.event_id))
        assert status is not None
        assert status["correlation_id"] == str(correlation)
        again = await coordinator.publish_workflow_event(given, str(correlation))
        assert (again.success, facts(again)["created"]) == (True, False)
        refused = await coordinator.publish_workflow_event(event(instance, sequence_number=1), "")
        assert (refused.success, refused.error_code) == (False, "OXF-3002")
        assert refused.error

    # ---- subscribe

    async def test_a_callback_gets_events_of_all_workflow_types(
        self, coordinator: WorkflowEventCoordinator, bus: WorkflowEventBus
    ) -> None:
        got: list[str] = []
        main = threading.get_ident()

        def sync_one(event: WorkflowEvent) -> None:
            assert threading.get_ident() != main
            got.append(f"sync {event.workflow_type}")

        async def async_two(event: WorkflowEvent, context: Context) -> None:
            assert event.workflow_type == context["topic"]
            got.append(f"async {context['topic']}")

        first = await coordinator.subscribe_to_events(["task_completed"], sync_one, "")
        second = await coordinator.subscribe_to_events(["task.completed", "task.failed"], cast("Any", async_two), "")
        assert first.success
        assert second.success
        await bus.publish_workflow_event(event(workflow_type="a"))
        await bus.publish_workflow_event(event(workflow_type="b", event_type="task.failed"))
        await bus.publish_workflow_event(event(workflow_type="c", event_type="task.started"))
        await until(lambda: len(got) == 3)
        assert sorted(got) == ["async a", "async b", "sync a"]
        refused = await coordinator.subscribe_to_events(["task.complete"], sync_one, "")
        assert (refused.success, refused.error_code) == (False, "OXF-1001")
        refused = await coordinator.subscribe_to_events(["task.completed"], cast("Any", None), "")
        assert not refused.success
        ended = await coordinator.run({"action": "unsubscribe", "subscription_id": facts(second)["subscription_id"]})
        assert ended.success
        await bus.publish_workflow_event(event(workflow_type="d"))
        await until(lambda: "sync d" in got)
        assert "async d" not in got

    async def test_a_correlation_id_narrows_a_subscription(
        self, coordinator: WorkflowEventCoordinator, bus: WorkflowEventBus
    ) -> None:
        got: list[Any] = []
        await coordinator.subscribe_to_events([], cast("Any", lambda event: got.append(event.data["n"])), "req-abc123")
        instance = uuid4()
        await bus.publish_workflow_event(event(instance, data={"n": 1}))
        await bus.publish_workflow_event(event(instance, data={"n": 2}, correlation_id="req-abc123"))
        await until(lambda: got)
        assert got == [2]

    # ---- status

    async def test_the_status_of_an_event_is_what_its_groups_have_said(
        self, coordinator: WorkflowEventCoordinator, make: Connect
    ) -> None:
        bus, given, gate = make(group="billing"), event(event_id="event-123"), asyncio.Event()
        assert await coordinator.get_event_status("event-123") is None
        await bus.publish_workflow_event(event(event_id="before"))
        assert (await self.state_of(coordinator, "before")) == "published"

        async def wait(event: WorkflowEvent) -> None:
            await gate.wait()
            if event.data.get("bad"):
                raise ValueError("no")

        await bus.subscribe_to_workflow_events(ORDER, handler=cast("Any", wait))
        await bus.publish_workflow_event(given)
        await bus.publish_workflow_event(event(event_id="bad", data={"bad": True}))
        status = await coordinator.get_event_status("event-123")
        assert status is not None
        assert (status["state"], status["pending_at"]) == ("pending", [f"billing/{ORDER}"])
        assert (status["event_id"], status["event_type"]) == (str(given.event_id), "task.completed")
        assert (status["workflow_type"], status["sequence_number"]) == (ORDER, 1)
        gate.set()
        await self.becomes(coordinator, "event-123", "acknowledged")
        await self.becomes(coordinator, "bad", "dead_lettered")

    async def becomes(self, coordinator: WorkflowEventCoordinator, event_id: str, state: str) -> None:
        async with asyncio.timeout(10):
            while await self.state_of(coordinator, event_id) != state:  # noqa: ASYNC110 - as in until
                await asyncio.sleep(0.005)

    async def state_of(self, coordinator: WorkflowEventCoordinator, event_id: str) -> Any:
        status = await coordinator.get_event_status(event_id)
        return None if status is None else status["state"]

    # ---- run

    async def test_run_does_what_its_action_says(self, coordinator: WorkflowEventCoordinator) -> None:
        instance = str(uuid4())
        given = {"event_type": "task_started", "workflow_type": ORDER, "instance_id": instance, "event_id": "one"}
        published = await coordinator.run({"action": "publish", "event": {**given, "data": {"n": 1}}})
        assert (published.success, facts(published)["sequence_number"]) == (True, 1)
        both = [{**given, "event_id": "two"}, {**given, "event_id": "three"}]
        coordinated = await coordinator.run({"action": "coordinate", "events": cast("Any", both), "scenario_id": "s"})
        assert (coordinated.success, facts(coordinated)["published"]) == (True, 2)
        status = await coordinator.run({"action": "status", "event_id": "one"})
        assert (status.success, facts(status)["state"]) == (True, "published")
        unknown = await coordinator.run({"action": "status", "event_id": "nobody"})
        assert (unknown.success, unknown.error_code) == (False, "OXF-2002")
        replayed = await coordinator.run(
            {"action": "replay", "workflow_type": ORDER, "instance_id": instance, "from_sequence": 2}
        )
        assert [one["sequence_number"] for one in facts(replayed)["events"]] == [2, 3]
        nowhere = await coordinator.run({"action": "replay", "workflow_type": ORDER, "instance_id": str(uuid4())})
        assert (nowhere.success, nowhere.error_code) == (False, "OXF-2002")
        assert (await coordinator.run({"action": "health"})).success

    @pytest.mark.parametrize(
        ("state", "said"),
        [
            ({"action": "publis"}, "did you mean publish"),
            ({}, "there are"),
            ({"action": ["publish"]}, "is none"),
            (None, "a dict is needed"),
            ({"action": "publish"}, "event: is needed"),
            ({"action": "publish", "event": {"event_type": "task.started", "colour": "red"}}, "colour"),
            ({"action": "publish", "event": {"event_type": "task.start"}}, "event:"),
            ({"action": "publish", "event": "text"}, "workflow event"),
            ({"action": "coordinate", "events": "text"}, "a list"),
            ({"action": "status"}, "event_id"),
            ({"action": "unsubscribe", "subscription_id": "none"}, "no subscription"),
        ],
    )
    async def test_what_run_cannot_do_is_a_result(
        self, coordinator: WorkflowEventCoordinator, state: Any, said: str
    ) -> None:
        result = await coordinator.run(state)
        assert (result.success, result.error) == (False, result.message)
        assert said in result.message
        assert str(result.error_code).startswith("OXF-")

    # ---- either kind of bus and registry

    async def test_it_takes_a_workflow_bus_or_its_base(
        self, coordinator: WorkflowEventCoordinator, make: Connect
    ) -> None:
        seen = Seen()
        for kind in (make(), make().base_event_bus):
            coordinator.set_event_bus(kind)
            assert (await coordinator.subscribe_to_events(["task.completed"], cast("Any", seen), "")).success
            result = await coordinator.publish_workflow_event(event(workflow_type="a"), "")
            assert (result.success, facts(result)["sequence_number"]) == (True, 1)
        await seen.got(3)  # the first subscription has both

    async def test_it_takes_a_base_bus_of_others(self, coordinator: WorkflowEventCoordinator) -> None:
        foreign, seen = ForeignBase(), Seen()
        coordinator.set_event_bus(foreign)
        subscribed = await coordinator.subscribe_to_events(["task_completed"], cast("Any", seen), "")
        given = event(data={"n": 1})
        assert (await coordinator.publish_workflow_event(given, "")).success
        assert (foreign.published, seen.events) == ([given], [given])
        assert (await coordinator.health_check())["status"] == "healthy"
        state = {"action": "unsubscribe", "subscription_id": facts(subscribed)["subscription_id"]}
        assert (await coordinator.run(state)).success
        assert foreign.handlers == {"task.completed": []}

    async def test_it_takes_either_registry(self, coordinator: WorkflowEventCoordinator) -> None:
        nodes = await coordinator.run({"action": "nodes"})
        assert nodes.success, "it has the cluster's registry until it is given another"
        coordinator.set_registry(None)
        assert "no registry" in (await coordinator.run({"action": "nodes"})).message
        coordinator.set_registry(WorkflowRegistry())
        nodes = await coordinator.run({"action": "nodes", "healthy_only": False})
        assert [one["node_id"] for one in facts(nodes)["nodes"]] == ["n1", "n2"]
        nodes = await coordinator.run({"action": "nodes", "capability": "adding"})
        assert [one["node_id"] for one in facts(nodes)["nodes"]] == ["n1"]
        coordinator.set_registry(BaseRegistry())
        nodes = await coordinator.run({"action": "nodes"})
        assert [one["node_id"] for one in facts(nodes)["nodes"]] == ["b1"]

    # ---- health

    async def test_its_health_is_that_of_what_it_stands_on(self, coordinator: WorkflowEventCoordinator) -> None:
        health = await coordinator.health_check()
        assert (health["status"], cast("Any", health["registry"])["nodes"]) == ("healthy", 1)  # the cluster's, at first
        coordinator.set_registry(WorkflowRegistry())
        assert cast("Any", (await coordinator.health_check())["registry"])["nodes"] == 2
        coordinator.set_registry(object())
        assert (await coordinator.health_check())["status"] == "degraded"
        coordinator.set_event_bus(object())
        assert (await coordinator.health_check())["status"] == "unhealthy"
        assert not (await coordinator.run({"action": "health"})).success
