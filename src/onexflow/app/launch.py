"""What the programs do before they begin and after they end: flags, settings, messages, exit codes.

Imports nothing that an older Python could not load, so that a wrong Python gets a sentence and not a traceback.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Coroutine, Sequence

    from onexflow.config import Settings

    S = TypeVar("S", bound=Settings)

OLDEST = (3, 11)


def run(
    program: str,
    summary: str,
    tree: Callable[[], type[S]],
    serve: Callable[[], Callable[[S], Coroutine[Any, Any, int]]],
    argv: Sequence[str] | None = None,
    *,
    positional: str = "",
) -> int:
    """Read the settings of class `tree()`, run `serve()(settings)` on an event loop, and return the exit code.

    Both are given as functions, so that their modules load after the look at the Python. Errors become a line of what
    went wrong, a line of what to do, and a code.
    """
    if sys.version_info[:2] < OLDEST:
        found = ".".join(str(part) for part in sys.version_info[:3])
        message = f"{program} needs Python 3.11 or newer, and this is {found} [OXF-5007]"
        return complain(message, "CPython 3.11 to 3.13 are supported.", 15)
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # what its core says on stderr, we say in our own words
    from onexflow.app import exits, tuning

    tuning.leave_forks_alone()
    _start_light()

    try:
        _die_with(os.environ.get("ONEXFLOW_PARENT_PID", ""))
        settings = _settings(program, summary, tree(), sys.argv[1:] if argv is None else argv, positional)
        if settings is None:
            return exits.OK
        import asyncio

        from onexflow.app.tuning import loop_factory, poll_directly

        poll_directly()
        with asyncio.Runner(loop_factory=loop_factory()) as runner:
            return runner.run(serve()(settings))
    except KeyboardInterrupt:
        return exits.INTERRUPTED
    except Exception as error:  # noqa: BLE001 - the last place: every error becomes a line and an exit code
        return report(error)


def _start_light() -> None:
    """Spare a server what it takes to start and does not need: looks of the garbage collector at modules, and rich, which
    structlog would load for coloured tracebacks (4 MiB). Handlers may import it all the same."""
    from onexflow.app.tuning import collect_rarely

    collect_rarely()
    if "structlog" in sys.modules or "rich" in sys.modules:
        return
    sys.modules["rich"] = None  # type: ignore[assignment]  # Python's own way to say that there is none
    try:
        import structlog  # noqa: F401 - so that it is loaded without
    finally:
        del sys.modules["rich"]


def _die_with(parent: str) -> None:
    """Under a supervisor: end when it ends, however it ends."""
    if not parent.isdecimal() or sys.platform != "linux":
        return
    import ctypes
    import signal

    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
    if os.getppid() != int(parent):
        sys.exit("the supervisor is gone")


def report(error: Exception) -> int:
    """Print one line of what went wrong, one of what to do; return the exit code."""
    from onexflow.app import exits
    from onexflow.core.errors import Coded, InternalError, InvalidArgument
    from onexflow.spi.exceptions import SPIError

    if isinstance(error, ExceptionGroup) and len(error.exceptions) == 1:
        return report(error.exceptions[0])
    if os.environ.get("ONEXFLOW_DEBUG"):
        import traceback

        traceback.print_exception(error)
    if not isinstance(error, SPIError):
        message = f"{type(error).__name__}: {error} [{InternalError.code}]"
        return complain(message, "This is a bug of onexflow; ONEXFLOW_DEBUG=1 shows the traceback.", exits.FAILED)
    code = f" [{error.code}]" if isinstance(error, Coded) else ""
    hint = error.context.get("hint") or (error.hint if isinstance(error, Coded) else "")
    if hint == InvalidArgument.hint:  # it speaks of the context, which is for programs
        hint = ""
    problems = error.context.get("problems")
    for problem in problems if isinstance(problems, list) else ():
        if isinstance(problem, dict):
            print(f"  {problem.get('place', '')}: {problem.get('problem', '')}", file=sys.stderr)
    # With the problems listed one a line, the message is only their headline.
    message = str(error).splitlines()[0].rstrip(":") if problems else " ".join(str(error).split())
    return complain(f"{message}{code}", str(hint), exits.of(error))


def complain(message: str, hint: str, code: int) -> int:
    """The two lines that every error becomes; returns `code`."""
    print(f"error: {message}", file=sys.stderr)
    if hint:
        print(f"hint: {hint}", file=sys.stderr)
    return code


def _settings(program: str, summary: str, tree: type[S], argv: Sequence[str], positional: str) -> S | None:
    """The settings of this start; None when they were only to be shown."""
    from pathlib import Path

    from onexflow.config import load

    given = vars(
        _parser(program, summary, tree, positional, with_help="-h" in argv or "--help" in argv).parse_args(argv)
    )
    file = given.pop("config")
    show = given.pop("show_config")
    loaded = load(
        tree,
        file=Path(file) if file else None,
        environment=os.environ,
        flags={path: value for path, value in given.items() if value not in (None, [])},
    )
    if not show:
        return loaded.settings
    width = max(len(path) for path, _, _ in loaded.rows())
    for path, value, origin in loaded.rows():
        print(f"{path:{width}}  {value}  ({origin})")
    return None


def _parser(
    program: str, summary: str, tree: type[Settings], positional: str, *, with_help: bool
) -> argparse.ArgumentParser:
    import argparse

    from onexflow import __version__
    from onexflow.config import Secret, meanings, paths

    parser = argparse.ArgumentParser(program, description=summary, allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"{program} {__version__}")
    parser.add_argument("--config", metavar="FILE", default=os.environ.get("ONEXFLOW_CONFIG"), help="a TOML file")
    parser.add_argument("--show-config", action="store_true", help="print all settings with their origin, and end")
    known = meanings(tree) if with_help else {}
    defaults = tree()
    for path, kind in paths(tree).items():
        text = known.get(path, "").replace("%", "%%")
        if path == positional:
            parser.add_argument(path, nargs="*", metavar=path.upper().removesuffix("S"), help=text)
            continue
        if kind is Secret:
            continue  # whoever lists the machine's processes would read it
        name = path.replace(".", "-").replace("_", "-")
        value: object = defaults
        for part in path.split("."):
            value = getattr(value, part)
        if kind is bool:
            flag, const = (f"--no-{name}", "false") if value else (f"--{name}", "true")
            text = f"Turn off: {text}" if value else text
            parser.add_argument(flag, dest=path, action="store_const", const=const, help=text)
        else:
            shown = f" [{value}]" if value not in ("", ()) else ""
            parser.add_argument(f"--{name}", dest=path, metavar=path.rpartition(".")[2].upper(), help=text + shown)
    return parser
