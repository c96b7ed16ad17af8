"""What the suites of runs share: three workflows, the script of their handlers, and runs that are somewhere."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any
from uuid import UUID, uuid4

import pytest

from onexflow.core.builder import workflow
from onexflow.core.definition import RetryPolicy, WorkflowDefinition
from onexflow.engine.protocols import WorkflowOrchestrator
from onexflow.ports.client_link import RunService
from onexflow.spi import Context, WorkflowState
from onexflow.worker.handlers import Worker

ORDER: Context = {"order_id": "ORD-12345", "customer_id": "CUST-67890", "amount": 99.99}
TERMINAL = {"completed", "failed", "cancelled", "timeout", "compensated"}


class Script:
    """Handlers that wait at a gate if there is one for them, and fail as often as they are told to."""

    def __init__(self) -> None:
        self.gates: dict[str, asyncio.Event] = {}
        self.failures: dict[str, int] = {}

    def gate(self, handler: str) -> asyncio.Event:
        return self.gates.setdefault(handler, asyncio.Event())

    def worker(self) -> Worker:
        worker = Worker("onex")
        for name in ("prepare", "reserve", "payment_processing", "ship", "refund"):
            worker.effect(name, idempotent=True)(self._handler(name))
        return worker

    def _handler(self, name: str) -> Callable[[Any], Any]:
        async def handle(_contract: Any) -> Any:
            if name in self.gates:
                await self.gates[name].wait()
            if self.failures.get(name, 0) > 0:
                self.failures[name] -= 1
                raise ValueError(f"{name} does not work")
            return {"by": name}

        return handle


def definitions() -> list[WorkflowDefinition]:
    """The workflows of the suite: two tasks in a row; two of which the first is a setup task; three of which the
    second can be undone."""
    once = RetryPolicy(policy="none", max_attempts=1)
    twice = RetryPolicy(policy="fixed", max_attempts=2, initial_delay=0.0)
    order = workflow("order-processing")
    reserve = order.effect("reserve", retry=twice, priority="high")
    order.effect("payment_processing", depends_on=[reserve], retry=once)
    guided = workflow("guided")
    guided.effect("prepare", setup=True, retry=once)
    guided.effect("ship", retry=once)
    trip = workflow("trip")
    reserved = trip.effect("reserve")
    paid = trip.effect("payment_processing", depends_on=[reserved], compensation="refund", priority="high")
    trip.effect("ship", depends_on=[paid], retry=once)
    return [order.build(), guided.build(), trip.build()]


async def state_when(
    orchestrator: WorkflowOrchestrator, instance: UUID, *states: str, workflow_type: str = "order-processing"
) -> WorkflowState:
    """The order's state once it is one of these."""
    async with asyncio.timeout(10):
        while True:
            state = await orchestrator.get_workflow_state(workflow_type, instance)
            if state.current_state in states:
                return state
            await asyncio.sleep(0.005)


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    """Wait until it holds; ten seconds at most."""
    async with asyncio.timeout(10):
        while not await condition():  # noqa: ASYNC110 - what is asked may be at the other end of a wire
            await asyncio.sleep(0.005)


class OrchestratorSuite:
    """An orchestrator on the `service` that is tested, and the script of its worker's handlers."""

    @pytest.fixture
    def script(self) -> Script:
        return Script()

    @pytest.fixture
    def orchestrator(self, service: RunService) -> WorkflowOrchestrator:
        return WorkflowOrchestrator(service)

    async def ended(self, orchestrator: WorkflowOrchestrator) -> UUID:
        """An order that is completed."""
        instance = uuid4()
        await orchestrator.start_workflow("order-processing", instance, dict(ORDER))
        assert (await state_when(orchestrator, instance, *TERMINAL)).current_state == "completed"
        return instance
