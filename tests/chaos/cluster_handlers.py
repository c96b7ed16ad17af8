"""Handlers of the clusters that are under load: they leave a trace of each execution, and do nothing else.

Two lines an execution, `start` and `end`, in a file of the process (an append of one short line is atomic), and no
ledger: at 300 tasks a second its commits would be what is measured. Who ran what twice, the traces tell.
"""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from typing import Any

from onexflow import Worker

worker = Worker("chaos-cluster")
_folder = Path(os.environ["ONEXFLOW_CHAOS_FOLDER"])
_seconds = float(os.environ.get("ONEXFLOW_CHAOS_SECONDS", "0.02"))
_pid = os.getpid()
_trace = os.open(_folder / f"trace-{_pid}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)


def _note(what: str, kind: str, key: str, token: str) -> None:
    os.write(_trace, f"{what} {kind} {key} {token} {time.time_ns()}\n".encode())


async def _work(kind: str, contract: Any, ctx: Any) -> dict[str, Any]:
    key = f"{ctx.instance_id}:{ctx.task}"
    _note("start", kind, key, ctx.token)
    await asyncio.sleep(getattr(contract, "seconds", None) or _seconds)
    _note("end", kind, key, ctx.token)
    return {"ok": True}


@worker.effect("charge", idempotent=True)
async def charge(contract: Any, ctx: Any) -> dict[str, Any]:
    """An effect that may run again when its outcome is unknown."""
    return await _work("effect", contract, ctx)


@worker.effect("charge_once", idempotent=False)
async def charge_once(contract: Any, ctx: Any) -> dict[str, Any]:
    """An effect that may not."""
    return await _work("once", contract, ctx)


@worker.compute("calculate")
async def calculate(contract: Any, ctx: Any) -> dict[str, Any]:
    """A pure task."""
    return await _work("compute", contract, ctx)
