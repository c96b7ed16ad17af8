"""Laws of compensation on random graphs, with failures, losses, cancels and changes of owner wherever chance puts them."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onexflow.audit.run import Plan, RunStory
from onexflow.audit.snapshot import difference
from onexflow.codec.definitions import dump_definition
from onexflow.codec.rows import decode_snapshot, encode_snapshot
from onexflow.core.builder import workflow
from onexflow.core.commands import CancelRun
from onexflow.core.events import CompensationStarted, TaskCompleted, TaskScheduled, WorkflowCreated
from onexflow.core.evolve import evolve
from onexflow.core.graph import Graph
from onexflow.core.machine import TERMINAL_WORKFLOW_STATES
from support.core_driver import Model, fold, graph_of, same
from support.core_shell import Shell
from support.random_graphs import graphs, sagas


def ended(graph: Graph, seed: int, steps: int) -> Model:
    """A run to which things happened, cancelled if it had not ended, and taken to its end."""
    shell = Shell(graph, random.Random(seed))
    for _ in range(steps):
        shell.model.later(shell.chance.choice((0, 0, 0.5)))
        shell.step()
    shell.do(CancelRun("enough"))
    for _ in range(shell.chance.randrange(40)):
        shell.step()
    shell.finish()
    model = shell.model
    if model.state.status not in TERMINAL_WORKFLOW_STATES:
        pytest.fail(f"the run is {model.state.status} and waits for nothing")
    return model


compensable = st.one_of(sagas(), sagas(), graphs())
seeds = st.integers(0, 2**32)


@given(compensable, seeds, st.integers(0, 60))
def test_what_completed_is_undone_once_in_reverse_order_or_the_run_failed_with_the_reason(
    graph: Graph, seed: int, steps: int
) -> None:
    model = ended(graph, seed, steps)
    state = model.state
    events = [stored.event for stored in model.log]
    done = [e.task for e in events if isinstance(e, TaskCompleted) and e.task in graph.undo]
    begun = [e.task for e in events if isinstance(e, TaskScheduled) and graph.is_undo(e.task) and e.attempt == 1]
    undone = [e.task for e in events if isinstance(e, TaskCompleted) and graph.is_undo(e.task)]
    assert max(Counter(begun).values(), default=1) == 1
    order = [graph.undo[task] for task in reversed(done)]
    assert begun == order[: len(begun)]
    if not any(isinstance(event, CompensationStarted) for event in events):
        assert not begun
        assert state.status == "completed" or not done, "nothing that was done stays without a word"
        return
    if state.status == "compensated":
        assert undone == order
    else:
        assert state.status == "failed"
        assert state.error is not None
        assert state.error.context is not None
        assert state.error.type == "CompensationFailed"
        left = [graph.names[task] for task in done if graph.undo[task] not in undone]
        assert state.error.context["not_undone"] == left[::-1]
    assert state.outcome in {"cancelled", "failed", "timeout"}
    assert not state.open_tasks


@pytest.mark.timeout(180)
@given(compensable, seeds, st.integers(0, 60))
def test_the_auditor_agrees_and_every_prefix_goes_on_from_its_snapshot(graph: Graph, seed: int, steps: int) -> None:
    model = ended(graph, seed, steps)
    plan = Plan(dump_definition(graph.definition))
    assert tuple(plan.names) == graph.names
    complaints: list[tuple[str, str]] = []
    created = model.log[0].event
    assert isinstance(created, WorkflowCreated)
    story = RunStory.begin(plan, created, model.log[0].at)
    state = fold(graph, model.log[:1])
    for number, (event, epoch, offset, at) in enumerate(model.log[1:]):
        story.tell(event, epoch, offset, at, lambda rule, what: complaints.append((rule, what)))
        assert not complaints
        evolve(graph, state, event, epoch, offset, at)
        assert difference(story, state) == ""
        snapshot = decode_snapshot(encode_snapshot(state))
        assert snapshot is not None
        assert difference(RunStory.resume(plan, snapshot), snapshot) == ""
        if (number + seed) % 10 == 0:
            assert same(fold(graph, model.log, snapshot), model.state)


def test_chance_does_reach_the_undoing() -> None:
    """So that the laws above are not laws of nothing."""
    flow = workflow("saga")
    for name in ("a", "b", "c", "d"):
        flow.effect(name, compensation="undo", **({"depends_on": "a"} if name != "a" else {}))
    graph = graph_of(flow)
    ends = Counter(ended(graph, seed, 60).state.status for seed in range(100))
    assert min(ends["compensated"], ends["failed"], ends["completed"]) > 5
