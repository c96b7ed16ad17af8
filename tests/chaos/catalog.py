"""All scenarios by name: those of one orchestrator on SQLite, and of a bridge to NATS beside it, whose rounds are clusters
of their own, and those of a cluster under load, where many rounds are made in one."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable
from typing import Final

from nats_support import NO_NATS, find_nats

from . import (
    nats,
    scenarios,
    scenarios_etcd,
    scenarios_operation,
    scenarios_orchestrators,
    scenarios_store,
    scenarios_workers,
)
from .figures import Figures
from .stage import Options

Scenario = Callable[[Options], Awaitable[Figures]]


def _each_anew(name: str, scenario: Callable[[], Awaitable[dict[str, float]]]) -> Scenario:
    async def run(options: Options) -> Figures:
        rounds = []
        for number in range(options.rounds):
            rounds.append(await scenario())
            print(f"{name} round {number + 1}: {rounds[-1]}", file=sys.stderr, flush=True)
        return Figures.of(rounds)

    run.__doc__ = scenario.__doc__
    return run


def _with_nats(name: str, scenario: Scenario) -> Scenario:
    async def run(options: Options) -> Figures:
        if find_nats() is None:
            print(f"{name} is left out: {NO_NATS}")
            return Figures()
        return await scenario(options)

    run.__doc__ = scenario.__doc__
    return run


SMALL: Final[dict[str, Scenario]] = {name: _each_anew(name, scenario) for name, scenario in scenarios.SCENARIOS.items()}
BRIDGE: Final[dict[str, Scenario]] = {
    name: _with_nats(name, _each_anew(name, scenario)) for name, scenario in nats.SCENARIOS.items()
}
CLUSTER: Final[dict[str, Scenario]] = {
    "kill-one-of-three": scenarios_orchestrators.kill_orchestrator,
    "freeze-orchestrator": scenarios_orchestrators.freeze_orchestrator,
    "freeze-orchestrator-unfenced": scenarios_orchestrators.freeze_orchestrator_unfenced,
    "partition-orchestrator": scenarios_orchestrators.partition_orchestrator,
    "kill-worker-of-three": scenarios_workers.kill_worker,
    "freeze-worker": scenarios_workers.freeze_worker,
    "partition-worker": scenarios_workers.partition_worker,
    "cut-worker-streams": scenarios_workers.cut_streams,
    "kill-etcd-leader": scenarios_etcd.kill_etcd_leader,
    "lose-etcd-quorum": scenarios_etcd.lose_etcd_quorum,
    "restart-etcd": scenarios_etcd.restart_etcd,
    "wipe-etcd-members": scenarios_etcd.wipe_etcd,
    "compact-etcd": scenarios_etcd.compact_etcd,
    "kill-postgres": scenarios_store.kill_postgres,
    "fill-disk": scenarios_store.fill_disk,
    "rolling-restart": scenarios_operation.rolling_restart,
    "delayed-orchestrator": scenarios_operation.delayed_orchestrator,
}
SCENARIOS: Final[dict[str, Scenario]] = {**SMALL, **BRIDGE, **CLUSTER}


def described() -> str:
    """The scenarios, one a line, for --help."""
    lines = []
    for title, group in (
        ("one orchestrator, SQLite, a cluster a round", SMALL),
        ("the same with a bridge to NATS JetStream", BRIDGE),
        (
            "three orchestrators, three workers, three etcd members, PostgreSQL, under load, many rounds in one cluster",
            CLUSTER,
        ),
    ):
        lines.append(f"{title}:")
        lines += [
            f"  {name:30} {(scenario.__doc__ or '').strip().partition(chr(10))[0]}" for name, scenario in group.items()
        ]
    return "\n".join(lines)
