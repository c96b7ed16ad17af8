"""What every ProtocolWorkQueue of ours must do. Subclass `WorkQueueConformance`, give it a `connect`.

class TestMine(WorkQueueConformance):
    @pytest.fixture
    async def connect(self) -> AsyncIterator[Connect]:
        ...  # connect(wait_seconds) makes an object on one and the same work queue
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC
from typing import Any, cast
from uuid import uuid4

import pytest

from onexflow.engine.protocols.work_queue import WorkQueue
from onexflow.spi import InvalidProtocolStateError, ProtocolWorkQueue, RegistryError, WorkTask

Connect = Callable[[float], WorkQueue]


def task(task_id: str, **fields: Any) -> WorkTask:
    return WorkTask(task_id=task_id, task_name="work", **fields)


class WorkQueueConformance:
    @pytest.fixture
    def queue(self, connect: Connect) -> WorkQueue:
        return connect(0.0)

    @pytest.fixture
    def patient(self, connect: Connect) -> WorkQueue:
        return connect(20.0)

    def test_it_is_a_work_queue(self, queue: WorkQueue) -> None:
        assert isinstance(queue, ProtocolWorkQueue)

    async def test_a_task_goes_through(self, queue: WorkQueue) -> None:
        instance = uuid4()
        given = task("t1", payload={"url": "x", "n": [1, 2]}, workflow_type="order", instance_id=instance, attempt=7)
        assert await queue.enqueue_task(given, priority="high") == "t1"
        assert (await queue.get_task_status("t1")).state == "scheduled"
        [got] = await queue.dequeue_task("w1")
        assert (got.task_id, got.payload, got.priority) == ("t1", {"url": "x", "n": [1, 2]}, "high")
        assert (got.workflow_type, got.instance_id, got.attempt, got.queue_name) == ("order", instance, 1, "default")
        status = await queue.get_task_status("t1")
        assert (status.state, status.worker_id, status.result) == ("running", "w1", None)
        assert await queue.complete_task(got.task_id, {"answer": 42}) is True
        status = await queue.get_task_status("t1")
        assert (status.state, status.result, status.worker_id) == ("completed", {"answer": 42}, "w1")
        assert status.enqueued_at is not None
        assert status.enqueued_at.tzinfo is UTC
        assert status.finished_at is not None
        assert await queue.complete_task(got.task_id, {"answer": 43}) is False
        assert (await queue.get_task_status("t1")).result == {"answer": 42}

    async def test_an_empty_queue_gives_an_empty_list(self, queue: WorkQueue) -> None:
        assert await queue.dequeue_task("w1", max_tasks=5) == []

    async def test_only_the_caller_s_deadline_is_a_timeout(self, patient: WorkQueue) -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await patient.dequeue_task("w1")

    async def test_a_task_without_queue_name_is_in_that_of_its_type(self, queue: WorkQueue) -> None:
        await queue.enqueue_task(task("a", queue_name="", task_type="compute"))
        assert (await queue.get_queue_status("compute")).pending == 1

    async def test_priorities_of_both_sets_in_their_order(self, queue: WorkQueue) -> None:
        for priority in ("normal", "deferred", "critical", "low", "urgent", "high"):
            await queue.enqueue_task(task(priority), priority=cast("Any", priority))
        got = await queue.dequeue_task("w1", max_tasks=10)
        assert [one.task_id for one in got] == ["urgent", "critical", "high", "normal", "low", "deferred"]
        assert [one.priority for one in got] == [one.task_id for one in got]

    async def test_other_values_are_refused(self, queue: WorkQueue) -> None:
        with pytest.raises(ValueError, match="not a priority"):
            await queue.enqueue_task(task("t1"), priority=cast("Any", "highest"))
        with pytest.raises(ValueError, match="delay_seconds"):
            await queue.enqueue_task(task("t1"), delay_seconds=-1)
        with pytest.raises(ValueError, match="strategy"):
            await queue.set_assignment_strategy(cast("Any", "random"))
        with pytest.raises(ValueError, match="task_id"):
            await queue.enqueue_task(task(""))

    async def test_the_same_open_task_twice_is_one(self, queue: WorkQueue) -> None:
        await queue.enqueue_task(task("a"), priority="normal", delay_seconds=300)
        assert await queue.dequeue_task("w1") == []
        assert await queue.enqueue_task(task("a"), priority="critical") == "a"
        assert await queue.enqueue_task(task("a"), priority="low", delay_seconds=300) == "a"
        [got] = await queue.dequeue_task("w1", max_tasks=5)
        assert (got.task_id, got.priority) == ("a", "critical")

    async def test_a_delayed_task_comes_in_time(self, queue: WorkQueue, patient: WorkQueue) -> None:
        await queue.enqueue_task(task("later"), delay_seconds=1)
        assert (await queue.get_task_status("later")).state == "pending"
        assert (await queue.get_queue_metrics()).delayed == 1
        assert await queue.dequeue_task("w1") == []
        assert [got.task_id for got in await patient.dequeue_task("w1")] == ["later"]

    async def test_a_failed_task_comes_again_until_its_retries_are_used_up(
        self, queue: WorkQueue, patient: WorkQueue
    ) -> None:
        await queue.enqueue_task(task("t1", max_retries=1))
        [got] = await queue.dequeue_task("w1")
        assert await queue.fail_task(got.task_id, "no luck") is True
        status = await queue.get_task_status("t1")
        assert (status.state, status.retry_count, status.error) == ("retrying", 1, "no luck")
        [again] = await patient.dequeue_task("w2")
        assert (again.task_id, again.retry_count, again.attempt) == ("t1", 1, 2)
        assert await queue.fail_task(again.task_id, "again") is True
        status = await queue.get_task_status("t1")
        assert (status.state, status.error) == ("failed", "again")

    async def test_the_greater_retry_count_counts(self, queue: WorkQueue) -> None:
        await queue.enqueue_task(task("t1", max_retries=3))
        [got] = await queue.dequeue_task("w1")
        assert await queue.fail_task(got.task_id, "no", retry_count=3) is True
        assert (await queue.get_task_status("t1")).state == "failed"
        with pytest.raises(ValueError, match="retry_count"):
            await queue.fail_task("t1", "no", retry_count=-1)

    async def test_a_lease_that_ends_gives_the_task_back_and_fences_its_holder(
        self, queue: WorkQueue, patient: WorkQueue
    ) -> None:
        await queue.enqueue_task(task("t1", timeout_seconds=0.2))
        [first] = await queue.dequeue_task("w1")
        [second] = await patient.dequeue_task("w2")
        assert (second.task_id, second.attempt, second.retry_count) == ("t1", 2, 0)
        assert await queue.complete_task(first.task_id, {"by": "w1"}) is False
        assert await queue.fail_task(first.task_id, "late") is False
        assert await patient.complete_task(second.task_id, {"by": "w2"}) is True
        assert (await queue.get_task_status("t1")).result == {"by": "w2"}

    async def test_pause_and_resume_by_queue_name(self, queue: WorkQueue) -> None:
        await queue.enqueue_task(task("a1", queue_name="a"))
        await queue.enqueue_task(task("b1", queue_name="b"))
        assert await queue.pause_queue("a") is True
        assert await queue.pause_queue("a") is False
        assert [got.task_id for got in await queue.dequeue_task("w1", max_tasks=5)] == ["b1"]
        status = await queue.get_queue_status("a")
        assert (status.paused, status.pending, status.in_progress) == (True, 1, 0)
        assert (await queue.get_queue_status("b")).workers == 1
        assert await queue.resume_queue("a") is True
        assert await queue.resume_queue("a") is False
        assert [got.task_id for got in await queue.dequeue_task("w1", max_tasks=5)] == ["a1"]
        assert (await queue.get_queue_status("nobody-knows")).pending == 0

    async def test_dependencies_and_ready_tickets(self, queue: WorkQueue) -> None:
        await queue.enqueue_task(task("c", dependencies=["a", "b"]), priority="urgent")
        await queue.enqueue_task(task("a"))
        await queue.enqueue_task(task("b"))
        assert (await queue.get_task_status("c")).state == "blocked"
        assert [ticket.id for ticket in await queue.get_ready_tickets()] == ["a", "b"]
        assert [ticket.id for ticket in await queue.fetch_pending_tickets()] == ["a", "b"]
        with pytest.raises(InvalidProtocolStateError):
            await queue.assign_ticket_to_agent("c", "agent")
        assert [ticket.id for ticket in await queue.get_ticket_dependencies("c")] == ["a", "b"]
        for got in await queue.dequeue_task("w1", max_tasks=5):
            assert await queue.complete_task(got.task_id)
        assert [ticket.id for ticket in await queue.get_ready_tickets()] == ["c"]

    async def test_what_depends_on_a_failed_task_is_skipped(self, queue: WorkQueue) -> None:
        await queue.enqueue_task(task("a", max_retries=0))
        await queue.enqueue_task(task("b", dependencies=["a"]))
        await queue.enqueue_task(task("c", dependencies=["b"]))
        [got] = await queue.dequeue_task("w1")
        await queue.fail_task(got.task_id, "broken")
        assert [(await queue.get_task_status(name)).state for name in "abc"] == ["failed", "skipped", "skipped"]
        with pytest.raises(InvalidProtocolStateError) as refused:
            await queue.complete_task("c")
        assert refused.value.context["current_state"] == "skipped"
        assert refused.value.context["required_state"] == "running"

    async def test_dependencies_in_a_circle_are_refused(self, queue: WorkQueue) -> None:
        await queue.enqueue_task(task("a", dependencies=["c"]))
        await queue.enqueue_task(task("b", dependencies=["a"]))
        with pytest.raises(Exception, match="lead back"):
            await queue.enqueue_task(task("c", dependencies=["b"]))

    async def test_tickets_are_the_same_tasks(self, queue: WorkQueue) -> None:
        assert await queue.connect_to_work_system() is True
        await queue.enqueue_task(task("ticket-123", payload={"a": 1}))
        await queue.enqueue_task(task("ticket-456", max_retries=0))
        tickets = await queue.fetch_pending_tickets(limit=10)
        assert [(ticket.id, ticket.status, ticket.payload) for ticket in tickets] == [
            ("ticket-123", "pending", {"a": 1}),
            ("ticket-456", "pending", None),
        ]
        assert len(await queue.fetch_pending_tickets(limit=1)) == 1
        for ticket in tickets:
            assert await queue.assign_ticket_to_agent(ticket_id=ticket.id, agent_id="agent-001") is True
        assert (await queue.get_task_status("ticket-123")).worker_id == "agent-001"
        with pytest.raises(InvalidProtocolStateError):
            await queue.assign_ticket_to_agent(ticket_id="ticket-123", agent_id="agent-002")
        assert await queue.fetch_pending_tickets() == []
        assert await queue.update_ticket_progress(ticket_id="ticket-123", progress_percent=0.5) is True
        assert (await queue.get_task_status("ticket-123")).progress == 0.5
        assert await queue.complete_ticket(ticket_id="ticket-123", result_data={"status": "success"}) is True
        assert await queue.fail_ticket(ticket_id="ticket-456", error_message="Processing error") is True
        stats = await queue.get_queue_statistics()
        assert (stats["pending"], stats["in_progress"], stats["completed"], stats["failed"]) == (0, 0, 1, 1)

    async def test_progress_is_a_fraction_or_per_cent(self, queue: WorkQueue) -> None:
        await queue.enqueue_task(task("t1"))
        with pytest.raises(InvalidProtocolStateError):
            await queue.update_ticket_progress("t1", 0.5)
        await queue.assign_ticket_to_agent("t1", "a1")
        for given, fraction, percent in ((0, 0.0, 0.0), (0.25, 0.25, 25.0), (1, 1.0, 100.0), (40, 0.4, 40.0)):
            assert await queue.update_ticket_progress("t1", given) is True
            status = await queue.get_task_status("t1")
            assert (status.progress, status.progress_percent) == (fraction, percent)
        for wrong in (-1, 101):
            with pytest.raises(ValueError, match="progress_percent"):
                await queue.update_ticket_progress("t1", wrong)

    async def test_a_ticket_without_an_agent_is_given_to_whom_the_strategy_picks(self, queue: WorkQueue) -> None:
        for name in ("a", "b", "c"):
            await queue.enqueue_task(task(name))
        await queue.dequeue_task("w1", max_tasks=1)
        await queue.assign_ticket_to_agent("b", "w2")
        assert await queue.set_assignment_strategy("least_loaded") is True
        assert await queue.set_assignment_strategy("least_loaded") is False
        assert await queue.complete_task("b")
        await queue.assign_ticket_to_agent("c")
        assert (await queue.get_task_status("c")).worker_id == "w2"

    async def test_unknown_tasks(self, queue: WorkQueue) -> None:
        for ask in (queue.get_task_status, queue.complete_task, queue.get_ticket_dependencies):
            with pytest.raises(RegistryError):
                await ask("nobody")
        with pytest.raises(RegistryError):
            await queue.fail_task("nobody", "x")

    async def test_a_task_that_was_never_leased_cannot_be_completed(self, queue: WorkQueue) -> None:
        await queue.enqueue_task(task("t1"))
        with pytest.raises(InvalidProtocolStateError) as refused:
            await queue.complete_task("t1")
        assert refused.value.context["current_state"] == "scheduled"

    async def test_a_capability_is_asked_of_the_worker(self, queue: WorkQueue) -> None:
        await queue.enqueue_task(task("gpu", required_capability="gpu"), priority="urgent")
        await queue.enqueue_task(task("any"))
        assert [got.task_id for got in await queue.dequeue_task("nobody-registered", max_tasks=5)] == ["any"]

    async def test_an_ended_id_can_be_used_again(self, queue: WorkQueue) -> None:
        await queue.enqueue_task(task("t1", max_retries=0))
        [got] = await queue.dequeue_task("w1")
        await queue.fail_task(got.task_id, "broken")
        await queue.enqueue_task(task("t1"))
        [again] = await queue.dequeue_task("w1")
        assert await queue.complete_task(got.task_id) is False
        assert await queue.complete_task(again.task_id) is True

    async def test_metrics(self, queue: WorkQueue) -> None:
        for number in range(4):
            await queue.enqueue_task(task(f"t{number}"), priority="high")
        first, _ = await queue.dequeue_task("w1", max_tasks=2)
        await queue.complete_task(first.task_id)
        metrics = await queue.get_queue_metrics()
        assert (metrics.pending, metrics.in_progress, metrics.completed, metrics.failed) == (2, 1, 1, 0)
        assert metrics.by_priority == {"high": 2}
        assert metrics.by_queue["default"].in_progress == 1
        assert 0 <= metrics.run.p50 <= metrics.run.p99 < 60

    async def test_many_workers_share_without_overlap(self, queue: WorkQueue) -> None:
        names = [f"t{number:02}" for number in range(30)]
        for name in names:
            await queue.enqueue_task(task(name))
        got = await asyncio.gather(*(queue.dequeue_task(f"w{worker}", max_tasks=5) for worker in range(6)))
        assert sorted(one.task_id for part in got for one in part) == names

    async def test_payloads_that_are_large_come_a_few_at_a_time(self, queue: WorkQueue) -> None:
        for number in range(8):
            await queue.enqueue_task(task(f"t{number}", payload="x" * 1_500_000))
        got = await queue.dequeue_task("w1", max_tasks=8)
        assert 1 <= len(got) < 8
        assert len(await queue.fetch_pending_tickets()) >= 1
