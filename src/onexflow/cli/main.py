"""The program `onexflow`: its commands by name, and what becomes of their errors.

Commands are registered by import string, so that none is imported before it runs; the overview needs not even the
library that parses. Data goes to stdout, everything else to stderr. Exit codes are in `app.exits`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from typing import TYPE_CHECKING, Final

from onexflow import __version__
from onexflow.app import exits
from onexflow.app.launch import complain, report

if TYPE_CHECKING:
    import cyclopts

#: Name, where it is, what it is for.
COMMANDS: Final = (
    ("dev", "onexflow.app.dev:dev", "Start a whole cluster on this machine."),
    ("run", "onexflow.cli.run:app", "Start runs, look at them, steer them."),
    ("node", "onexflow.cli.node:app", "The orchestrators and workers of the cluster."),
    ("event", "onexflow.cli.event:app", "The event bus: its groups and dead letters."),
    ("definition", "onexflow.cli.definition:app", "Workflow definitions: check and register."),
    ("audit", "onexflow.cli.audit:audit", "Prove that a store's log tells one consistent story."),
    ("store", "onexflow.cli.store:app", "Copy a store, from SQLite to PostgreSQL or back."),
    ("token", "onexflow.cli.token:token", "Make a token, and its hash for an access policy."),
    ("explain", "onexflow.cli.explain:explain", "What an error code means and what to do."),
)
OVERVIEW: Final = """\
Usage: onexflow COMMAND

Durable workflows on gRPC workers.

Commands:
{commands}

  onexflow COMMAND --help says more; --version shows the version.

Try it:
  onexflow dev --example greet
  onexflow run start greet --input '{{"name": "Ada"}}' --wait     (in another terminal)

Exit codes: 0 ok, 1 failed, 2 usage, 3 not found, 4 unavailable, 5 the run failed, 10-16 start-up (docs/stability.md).
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # what its core says on stderr, we say in our own words
    try:
        code = _overview() if arguments in ([], ["--help"], ["-h"], ["help"]) else _run(arguments)
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader of our output has what it wanted. The interpreter must not complain when it flushes, either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return exits.OK
    except KeyboardInterrupt:
        return exits.INTERRUPTED
    return code


def application() -> cyclopts.App:
    """All commands, not yet imported."""
    import cyclopts

    app = cyclopts.App(
        name="onexflow",
        help="Durable workflows on gRPC workers.",
        help_format="plaintext",  # markdown costs 60 ms of import
        version=__version__,
        version_flags=["--version"],
        result_action="return_value",
        suppress_keyboard_interrupt=False,
        default_parameter=cyclopts.Parameter(negative=""),
    )
    for name, where, what in COMMANDS:
        app.command(where, name=name, help=what)
    return app


def _overview() -> int:
    width = max(len(name) for name, _, _ in COMMANDS)
    print(OVERVIEW.format(commands="\n".join(f"  {name:<{width}}  {what}" for name, _, what in COMMANDS)), end="")
    return exits.OK


def _run(arguments: list[str]) -> int:
    names = [name for name, _, _ in COMMANDS]
    if not arguments[0].startswith("-") and arguments[0] not in names:
        # Said here: the parser would import every command to say it.
        near = get_close_matches(arguments[0], names, n=1)
        hint = f"Did you mean `onexflow {near[0]}`?" if near else "`onexflow --help` shows what there is."
        return complain(f'Unknown command "{arguments[0]}".', hint, exits.USAGE)
    import cyclopts

    try:
        result = application()(arguments, exit_on_error=False, print_error=False)
    except cyclopts.CycloptsError as error:
        command = " ".join(["onexflow", *(error.command_chain or ())])
        return complain(" ".join(str(error).split()), f"`{command} --help` shows what there is.", exits.USAGE)
    except BrokenPipeError:
        raise
    except SystemExit as leave:
        return leave.code if isinstance(leave.code, int) else exits.FAILED
    except Exception as error:  # noqa: BLE001 - the last place: every error becomes a line and an exit code
        return report(error)
    return result if isinstance(result, int) else exits.OK
