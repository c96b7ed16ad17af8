"""What another system must be able to do, and the figures of it.

It and all that a peer's process imports take nothing but the standard library and the peer's own packages: nothing of
onexflow is in its environment.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

#: Waits for what was started to end.
Wait = Callable[[], object]


@dataclass(frozen=True)
class Plan:
    """What to run, how often."""

    payload: dict[str, Any]
    length: int  #: tasks of a chain
    width: int  #: parallel tasks of a fan-out
    in_flight: int
    singles: int
    chains: int
    samples: int  #: of the latency of a single task
    rounds: int
    seconds: float  #: later than this, no further round is begun
    url: str  #: of a database, where the peer needs one
    beside: list[int]  #: processes whose CPU, with their descendants', is the peer's too


@dataclass
class Figures:
    """One run of a workload."""

    workload: str
    tasks: int
    seconds: float
    cpu_us: float  #: a task, of all processes
    latencies_ms: list[float] = field(default_factory=list)

    @property
    def rate(self) -> float:
        return self.tasks / self.seconds


class Peer(Protocol):
    """Another system. Whatever processes it starts are descendants of this one, on loopback."""

    def prepare(self, folder: Path, url: str) -> str:
        """Start it, and return which versions of what it is. It may write to `folder`."""

    def single(self, payload: dict[str, Any]) -> Wait:
        """Start one no-op task."""

    def chain(self, payload: dict[str, Any], length: int) -> Wait:
        """Start one workflow of so many no-op tasks, each after the one before."""

    def fan(self, items: list[dict[str, Any]]) -> Wait:
        """Start one workflow of a no-op task for each item and one that gets all results; waiting returns their number."""

    def stop(self) -> None:
        """Stop what `prepare` started. Legal when that failed half-way."""
