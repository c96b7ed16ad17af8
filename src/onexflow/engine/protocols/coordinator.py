"""ProtocolWorkflowEventCoordinator: publish and follow events of many runs. Failures are in the results and not raised;
only get_event_status, whose None means that there is no such event, raises Unavailable when that cannot be known.

What becomes of an event is asked of the log (`EventService.find_event`), so every coordinator knows it, after a restart too.
"""

from __future__ import annotations

import asyncio
import difflib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final

import msgspec

from onexflow.codec.payload import encode_value
from onexflow.core.errors import InternalError, InvalidArgument, UnknownNode
from onexflow.engine.protocols import bus_records, checked, records
from onexflow.engine.protocols.base_bus import BaseEventBus
from onexflow.engine.protocols.event_bus import WorkflowEventBus
from onexflow.engine.protocols.handlers import Handler
from onexflow.ports.events import EventService, EventStatus, Filter, Published
from onexflow.spi.exceptions import SPIError
from onexflow.spi.types import Context, ContextValue, OnexResult, WorkflowEvent, to_uuid

#: Instances whose events are published at the same time.
_AT_ONCE: Final = 32


class WorkflowEventCoordinator:
    """The specification's event coordinator, over a bus of its own until it is given another.

    `run` takes these actions, as `{"action": NAME, …}`; an event is a dict with the fields of a workflow event:

    | action | needs | and takes | `result_data` |
    |---|---|---|---|
    | `publish` | `event` | `correlation_id` | as publish_workflow_event |
    | `coordinate` | `events` | `scenario_id`, `correlation_id` | as coordinate_events |
    | `status` | `event_id` | | as get_event_status |
    | `replay` | `workflow_type`, `instance_id` | `from_sequence`, `to_sequence` | `events` |
    | `unsubscribe` | `subscription_id` | | |
    | `nodes` | | `capability`, `healthy_only` | `nodes` |
    | `health` | | | as health_check |
    """

    def __init__(self, service: EventService, bus: WorkflowEventBus, registry: Any = None) -> None:
        """`bus` and `registry` are what it uses until `set_event_bus` and `set_registry` give it others; `service` knows
        what became of events."""
        self._service = service
        self._namespace = bus.namespace
        self._own = bus
        self._bus: Any = bus
        self._registry: Any = registry
        #: Subscriptions at buses of ours, and where they are.
        self._made: dict[str, WorkflowEventBus] = {}
        #: Subscriptions at a base bus that is not ours, and how to end them.
        self._foreign: dict[str, list[Any]] = {}

    def set_registry(self, registry: Any) -> None:
        """Either kind: a registry of workflow nodes, or a base registry."""
        self._registry = registry

    def set_event_bus(self, event_bus: Any) -> None:
        """Either kind: a workflow event bus, or a base bus. Of ours, the one is known by the other. What was subscribed to
        before stays with the bus that had it."""
        self._bus = event_bus.workflow_event_bus if isinstance(event_bus, BaseEventBus) else event_bus

    # ---- the calls

    async def run(self, input_state: dict[str, ContextValue]) -> OnexResult:
        """Do what `action` says; see the class."""
        actions: dict[str, Callable[[Mapping[str, Any]], Awaitable[OnexResult]]] = {
            "publish": self._run_publish,
            "coordinate": self._run_coordinate,
            "status": self._run_status,
            "replay": self._run_replay,
            "unsubscribe": self._run_unsubscribe,
            "nodes": self._run_nodes,
            "health": self._run_health,
        }
        try:
            if not isinstance(input_state, Mapping):
                raise InvalidArgument("input_state: a dict is needed", field="input_state")
            name = input_state.get("action")
            action = actions.get(name) if isinstance(name, str) else None
            if action is None:
                near = difflib.get_close_matches(str(name), actions, 1)
                hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(actions)}"
                raise InvalidArgument(f"action: {name!r} is none; {hint}", field="action")
            return await action(input_state)
        except Exception as error:  # noqa: BLE001 - failures are in the result, and nothing is raised
            return _failed(error)

    async def coordinate_events(
        self, workflow_events: list[WorkflowEvent], scenario_id: str, correlation_id: str
    ) -> OnexResult:
        """Publish these events, those of one instance in their order. An instance that nobody started is an external
        stream. `result_data["events"]` says of each, in the order given, whether it is published; all are tried. The
        scenario is noted in the events' metadata."""
        try:
            events = list(workflow_events)
        except TypeError:
            return _failed(InvalidArgument("workflow_events: a list is needed", field="workflow_events"))
        told: list[Context] = [{} for _ in events]
        lanes: dict[tuple[str, str], list[int]] = {}
        for number, event in enumerate(events):
            lane = (str(getattr(event, "workflow_type", "")), str(getattr(event, "instance_id", "")))
            lanes.setdefault(lane, []).append(number)
        limit = asyncio.Semaphore(_AT_ONCE)

        async def publish(numbers: Sequence[int]) -> None:
            async with limit:
                for number in numbers:
                    told[number] = await self._tell(events[number], str(correlation_id or ""), str(scenario_id or ""))

        await asyncio.gather(*(publish(numbers) for numbers in lanes.values()))
        failed = [one for one in told if not one["success"]]
        data: Context = {
            "scenario_id": str(scenario_id or ""),
            "correlation_id": str(correlation_id or ""),
            "published": len(told) - len(failed),
            "failed": len(failed),
            "events": list(told),
        }
        if not failed:
            return OnexResult(success=True, message=f"{len(told)} events published", result_data=data)
        first = failed[0]
        message = f"{len(failed)} of {len(told)} events were not published; the first: {first['error']}"
        return OnexResult(success=False, message=message, error_code=str(first["error_code"]), result_data=data)

    async def publish_workflow_event(self, event: WorkflowEvent, correlation_id: str) -> OnexResult:
        """Publish one event; a correlation id that is given goes before the event's own."""
        told = await self._tell(event, str(correlation_id or ""), "")
        if told["success"]:
            return OnexResult(success=True, message="the event is published", result_data=told)
        code = str(told["error_code"])
        return OnexResult(success=False, message=str(told["error"]), error_code=code, result_data=told)

    async def subscribe_to_events(
        self, event_types: list[str], callback: Callable[..., None], correlation_id: str
    ) -> OnexResult:
        """Call back with events of these types (in either spelling; none: all) of all workflow types, from now on; the
        callback is sync or async and takes (event, context) or (event). With a correlation id only with events that have
        it. `result_data["subscription_id"]` is for the action `unsubscribe`."""
        try:
            types = bus_records.event_types(event_types or None)
            given = checked.text(str(correlation_id or ""), "correlation_id")
            wanted = to_uuid(given) if given else None
            handler = Handler(
                callback,
                bus_records.event_of,
                wanted=lambda event: wanted in {None, getattr(event, "correlation_id", None)},
            )
            if isinstance(self._bus, WorkflowEventBus):
                filter_ = Filter(namespace=self._namespace, event_types=types)
                subscription_id = await self._bus.subscribe(filter_, handler)
                self._made[subscription_id] = self._bus
            else:
                subscription_id = await self._subscribe_elsewhere(types, handler)
        except Exception as error:  # noqa: BLE001 - as in run
            return _failed(error)
        data: Context = {
            "subscription_id": subscription_id,
            "event_types": list(types),
            "correlation_id": str(correlation_id or ""),
        }
        return OnexResult(success=True, message="subscribed", result_data=data)

    async def get_event_status(self, event_id: str) -> Context | None:
        """What became of a published event: `state` is published, pending, acknowledged or dead_lettered by what the durable
        groups that read it have said, who are named beside. None for an id that was never published."""
        status = await self._service.find_event(self._namespace, to_uuid(checked.text(str(event_id), "event_id")))
        return None if status is None else _status(status)

    async def health_check(self) -> Context:
        """`status`: healthy, degraded or unhealthy, and that of the event bus and the registry."""
        bus = await self._health_of_bus()
        registry = await self._health_of_registry()
        worst = max((str(bus["status"]), str(registry["status"])), key=_GRADES.index)
        return {"status": worst, "event_bus": bus, "registry": registry}

    async def close(self) -> None:
        """End its subscriptions; the buses are their owners' to close."""
        for subscription_id in [*self._made, *self._foreign]:
            await self.run({"action": "unsubscribe", "subscription_id": subscription_id})

    # ---- actions

    async def _run_publish(self, state: Mapping[str, Any]) -> OnexResult:
        return await self.publish_workflow_event(_event(_needed(state, "event")), state.get("correlation_id") or "")

    async def _run_coordinate(self, state: Mapping[str, Any]) -> OnexResult:
        given = _needed(state, "events")
        if not isinstance(given, list):
            raise InvalidArgument("events: a list is needed", field="events")
        return await self.coordinate_events(
            [_event(one) for one in given], state.get("scenario_id") or "", state.get("correlation_id") or ""
        )

    async def _run_status(self, state: Mapping[str, Any]) -> OnexResult:
        event_id = _needed(state, "event_id")
        status = await self.get_event_status(str(event_id))
        if status is None:
            message = f"no event {event_id} was published"
            return OnexResult(success=False, message=message, error_code="OXF-2002")
        return OnexResult(success=True, message=str(status["state"]), result_data=status)

    async def _run_replay(self, state: Mapping[str, Any]) -> OnexResult:
        bus = self._bus if hasattr(self._bus, "replay_workflow_events") else self._own
        events = await bus.replay_workflow_events(
            _needed(state, "workflow_type"),
            _needed(state, "instance_id"),
            state.get("from_sequence") or 0,
            state.get("to_sequence"),
        )
        data: Context = {"events": [_plain(event) for event in events]}
        return OnexResult(success=True, message=f"{len(events)} events", result_data=data)

    async def _run_unsubscribe(self, state: Mapping[str, Any]) -> OnexResult:
        subscription_id = str(_needed(state, "subscription_id"))
        if subscription_id in self._foreign:
            for end in self._foreign.pop(subscription_id):
                if callable(end):
                    ended = end()
                    if isinstance(ended, Awaitable):
                        await ended
        else:
            bus = self._made.pop(subscription_id, self._own)
            await bus.unsubscribe_from_workflow_events(subscription_id)
        return OnexResult(success=True, message="unsubscribed")

    async def _run_nodes(self, state: Mapping[str, Any]) -> OnexResult:
        healthy_only = bool(state.get("healthy_only", True))
        nodes = await self._nodes(state.get("capability"), healthy_only=healthy_only)
        data: Context = {"nodes": [_node(node) for node in nodes]}
        return OnexResult(success=True, message=f"{len(nodes)} nodes", result_data=data)

    async def _run_health(self, state: Mapping[str, Any]) -> OnexResult:
        health = await self.health_check()
        well = health["status"] != "unhealthy"
        return OnexResult(
            success=well, message=str(health["status"]), error_code=None if well else "OXF-1101", result_data=health
        )

    # ---- helpers

    async def _tell(self, event: Any, correlation_id: str, scenario_id: str) -> Context:
        """Publish one and say what became of it."""
        told: Context = {
            "event_id": str(getattr(event, "event_id", "")),
            "event_type": str.__str__(str(getattr(event, "event_type", ""))),
            "workflow_type": str(getattr(event, "workflow_type", "")),
            "instance_id": str(getattr(event, "instance_id", "")),
        }
        try:
            published = await self._publish(event, correlation_id, scenario_id)
        except Exception as error:  # noqa: BLE001 - as in run
            result = _failed(error)
            return {**told, "success": False, "error": result.message, "error_code": result.error_code}
        told.update({"success": True, "error": None, "error_code": None})
        if published is not None:
            told.update(
                {
                    "sequence_number": published.sequence,
                    "topic": published.topic,
                    "partition": published.partition,
                    "offset": str(published.position),
                    "created": published.created,
                }
            )
        return told

    async def _publish(self, event: Any, correlation_id: str, scenario_id: str) -> Published | None:
        if not isinstance(self._bus, WorkflowEventBus):
            if hasattr(self._bus, "publish_workflow_event"):
                await self._bus.publish_workflow_event(event)
            else:
                await self._bus.publish(event)
            return None
        record = bus_records.record_of(event, self._namespace)
        if correlation_id:
            given = checked.text(records.correlation_text(correlation_id), "correlation_id")
            record = msgspec.structs.replace(record, correlation_id=given)
        notes = records.mapping(record.metadata)
        if scenario_id and "scenario_id" not in notes:
            record = msgspec.structs.replace(record, metadata=encode_value({**notes, "scenario_id": scenario_id}))
        return await self._bus.publish_record(record)

    async def _subscribe_elsewhere(self, types: Sequence[str], handler: Handler) -> str:
        """At a bus that is not ours: its base bus has a topic an event type."""
        base = getattr(self._bus, "base_event_bus", self._bus)

        async def handle(event: Any) -> None:
            await handler.handle(event, {"subscription_id": subscription_id})

        subscription_id = f"elsewhere-{len(self._foreign) + 1}"
        self._foreign[subscription_id] = [await base.subscribe(type_, handle) for type_ in types]
        return subscription_id

    async def _nodes(self, capability: str | None, *, healthy_only: bool) -> list[Any]:
        if self._registry is None:
            raise UnknownNode("there is no registry: set_registry gives one")
        if hasattr(self._registry, "get_node_capabilities"):
            return list(await self._registry.discover_nodes(capability=capability, healthy_only=healthy_only))
        nodes = list(await self._registry.discover_nodes())
        if not healthy_only:
            return nodes
        return [node for node in nodes if getattr(node, "health_status", "healthy") in {"healthy", "available"}]

    async def _health_of_bus(self) -> Context:
        base = getattr(self._bus, "base_event_bus", self._bus)
        try:
            health = await base.health_check()
        except Exception as error:  # noqa: BLE001 - as in run
            return {"status": "unhealthy", "error": f"{type(error).__name__}: {error}"}
        facts: Context = dict(health) if isinstance(health, Mapping) else {"said": str(health)}
        if facts.get("status") not in _GRADES:
            facts["status"] = "healthy" if facts.get("healthy", True) else "unhealthy"
        return facts

    async def _health_of_registry(self) -> Context:
        if self._registry is None:
            return {"status": "healthy", "set": False}
        try:
            nodes = await self._nodes(None, healthy_only=False)
        except Exception as error:  # noqa: BLE001 - as in run
            return {"status": "degraded", "set": True, "error": f"{type(error).__name__}: {error}"}
        return {"status": "healthy", "set": True, "nodes": len(nodes)}


_GRADES: Final = ("healthy", "degraded", "unhealthy")


def _failed(error: Exception) -> OnexResult:
    """An error as a result."""
    if isinstance(error, SPIError):
        code = str(getattr(error, "code", "") or type(error).__name__)
        return OnexResult(success=False, message=str(error), error_code=code, result_data=_facts(error.context))
    return OnexResult(success=False, message=f"{type(error).__name__}: {error}", error_code=InternalError.code)


def _facts(context: Mapping[str, Any]) -> Context:
    return {
        name: value if isinstance(value, str | int | float | bool | None) else str(value)
        for name, value in context.items()
    }


def _needed(state: Mapping[str, Any], name: str) -> Any:
    value = state.get(name)
    if value is None:
        raise InvalidArgument(f"{name}: is needed for the action {state.get('action')}", field=name)
    return value


_EVENT_FIELDS: Final = frozenset(
    ("event_type", "workflow_type", "instance_id", "sequence_number", "payload", "data", "event_id", "correlation_id",
     "source", "idempotency_key", "metadata", "causation_id")
)  # fmt: skip


def _event(given: Any) -> Any:
    """An event of a dict; anything else is taken for one."""
    if not isinstance(given, Mapping):
        return given
    wrong = sorted(set(given) - _EVENT_FIELDS)
    if wrong:
        raise InvalidArgument(f"event: {', '.join(wrong)} is no field of an event", field="event")
    try:
        return WorkflowEvent(**given)
    except (TypeError, ValueError, AttributeError) as error:
        raise InvalidArgument(f"event: {error}", field="event") from error


def _plain(event: WorkflowEvent) -> Context:
    return {
        "event_id": str(event.event_id),
        "event_type": str.__str__(event.event_type),
        "workflow_type": event.workflow_type,
        "instance_id": str(event.instance_id),
        "sequence_number": event.sequence_number,
        "correlation_id": str(event.correlation_id),
        "timestamp": event.timestamp.isoformat(),
        "payload": event.payload,
        "metadata": event.metadata,
    }


def _node(node: Any) -> Context:
    names = ("node_id", "node_type", "health_status", "host", "port", "max_concurrent_tasks", "current_task_count")
    found = {name: getattr(node, name) for name in names if hasattr(node, name)}
    return _facts(found) if found else {"node": str(node)}


def _status(status: EventStatus) -> Context:
    event = bus_records.event_of(status.event)
    if status.dead:
        state = "dead_lettered"
    elif status.pending:
        state = "pending"
    else:
        state = "acknowledged" if status.acknowledged else "published"
    return {
        "event_id": str(event.event_id),
        "state": state,
        "event_type": str.__str__(event.event_type),
        "workflow_type": event.workflow_type,
        "instance_id": str(event.instance_id),
        "sequence_number": event.sequence_number,
        "correlation_id": status.event.correlation_id or str(event.correlation_id),
        "topic": status.topic,
        "partition": status.partition,
        "offset": str(status.position),
        "timestamp": event.timestamp.isoformat(),
        "acknowledged_by": list(status.acknowledged),
        "pending_at": list(status.pending),
        "dead_at": list(status.dead),
    }
