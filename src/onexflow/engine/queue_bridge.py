"""Tasks of work queues on the workers' streams: a task whose type and name are those of a connected worker's handler, and
for which nobody waits in a dequeue, is done by a run of one task.

The queue's own log is the outbox. A task is leased to STREAMS in the same append that made it ready; that lease has no
end of its own. Once it is durable the run is asked for, under an id made of the queue, the task's number and the
attempt's; when the run has ended, the task is completed or failed under the lease. After a restart, or when the queue
is read back, its leases are found in its state and the same runs are asked for again: each start and each end counts
once. Whatever happens to the worker is the run's to deal with; while the run waits, so does the task.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from hashlib import blake2b
from typing import Final, Literal, cast
from uuid import UUID

import structlog

from onexflow.codec.definitions import dump_definition
from onexflow.core import queue as core
from onexflow.core.commands import CancelRun
from onexflow.core.definition import Role
from onexflow.core.errors import Coded, RunExists, RunFailed, ShardMoved, UnknownWorkflowType, WorkerLost
from onexflow.core.ids import QUEUE_CAUSE, QUEUE_RUN, RunKey
from onexflow.core.payload import NULL, Failure
from onexflow.core.queue import QueueTurn
from onexflow.core.queue_state import STREAMS, QueueTask
from onexflow.engine.background import Background
from onexflow.engine.dispatcher import Dispatcher
from onexflow.engine.kernel import Kernel
from onexflow.engine.one_task import one_task
from onexflow.engine.queue import Queue
from onexflow.ports.client_link import ControlRequest, RunOutcome, RunService, StartOutcome, StartRequest
from onexflow.spi.exceptions import SPIError

log = structlog.get_logger("onexflow.queue")

#: Tasks that may wait for a free slot of each worker, beyond those for which there is one: the worker hears of them as
#: demand, and the next is there when a slot becomes free.
LOOK_AHEAD: Final = 1
#: What could not be asked for (the store is full, the orchestrator overloaded) is asked for again after so long.
ASK_AGAIN_SECONDS: Final = 5.0

#: Why a run is cancelled that no worker has begun, and that none could begin.
UNSERVED: Final = "no worker has the handler: the task goes back to its queue"

Act = Callable[[QueueTurn], None]


class _Held:
    """A task that the bridge holds a lease on, and the run that does it."""

    __slots__ = ("asked", "counted", "give_up", "handler", "number", "queue", "role", "run", "token", "unserved")

    def __init__(self, queue: RunKey, task: QueueTask) -> None:
        self.queue = queue
        self.number = task.number
        self.token = task.token
        self.role = cast("Role", task.spec.type)
        self.handler = task.spec.name
        self.run = run_key(queue, task)
        #: The run was asked for; and until then, the task is counted as one that a slot is kept for.
        self.asked = False
        self.counted = False
        #: At the last look no worker had the handler.
        self.unserved = False
        self.give_up: Callable[[], None] = _nothing


class QueueBridge:
    """All bridged tasks of one orchestrator. `act` decides about a queue, as the queue book does it."""

    def __init__(
        self, kernel: Kernel, dispatcher: Dispatcher, service: RunService, may_start: Callable[[], bool]
    ) -> None:
        self._kernel = kernel
        self._dispatcher = dispatcher
        self._service = service
        self._may_start = may_start
        self.act: Callable[[Queue, Act], None] = _no_act
        self._open = False
        self._watched: frozenset[tuple[str, str]] = frozenset()
        self._held: dict[tuple[RunKey, int], _Held] = {}
        #: Tasks that are leased and whose runs are not begun, by role: slots are kept for them.
        self._coming: Counter[str] = Counter()
        #: Queues with ready tasks of watched handlers that there was no room for.
        self._ready: dict[RunKey, Queue] = {}
        self._waking = False
        self._again: asyncio.TimerHandle | None = None
        self._background = Background()

    def start(self) -> None:
        """From now on tasks are taken; and those that were before are seen to."""
        self._open = True
        for queue in list(self._kernel.queues()):
            self.adopt(queue)

    async def stop(self) -> None:
        self._open = False
        if self._again is not None:
            self._again.cancel()
        await self._background.stop()

    # ---- taking

    def on_room(self, event: Literal["joined", "credits", "gone"]) -> None:
        """A worker has joined, has given credits, or has gone."""
        if event == "gone" and self._held:
            self._arm()
        if event == "joined" and not (served := self._dispatcher.served()) <= self._watched:
            self._watched |= served
            self._ready.update((queue.key, queue) for queue in self._kernel.queues())
        if self._ready:
            self._wake()

    def take(self, queue: Queue, turn: QueueTurn) -> list[QueueTask]:
        """Lease what the workers have room for, in the queue's order. Part of the decision that may have made it ready;
        the caller hands the tasks to `hold` once that is recorded."""
        if not self._watched or not self._open:
            return []
        turn.index.watch(self._watched)
        taken: list[QueueTask] = []
        coming = Counter(self._coming)
        while (task := self._next(queue, turn.now, coming)) is not None:
            core.bridge(turn, task)
            coming[task.spec.type] += 1
            taken.append(task)
        if next(turn.index.named_heads(turn.now), None) is None:
            self._ready.pop(queue.key, None)
        else:
            self._ready[queue.key] = queue
            self._arm()
        return taken

    def _next(self, queue: Queue, now: int, coming: Counter[str]) -> QueueTask | None:
        """The first task of the queue that is ready and that there is room for."""
        if not self._may_start():
            return None
        heads = (task for task in queue.index.named_heads(now) if self._has_room(task, coming))
        return min(heads, key=lambda task: (task.key, task.number), default=None)

    def _has_room(self, task: QueueTask, coming: Counter[str]) -> bool:
        spec = task.spec
        free, workers = self._dispatcher.room(spec.type, spec.name, spec.capability)
        return free + LOOK_AHEAD * workers > coming[spec.type]

    def hold(self, queue: Queue, tasks: Sequence[QueueTask]) -> None:
        """These tasks were leased by a decision that is recorded: begin their runs once it is durable."""
        if not tasks:
            return
        held = [self._keep(queue, task) for task in tasks]
        for one in held:
            one.counted = True
            self._coming[one.role] += 1

        def begin(error: Coded | None) -> None:
            if error is None:
                for one in held:
                    self._begin(one)

        self._kernel.lane.when_durable(begin, queue.shard)

    def _wake(self) -> None:
        if not self._waking:
            self._waking = True
            asyncio.get_running_loop().call_soon(self._pump)

    def _pump(self) -> None:
        self._waking = False
        if not self._open:
            return
        now = self._kernel.now()
        for key, queue in list(self._ready.items()):
            queue.index.watch(self._watched)
            is_present = self._kernel.known_queue(key) is queue
            if not is_present or next(queue.index.named_heads(now), None) is None:
                del self._ready[key]
            elif self._next(queue, now, self._coming) is not None:
                self.act(queue, _only_look)  # and so take

    # ---- the runs

    def adopt(self, queue: Queue) -> None:
        """The queue was read back: see to the leases that are in its state, all of them durable."""
        if not self._open:
            return
        for number in sorted(queue.index.held.get(STREAMS, ())):
            if (queue.key, number) not in self._held:
                self._begin(self._keep(queue, queue.state.tasks[number]))
                self._arm()  # is there a worker that has its handler?

    def serves(self, role: str, handler: str) -> bool:
        """Does a worker take tasks of that type and name by its stream?"""
        return self._dispatcher.serves(role, handler)

    def lacks(self, queue: Queue) -> bool:
        """Does the queue's state have a lease of the streams that nothing is held for here?"""
        return self._open and any((queue.key, number) not in self._held for number in queue.index.held.get(STREAMS, ()))

    def _keep(self, queue: Queue, task: QueueTask) -> _Held:
        held = self._held[queue.key, task.number] = _Held(queue.key, task)
        return held

    def _forget(self, held: _Held) -> bool:
        """False when it is not held any more."""
        self._uncount(held)
        if self._held.get((held.queue, held.number)) is not held:
            return False
        del self._held[held.queue, held.number]
        held.give_up()
        return True

    def _is_held(self, held: _Held) -> bool:
        return self._open and self._held.get((held.queue, held.number)) is held

    def _uncount(self, held: _Held) -> None:
        if held.counted:
            held.counted = False
            self._coming[held.role] -= 1

    def _queue_of(self, held: _Held) -> Queue | None:
        """Its queue, while the task is held under that lease."""
        queue = self._kernel.known_queue(held.queue)
        task = queue.state.tasks.get(held.number) if queue is not None else None
        return queue if task is not None and task.status == "running" and task.token == held.token else None

    def _begin(self, held: _Held) -> None:
        """Ask for the run, which may be there already."""
        queue = self._queue_of(held)
        if queue is None or not self._open:
            self._forget(held)
            return
        task = queue.state.tasks[held.number]
        spec = task.spec
        held.asked = True
        try:
            self._kernel.catalog.record(held.run.namespace, held.run.workflow_type)
        except UnknownWorkflowType:
            self._background.spawn(self._define(held, spec.name))
            return
        key = spec.idempotency_key or f"{held.queue.namespace}:{held.queue.instance_id}:{held.number}"
        request = StartRequest(
            namespace=held.run.namespace,
            workflow_type=held.run.workflow_type,
            instance_id=held.run.instance_id,
            version=1,
            input=task.payload,
            correlation_id=spec.instance_id or spec.task_id,
            causation_id=f"{QUEUE_CAUSE}{key}",
            timeout=spec.timeout,
        )
        self._service.start_run(request, lambda answer: self._on_start(held, answer))
        self._uncount(held)  # it has a slot, or waits for one among the others

    async def _define(self, held: _Held, handler: str) -> None:
        """Register the workflow of the handler, then go on."""
        description = f"A task of a work queue for {held.role} handler {handler}"
        try:
            definition = dump_definition(one_task(QUEUE_RUN[:-1], held.role, handler, description))
            await self._kernel.catalog.register(held.run.namespace, definition)
        except SPIError as error:
            self._on_start(held, error)
        else:
            self._begin(held)

    def _on_start(self, held: _Held, answer: StartOutcome | SPIError) -> None:
        if not self._is_held(held):
            return
        if isinstance(answer, StartOutcome | RunExists | RunFailed):
            held.give_up = self._service.wait_run(held.run, lambda outcome: self._on_end(held, outcome))
        elif isinstance(answer, Coded) and not answer.retryable:
            failure = Failure(type(answer).__name__, str(answer), code=answer.code, retryable=False)
            self._settle(held, RunOutcome(key=held.run, state="failed", error=failure), repeat=False)
        else:
            self._later(held)

    def _later(self, held: _Held) -> None:
        held.asked = False
        self._uncount(held)
        self._arm()

    def _arm(self) -> None:
        if self._again is None and self._open:
            self._again = asyncio.get_running_loop().call_later(ASK_AGAIN_SECONDS, self._look)

    def _look(self) -> None:
        """The slow timer, while there is something to see to."""
        self._again = None
        served = self._dispatcher.served()
        for held in list(self._held.values()):
            if not held.asked and not held.counted:
                self._begin(held)
            was, held.unserved = held.unserved, (held.role, held.handler) not in served
            if held.unserved:
                self._arm()
                if was:
                    self._take_back(held)
        if self._ready:
            self._wake()

    def _take_back(self, held: _Held) -> None:
        """No worker has had the handler for a while. What none of them has begun is for those who dequeue, too."""
        run = self._kernel.resident(held.run)
        if run is None or any(attempt.sent for attempt in run.attempts.values()):
            return
        if run.state.status == "running" and run.state.tasks[0].status in {"pending", "scheduled"}:
            with suppress(SPIError):  # it is read back just now
                self._kernel.decide(run, CancelRun(UNSERVED))

    # ---- their ends

    def _on_end(self, held: _Held, outcome: RunOutcome | SPIError) -> None:
        if not self._is_held(held):
            return
        if isinstance(outcome, SPIError):
            self._later(held)
        elif outcome.state == "timeout" and held.role == "effect":
            self._background.spawn(self._settle_timeout(held, outcome))
        else:
            failure = outcome.error
            lost = failure is not None and (not failure.retryable or failure.code == WorkerLost.code)
            self._settle(held, outcome, repeat=outcome.state == "timeout" or (outcome.state == "failed" and not lost))

    async def _settle_timeout(self, held: _Held, outcome: RunOutcome) -> None:
        """An effect that may have happened, and must not happen twice, is not given out again."""
        try:
            run = await self._kernel.find(held.run)
        except SPIError:
            self._later(held)
            return
        self._settle(held, outcome, repeat=all(item.idempotent for item in run.state.tasks[0].items))

    def _settle(self, held: _Held, outcome: RunOutcome, *, repeat: bool) -> None:
        """The task ends, or comes again, as its run has ended."""
        queue = self._queue_of(held)
        if queue is None or not self._is_held(held):
            self._forget(held)
            return  # it was ended under another's hand; or the queue is read back, and asks for itself
        self._uncount(held)

        def act(turn: QueueTurn) -> None:
            task = turn.state.tasks[held.number]
            name = task.spec.task_id
            if outcome.state == "cancelled" and outcome.error is not None and outcome.error.message == UNSERVED:
                core.put_back(turn, task)
            elif outcome.state == "completed":
                core.complete(turn, name, held.token, outcome.result or NULL)
            else:
                error = outcome.error or Failure(outcome.state, f"run {outcome.key} ended as {outcome.state}")
                core.fail(turn, name, held.token, error, None if repeat else task.spec.max_retries)

        self.act(queue, act)  # held until then: a queue that fails at this is read back, and asks again
        self._forget(held)
        if self._ready:
            self._wake()

    def released(self, queue: Queue, task_id: str) -> None:
        """Somebody else has completed or failed that task: nobody wants its run any more."""
        number = queue.state.ids.get(task_id, 0)
        held = self._held.get((queue.key, number))
        if held is None or self._queue_of(held) is not None:
            return
        self._forget(held)

        def cancel(error: Coded | None) -> None:
            if error is None:
                self._background.spawn(
                    self._cancel(held.run, f"task {task_id} of the work queue was ended by somebody else")
                )

        self._kernel.lane.when_durable(cancel, queue.shard)

    async def _cancel(self, run: RunKey, reason: str) -> None:
        try:
            await self._service.control(ControlRequest(key=run, action="cancel", reason=reason))
        except SPIError as error:
            log.info("queue.run_not_cancelled", run=str(run), error=str(error))

    def left(self, queue: Queue) -> bool:
        """The queue is not in memory any more. Were tasks of it under way?"""
        self._ready.pop(queue.key, None)
        mine = [held for held in self._held.values() if held.queue == queue.key]
        for held in mine:
            self._forget(held)
        return bool(mine)

    def dropped(self, queue: Queue) -> None:
        """The queue left memory after a failure: read it back if tasks of it are under way."""
        if self.left(queue) and self._open:
            self._background.spawn(self._read_back(queue.key))

    async def _read_back(self, key: RunKey) -> None:
        while self._open:
            try:
                await self._kernel.queue(key, "")  # it exists: its name is in its first event
            except ShardMoved:
                return
            except SPIError:
                await asyncio.sleep(ASK_AGAIN_SECONDS)
            else:
                return


def run_key(queue: RunKey, task: QueueTask) -> RunKey:
    """The run that does the present attempt of a task: the same whoever asks, and as often as it is asked. The id is a
    UUIDv7 of the lease's time, so that an owner knows of most that they are new."""
    digest = blake2b(f"{queue.namespace}\0{queue.instance_id}\0{task.token}".encode(), digest_size=10).digest()
    number = (task.started_at // 1_000_000) << 80 | int.from_bytes(digest, "big")
    number = number & ~(0xF << 76) & ~(0x3 << 62) | 0x7 << 76 | 0x2 << 62
    definition = one_task(QUEUE_RUN[:-1], cast("Role", task.spec.type), task.spec.name, "")
    return RunKey(queue.namespace, definition.workflow_type, UUID(int=number))


def _only_look(_: QueueTurn) -> None:
    """Nothing is decided but what follows from looking."""


def _no_act(*_: object) -> None:
    """Until the queue book sets the real one."""


def _nothing() -> None:
    """Nobody waits."""
