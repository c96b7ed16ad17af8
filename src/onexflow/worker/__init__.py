"""The worker: handlers, what they are told, and the runtime that runs them for orchestrators.

Start at `handlers.py` (what a user writes), then `runtime.py` (a worker from its start to its end), `peers.py` (what each
orchestrator says, and who owns a shard), `attempts.py` (what is here, and the results that are not acknowledged), `lanes.py`
(the slots), `programs.py` (where a handler runs), `credits.py` (who may send how much), `served.py` (the life of class
nodes).
"""

from __future__ import annotations

from onexflow.worker.context import Context
from onexflow.worker.errors import Cancelled, Fatal, Retry
from onexflow.worker.handlers import Worker

__all__ = ["Cancelled", "Context", "Fatal", "Retry", "Worker"]
