"""A structlog logger that is loaded with its first line.

For modules that clients use too: these hardly ever log, and structlog loads rich, which costs a program as much as gRPC.
"""

from __future__ import annotations

from typing import Any


class LateLogger:
    """`LateLogger("onexflow.client").warning("thing.happened", key=value)`."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, level: str) -> Any:
        import structlog

        return getattr(structlog.get_logger(self._name), level)
