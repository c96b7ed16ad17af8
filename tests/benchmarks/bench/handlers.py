"""No-op handlers of the benchmark's worker."""

from __future__ import annotations

import os
from typing import Any

from onexflow import Worker

worker = Worker("bench")


@worker.compute("noop")
async def noop(contract: Any) -> dict[str, bool]:
    """The smallest pure task."""
    return {"ok": True}


@worker.effect("noop_effect", idempotent=True)
async def noop_effect(contract: Any) -> dict[str, bool]:
    """The smallest effect."""
    return {"ok": True}


@worker.compute("whose")
async def whose(contract: Any) -> int:
    """Tells which process has done it."""
    return os.getpid()


@worker.reducer("count")
async def count(contract: Any) -> int:
    """Folds the fan-out: how many results there are."""
    return len(contract)
