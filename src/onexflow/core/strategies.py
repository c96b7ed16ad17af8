"""Which of several workers gets a task of the work queue: the specification's five assignment strategies. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, NamedTuple, get_args

from onexflow.spi.literals import LiteralAssignmentStrategy

STRATEGIES: Final[tuple[str, ...]] = get_args(LiteralAssignmentStrategy)


class Candidate(NamedTuple):
    """A worker that could take the task, and what is known of it."""

    worker: str
    #: What it can do.
    capabilities: frozenset[str] = frozenset()
    #: Tasks that it holds, and the sum of their priorities' weights.
    load: int = 0
    weight: int = 0
    #: Number of the assignment that it got last; 0 when it never had one.
    last: int = 0
    #: How many of the task's dependencies it completed.
    near: int = 0


#: What each strategy wants least of. Equals are told apart by who waited longest, then by name.
_COST: Final[dict[str, Callable[[Candidate], float]]] = {
    "round_robin": lambda _: 0,
    "least_loaded": lambda worker: worker.load,
    # The least versatile one that can do it: who can do more is kept free for what only he can do.
    "capability_based": lambda worker: len(worker.capabilities),
    # The one whose work is the least urgent: two low tasks weigh less than one that is urgent.
    "priority_weighted": lambda worker: worker.weight,
    # The one that made most of what the task needs.
    "dependency_optimized": lambda worker: -worker.near,
}


def choose(strategy: str, workers: Sequence[Candidate]) -> Candidate:
    """The worker that gets the task, of at least one that can."""
    cost = _COST[strategy]
    return min(workers, key=lambda worker: (cost(worker), worker.last, worker.worker))
