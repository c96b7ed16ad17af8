"""Tasks of work queues on workers' streams, under crashes of everything: each is completed exactly once in the queue's
record, with the result of a run that the log has, and an effect that must not happen twice does not."""

from __future__ import annotations

import asyncio
from collections import Counter
from random import Random
from typing import Any

from onexflow.codec.payload import decode_value, encode_value
from onexflow.codec.rows import decode_row
from onexflow.core.events import TaskCompleted
from onexflow.core.queue_state import queue_key
from onexflow.engine.protocols.work_queue import WorkQueue
from onexflow.engine.recovery import read_rows
from onexflow.ports import queue as port
from onexflow.spi import SPIError
from onexflow.testing.clock import run_virtual
from onexflow.testing.cluster import Cluster
from onexflow.worker import Worker

KINDS = (("effect", "charge"), ("effect", "send"), ("compute", "calc"))


class Storm:
    """One cluster, and what its handlers have seen."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.cluster = Cluster(seed=seed)
        #: Times that the body of a handler ran to its end, by task.
        self.done: Counter[str] = Counter()
        self.begun: Counter[str] = Counter()
        self.said: dict[str, str] = {}
        self.life = 0

    def worker(self) -> Worker:
        worker = Worker("w")

        async def handle(contract: Any) -> Any:
            name = str(contract.task)
            self.begun[name] += 1
            await asyncio.sleep(self.random.choice((0, 0, 0.01, 0.5, 3)))
            if self.random.random() < 0.2:
                raise ValueError("not now")
            self.done[name] += 1
            return {"task": name}

        worker.effect("charge")(handle)
        worker.effect("send", idempotent=True)(handle)
        worker.compute("calc")(handle)
        return worker

    async def add_worker(self) -> None:
        self.life += 1
        slots = self.random.choice((1, 2, 5))
        await self.cluster.add_worker(self.worker(), f"w{self.life}", slots={"effect": slots, "compute": slots})

    async def enqueue(self) -> None:
        role, handler = self.random.choice(KINDS)
        name = f"{handler}-{len(self.said)}"
        call = port.Enqueue(
            task_id=name,
            name=handler,
            type=role,
            payload=encode_value({"task": name}),
            max_retries=40,
            priority=self.random.choice(("urgent", "normal", "low", "deferred")),
            queue=self.random.choice(("p", "q")),
            delay=self.random.choice((0.0, 0.0, 2.0)),
            request_id=name,
        )
        self.said[name] = handler
        await self.persist(call)

    async def persist(self, call: port.Enqueue) -> None:
        """As the client does: the same call until it has an answer."""
        while True:
            try:
                await self.cluster.engine.queue_call(call)
            except (SPIError, AssertionError):
                await asyncio.sleep(0.1)
            else:
                return

    async def step(self) -> None:
        random, cluster = self.random, self.cluster
        await asyncio.sleep(random.choice((0, 0, 0.001, 0.02, 1, 4)))
        chance = random.random()
        if chance < 0.25:
            await cluster.crash_orchestrator()
            for _ in range(random.choice((0, 0, 5))):
                await asyncio.sleep(0.2)
            await cluster.restart_orchestrator()
        elif chance < 0.35 and cluster.workers:
            cluster.kill_worker(random.choice(sorted(cluster.workers)))
        elif chance < 0.45:
            await self.add_worker()
        elif chance < 0.55 and cluster.workers:
            cluster.cut(name := random.choice(sorted(cluster.workers)))
            cluster.reconnect(name)
        elif chance < 0.65:
            queue = WorkQueue(cluster.engine)
            await random.choice((queue.pause_queue, queue.resume_queue))(random.choice(("p", "q")))
        elif chance < 0.7 and not cluster.workers:
            await asyncio.sleep(15)  # what was taken goes back

    async def settle(self) -> None:
        """Resume, resolve what waits for a word, until every task has ended."""
        queue = WorkQueue(self.cluster.engine)
        for name in ("p", "q"):
            await queue.resume_queue(name)
        for _ in range(2000):
            statistics = await queue.get_queue_statistics()
            if not statistics["pending"] and not statistics["in_progress"]:
                return
            await asyncio.sleep(1)
            for run in (await self.cluster.engine.list_runs("default", states=["running"], limit=1000))[0]:
                if (await self.cluster.task(run.key, "execute")).state == "waiting_for_input":
                    await self.cluster.control(run.key, "resolve", task="execute", fail="nobody knows")
        raise AssertionError({name: (await queue.get_task_status(name)).state for name in self.said})

    async def audit(self) -> None:
        """What the queue's log says."""
        store = self.cluster.store
        key = queue_key("default", "default")
        completed: Counter[int] = Counter()
        for shard in range(store.shards):
            record = await store.find_run(shard, key.to_bytes())
            for row in await read_rows(store, shard, record.iid) if record is not None else ():
                events = decode_row(row.data)[1]
                completed.update(event.task for event in events if isinstance(event, TaskCompleted))
        assert set(completed.values()) <= {1}
        queue = WorkQueue(self.cluster.engine)
        for name, handler in self.said.items():
            status = await queue.get_task_status(name)
            if status.state == "completed":
                assert status.result == {"task": name}
                assert self.done[name] >= 1
            else:
                assert (status.state, handler) == ("failed", "charge"), (name, status)
            if handler == "charge":
                assert self.done[name] <= 1, name
        runs = (await self.cluster.engine.list_runs("default", limit=1000))[0]
        ended = [await self.cluster.wait(run.key) for run in runs]
        results = Counter(decode_value(end.result)["task"] for end in ended if end.result is not None)
        assert set(results.values()) <= {1}  # one completed run a task
        assert len(self.cluster.engine._bridge._held) == 0


async def _storm(seed: int) -> None:
    storm = Storm(seed)
    async with storm.cluster:
        await storm.add_worker()
        enqueues = []
        for _ in range(25):
            enqueues.append(asyncio.ensure_future(storm.enqueue()))
            enqueues.append(asyncio.ensure_future(storm.enqueue()))
            await storm.step()
        await storm.add_worker()
        await asyncio.gather(*enqueues)
        await storm.settle()
        await storm.audit()


def test_each_task_is_completed_once_whatever_dies() -> None:
    for seed in range(15):
        run_virtual(_storm(seed))
