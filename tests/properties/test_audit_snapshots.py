"""The auditor compares every field of a snapshot that a decision reads: each one forged is found, on random runs."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onexflow.audit.run import Plan, RunStory
from onexflow.audit.snapshot import difference
from onexflow.codec.definitions import dump_definition
from onexflow.core.commands import CancelRun
from onexflow.core.events import WorkflowCreated
from onexflow.core.graph import Graph
from onexflow.core.payload import Payload
from onexflow.core.state import ItemState, RunState, TaskState
from support.core_driver import Model
from support.core_shell import Shell
from support.random_graphs import graphs, sagas

#: What no decision reads: it is for people, or the events tell it again when it is asked for.
LEFT_OUT = {
    ("RunState", "reason"), ("RunState", "paused_by"), ("RunState", "error"), ("RunState", "result"), ("TaskState", "error"),
    ("TaskState", "finished_at"), ("ItemState", "error"), ("ItemState", "finished_at"),
}  # fmt: skip
#: Read while a task waits for others, and not any more when it does not.
WHILE_BLOCKED = {("TaskState", "unresolved"), ("TaskState", "doomed")}


def story_of(model: Model) -> RunStory:
    created = model.log[0].event
    assert isinstance(created, WorkflowCreated)
    story = RunStory.begin(Plan(dump_definition(model.graph.definition)), created, model.log[0].at)
    for event, epoch, offset, at in model.log[1:]:
        story.tell(event, epoch, offset, at, lambda rule, what: pytest.fail(f"{rule}: {what}"))
    return story


def changed(value: Any) -> Any:
    """Something else of that type; None when there is nothing to be changed."""
    match value:
        case bool():
            return not value
        case int():
            return value + 1
        case str():
            return value + "x"
        case bytes():
            return value + b"x"
        case Payload():
            return Payload(value.data + b" ")
        case _:
            return None


def parts(state: RunState) -> list[RunState | TaskState | ItemState]:
    return [state, *state.tasks, *(item for task in state.tasks for item in task.items)]


@pytest.mark.timeout(180)
@given(st.one_of(graphs(), sagas()), st.integers(0, 2**32), st.integers(0, 60))
def test_every_field_of_a_snapshot_that_counts_is_compared(graph: Graph, seed: int, steps: int) -> None:
    chance = random.Random(seed)
    shell = Shell(graph, chance)
    for _ in range(steps):
        shell.model.later(chance.choice((0, 0, 0.5)))
        shell.step()
    if chance.random() < 0.3:
        shell.do(CancelRun("enough"))
    state, story = shell.model.state, story_of(shell.model)
    assert difference(story, state) == ""
    for number in chance.sample(range(len(parts(state))), min(4, len(parts(state)))):
        place = parts(state)[number]
        kind = type(place).__name__
        for field in type(place).__struct_fields__:
            value = changed(getattr(place, field))
            if value is None or (kind, field) in LEFT_OUT:
                continue
            waits = state.status == "running" and place.status == "blocked" and number <= len(graph.indegree)
            if (kind, field) in WHILE_BLOCKED and not waits:
                continue
            forged = msgspec.msgpack.decode(msgspec.msgpack.encode(state), type=RunState)
            setattr(parts(forged)[number], field, value)
            assert difference(story, forged), f"{kind}.{field}: {getattr(place, field)!r} as {value!r}"


def test_chance_does_reach_what_is_compared() -> None:
    """So that the law above is not one of nothing."""
    reached: Counter[str] = Counter()

    @settings(max_examples=200, derandomize=True)
    @given(st.one_of(graphs(), sagas()), st.integers(0, 2**32))
    def reach(graph: Graph, seed: int) -> None:
        shell = Shell(graph, random.Random(seed))
        for _ in range(30):
            shell.step()
        if seed % 3 == 0:
            shell.do(CancelRun("enough"))
        for task in shell.model.state.tasks:
            reached["doomed"] += task.doomed
            reached["windowed"] += 0 < task.window < task.of
            for item in task.items:
                reached.update({item.status, "stopping" if item.stopping else "", "lost" if item.lost else ""})

    reach()
    for word in ("retrying", "waiting_for_input", "running", "lost", "stopping", "windowed"):
        assert reached[word], word
