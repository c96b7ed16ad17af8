"""The law of fed reducers: whatever is lost, cut, stopped, paused or started anew, and in whatever order items come, each
fold takes every item at most once, and the one that is recorded is the plain fold of the results that the log has.

Items are no pure function here (each time one is computed it has another result), so a fold that had taken a result that
the log does not have, or another fold's items, would have another sum."""

from __future__ import annotations

import asyncio
from random import Random
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from onexflow import Worker, workflow
from onexflow.codec.payload import decode_value
from onexflow.core.attempts import LOST_LIMIT
from onexflow.core.errors import InvalidTransition
from onexflow.core.ids import RunKey
from onexflow.core.payload import Payload
from onexflow.spi.exceptions import SPIError
from onexflow.storage.memory import MemoryStore
from onexflow.testing import Cluster, FaultyStore
from onexflow.testing.clock import VirtualClock, run_virtual
from onexflow.worker.context import Context

ACTIONS = st.lists(
    st.tuples(
        st.sampled_from(
            ["kill", "cut", "cut and back", "freeze", "thaw", "crash", "power", "hold", "release", "pause", "resume"]
        ),
        st.integers(0, 7),
        st.sampled_from([0.0, 0.003, 0.05, 0.3, 1.0]),
    ),
    max_size=12,
)


class Storm:
    def __init__(self, seed: int, count: int, role: str) -> None:
        self.random = Random(seed)
        self.count = count
        self.clock = VirtualClock()
        self.memory = MemoryStore(self.clock)
        self.store = FaultyStore(self.memory)
        self.cluster = Cluster(seed=seed, store=self.store, clock=self.clock)
        self.made = 0
        self.workers = self.kills = 0
        flow = workflow("fed")
        options: Any = {"max_parallel": self.random.choice([0, 0, 7])}
        items = (
            flow.effect("item", map="input", **options)
            if role == "effect"
            else flow.compute("item", map="input", **options)
        )
        flow.reducer("total", feed=True, depends_on=[items])
        flow.reducer("other", feed=True, depends_on=[items])
        #: Does something read the results as one list, too?
        self.is_listed = self.random.random() < 0.5
        output = {"total": "tasks.total", "other": "tasks.other"}
        self.flow = flow.build(output=output | ({"all": "tasks.item"} if self.is_listed else {}))

    def worker(self) -> Worker:
        worker = Worker("fed")
        for register in (worker.compute("item"), worker.effect("item", idempotent=True)):
            register(self.item)
        worker.reducer("total")(self.fold)
        worker.reducer("other")(self.fold)
        return worker

    async def item(self, _: int) -> int:
        await asyncio.sleep(self.random.choice([0.0, 0.001, 0.02, 0.2]))
        self.made += 1
        return self.made

    async def fold(self, contract: Any, ctx: Context) -> list[int]:
        taken: dict[int, int] = {}
        async for index, value in ctx.items():
            assert index not in taken, "it was given twice"
            taken[index] = value
            if self.random.random() < 0.05:
                await asyncio.sleep(0.05)
        return [len(taken), sum(taken.values())]

    async def more_workers(self) -> None:
        while len(self.cluster.workers) < 3:
            self.workers += 1
            await self.cluster.add_worker(self.worker(), f"w{self.workers}")

    async def do(self, action: str, which: int, key: RunKey) -> None:
        cluster = self.cluster
        names = list(cluster.workers)
        name = names[which % len(names)]
        if action == "kill":
            self.kills += 1
            if self.kills < LOST_LIMIT:  # else an item that was under way each time fails, and the run with it
                cluster.kill_worker(name)
                await self.more_workers()
        elif action in {"cut", "cut and back"}:
            cluster.cut(name)
            await asyncio.sleep(0.4 if action == "cut" else 0.0)
            cluster.reconnect(name)
        elif action == "freeze":
            cluster.workers[name].freeze()
        elif action == "thaw":
            cluster.workers[name].thaw()
        elif action == "crash":
            await cluster.crash_orchestrator()
            await cluster.restart_orchestrator()
        elif action == "power":
            self.store.cut_power()
            await cluster.crash_orchestrator()
            self.store = cluster.store = FaultyStore(self.memory)
            await cluster.restart_orchestrator()
        elif action == "hold":
            self.store.hold()
        elif action == "release":
            self.store.release()
        else:
            assert action in {"pause", "resume"}
            self.store.release()
            try:
                await cluster.control(key, action)
            except (InvalidTransition, SPIError):
                return  # it has ended

    async def run(self, actions: list[tuple[str, int, float]]) -> None:
        async with self.cluster as cluster:
            await cluster.register(self.flow)
            await self.more_workers()
            key = (await cluster.start("fed", list(range(self.count)))).key
            for action, which, pause in actions:
                await self.do(action, which, key)
                await asyncio.sleep(pause)
            self.store.release()
            for worker in cluster.workers.values():
                worker.thaw()
            await self.do("resume", 0, key)
            async with asyncio.timeout(300):
                result = await cluster.result(key)
            recorded: dict[int, int] = {}
            for event in await cluster.history(key):
                if event.type == "task.completed" and event.task == "item":
                    for index, payload in zip(event.data["items"], event.data["results"], strict=True):
                        assert index not in recorded
                        recorded[index] = plain(payload)
            plain_fold = [self.count, sum(recorded.values())]
            assert result.pop("all", None) == ([recorded[n] for n in range(self.count)] if self.is_listed else None)
            assert result == {"total": plain_fold, "other": plain_fold}


def plain(result: Any) -> int:
    return int(decode_value(result) if isinstance(result, Payload) else result)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 1 << 16),
    st.sampled_from([0, 1, 5, 70, 300]),
    st.sampled_from(["compute", "compute", "effect"]),
    ACTIONS,
)
def test_the_recorded_fold_is_the_plain_fold_of_the_recorded_results(
    seed: int, count: int, role: str, actions: list[tuple[str, int, float]]
) -> None:
    async def storm() -> None:
        await Storm(seed, count, role).run(actions)

    run_virtual(storm())
