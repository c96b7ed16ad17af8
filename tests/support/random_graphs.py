"""Random definitions of workflows."""

from __future__ import annotations

import msgspec
from hypothesis import strategies as st

from onexflow.core.compiler import compile_graph
from onexflow.core.definition import Compensation, RetryPolicy, RunRetry, TaskSpec, Timeouts, WorkflowDefinition
from onexflow.core.graph import Graph

_RETRIES = (
    None,
    RetryPolicy(policy="none"),
    RetryPolicy(policy="fixed", initial_delay=0.0, max_attempts=2),
    RetryPolicy(policy="exponential", initial_delay=1.0, max_attempts=3),
)
_COMPENSATIONS = (
    Compensation(handler="undo"),
    Compensation(handler="undo", input={"r": "result", "why": "reason", "all": "tasks.*"}),
    Compensation(handler="undo", input="outcome", retry=RetryPolicy(policy="fixed", initial_delay=0.0, max_attempts=2)),
    Compensation(handler="undo", timeouts=Timeouts(start_to_close=2.0, schedule_to_close=30.0, heartbeat=1.0)),
)
_TIMEOUTS = Timeouts(schedule_to_start=5.0, start_to_close=2.0, schedule_to_close=30.0, heartbeat=1.0)


@st.composite
def graphs(draw: st.DrawFn) -> Graph:
    """A valid definition of one to eight tasks, with every feature somewhere."""
    count = draw(st.integers(1, 8))
    setup = draw(st.sampled_from((0, 0, 0, 1, 2)))
    tasks: list[TaskSpec] = []
    for number in range(count):
        is_setup = number < min(setup, count - 1)
        parents = [t.name for t in tasks if t.setup or not is_setup]
        hard = draw(st.lists(st.sampled_from(parents), unique=True, max_size=2)) if parents else []
        rest = [name for name in parents if name not in hard]
        soft = draw(st.lists(st.sampled_from(rest), unique=True, max_size=2)) if rest else []
        tasks.append(
            TaskSpec(
                name=f"t{number}",
                role=draw(st.sampled_from(("effect", "compute", "reducer", "orchestrator"))),
                depends_on=tuple(hard),
                after=tuple(soft),
                input="input",
                when=draw(st.sampled_from(("", "", "", "input.yes", "input.no"))),
                map=draw(st.sampled_from(("", "", "", "input.items", "input.none", "input.wrong"))),
                max_parallel=0,
                retry=draw(st.sampled_from(_RETRIES)),
                timeouts=draw(st.sampled_from((Timeouts(), _TIMEOUTS))),
                allow_failure=draw(st.booleans()),
                setup=is_setup,
            )
        )
        if tasks[-1].role == "effect" and not tasks[-1].map and draw(st.booleans()):
            tasks[-1] = msgspec.structs.replace(tasks[-1], compensation=draw(st.sampled_from(_COMPENSATIONS)))
        if tasks[-1].map:
            tasks[-1] = msgspec.structs.replace(tasks[-1], max_parallel=draw(st.sampled_from((0, 1, 2))))
        elif tasks[-1].role == "reducer" and [one.role for one in tasks if one.name in hard and one.map] in (
            ["effect"],
            ["compute"],
        ):
            tasks[-1] = msgspec.structs.replace(tasks[-1], feed=len(hard) == 1 and draw(st.booleans()))
    return compile_graph(
        WorkflowDefinition(
            workflow_type="random",
            tasks=tuple(tasks),
            output="input",
            retry=draw(st.sampled_from((None, RunRetry(max_attempts=3, delay=1.0)))),
            timeout=draw(st.sampled_from((0.0, 0.0, 60.0))),
        )
    )


@st.composite
def sagas(draw: st.DrawFn) -> Graph:
    """Two to seven tasks, most of them effects that can be undone, and nothing that keeps them from being done."""
    tasks: list[TaskSpec] = []
    for number in range(draw(st.integers(2, 7))):
        parents = [task.name for task in tasks]
        hard = draw(st.lists(st.sampled_from(parents), unique=True, max_size=2)) if parents else []
        role = draw(st.sampled_from(("effect", "effect", "effect", "compute")))
        tasks.append(
            TaskSpec(
                name=f"t{number}",
                role=role,
                depends_on=tuple(hard),
                input="input",
                retry=draw(st.sampled_from(_RETRIES)),
                timeouts=draw(st.sampled_from((Timeouts(), Timeouts(), _TIMEOUTS))),
                setup=number == 0 and draw(st.booleans()),
                compensation=draw(st.sampled_from((*_COMPENSATIONS, None))) if role == "effect" else None,
            )
        )
    return compile_graph(
        WorkflowDefinition(
            workflow_type="saga",
            tasks=tuple(tasks),
            output="input",
            retry=draw(st.sampled_from((None, RunRetry(max_attempts=2, delay=1.0)))),
            timeout=draw(st.sampled_from((0.0, 0.0, 10.0))),
        )
    )


#: What every definition of `graphs` can be started with.
INPUT = {"yes": True, "no": False, "items": [1, 2, 3], "none": [], "wrong": 5}
