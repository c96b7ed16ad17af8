"""Handlers that child processes import in tests: a module of their own, which a child can import without pytest."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from typing import Any, NoReturn

from onexflow.worker import Context, Fatal


@dataclass
class Order:
    sku: str
    count: int


def double(contract: Any) -> Any:
    return contract.n * 2


def pid(contract: Any) -> int:
    return os.getpid()


def typed(order: Order) -> dict[str, Any]:
    return {"label": f"{order.count} x {order.sku}"}


def segfault(contract: Any) -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def leave(contract: Any) -> NoReturn:
    raise SystemExit(contract["code"])


def busy(contract: Any, ctx: Context) -> None:
    """Spin until killed; say so before."""
    ctx.progress({"pid": os.getpid()})
    while True:
        time.monotonic()


def refuse(contract: Any) -> None:
    raise Fatal("not this one")


def large(contract: Any) -> str:
    return "x" * (3 * 1024 * 1024)


def deaf(contract: Any, ctx: Context) -> None:
    """As `busy`, and SIGTERM is ignored."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    busy(contract, ctx)
