"""Work per task does not grow with the graph or the history: operations are counted, not seconds."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest

from onexflow.core.builder import workflow
from onexflow.core.commands import ReturnAttempt
from onexflow.core.compiler import compile_graph
from onexflow.core.graph import Graph
from onexflow.testing import Cluster, virtual_time
from support.core_driver import Model
from support.engine_kit import Script


def chain(size: int) -> Graph:
    flow = workflow("chain")
    before = flow.compute("t0", handler="calc", input="input")
    for number in range(1, size):
        before = flow.compute(f"t{number}", handler="calc", depends_on=[before])
    return compile_graph(flow.build())


def fan(size: int) -> Graph:
    flow = workflow("fan")
    root = flow.compute("t0", handler="calc", input="input")
    leaves = [flow.compute(f"t{n}", handler="calc", depends_on=[root]) for n in range(1, size - 1)]
    flow.compute(f"t{size - 1}", handler="calc", after=leaves, input="input")
    return compile_graph(flow.build(output="input"))


def calls(work: Callable[[], Any]) -> int:
    """Calls of functions, Python's and C's, that `work` makes."""
    count = 0

    def profile(frame: Any, event: str, argument: Any) -> None:
        nonlocal count
        if event in {"call", "c_call"}:
            count += 1

    sys.setprofile(profile)
    try:
        work()
    finally:
        sys.setprofile(None)
    return count


def one_by_one(graph: Graph) -> float:
    """Calls per completed task of a whole run, without its start."""
    model = Model(graph, 1)

    def work() -> None:
        for name in graph.names:
            model.complete(name, result=1)

    made = calls(work)
    assert model.state.status == "completed"
    return made / len(graph.names)


@pytest.mark.parametrize("shape", [chain, fan])
def test_calls_per_task_are_the_same_in_a_graph_of_ten_and_of_ten_thousand(shape: Callable[[int], Graph]) -> None:
    small, *larger = [one_by_one(shape(size)) for size in (10, 100, 1000, 10_000)]
    assert max(larger) < 1.5 * small


def test_calls_per_item_are_the_same_in_a_map_of_a_hundred_and_of_ten_thousand() -> None:
    flow = workflow("map")
    flow.compute("t", map="input", max_parallel=10)
    graph = compile_graph(flow.build())

    def per_item(size: int) -> float:
        model = Model(graph, list(range(size)))

        def work() -> None:
            for item in range(size):
                model.complete("t", item, result=1)

        made = calls(work)
        assert model.state.status == "completed"
        return made / size

    assert per_item(10_000) < 1.5 * per_item(100)


def test_a_long_history_makes_no_step_dearer() -> None:
    flow = workflow("long")
    flow.effect("t")
    model = Model(compile_graph(flow.build()))

    def attempt() -> None:
        model.authorise("t")
        model.on_attempt(ReturnAttempt, "t")

    first = calls(attempt)
    for _ in range(1000):
        attempt()
    assert calls(attempt) < 1.2 * first


def test_the_engine_does_no_more_for_a_task_of_a_large_graph() -> None:
    @virtual_time
    async def whole(size: int) -> float:
        script = Script()
        async with Cluster() as cluster:
            await cluster.register(chain(size).definition)
            await cluster.add_worker(script.worker())
            assert await cluster.run("chain", 1) == 1
            count = 0

            def profile(frame: Any, event: str, argument: Any) -> None:
                nonlocal count
                count += event == "call"

            sys.setprofile(profile)
            try:
                await cluster.run("chain", 1)
            finally:
                sys.setprofile(None)
            return count / size

    assert whole(1000) < 1.5 * whole(50)
