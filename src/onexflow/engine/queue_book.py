"""The work queues of one orchestrator: calls in, decisions, durable answers out; and what happens by itself: leases and
delays that end, workers that go, tasks for those who wait."""

from __future__ import annotations

import asyncio
import sys
from collections import OrderedDict
from collections.abc import Callable, Sequence
from hashlib import blake2b
from typing import Final
from uuid import UUID

import msgspec
import structlog

from onexflow.core import queue as core
from onexflow.core.definition import MAX_SECONDS
from onexflow.core.errors import Coded, InternalError, InvalidArgument, ShardMoved
from onexflow.core.ids import RunKey
from onexflow.core.queue import QueueTurn, Taker
from onexflow.core.queue_state import SECOND, STREAMS, QueueTask, TaskSpec, queue_key
from onexflow.engine.kernel import Kernel
from onexflow.engine.node_entries import QueueTally
from onexflow.engine.queries import CONFIRMED_SECONDS
from onexflow.engine.queue import Queue
from onexflow.engine.queue_bridge import QueueBridge, run_key
from onexflow.engine.queue_views import figures, queue_tally, task_view, ticket_blocked, waiting_tasks
from onexflow.engine.recovery import RecentRuns, id_time_ns
from onexflow.engine.shard import Shard
from onexflow.ports.event_store import RequestRecord
from onexflow.ports.queue import (
    MAX_TASKS,
    Answer,
    AnyCall,
    Assign,
    Complete,
    Dequeue,
    Enqueue,
    Fail,
    GetTask,
    ListTasks,
    Measure,
    Pause,
    Progress,
    Resume,
    SetStrategy,
    TaskView,
)
from onexflow.ports.registry import MemberEvent, Registry
from onexflow.spi.exceptions import SPIError

log = structlog.get_logger("onexflow.queue")

#: Answers kept in memory by request id.
RECENT: Final = 10_000
MAX_WAIT: Final = 60.0
#: The wall clock may jump: look again at least so often.
LOOK_SECONDS: Final = 60.0


class _Waiting:
    """A dequeue that waits for a task."""

    def __init__(self, taker: Taker, future: asyncio.Future[None]) -> None:
        self.taker = taker
        self.future = future


class QueueBook:
    """`call` answers; everything else happens by timers and by the registry's word."""

    def __init__(self, kernel: Kernel, registry: Registry, bridge: QueueBridge, payload_limit: int) -> None:
        self._kernel = kernel
        self._bridge = bridge
        self._registry = registry
        self._payload_limit = payload_limit
        self._waiting: dict[RunKey, list[_Waiting]] = {}
        self._timers: dict[RunKey, asyncio.TimerHandle] = {}
        #: With the shard that the answer is written to: what a lost one did not store was never answered.
        self._answers: OrderedDict[tuple[str, str], tuple[RequestRecord, Shard]] = OrderedDict()
        #: Request ids minted after this that are not in `_answers` are new.
        self._complete_since = 0
        self._unsubscribe: Callable[[], None] | None = None
        kernel.on_queue = self._loaded
        bridge.act = self._act

    def start(self) -> None:
        self._complete_since = self._kernel.now() + RecentRuns.AHEAD_NS
        self._unsubscribe = self._registry.subscribe(self._on_member)

    def claimed(self) -> None:
        """A shard was claimed: what was asked there before is not in memory."""
        self._complete_since = max(self._complete_since, self._kernel.now() + RecentRuns.AHEAD_NS)

    def left(self, shard: Shard) -> None:
        """A shard is not owned any more: nothing happens to its queues here, and nobody waits for them."""
        for queue in shard.queues.values():
            self._bridge.left(queue)
            if (timer := self._timers.pop(queue.key, None)) is not None:
                timer.cancel()
            for one in self._waiting.get(queue.key, ()):
                if not one.future.done():
                    one.future.set_exception(shard.moved or ShardMoved())

    def stop(self, error: Coded) -> None:
        """Nobody waits any more, and nothing happens by itself."""
        if self._unsubscribe is not None:
            self._unsubscribe()
            self._unsubscribe = None
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        for waiting in self._waiting.values():
            for one in waiting:
                if not one.future.done():
                    one.future.set_exception(error)

    async def call(self, call: AnyCall) -> Answer:
        """The answer, once it is durable."""
        key = queue_key(call.namespace, call.work_queue)
        queue = await self._kernel.queue(key, call.work_queue)
        repeated = await self._repeated(queue, call)
        if repeated is None:
            queue = await self._kernel.queue(key, call.work_queue)  # it may have been read back meanwhile
            if isinstance(call, Dequeue):
                answer = await self._dequeue(queue, call)
            else:
                answer = self._decide(queue, lambda turn: self._answer(turn, call))
                self._keep(queue, call, answer)
                if isinstance(call, Complete | Fail) and answer.changed:
                    self._bridge.released(queue, call.task_id)
        else:
            answer = repeated
        await self._kernel.lane.durable(queue.shard)
        await self._kernel.claims.confirm(CONFIRMED_SECONDS)
        queue.shard.check()
        return answer

    # ---- decisions

    def _decide(self, queue: Queue, act: Callable[[QueueTurn], Answer]) -> Answer:
        """Decide and record; then hand out what has become free."""
        queue.shard.check()
        turn = self._kernel.queue_turn(queue)
        try:
            answer = act(turn)
            self._serve(queue, turn)
            taken = self._bridge.take(queue, turn)
        except Exception as error:
            if turn.events or not isinstance(error, SPIError):
                failure = InternalError(f"a decision of the work queue failed: {error!r}")
                self._drop(queue, failure)
                log.exception("queue.decision_failed", queue=str(queue.key))
                raise failure from error
            raise
        self._kernel.record_queue(queue, turn)
        self._bridge.hold(queue, taken)
        self._arm(queue)
        return answer

    def _drop(self, queue: Queue, error: Coded) -> None:
        """Its state in memory cannot be trusted: it is read back by who asks next."""
        queue.snapshot_after = sys.maxsize
        queue.shard.queues.pop(queue.key, None)
        self._bridge.dropped(queue)
        for one in self._waiting.get(queue.key, ()):
            if not one.future.done():
                one.future.set_exception(error)

    def _serve(self, queue: Queue, turn: QueueTurn) -> None:
        """Give tasks to those who wait."""
        waiting = [one for one in self._waiting.get(queue.key, ()) if not one.future.done()]
        if not waiting:
            return
        core.hand_out(turn, [one.taker for one in waiting])
        for one in waiting:
            if one.taker.got:
                one.future.set_result(None)

    def _answer(self, turn: QueueTurn, call: AnyCall) -> Answer:
        match call:
            case Enqueue():
                core.enqueue(turn, self._spec(turn, call), call.payload)
                return Answer(changed=bool(turn.events), tasks=self._views(turn, call.task_id))
            case Complete():
                self._check_size(len(call.result.data), "result")
                return Answer(changed=core.complete(turn, call.task_id, call.token, call.result))
            case Fail():
                return Answer(changed=core.fail(turn, call.task_id, call.token, call.error, call.retry_count))
            case Progress():
                if not 0 <= call.share <= 1:
                    raise InvalidArgument("progress must be between 0 and 1", field="share")
                return Answer(changed=core.progress(turn, call.task_id, call.token, call.share))
            case Assign():
                _check_worker(call.worker_id, "agent_id")
                task = core.assign(turn, call.task_id, call.worker_id, self._workers(turn))
                return Answer(changed=True, tasks=(task_view(task, turn.now, with_token=True),))
            case Pause():
                return Answer(changed=core.pause(turn, call.queue))
            case Resume():
                return Answer(changed=core.resume(turn, call.queue))
            case SetStrategy():
                return Answer(changed=core.set_strategy(turn, call.strategy))
            case GetTask():
                return Answer(tasks=(self._explained(turn, turn.task(call.task_id)),))
            case ListTasks():
                return self._list(turn, call)
            case Measure():
                return Answer(figures=figures(turn.state, turn.now))
            case Dequeue():
                raise InternalError("a dequeue is not decided alone")

    def _views(self, turn: QueueTurn, *task_ids: str) -> tuple[TaskView, ...]:
        return tuple(task_view(turn.task(task_id), turn.now) for task_id in task_ids)

    def _explained(self, turn: QueueTurn, task: QueueTask) -> TaskView:
        """The task with what it waits for."""
        run = run_key(turn.state.key, task) if task.status == "running" else None
        name = f"{run.workflow_type}/{run.instance_id}" if run is not None else ""
        return task_view(task, turn.now, blocked=ticket_blocked(turn.state, task, turn.now, name, self._bridge.serves))

    def _list(self, turn: QueueTurn, call: ListTasks) -> Answer:
        if not 1 <= call.limit <= MAX_TASKS:
            raise InvalidArgument(f"limit must be between 1 and {MAX_TASKS:,}", field="limit")
        if call.which == "dependencies":
            known = (task_id for task_id in turn.task(call.task_id).spec.dependencies if task_id in turn.state.ids)
            found = [self._explained(turn, turn.task(task_id)) for task_id in known]
            return Answer(tasks=_fitting(found[: call.limit]))
        tasks = waiting_tasks(turn.state, turn.now, ready=call.which == "ready")[: call.limit]
        return Answer(tasks=_fitting([self._explained(turn, task) for task in tasks]))

    def _spec(self, turn: QueueTurn, call: Enqueue) -> TaskSpec:
        self._check_size(len(call.payload.data), "payload")
        for field, seconds in (("delay_seconds", call.delay), ("timeout_seconds", call.timeout)):
            if not 0 <= seconds <= MAX_SECONDS:
                raise InvalidArgument(f"{field} must be between 0 and {MAX_SECONDS:,.0f}", field=field)
        if call.max_retries < 0:
            raise InvalidArgument("max_retries must not be negative", field="max_retries")
        delayed = turn.now + int(call.delay * SECOND) if call.delay else 0
        not_before = max(delayed, call.not_before)
        return TaskSpec(
            task_id=call.task_id,
            name=call.name,
            type=call.type,
            queue=call.queue,
            priority=core.check_priority(call.priority),
            capability=call.capability,
            dependencies=call.dependencies,
            max_retries=call.max_retries,
            lease=int((call.timeout or core.LEASE) * SECOND),
            timeout=call.timeout,
            not_before=not_before if not_before > turn.now else 0,
            workflow_type=call.workflow_type,
            instance_id=call.instance_id,
            idempotency_key=call.idempotency_key,
        )

    def _check_size(self, size: int, field: str) -> None:
        if size > self._payload_limit:
            raise InvalidArgument(
                f"the {field} has {size:,} bytes, the limit is {self._payload_limit:,}", field=field
            )  # fmt: skip

    # ---- workers

    def _workers(self, turn: QueueTurn) -> dict[str, tuple[frozenset[str], str]]:
        """Those who could be given a task: (capabilities, incarnation) by name."""
        found = {worker: (frozenset[str](), "") for worker in turn.state.holders if worker != STREAMS}
        for record in self._registry.members():
            if record.kind != "orchestrator":
                found[record.node_id] = self._known(record.node_id)
        return found

    def _known(self, worker: str) -> tuple[frozenset[str], str]:
        """Capabilities (handlers and the label `capabilities`) and incarnation, from the worker's registration."""
        capabilities: set[str] = set()
        incarnation = ""
        for record in self._registry.members():
            if record.node_id == worker and record.kind != "orchestrator":
                incarnation = record.incarnation
                capabilities.update(record.handlers)
                capabilities.update(record.labels.get("capabilities", "").split(","))
        return frozenset(capabilities - {""}), incarnation

    async def _dequeue(self, queue: Queue, call: Dequeue) -> Answer:
        if not 1 <= call.max_tasks <= MAX_TASKS:
            raise InvalidArgument(f"max_tasks must be between 1 and {MAX_TASKS:,}", field="max_tasks")
        if not 0 <= call.wait <= MAX_WAIT:
            raise InvalidArgument(f"wait must be between 0 and {MAX_WAIT:g} seconds", field="wait")
        _check_worker(call.worker_id, "worker_id")
        taker = Taker(call.worker_id, *self._known(call.worker_id), call.max_tasks)
        one = _Waiting(taker, asyncio.get_running_loop().create_future())
        waiting = self._waiting.setdefault(queue.key, [])
        waiting.append(one)
        try:
            self._decide(queue, _expired)
            if not one.future.done() and call.wait:
                await asyncio.wait([one.future], timeout=call.wait)
            if one.future.done():
                one.future.result()
        finally:
            waiting.remove(one)
        now = self._kernel.now()
        answer = Answer(
            changed=bool(taker.got),
            tasks=tuple(task_view(task, now, with_token=True) for task in taker.got),
        )
        if taker.got:
            self._keep(queue, call, answer)
        return answer

    def _on_member(self, event: MemberEvent) -> None:
        """A worker's lease has ended, or it has begun a new life: what it held under the old one comes back. Of guests
        the node book says so: their records hang on an orchestrator's lease."""
        if event.record.kind != "guest":
            self.lost(event.record.node_id)

    def lost(self, worker: str) -> None:
        """Take back what it holds under another life than its present one."""
        alive = frozenset(record.incarnation for record in self._registry.members() if record.node_id == worker)
        for queue in list(self._kernel.queues()):
            if worker in queue.index.held:
                self._act(queue, lambda turn: core.release(turn, worker, alive))

    def tally_of(self, worker: str) -> QueueTally:
        """What it has done, of the tasks that are kept. Looks at all of these: not for a hot path."""
        return queue_tally((queue.state for queue in self._kernel.queues()), worker)

    # ---- what happens by itself

    def _act(self, queue: Queue, act: Callable[[QueueTurn], None]) -> None:
        def decide(turn: QueueTurn) -> Answer:
            act(turn)
            return Answer()

        try:
            self._decide(queue, decide)
        except SPIError as error:
            log.error("queue.failed", queue=str(queue.key), error=str(error))  # noqa: TRY400 - logged where it was raised

    def _loaded(self, queue: Queue) -> None:
        """It was read back."""
        self._bridge.adopt(queue)
        self._turn(queue)

    def is_late(self, queue: Queue) -> bool:
        """Has a lease or a delay ended that nothing was armed for?"""
        due = queue.index.next_due(self._kernel.store.now())
        return bool(due) and queue.key not in self._timers

    def look(self, queue: Queue) -> None:
        """See to the leases and delays that have ended."""
        self._turn(queue)

    def _turn(self, queue: Queue) -> None:
        """A lease or a delay may have ended."""
        self._timers.pop(queue.key, None)
        self._act(queue, core.expire)

    def _arm(self, queue: Queue) -> None:
        now = self._kernel.now()
        due = queue.index.next_due(now)
        if (timer := self._timers.pop(queue.key, None)) is not None:
            timer.cancel()
        if due:
            seconds = min(max(0, due - now) / SECOND, LOOK_SECONDS)
            self._timers[queue.key] = asyncio.get_running_loop().call_later(seconds, self._turn, queue)

    # ---- request ids

    async def _repeated(self, queue: Queue, call: AnyCall) -> Answer | None:
        """The answer that this request id got before. Raises InvalidArgument when it came with another body."""
        if not call.request_id or isinstance(call, GetTask | ListTasks | Measure):
            return None
        record = self._recent(call)
        if record is None and not self._is_new(call.request_id):
            record = await self._kernel.store.find_request(queue.shard.id, call.namespace, call.request_id)
            record = self._recent(call) or record
        if record is None:
            return None
        if record.body_hash != _body_hash(call):
            raise InvalidArgument("this request_id was used with another body", field="request_id")
        return msgspec.msgpack.decode(record.response, type=Answer)

    def _recent(self, call: AnyCall) -> RequestRecord | None:
        record, shard = self._answers.get((call.namespace, call.request_id), (None, None))
        return record if shard is not None and shard.moved is None else None

    def _is_new(self, request_id: str) -> bool:
        """Is it certain, without a look-up, that it came never before? Raises InvalidArgument for an id of the future:
        a later owner would take it for new."""
        try:
            given = UUID(request_id)
        except ValueError:
            return False
        now = self._kernel.now()
        if RecentRuns.is_premature(given, now):
            raise InvalidArgument(
                "request_id is a UUIDv7 of the future: is the clock of the client right?", field="request_id"
            )
        minted = id_time_ns(given)
        return minted is not None and self._complete_since < minted

    def _keep(self, queue: Queue, call: AnyCall, answer: Answer) -> None:
        """Write the answer with the next append."""
        if not call.request_id or isinstance(call, GetTask | ListTasks | Measure):
            return
        now = self._kernel.now()
        record = RequestRecord(call.namespace, call.request_id, _body_hash(call), msgspec.msgpack.encode(answer), now)
        queue.shard.answer(record)
        self._kernel.lane.mark()
        self._answers[call.namespace, call.request_id] = record, queue.shard
        if len(self._answers) > RECENT:
            (_, request_id), _ = self._answers.popitem(last=False)
            self._complete_since = max(self._complete_since, _minted(request_id))


def _minted(request_id: str) -> int:
    """When a UUIDv7 was minted; 0: any other id is looked up always."""
    try:
        return id_time_ns(UUID(request_id)) or 0
    except ValueError:
        return 0


def _check_worker(worker: str, field: str) -> None:
    if worker.startswith("$"):
        raise InvalidArgument(f"{worker!r} is no name of a worker: those with $ are the engine's own", field=field)


def _expired(turn: QueueTurn) -> Answer:
    core.expire(turn)
    return Answer()


def _fitting(tasks: Sequence[TaskView]) -> tuple[TaskView, ...]:
    """As many of the tasks, from the first, as fit into a message."""
    room = core.GIVEN_BYTES
    for position, task in enumerate(tasks):
        room -= 512 + len(task.payload.data) + (len(task.result.data) if task.result is not None else 0)
        if room < 0 and position:
            return tuple(tasks[:position])
    return tuple(tasks)


def _body_hash(call: AnyCall) -> bytes:
    return blake2b(msgspec.msgpack.encode(msgspec.structs.replace(call, request_id="")), digest_size=16).digest()
