"""No task is lost, none is completed twice, under any interleaving of workers, leases, failures and restarts."""

from __future__ import annotations

import asyncio
from collections import Counter
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from onexflow.core import queue
from onexflow.core.payload import Payload
from onexflow.core.queue import Taker
from onexflow.core.queue_state import PRIORITIES, SECOND
from onexflow.engine.protocols.work_queue import WorkQueue
from onexflow.spi import SPIError, WorkTask
from onexflow.testing.clock import run_virtual
from onexflow.testing.cluster import Cluster
from support.queue_model import Model

STEP = st.one_of(
    st.tuples(st.just("enqueue"), st.integers(0, 9), st.sampled_from(PRIORITIES), st.integers(0, 30)),
    st.tuples(st.just("depend"), st.integers(10, 14), st.integers(0, 12)),
    st.tuples(st.just("take"), st.integers(0, 3), st.integers(1, 4)),
    st.tuples(st.just("complete"), st.integers(0, 30)),
    st.tuples(st.just("fail"), st.integers(0, 30)),
    st.tuples(st.just("progress"), st.integers(0, 30)),
    st.tuples(st.just("wait"), st.integers(1, 40)),
    st.tuples(st.just("pause"), st.booleans()),
    st.tuples(st.just("gone"), st.integers(0, 3)),
    st.tuples(st.just("restart"), st.booleans()),
)


class Run:
    """The model under a list of steps, and what a user of it has seen."""

    def __init__(self) -> None:
        self.model = Model()
        #: Every lease that was given: (task id, token), also those that are over.
        self.leases: list[tuple[str, str]] = []
        self.completed: Counter[int] = Counter()

    def step(self, step: tuple[object, ...]) -> None:
        model = self.model
        match step:
            case ("enqueue", int(name), str(priority), int(delay)):
                model.enqueue(
                    f"t{name}", priority=priority, not_before=delay and model.now + delay * SECOND, lease=20 * SECOND
                )
            case ("depend", int(name), int(other)):
                if f"t{name}" not in model.state.ids and name != other and f"t{other}" in model.state.ids:
                    model.enqueue(f"t{name}", dependencies=(f"t{other}",), lease=20 * SECOND)
            case ("take", int(worker), int(room)):
                taker = Taker(f"w{worker}", frozenset(), f"w{worker}.1", room)
                model.take(taker)
                self.leases.extend((task.spec.task_id, task.token) for task in taker.got)
            case ("complete", int(which)) if self.leases:
                self._complete(*self.leases[which % len(self.leases)])
            case ("fail" | "progress", int(which)) if self.leases:
                self._report(str(step[0]), *self.leases[which % len(self.leases)])
            case ("wait", int(seconds)):
                model.now += seconds * SECOND
                turn = model.turn()
                queue.expire(turn)
                model.store(turn)
            case ("pause", bool(paused)):
                turn = model.turn()
                (queue.pause if paused else queue.resume)(turn, "default")
                model.store(turn)
            case ("gone", int(worker)):
                turn = model.turn()
                queue.release(turn, f"w{worker}", frozenset())
                model.store(turn)
            case ("restart", bool(snapshot)):
                model.restart(snapshot=snapshot)

    def _complete(self, task_id: str, token: str) -> None:
        turn = self.model.turn()
        number = int(token.split(".", maxsplit=1)[0])
        if queue.complete(turn, task_id, token, Payload(token.encode())):
            self.completed[number] += 1
        self.model.store(turn)

    def _report(self, what: str, task_id: str, token: str) -> None:
        turn = self.model.turn()
        if what == "fail":
            queue.fail(turn, task_id, token, "no", None)
        else:
            queue.progress(turn, task_id, token, 0.5)
        self.model.store(turn)

    def check(self) -> None:
        state = self.model.state
        assert all(count == 1 for count in self.completed.values())
        done = {number for number, task in state.tasks.items() if task.status == "completed"}
        assert done == set(self.completed)
        assert sum(holder.load for holder in state.holders.values()) == sum(
            task.status == "running" for task in state.tasks.values()
        )

    def finish(self) -> None:
        """Give every task that is not over its chance: each must come."""
        self.step(("pause", False))
        for _ in range(200):
            self.step(("wait", 61))
            self.step(("take", 0, 50))
            for task_id, token in self.leases:
                self._complete(task_id, token)
        state = self.model.state
        left = {task.spec.task_id: task.status for task in state.tasks.values()}
        assert set(left.values()) <= {"completed", "failed", "skipped"}, left


@settings(max_examples=150, deadline=None)
@given(st.lists(STEP, max_size=60))
def test_no_task_is_lost_or_completed_twice(steps: list[tuple[object, ...]]) -> None:
    run = Run()
    for step in steps:
        run.step(step)
        run.check()
    before = run.model.state
    run.model.restart(snapshot=False)
    assert run.model.state == before
    run.finish()
    run.check()


async def _storm(seed: int) -> None:
    """Workers, a crash every few steps, and nobody who remembers more than what he was told."""
    random = Random(seed)
    completed: Counter[str] = Counter()
    async with Cluster(seed=seed) as cluster:
        said: list[str] = []

        async def act(worker: int) -> None:
            work_queue = WorkQueue(cluster.engine)
            try:
                if random.random() < 0.4:
                    name = f"t{len(said)}-{worker}-{random.random()}"
                    await work_queue.enqueue_task(WorkTask(task_id=name, timeout_seconds=5, max_retries=50))
                    said.append(name)
                for got in await work_queue.dequeue_task(f"w{worker}", max_tasks=2):
                    await asyncio.sleep(random.choice((0, 0, 1, 7)))
                    if random.random() < 0.3:
                        await work_queue.fail_task(got.task_id, "no")
                    elif await work_queue.complete_task(got.task_id):
                        completed[str(got.task_id)] += 1
            except SPIError:
                pass  # the orchestrator went away under it: nothing is known

        for _ in range(15):
            acts = [asyncio.ensure_future(act(worker)) for worker in range(4)]
            await asyncio.sleep(random.choice((0, 0, 1, 3)))
            if random.random() < 0.5:
                await cluster.crash_orchestrator()
                await cluster.restart_orchestrator()
            await asyncio.gather(*acts)
        work_queue = WorkQueue(cluster.engine)
        for _ in range(100):
            statistics = await work_queue.get_queue_statistics()
            if not statistics["pending"] and not statistics["in_progress"]:
                break
            await asyncio.sleep(10)
            for got in await work_queue.dequeue_task("last", max_tasks=100):
                completed[str(got.task_id)] += await work_queue.complete_task(got.task_id)
        assert all(count == 1 for count in completed.values())
        states = {name: (await work_queue.get_task_status(name)).state for name in said}
        assert set(states.values()) <= {"completed", "failed"}, states


def test_nothing_is_lost_in_a_storm_of_crashes() -> None:
    for seed in range(12):
        run_virtual(_storm(seed))
