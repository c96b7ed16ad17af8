"""What both binaries do before they begin and after they end: flags, settings, messages, exit codes.

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
        _say(
            f"{program} needs Python 3.11 or newer, and this is {found} [OXF-5007]",
            "CPython 3.11 to 3.13 are supported.",
        )
        return 15
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # what its core says on stderr, we say in our own words
    from onexflow.app import exits

    try:
        _die_with(os.environ.get("ONEXFLOW_PARENT_PID", ""))
        settings = _settings(program, summary, tree(), sys.argv[1:] if argv is None else argv, positional)
        if settings is None:
            return exits.OK
        import asyncio

        return asyncio.run(serve()(settings))
    except KeyboardInterrupt:
        return exits.INTERRUPTED
    except Exception as error:  # noqa: BLE001 - the last place: every error becomes a line and an exit code
        return report(error)


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
    from onexflow.core.errors import Coded, InternalError
    from onexflow.spi.exceptions import SPIError

    if isinstance(error, ExceptionGroup) and len(error.exceptions) == 1:
        return report(error.exceptions[0])
    if os.environ.get("ONEXFLOW_DEBUG"):
        import traceback

        traceback.print_exception(error)
    if isinstance(error, Coded):
        _say(f"{error} [{error.code}]", str(error.context.get("hint", "")) or error.hint)
    elif isinstance(error, SPIError):
        _say(str(error), "")
    else:
        _say(
            f"{type(error).__name__}: {error} [{InternalError.code}]",
            "This is a bug of onexflow; ONEXFLOW_DEBUG=1 shows the traceback.",
        )
    return exits.of(error)


def _say(message: str, hint: str) -> None:
    print(f"error: {message}", file=sys.stderr)
    if hint:
        print(f"hint: {hint}", file=sys.stderr)


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
    from onexflow.config import meanings, paths

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
        flag = f"--{path.replace('.', '-').replace('_', '-')}"
        if kind is bool:
            parser.add_argument(flag, dest=path, action="store_const", const="true", help=text)
        else:
            value: object = defaults
            for name in path.split("."):
                value = getattr(value, name)
            shown = f" [{value}]" if value not in ("", ()) else ""
            parser.add_argument(flag, dest=path, metavar=path.rpartition(".")[2].upper(), help=text + shown)
    return parser
