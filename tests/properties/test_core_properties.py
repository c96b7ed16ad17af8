"""Laws of the core, tried on random graphs and random interleavings of what can happen to a run."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onexflow.codec.rows import decode_row, decode_snapshot, encode_row, encode_snapshot
from onexflow.core.events import (
    CompensationCompleted,
    TaskCompleted,
    WorkflowCancelled,
    WorkflowCompleted,
    WorkflowFailed,
    WorkflowTimedOut,
)
from onexflow.core.graph import Graph
from onexflow.core.machine import TERMINAL_TASK_STATES, TERMINAL_WORKFLOW_STATES
from support.core_driver import fold, same
from support.core_shell import Shell
from support.random_graphs import graphs

_TERMINAL_EVENTS = (WorkflowCompleted, WorkflowFailed, WorkflowCancelled, WorkflowTimedOut, CompensationCompleted)


@given(graphs(), st.integers(0, 2**32), st.integers(0, 80))
def test_rebuild_equals_live_and_outcomes_are_single(graph: Graph, seed: int, steps: int) -> None:
    shell = Shell(graph, random.Random(seed))
    for _ in range(steps):
        shell.model.later(shell.chance.choice((0, 0, 0.5)))
        shell.step()
        check(shell)


def check(shell: Shell) -> None:
    model, state = shell.model, shell.model.state
    assert state.seq == len(model.log)
    assert same(model.fold(), state)
    ends = [
        stored.event
        for stored in model.log
        if isinstance(stored.event, _TERMINAL_EVENTS) and getattr(stored.event, "kind", "") != "compensating"
    ]
    assert len(ends) == (state.status in TERMINAL_WORKFLOW_STATES) == shell.finished
    assert not ends or model.log[-1].event is ends[0], "nothing happens after the end"
    results = [(e.task, i) for e, *_ in model.log if isinstance(e, TaskCompleted) for i in e.items]
    assert len(results) == len(set(results)), "a result is recorded once"
    assert state.open_tasks == sum(t.status not in TERMINAL_TASK_STATES for t in state.tasks)
    assert sorted(state.ready) == [n for n, t in enumerate(state.tasks) if t.status == "pending"] or ends
    for task in state.tasks:
        assert task.done == sum(i.status == "completed" for i in task.items) or task.status == "completed"


@given(graphs(), st.integers(0, 2**32))
def test_every_prefix_continues_from_its_snapshot_and_from_its_rows(graph: Graph, seed: int) -> None:
    shell = Shell(graph, random.Random(seed))
    for _ in range(40):
        shell.step()
    log = shell.model.log
    for cut in range(1, len(log) + 1):
        snapshot = decode_snapshot(encode_snapshot(fold(graph, log[:cut])))
        assert snapshot is not None
        assert same(fold(graph, log, snapshot), shell.model.state)
    for stored in log:
        assert decode_row(encode_row(stored.at, [stored.event])) == (stored.at, [stored.event], {})


@given(graphs(), st.integers(0, 2**32))
def test_an_obeyed_run_always_ends(graph: Graph, seed: int) -> None:
    """Whatever happened before: once people resume and resolve, and workers answer, the run comes to its end."""
    shell = Shell(graph, random.Random(seed))
    for _ in range(30):
        shell.step()
    shell.finish()
    if shell.finished:
        return
    statuses = [(shell.model.graph.names[n], t.status) for n, t in enumerate(shell.model.state.tasks)]
    pytest.fail(f"the run is {shell.model.state.status} and waits for nothing: {statuses}")
