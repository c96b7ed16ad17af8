"""The program `onex-orchestrator`: settings → adapters → engine → server, and the way back down.

The order matters. Up: the store (its lock proves that no other orchestrator is alive on it), the port, then the
registry is told, so that nobody is sent to a place that does not answer. Down: nothing new, streams closed, what is
decided committed, membership revoked, lock released.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from onexflow.app import launch

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence
    from typing import Any

    from onexflow.config import OrchestratorSettings

SUMMARY = "Serve workflows: decide, remember, hand out work."


def main(argv: Sequence[str] | None = None) -> int:
    """Run the orchestrator until it is told to stop; return the exit code."""
    return launch.run("onex-orchestrator", SUMMARY, _tree, _serve, argv)


def _tree() -> type[OrchestratorSettings]:
    from onexflow.config import OrchestratorSettings

    return OrchestratorSettings


def _serve() -> Callable[[OrchestratorSettings], Coroutine[Any, Any, int]]:
    from onexflow.app.serve_orchestrator import serve

    return serve


if __name__ == "__main__":
    sys.exit(main())
