"""Results: from what workers say of their attempts to decisions, and to the acknowledgement when those are durable."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Final

import structlog

from onexflow.codec.rows import storable
from onexflow.core.commands import (
    CompleteItems,
    FailAttempt,
    LoseAttempt,
    ReturnAttempt,
    StopAttempt,
)
from onexflow.core.errors import Coded, InternalError, Unavailable
from onexflow.core.ids import Token
from onexflow.core.machine import TERMINAL_WORKFLOW_STATES
from onexflow.core.payload import Failure
from onexflow.core.turn import SECOND
from onexflow.engine.admission import Admission
from onexflow.engine.gathering import Gatherer
from onexflow.engine.kernel import Kernel
from onexflow.engine.placing import Placing, loop_time
from onexflow.engine.readback import open_items
from onexflow.engine.run import Attempt, Run
from onexflow.engine.sessions import WorkerSession
from onexflow.ports.worker_link import AttemptResult, Cancel
from onexflow.spi.exceptions import SPIError

log = structlog.get_logger("onexflow.attempts")

#: Attempts that are not in memory are looked for in the store so many at a time: workers whose streams break say thousands
#: of them, again and again, and whoever takes over shards reads there, too.
LOOKUPS: Final = 2


class _Answer:
    """What a worker is told of its results: recorded, or not wanted. One in neither it keeps, and sends again."""

    __slots__ = ("discarded", "recorded")

    def __init__(self) -> None:
        self.recorded: list[Token] = []
        self.discarded: list[Token] = []


class ResultIntake:
    """Takes what workers say of attempts that have ended, or that this orchestrator does not know."""

    def __init__(self, kernel: Kernel, placing: Placing, admission: Admission) -> None:
        self._kernel = kernel
        self._placing = placing
        self._admission = admission
        #: What is dispatched now was dispatched before: it goes ahead of what never was.
        self.is_repeating = False
        #: Results of attempts that the log does not wait for.
        self.superseded = 0
        #: Called with a fed attempt that has ended at that worker.
        self.on_ended: Callable[[WorkerSession, Token], None] = _ignore
        #: Called with a fed attempt that has ended elsewhere, and would wait for ever where it is.
        self.on_overtaken: Callable[[Attempt], None] = _ignore
        self._lookups: set[asyncio.Task[None]] = set()
        self._few = asyncio.Semaphore(LOOKUPS)
        #: What is looked for of a worker (its incarnation), however often it says it, and its stream of now.
        self._sought: dict[tuple[Token, str], WorkerSession] = {}
        self.gatherer = Gatherer(lambda session, results: self.on_results(session, results, gathered=True))

    def on_results(self, session: WorkerSession, results: Sequence[AttemptResult], *, gathered: bool = False) -> None:
        """Decide what came in; acknowledge it when that is durable. Results that may wait for others of their task are
        held until they come again, `gathered`."""
        answer = _Answer()
        attempts, forget = self._placing.attempts, self._placing.forget
        worker, incarnation, fed = session.worker_id, session.incarnation, session.fed
        # Of `first` and those like it, once there is one. Nothing is added to it once it is decided: events have its lists.
        command = CompleteItems(-1, [], [], worker, incarnation)
        first: Attempt | None = None
        last: Attempt | None = None
        ended: list[AttemptResult] = []
        overtaken: list[Attempt] = []
        for result in results:
            token, status = result.token, result.status
            if fed and token in fed:
                self.on_ended(session, token)
            attempt = attempts.get(token)
            if attempt is None:
                self._on_unknown_result(session, result)
                continue
            if attempt.gathers and not gathered:
                if status == "completed" and attempt.session is session:  # else it may be placed anew meanwhile
                    self.gatherer.hold(session, attempt, result)
                    continue
                self.gatherer.let_go(attempt.run)  # they came before
            if first is not None and not (
                attempt.run is first.run and attempt.task == first.task and status == "completed"
            ):
                self._decide(first.run, command, command.tokens, answer)
                first = None
            if attempt.session is not session:
                if attempt.session is not None and status in {"stopped", "returned"}:
                    answer.discarded.append(token)  # it runs elsewhere by now, under the same token
                    continue
                if attempt.run.graph.specs[attempt.task].feed:
                    overtaken.append(attempt)
            forget(attempt)
            ended.append(result)
            last = attempt
            if status != "completed":
                self._end(session, attempt, result, answer)
            elif first is None:
                first = attempt
                command = CompleteItems(attempt.task, [token], [result.result], worker, incarnation, result.started_at)
            else:
                command.tokens.append(token)
                command.results.append(result.result)
        if first is not None:
            self._decide(first.run, command, command.tokens, answer)
        if last is not None and last.sent and not gathered:  # one of a message tells of all
            took = (ended[-1].finished_at - ended[-1].started_at) / SECOND
            waiting = len(self._placing.dispatcher.queue(last.role, last.info.handler))
            self._admission.heard(loop_time(), last.sent_at, took, waiting / (len(session.inflight) + len(ended)))
        for attempt in overtaken:
            self.on_overtaken(attempt)
        session.tally.add(ended)
        self._acknowledge(session, answer)

    def _acknowledge(self, session: WorkerSession, answer: _Answer) -> None:
        """Tell the worker, shard by shard where one of them may be lost alone."""
        recorded, discarded = answer.recorded, answer.discarded
        if not recorded and not discarded:
            return
        numbers = {token.shard for token in recorded}
        if discarded:
            numbers.update(token.shard for token in discarded)
        shards = [self._kernel.shards[number] for number in numbers if number in self._kernel.shards]

        def release(error: Coded | None) -> None:
            if error is not None and self._kernel.lane.is_over:
                return
            durable = {shard.id: shard.durable for shard in shards if shard.lost is None}
            kept, dropped = recorded, discarded
            if len(durable) < len(numbers):
                kept = [token for token in recorded if token.shard in durable]
                dropped = [token for token in discarded if token.shard in durable]
            if kept or dropped:
                session.acknowledge(kept, dropped, durable)

        self._kernel.lane.when_durable(release, patient=True)

    def _end(self, session: WorkerSession, attempt: Attempt, result: AttemptResult, answer: _Answer) -> None:
        task, item = attempt.task, attempt.item
        epoch, offset = result.token.epoch, result.token.offset
        command: FailAttempt | StopAttempt | ReturnAttempt
        if result.status == "failed":
            error = storable(result.error or Failure("Unknown", "the worker gave no reason"))
            command = FailAttempt(
                task, item, epoch, offset, error, session.worker_id, session.incarnation, result.started_at
            )
        elif result.status == "stopped":
            command = StopAttempt(task, item, epoch, offset)
        else:
            command = ReturnAttempt(task, item, epoch, offset)
        self._decide(attempt.run, command, [result.token], answer)

    def _decide(
        self,
        run: Run,
        command: CompleteItems | FailAttempt | StopAttempt | ReturnAttempt | LoseAttempt,
        tokens: list[Token],
        answer: _Answer,
    ) -> None:
        """Decide about the attempts with these tokens, and say in `answer` what became of them."""
        superseded: list[tuple[int, int, int]] | None = None
        if run.state.status not in TERMINAL_WORKFLOW_STATES:
            try:
                superseded = self._kernel.decide(run, command).superseded
            except (InternalError, Unavailable):
                return  # the run is read back, and its workers are asked again: they keep what has no answer
            except SPIError as error:
                log.exception("result.refused", run=str(run.key), error=str(error))
        if superseded is None:  # nothing was decided
            self.superseded += len(tokens)
            answer.discarded.extend(tokens)
        elif not superseded:
            answer.recorded.extend(tokens)
        else:
            self.superseded += len(superseded)
            dropped = set(superseded)
            for token in tokens:
                is_dropped = (token.item, token.epoch, token.offset) in dropped
                (answer.discarded if is_dropped else answer.recorded).append(token)

    def lose(self, attempt: Attempt, worker: str) -> None:
        """The attempt's worker is dead. What was never sent did not start."""
        if attempt.withdrawn or attempt.run.shard.moved is not None:
            return
        if not attempt.sent:
            self.give_back(attempt)
            return
        self._placing.forget(attempt)
        token = attempt.token
        self._repeat(attempt.run, LoseAttempt(attempt.task, attempt.item, token.epoch, token.offset, worker))

    def give_back(self, attempt: Attempt) -> None:
        """The attempt never began on its worker (or is pure): dispatch it anew."""
        if attempt.withdrawn or attempt.run.shard.moved is not None:
            return
        self._placing.forget(attempt)
        token = attempt.token
        self._repeat(attempt.run, ReturnAttempt(attempt.task, attempt.item, token.epoch, token.offset))

    def _repeat(self, run: Run, command: LoseAttempt | ReturnAttempt) -> None:
        self.is_repeating = True
        try:
            self._decide(run, command, [], _Answer())
        finally:
            self.is_repeating = False

    # ---- of attempts that are not in memory

    def _on_unknown_result(self, session: WorkerSession, result: AttemptResult) -> None:
        shard = self._kernel.shards.get(result.token.shard)
        if shard is None:
            return  # the worker keeps it for the shard's owner
        if shard.early is not None:  # its run may be read back just now
            shard.early.append(lambda: self.on_results(session, [result]))
            return
        sought = result.token, session.incarnation
        is_new = sought not in self._sought
        self._sought[sought] = session
        if is_new:
            self._in_background(self._seek(sought, result))

    async def _seek(self, sought: tuple[Token, str], result: AttemptResult) -> None:
        try:
            await self._resolve_unknown(sought, result)
        finally:
            self._sought.pop(sought, None)

    async def _resolve_unknown(self, sought: tuple[Token, str], result: AttemptResult) -> None:
        """A result of an attempt that is not in memory: superseded, recorded before, or of a parked run."""
        shard = self._kernel.shards.get(result.token.shard)
        if shard is None:
            return  # the worker keeps it for the shard's owner
        await self._kernel.lane.durable(shard)
        answer = _Answer()
        attempt = await self._find(result.token)
        session = self._sought.pop(sought)
        shard.check()
        if attempt is None:
            self.superseded += 1
            answer.discarded.append(result.token)
            self._acknowledge(session, answer)
            return
        if result.token in self._placing.attempts:  # its run was read back for this, and waits for it, or would send it
            self.on_results(session, [result])
            return
        session.tally.add([result])
        if result.status == "completed":
            command = CompleteItems(
                attempt.task, [result.token], [result.result], session.worker_id, session.incarnation, result.started_at
            )
            self._decide(attempt.run, command, [result.token], answer)
        else:
            self._end(session, attempt, result, answer)
        self._acknowledge(session, answer)

    def on_unknown(self, session: WorkerSession, tokens: Sequence[Token]) -> None:
        """A worker runs what is not in memory: of a parked run, awaited as a late result, or superseded."""
        self._in_background(self._judge_unknown(session, tokens))

    async def _judge_unknown(self, session: WorkerSession, tokens: Sequence[Token]) -> None:
        unwanted = []
        for token in tokens:
            shard = self._kernel.shards.get(token.shard)
            if shard is None:
                continue  # its owner judges
            await self._kernel.lane.durable(shard)
            found = await self._find(token)
            item = found.run.state.tasks[found.task].items[found.item] if found is not None else None
            held = self._placing.attempts.get(token)
            awaited = item is not None and item.status == "waiting_for_input"
            if not awaited and shard.moved is None and (held is None or held.session is not session):
                unwanted.append(token)
        if unwanted:
            session.send(Cancel(unwanted, "not known to the log"))

    async def _find(self, token: Token) -> Attempt | None:
        """The attempt with that token, if its run is open and waits for its end. Durable state only."""
        shard = self._kernel.shards.get(token.shard)
        if shard is None or token.offset >= shard.durable:
            return None
        rows = await self._kernel.store.read_shard(shard.id, token.offset, 1)
        if rows and rows[0].offset <= token.offset:
            iids = [rows[0].iid]
        else:  # that event was cut, of a run that may still wait
            graves = await self._kernel.store.tombstones(shard.id, token.offset)
            iids = list({grave.iid for grave in graves if grave.first_offset <= token.offset})
        for iid in iids:
            run = await self._kernel.find_numbered(shard, iid)
            found = _item_of(run, token) if run is not None and not run.is_over else None
            if run is not None and found is not None:
                return Attempt(run, *found, token)
        return None

    def _in_background(self, work: Coroutine[Any, Any, None]) -> None:
        async def guarded() -> None:
            try:
                async with self._few:
                    await work
            except SPIError as error:
                log.warning("lookup.failed", error=str(error))
            finally:
                work.close()  # it may not have begun

        task = asyncio.get_running_loop().create_task(guarded())
        self._lookups.add(task)
        task.add_done_callback(self._lookups.discard)

    def stop(self) -> None:
        for task in self._lookups:
            task.cancel()


def _ignore(*_: object) -> None:
    """Until the book of attempts sets the real one."""


def _item_of(run: Run, token: Token) -> tuple[int, int] | None:
    """(task, item) whose current attempt has that token."""
    for task, index, item in open_items(run):
        if index == token.item and item.epoch == token.epoch and item.offset == token.offset:
            return task, index
    return None
