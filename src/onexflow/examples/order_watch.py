"""Watching orders: a projection that knows how far each is, and a group that is told how each ended.

`onexflow dev --example order-processing`, in another terminal `python -m onexflow.examples.order_watch`, and in a third
`onexflow run start order-processing`. Both go on where they were when they are started again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

import onexflow
from onexflow.engine.protocols import WorkflowEventBus
from onexflow.examples.order_processing import TYPE
from onexflow.spi import Context, WorkflowEvent

#: How an order ends.
ENDS: Final = ["workflow.completed", "workflow.failed", "workflow.cancelled", "workflow.timeout"]


class OrderStatus:
    """What a shop page would show of an order."""

    projection_name = "order_status"

    async def apply_event(self, event: WorkflowEvent, current_state: Context) -> Context:
        if event.workflow_type != TYPE:
            return current_state
        if event.event_type == "task.completed":
            done = current_state.get("done")
            return {**current_state, "done": [*(done if isinstance(done, list) else []), event.data["task"]]}
        if event.event_type in ENDS:
            return {**current_state, "ended": str(event.event_type)}
        return current_state

    async def get_state(self, workflow_type: str, instance_id: Any) -> Context:
        return {}


async def watch(bus: WorkflowEventBus, say: Callable[[str], Any] = print) -> None:
    """Keep the projection, and say how each order ended; returns when both are in force."""
    await bus.register_projection(OrderStatus())

    async def ended(event: WorkflowEvent) -> None:
        state = await bus.get_projection_state("order_status", event.workflow_type, event.instance_id)
        say(f"{event.instance_id} {state.get('ended')}: {', '.join(str(task) for task in _list(state.get('done')))}")

    watchers = bus.group("order-watch", start="earliest")
    await watchers.subscribe_to_workflow_events(TYPE, ENDS, ended)


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


async def main() -> None:
    async with await onexflow.connect() as client:
        await watch(client.event_bus())
        await asyncio.Event().wait()


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        asyncio.run(main())
