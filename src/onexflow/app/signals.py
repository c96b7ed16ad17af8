"""How a process is told to stop: SIGTERM or Ctrl-C asks it to come to rest, a second one means now."""

from __future__ import annotations

import asyncio
import os
import signal
from types import TracebackType
from typing import Final, Self

import structlog

_log = structlog.get_logger("onexflow.process")
_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)


class StopSignals:
    """While entered, turns signals into `requested`; a second signal ends the process at once.

    Ending at once is safe: what was acknowledged is durable, as with kill -9.
    """

    def __init__(self) -> None:
        self.requested = asyncio.Event()
        self.reason = ""

    def __enter__(self) -> Self:
        loop = asyncio.get_running_loop()
        for number in _SIGNALS:
            loop.add_signal_handler(number, self._on_signal, number)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        loop = asyncio.get_running_loop()
        for number in _SIGNALS:
            loop.remove_signal_handler(number)

    def _on_signal(self, number: signal.Signals) -> None:
        name = signal.Signals(number).name
        if self.requested.is_set():
            _log.warning("process.exiting", signal=name)
            os._exit(128 + number)
        self.reason = name
        _log.info("process.stopping", signal=name)
        self.requested.set()
