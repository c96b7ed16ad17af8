"""Makes the reference pages in docs/ from the code. Run by scripts/gen-docs; `--check` fails when a page is stale."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from pathlib import Path

from onexflow.codec.definition_schema import schema_text
from onexflow.config import BridgeSettings, ClientSettings, OrchestratorSettings, Secret, Settings, WorkerSettings
from onexflow.config.sources import meanings, paths
from onexflow.core import machine
from onexflow.core.blocked import KINDS
from onexflow.core.errors import BY_CODE
from onexflow.core.explanations import EXPLANATIONS
from onexflow.telemetry import names

DOCS = Path(__file__).parents[2] / "docs"
NOTE = "<!-- Made by scripts/gen-docs from the code; edit that. -->\n"


def errors() -> str:
    """docs/errors.md: a section a code."""
    lines = [
        "# Errors",
        NOTE,
        (
            "Every error has a stable code, carries a `context` (a dictionary) and is one of the specification's five "
            "exceptions. It is the same class on both sides of a call. `onexflow explain CODE` prints a section of this page."
        ),
        "",
        "| code | class | try again? |",
        "|---|---|---|",
    ]
    lines += [
        f"| [{code}](#{code.lower()}) | {cls.__name__} | {'yes' if cls.retryable else 'no'} |"
        for code, cls in sorted(BY_CODE.items())
    ]
    for code, cls in sorted(BY_CODE.items()):
        bases = [
            base.__name__
            for base in cls.__mro__[1:]
            if base.__name__ not in ("Coded", "Exception", "BaseException", "object")
        ]
        meaning = (inspect.getdoc(cls) or "").splitlines()[0]
        text = EXPLANATIONS[code]
        lines += [
            "",
            f"## {code}",
            f"**{cls.__name__}** ({', '.join(bases)}): {meaning}",
            "",
            text.causes,
            "",
            f"*What to do*: {text.action}",
        ]
    return "\n".join(lines) + "\n"


#: What it means to be in a state, to the person who looks.
RUN_STATES = {
    "pending": "created; waits for its start time, if it was given one",
    "initializing": "its setup tasks run; the others wait for them",
    "running": "its tasks are scheduled as their dependencies complete",
    "paused": "nothing new is dispatched; what runs may end and is recorded; waits to be resumed",
    "completed": "it has its result",
    "failed": "a task that it needs has failed for good, and no attempt of the run is left; or it could not be undone",
    "cancelled": "somebody cancelled it; running attempts were told to stop",
    "timeout": "its own time limit has passed",
    "retrying": "it failed, and waits for the delay of its own retry policy before it runs again",
    "waiting_for_dependency": "waits for another run (not reached yet: child runs are to come)",
    "compensating": "was cancelled, has failed or timed out (its `outcome`): what its effects did is undone first",
    "compensated": "all that its effects did is undone; its `outcome` says why",
}
TASK_STATES = {
    "pending": "nothing is missing but the decision to schedule it",
    "blocked": "waits for tasks that it depends on",
    "scheduled": "may be dispatched; waits for a worker with its handler and a free slot",
    "running": "an attempt of it is authorised",
    "completed": "it has its result",
    "failed": "no attempt is left, or the error is not to be retried",
    "timeout": "one of its timeouts has passed and no attempt is left",
    "cancelled": "its run was cancelled or ended, or is undone",
    "retrying": "waits for the delay before its next attempt",
    "waiting_for_input": "nobody knows whether its effect happened: waits for a late result or for `run resolve`",
    "skipped": "its condition was false, or a task that it depends on did not complete",
}


def states() -> str:
    """docs/states.md: both state machines."""
    lines = [
        "# States",
        NOTE,
        (
            "What a run and a task can be, and every legal change. Anything else is refused with `InvalidTransition` "
            "([OXF-3002](errors.md#oxf-3002)). A terminal state is never left. What waits in a state, and for what, is told by "
            "[blocked.md](blocked.md)."
        ),
    ]
    machines = (
        ("Runs", machine.WORKFLOW_STATES, machine.WORKFLOW_TRANSITIONS, RUN_STATES, "pending"),
        ("Tasks", machine.TASK_STATES, machine.TASK_TRANSITIONS, TASK_STATES, "blocked"),
    )
    for title, every, transitions, meanings_of, first in machines:
        lines += ["", f"## {title}", "", "| state | meaning | may become |", "|---|---|---|"]
        lines += [
            f"| `{state}` | {meanings_of[state]} | {', '.join(f'`{after}`' for after in transitions[state]) or '(final)'} |"
            for state in every
        ]
        lines += ["", "```mermaid", "stateDiagram-v2", f"    [*] --> {first}"]
        lines += [f"    {state} --> {after}" for state in every for after in transitions[state]]
        lines += [f"    {state} --> [*]" for state in every if not transitions[state]]
        lines += ["```"]
    return "\n".join(lines) + "\n"


def blocked() -> str:
    """docs/blocked.md: what open runs and tasks wait for."""
    lines = [
        "# What open runs and tasks wait for",
        NOTE,
        (
            "Every open run, task and queued task says at any moment what it waits for: as one of these kinds with its facts "
            "(`blocked`), in words (`blocked_because`), and when the orchestrator will look again by itself "
            "(`next_wake_at`). Where that is empty, what ends it is somebody's or something's to do, and `ended_by` says "
            "whose. `onexflow run list --blocked` and `run show` show it, `Client.blocked`, `handle.state()` and "
            "`AdminService.ListBlocked` give it to programs, and the gauge `onexflow.runs.waiting` counts it."
        ),
        "",
        (
            "A run with several open tasks shows the kind that stands first in this table, with the name of the task. Facts "
            "are the fields that are set, where they are known."
        ),
        "",
        "| kind | what it means | what ends it | what to do when it lasts | facts |",
        "|---|---|---|---|---|",
        *(
            f"| `{kind.name}` | {kind.meaning} | {kind.ended_by} | {kind.action} | "
            f"{', '.join(f'`{fact}`' for fact in kind.facts)} |"
            for kind in KINDS
        ),
        "",
        (
            "`stalled` is no reason: it is what is said when there is none. The watchdog of each orchestrator looks at the runs "
            "in its memory all the time; what nothing accounts for at two looks in a row it repairs (within 2 s, while there "
            "are up to some 1,000 idle runs in memory), logs as `stall.repaired`, and counts (`onexflow.stalls.repaired`, and "
            "`watchdog` in the health answer). Each of these is a fault of ours: please report it."
        ),
        "",
        (
            "What is not durable is not told. A run whose last events are on their way waits for the `store`, and shows the state "
            "that the store has, or none while a new one is on its way, too. One whose start is not durable yet shows none: "
            "nobody was promised that it will be there, no listing has it, and only who asks for it by its id sees it wait."
        ),
        "",
        (
            "*For harnesses*: ask `Client.blocked(keys=...)` for the runs that are known to be open, every 200 ms or so. A run that "
            "is left out and has not ended, and one whose `blocked.is_valid` is false, has no reason at that moment. Any "
            "orchestrator answers for all; an owner that does not answer within a second has shards that are `moving`."
        ),
    ]
    return "\n".join(lines) + "\n"


def configuration() -> str:
    """docs/configuration.md: every setting of the binaries."""
    lines = [
        "# Configuration",
        NOTE,
        (
            "A value comes from, in rising order: the default, the TOML file (`--config FILE`), the environment, a flag. "
            "`--show-config` prints each with its origin. Unknown names are errors. In TOML the parts of a name are tables; "
            "in the environment it is `ONEXFLOW_` and the name in upper case with `__` between the parts; as a flag the dots "
            "and underscores are dashes. Lists are parted by commas."
        ),
    ]
    programs = (
        ("onex-orchestrator", OrchestratorSettings),
        ("onex-worker", WorkerSettings),
        ("onex-bridge", BridgeSettings),
        ("Clients", ClientSettings),
    )
    for binary, tree in programs:
        lines += ["", f"## {binary}"]
        if tree is ClientSettings:
            lines += [
                "",
                (
                    "`onexflow.connect`, `onexflow.onex` and the command line take these from the environment, where they "
                    "are not given as parameters or flags."
                ),
            ]
        lines += ["", "| setting | default | meaning |", "|---|---|---|"]
        known = meanings(tree)
        for path in paths(tree):
            value: object = _defaults(tree)
            for name in path.split("."):
                value = getattr(value, name)
            shown = ", ".join(value) if isinstance(value, tuple) else value
            shown = str(shown).lower() if isinstance(shown, bool) else "" if isinstance(shown, Secret) else shown
            lines.append(f"| `{path}` | {f'`{shown}`' if shown != '' else ''} | {known[path]} |")
    return "\n".join(lines) + "\n"


def telemetry() -> str:
    """docs/telemetry.md: spans and metrics."""
    lines = [
        "# Telemetry",
        NOTE,
        (
            "The binaries send traces and metrics by OTLP when the standard variables say so (`OTEL_EXPORTER_OTLP_ENDPOINT`; "
            "install the extra `otlp`), and do nothing otherwise. The trace context of a start is kept in the run's first "
            "event and travels to every handler. Telemetry never blocks or fails the cluster."
        ),
        "",
        "## Spans",
        "",
        "| name | meaning |",
        "|---|---|",
        *(f"| `{span.name.format('…')}` | {span.meaning} |" for span in names.SPANS),
        "",
        "## Metrics",
        "",
        "| name | kind | unit | attributes | meaning |",
        "|---|---|---|---|---|",
        *(
            f"| `{m.name}` | {m.kind} | `{m.unit}` | {', '.join(f'`{a}`' for a in m.attributes)} | {m.meaning} |"
            for m in names.METRICS
        ),
    ]
    return "\n".join(lines) + "\n"


def _defaults(tree: type[Settings]) -> Settings:
    return tree()


PAGES: dict[str, Callable[[], str]] = {
    "errors.md": errors,
    "states.md": states,
    "blocked.md": blocked,
    "configuration.md": configuration,
    "telemetry.md": telemetry,
    "definition.schema.json": schema_text,
}


def main(arguments: list[str]) -> int:
    """Write all pages, or with --check say which are stale."""
    stale = []
    for name, make in PAGES.items():
        page = DOCS / name
        wanted = make()
        if not page.exists() or page.read_text() != wanted:
            stale.append(name)
            if "--check" not in arguments:
                page.write_text(wanted)
    if stale and "--check" in arguments:
        print(f"stale: {', '.join('docs/' + name for name in stale)}; run ./scripts/gen-docs", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
