"""Makes the reference pages in docs/ from the code. Run by scripts/gen-docs; `--check` fails when a page is stale."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from pathlib import Path

from onexflow.codec.definition_schema import schema_text
from onexflow.config import ClientSettings, OrchestratorSettings, Secret, Settings, WorkerSettings
from onexflow.config.sources import meanings, paths
from onexflow.core import machine
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
            "([OXF-3002](errors.md#oxf-3002)). A terminal state is never left."
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
