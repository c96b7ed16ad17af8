"""Handlers that leave a trace of every execution, outside of onexflow: what the world saw.

Each execution appends two lines to a file of its process, `start` and `end` (an append of one short line is atomic), and
an effect "charges" a ledger, a SQLite table with the idempotency key as its primary key.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
import time
from pathlib import Path
from typing import Any

from onexflow import Worker

worker = Worker("chaos")
_folder = Path(os.environ["ONEXFLOW_CHAOS_FOLDER"])
_seconds = float(os.environ.get("ONEXFLOW_CHAOS_SECONDS", "0.02"))
_trace = os.open(_folder / f"trace-{os.getpid()}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
_ledger = sqlite3.connect(_folder / "ledger.db", timeout=30.0, isolation_level=None)


def _note(what: str, name: str, token: str) -> None:
    os.write(_trace, f"{what} {name} {token} {time.time_ns()} {os.getpid()}\n".encode())


async def _work(contract: Any, ctx: Any, *, key: str) -> dict[str, Any]:
    _note("start", key, ctx.token)
    await asyncio.sleep(_seconds)
    if ctx.idempotency_key:
        _ledger.execute("INSERT OR IGNORE INTO charge VALUES (?, ?)", (key, ctx.token))
    _note("end", key, ctx.token)
    return {"ok": True}


@worker.effect("charge", idempotent=True)
async def charge(contract: Any, ctx: Any) -> dict[str, Any]:
    """An effect whose target refuses a second row with the same key: it may run again."""
    return await _work(contract, ctx, key=ctx.idempotency_key)


@worker.effect("charge_once", idempotent=False)
async def charge_once(contract: Any, ctx: Any) -> dict[str, Any]:
    """The same, declared as not safe to run again."""
    return await _work(contract, ctx, key=ctx.idempotency_key)


@worker.compute("calculate")
async def calculate(contract: Any, ctx: Any) -> dict[str, Any]:
    """A pure task of the same length."""
    return await _work(contract, ctx, key=f"{ctx.instance_id}:{ctx.task}")


@worker.orchestrator("lead")
async def lead(contract: Any, ctx: Any) -> dict[str, Any]:
    """Calls other nodes: effects one after the other, with two computes beside each."""
    _note("start", f"{ctx.instance_id}:lead", ctx.token)
    charge_node = await ctx.node("charge_once", "effect")
    compute_node = await ctx.node("calculate", "compute")
    for step in range(contract.steps):
        await asyncio.gather(
            charge_node.execute_effect({"step": step}),
            *(compute_node.execute_compute({"step": step, "side": side}) for side in range(2)),
        )
    _note("end", f"{ctx.instance_id}:lead", ctx.token)
    return {"steps": contract.steps}
