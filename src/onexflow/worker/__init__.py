"""The worker: handlers, what they are told, and the runtime that runs them for orchestrators.

Start at `handlers.py` (what a user writes), then `runtime.py` (the session), `lanes.py` (the slots), `programs.py` (where
a handler runs), `credits.py` (who may send how much).
"""

from __future__ import annotations

from onexflow.worker.context import Context
from onexflow.worker.errors import Cancelled, Fatal, Retry
from onexflow.worker.handlers import Worker

__all__ = ["Cancelled", "Context", "Fatal", "Retry", "Worker"]
