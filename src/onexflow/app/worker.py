"""The program `onex-worker`: import the handlers, serve them to every orchestrator, and give back what is not done."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from onexflow.app import launch

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence
    from typing import Any

    from onexflow.config import WorkerSettings

SUMMARY = "Run the handlers of one or more modules for the cluster."


def main(argv: Sequence[str] | None = None) -> int:
    """Run the worker until it is told to stop; return the exit code."""
    return launch.run("onex-worker", SUMMARY, _tree, _serve, argv, positional="modules")


def _tree() -> type[WorkerSettings]:
    from onexflow.config import WorkerSettings

    return WorkerSettings


def _serve() -> Callable[[WorkerSettings], Coroutine[Any, Any, int]]:
    from onexflow.app.serve_worker import serve

    return serve


if __name__ == "__main__":
    sys.exit(main())
