"""The program `onex-bridge`: publish the events of the log to NATS JetStream."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from onexflow.app import launch

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence
    from typing import Any

    from onexflow.config import BridgeSettings

SUMMARY = "Publish every event of the cluster to NATS JetStream."


def main(argv: Sequence[str] | None = None) -> int:
    """Run the bridge until it is told to stop; return the exit code."""
    return launch.run("onex-bridge", SUMMARY, _tree, _serve, argv)


def _tree() -> type[BridgeSettings]:
    from onexflow.config import BridgeSettings

    return BridgeSettings


def _serve() -> Callable[[BridgeSettings], Coroutine[Any, Any, int]]:
    from onexflow.app.serve_bridge import serve

    return serve


if __name__ == "__main__":
    sys.exit(main())
