"""Whatever is open says what it waits for, and that is true: random graphs, workers that come, fail and die, pauses, and
orchestrators that are killed, frozen, stopped and added. The harness knows what it did, and compares at each step."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from random import Random
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from onexflow.core.blocked import BY_NAME, Blocked
from onexflow.core.errors import InvalidTransition, RunFailed
from onexflow.core.graph import Graph
from onexflow.core.ids import RunKey
from onexflow.core.machine import TERMINAL_TASK_STATES, TERMINAL_WORKFLOW_STATES, WORKFLOW_STATES
from onexflow.core.turn import SECOND
from onexflow.ports.client_link import BlockedRun, ControlRequest, RunView
from onexflow.ports.event_store import RunFilter
from onexflow.spi.exceptions import SPIError
from onexflow.testing.clock import run_virtual
from onexflow.testing.multi_cluster import MultiCluster, MultiWorker
from onexflow.worker.context import Context
from onexflow.worker.handlers import Worker
from support.random_graphs import graphs

INPUT = {"yes": True, "no": False, "items": [1, 2, 3], "none": [], "wrong": 5}
ACTIONS = st.lists(
    st.tuples(
        st.sampled_from(
            [
                "start",
                "start",
                "worker",
                "kill_worker",
                "pause",
                "resume",
                "cancel",
                "kill",
                "freeze",
                "thaw",
                "add",
                "wait",
            ]
        ),
        st.integers(0, 7),
        st.sampled_from([0.0, 0.02, 0.4, 2.1, 12.0]),
    ),
    min_size=4,
    max_size=14,
)
#: What the harness did is known to the cluster by then, and what it knew before is forgotten.
SETTLED = 1.5
#: By then all shards are where they stay: one that came back is given shards after ten seconds, one a second.
CALM = 25.0


class Harness:
    """A cluster, and what was done to it."""

    def __init__(self, seed: int, graph: Graph) -> None:
        self.random = Random(seed)
        self.graph = graph
        self.cluster = MultiCluster(seed=seed)
        self.keys: list[RunKey] = []
        #: Runs that were paused, since when; and those that were resumed.
        self.paused: dict[RunKey, float] = {}
        self.steered: dict[RunKey, float] = {}
        self.began: dict[str, float] = {}
        self.died: dict[str, float] = {}
        self.killed: list[MultiWorker] = []
        #: When something last happened to the orchestrators.
        self.shaken_at = 0.0
        self.checked: set[str] = set()

    @property
    def time(self) -> float:
        return asyncio.get_running_loop().time()

    # ---- what is done

    def worker(self, name: str) -> Worker:
        worker = Worker(name)
        roles: dict[str, Callable[..., Any]] = {
            "effect": worker.effect, "compute": worker.compute, "reducer": worker.reducer,
        }  # fmt: skip
        for role, register in roles.items():
            for number in range(8):
                options = {"idempotent": bool(number % 2)} if role == "effect" else {}
                register(f"t{number}", **options)(self.fold if role == "reducer" else self.handle)
        worker.effect("undo", idempotent=True)(self.handle)
        return worker

    async def handle(self, contract: Any) -> Any:
        await self.cluster.clock.sleep(self.random.choice([0.0, 0.01, 0.5, 3.0, 20.0]))
        if self.random.random() < 0.2:
            raise OSError("the world is away")
        return contract

    async def fold(self, contract: Any, ctx: Context) -> Any:
        with suppress(InvalidTransition):  # it is not fed
            async for _ in ctx.items():
                await self.cluster.clock.sleep(self.random.choice([0.0, 0.0, 0.5]))
        return await self.handle(contract)

    async def do(self, action: str, which: int) -> None:
        cluster = self.cluster
        running = [name for name, member in cluster.members.items() if member.state == "running"]
        if action == "start":
            with suppress(RunFailed):  # at once, by a mapping
                self.keys.append(await cluster.start("random", INPUT, delay=self.random.choice([0.0, 0.0, 5.0])))
        elif action == "worker" and len(cluster.workers) < 5:
            name = f"w{len(self.began)}"
            self.began[name] = self.time
            await cluster.add_worker(self.worker(name), name)
        elif action == "kill_worker" and cluster.workers:
            name = list(cluster.workers)[which % len(cluster.workers)]
            self.died.setdefault(name, self.time)
            self.killed.append(kill_worker(cluster, name))
        elif action in {"pause", "resume", "cancel"} and self.keys:
            await self.steer(self.keys[which % len(self.keys)], action)
        elif action == "add" and len(cluster.members) < 3:
            self.shaken_at = self.time
            await cluster.add_orchestrator(f"o{len(cluster.lives)}")
        elif action in {"kill", "freeze"} and len(running) > 1:
            self.shaken_at = self.time
            name = running[which % len(running)]
            await cluster.kill(name) if action == "kill" else cluster.freeze(name)
        elif action == "thaw":
            self.thaw()

    def thaw(self) -> None:
        for name, member in self.cluster.members.items():
            if member.state == "frozen":
                self.shaken_at = self.time
                self.cluster.thaw(name)

    async def steer(self, key: RunKey, action: Any) -> None:
        self.steered[key] = self.time
        try:
            await self.cluster.control(ControlRequest(key=key, action=action, reason="test", principal="me"))
        except SPIError:
            return  # it is in no state for it
        self.steered[key] = self.time
        if action == "pause":
            self.paused[key] = self.time
        elif action == "resume":
            self.paused.pop(key, None)

    # ---- what is compared

    async def open_runs(self) -> set[RunKey]:
        found: set[RunKey] = set()
        cursor = ""
        while True:
            page = await self.cluster.store.list_runs(RunFilter("default", "random"), cursor, 1000)
            for _, record in page.runs:
                if WORKFLOW_STATES[record.state] not in TERMINAL_WORKFLOW_STATES:
                    found.add(RunKey.from_bytes(record.key))
            cursor = page.cursor
            if not cursor:
                return found

    async def check(self) -> None:
        """Every open run is explained, and truly."""
        before = await self.open_runs()
        engine, _ = await self.cluster.running_engine()
        explained = {run.key: run for run in await engine.explain_runs(list(self.keys))}
        after = await self.open_runs()
        for key in before & after:
            assert key in explained, f"nothing is said of {key}"
        for key in before & after:
            self.check_run(explained[key])
        if self.is_calm:
            for key in sorted(before & after)[:3]:
                self.check_view(await engine.describe_run(key))

    @property
    def is_calm(self) -> bool:
        """Has nothing happened to the orchestrators for so long that all shards have owners?"""
        frozen = any(member.state == "frozen" for member in self.cluster.members.values())
        return not frozen and self.time - self.shaken_at > CALM

    def check_run(self, run: BlockedRun) -> None:
        blocked = run.blocked
        self.check_one(run.key, blocked)
        if self.is_calm:
            assert blocked.kind not in {"moving", "recovering"}, blocked
        # "store": what came of it since (a time limit passed, a result) is on its way to the disk.
        if run.key in self.paused and run.state == "paused" and blocked.kind != "store":
            assert (blocked.kind, blocked.by) == ("paused", "me"), blocked

    def check_view(self, view: RunView) -> None:
        states = {task.name: task.state for task in view.tasks}
        for task in view.tasks:
            if task.state in TERMINAL_TASK_STATES:
                assert task.blocked is None, task
                continue
            assert task.blocked is not None, task
            assert task.blocked_because
            self.check_one(view.key, task.blocked)
            if task.blocked.kind == "dependencies":
                open_ones = [name for name in task.blocked.names if states.get(name, "") not in TERMINAL_TASK_STATES]
                assert open_ones == list(task.blocked.names), (task, states)

    def check_one(self, key: RunKey, blocked: Blocked) -> None:
        self.checked.add(blocked.kind)
        assert blocked.kind in BY_NAME, blocked
        assert blocked.is_valid, f"{key}: {blocked}"
        assert blocked.next_wake_at or blocked.ended_by, blocked
        now = self.cluster.clock.now()
        if blocked.kind in {"running", "stopping"}:
            assert self.time - self.died.get(blocked.worker, self.time) < SETTLED, f"{blocked}: it is dead"
            assert blocked.worker in self.began, blocked
        elif blocked.kind == "out_of_sight":
            assert self.shaken_at > 0 or blocked.worker in self.died, blocked
        elif blocked.kind == "unknown_outcome":
            assert blocked.worker in self.died, f"{blocked}: it is alive"
        elif blocked.kind == "no_worker" and blocked.role != "orchestrator":
            there = [name for name in self.began if name not in self.died and self.time - self.began[name] > 15]
            assert not there or not self.is_calm, f"{blocked}: {there} have all handlers"
        elif blocked.kind == "no_slot":
            assert any(self.time - self.died.get(name, self.time) < SETTLED for name in self.began), blocked
        elif blocked.kind in {"delayed", "retry", "run_retry"}:
            assert blocked.until > now - SECOND, blocked
        elif blocked.kind == "paused":
            assert key in self.paused or self.time - self.steered.get(key, 0.0) < SETTLED, (
                f"{blocked}: nobody paused it"
            )


def kill_worker(cluster: MultiCluster, name: str) -> MultiWorker:
    """`kill -9`. What the process leaves in this one is closed at the end."""
    worker = cluster.workers.pop(name)
    worker.is_dead = True
    for stream in worker.streams.values():
        stream.cut_orchestrator_side()
    return worker


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 1 << 16), graphs(), ACTIONS)
def test_every_open_run_says_what_it_waits_for_and_that_is_true(
    seed: int, graph: Graph, actions: list[tuple[str, int, float]]
) -> None:
    run_virtual(_storm(seed, graph, actions))


async def _storm(seed: int, graph: Graph, actions: list[tuple[str, int, float]]) -> None:
    harness = Harness(seed, graph)
    async with harness.cluster as cluster:
        for name in ("o0", "o1"):
            await cluster.add_orchestrator(name)
        await cluster.register(graph.definition)
        await cluster.settled()
        await harness.do("start", 0)
        for action, which, pause in actions:
            await harness.do(action, which)
            for _ in range(4):
                await harness.check()
                await cluster.clock.sleep(pause / 4)
        harness.thaw()
        await cluster.clock.sleep(CALM + 5)
        assert harness.is_calm
        await harness.check()
        for worker in harness.killed:
            await worker.runtime.close()
            await worker.registry.close()
