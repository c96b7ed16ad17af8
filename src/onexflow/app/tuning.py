"""How the binaries set up the interpreter and gRPC, before either does anything."""

from __future__ import annotations

import asyncio
import gc
import os
from collections.abc import Callable
from typing import Final

#: Allocations between two looks of the collector, and how many of these make a deeper one. The hot path leaves no cycles,
#: and at Python's default (700, 10, 10) the looks took a tenth of the orchestrator's time.
_COLLECT_AFTER: Final = (20_000, 20, 20)


#: See `poll_directly`.
_POLL_DIRECTLY: Final = "-event_engine_client,-event_engine_listener"


def poll_directly() -> None:
    """Have gRPC's waiting thread read the sockets itself, as it did in Python up to grpcio 1.79, instead of being woken by
    another one that does: docs/decisions/0013. To be called before gRPC opens anything; a release that knows no other way
    any more takes no notice."""
    os.environ.setdefault("GRPC_EXPERIMENTS", _POLL_DIRECTLY)


def leave_forks_alone() -> None:
    """Have gRPC do nothing when this process starts another one: docs/decisions/0014. To be called before gRPC is
    imported."""
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop's, if it is installed (the extra `uvloop`); None: asyncio's own."""
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


def settle_memory() -> None:
    """What has been made until now stays: the collector need not look at it again, and less often at what comes."""
    gc.collect()
    gc.freeze()
    collect_rarely()


def collect_rarely() -> None:
    """For the whole of a server's life: at its start nearly all that is made stays."""
    gc.set_threshold(*_COLLECT_AFTER)
