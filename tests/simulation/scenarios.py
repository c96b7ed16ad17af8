"""The workflows that `scripts/simulate` plays: one for each thing that a fault could break."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

from onexflow.core.builder import WorkflowBuilder, workflow
from onexflow.core.definition import RetryPolicy
from onexflow.worker.context import Context
from onexflow.worker.handlers import Worker


class Scenario(NamedTuple):
    worker: Callable[[], Worker]
    workflow: WorkflowBuilder
    inputs: Sequence[Any]
    others: Sequence[WorkflowBuilder] = ()


NUMBERS: Final = [{"number": number} for number in range(10)]


def steps() -> Scenario:
    """A compute, an effect that must not run twice, one that may, and a compute."""

    def worker() -> Worker:
        made = Worker()
        made.compute("price")(lambda order: order["number"] * 3)
        made.effect("charge")(lambda order: {"charged": order["number"]})
        made.effect("ship", idempotent=True)(lambda order: {"shipped": order["number"]})
        made.compute("close")(sorted)
        return made

    flow = workflow("steps")
    price = flow.compute("price", input="input")
    charge = flow.effect("charge", input="input", after=price)
    ship = flow.effect("ship", input="input", depends_on=[charge])
    flow.compute("close", depends_on=[price, charge, ship])
    return Scenario(worker, flow, NUMBERS)


def fan() -> Scenario:
    """Forty computes and as many effects, a reducer over all results, and one that is fed with them."""

    def worker() -> Worker:
        made = Worker()
        made.compute("square")(lambda number: number * number)
        made.effect("send", idempotent=True)(lambda number: number + 1)
        made.reducer("sum")(sum)

        @made.reducer("fold")
        async def fold(contract: Any, ctx: Context) -> int:
            return sum([value async for _, value in ctx.items()])

        return made

    flow = workflow("fan")
    square = flow.compute("square", map="input.numbers")
    send = flow.effect("send", map="input.numbers", max_parallel=8)
    flow.reducer("sum", depends_on=[square])
    flow.reducer("fold", depends_on=[send], feed=True)
    return Scenario(worker, flow, [{"numbers": list(range(start, start + 40))} for start in (0, 7, 100)])


def saga() -> Scenario:
    """Two effects that are undone when the third one has failed, which it does for every other input."""

    def worker() -> Worker:
        made = Worker()
        for name in ("book", "pay", "unbook", "refund"):
            made.effect(name, idempotent=True)(lambda contract: {"of": contract})

        @made.effect("confirm", idempotent=True)
        def confirm(trip: Any) -> Any:
            if trip["number"] % 2:
                raise ValueError("no room")
            return trip

        return made

    flow = workflow("saga")
    book = flow.effect("book", input="input", compensation="unbook")
    pay = flow.effect("pay", input="input", depends_on=[book], compensation="refund")
    flow.effect("confirm", input="input", depends_on=[pay], retry=RetryPolicy(max_attempts=2, initial_delay=1))
    return Scenario(worker, flow, NUMBERS)


def retries() -> Scenario:
    """An effect and a compute that fail twice before they succeed, with pauses in which the run is asleep."""

    def flaky(contract: Any, ctx: Context) -> Any:
        if ctx.attempt < 3:
            raise ConnectionError(f"attempt {ctx.attempt}")
        return contract

    def worker() -> Worker:
        made = Worker()
        made.effect("call", idempotent=True)(flaky)
        made.compute("parse")(flaky)
        return made

    patient = RetryPolicy(policy="fixed", max_attempts=9, initial_delay=5, jitter=0)
    flow = workflow("retries")
    call = flow.effect("call", input="input", retry=patient)
    flow.compute("parse", depends_on=[call], retry=patient)
    return Scenario(worker, flow, NUMBERS)


def calls() -> Scenario:
    """Orchestrations: code that calls nodes, several at a time, and a workflow, and goes on elsewhere when it is lost."""

    def worker() -> Worker:
        made = Worker()
        made.effect("charge", idempotent=True)(lambda order: order["number"] + 1)
        made.compute("double")(lambda number: number * 2)

        @made.orchestrator("lead")
        async def lead(order: Any, ctx: Context) -> Any:
            charge = await ctx.node("charge", "effect")
            double = await ctx.node("double", "compute")
            first = await charge.execute_effect(order)
            second = await double.execute_compute(first)
            return [first, second, await ctx.run("inner", second)]

        return made

    inner = workflow("inner")
    inner.compute("double")
    flow = workflow("calls")
    flow.orchestrator("lead", input="input")
    return Scenario(worker, flow, NUMBERS[:5], [inner])


SCENARIOS: Final[dict[str, Callable[[], Scenario]]] = {one.__name__: one for one in (steps, fan, saga, retries, calls)}
