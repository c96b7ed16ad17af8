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
    arguments = sys.argv[1:] if argv is None else argv
    return launch.run("onex-worker", SUMMARY, _tree, lambda: _serve(arguments), arguments, positional="modules")


def _tree() -> type[WorkerSettings]:
    from onexflow.config import WorkerSettings

    return WorkerSettings


def _serve(arguments: Sequence[str]) -> Callable[[WorkerSettings], Coroutine[Any, Any, int]]:
    def serve(settings: WorkerSettings) -> Coroutine[Any, Any, int]:
        from onexflow.app import worker_processes

        if worker_processes.number(settings) > 1:
            return worker_processes.serve(settings, arguments)
        from onexflow.app import serve_worker

        return serve_worker.serve(settings)

    return serve


if __name__ == "__main__":
    sys.exit(main())
