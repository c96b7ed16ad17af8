"""The attempts that are under way: from a decision's instruction to a worker's credit, and from a result to a decision.

Implements what `Sessions` asks (`Attempts`) and carries out the instructions about attempts and timers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import Any, Literal

import structlog

from onexflow.codec.rows import storable
from onexflow.core.commands import (
    AuthoriseAttempt,
    CompleteItems,
    FailAttempt,
    FireTimer,
    ItemResult,
    LoseAttempt,
    ReturnAttempt,
    StopAttempt,
)
from onexflow.core.errors import Coded, InternalError, Unavailable
from onexflow.core.events import INLINE, RUN_INPUT
from onexflow.core.ids import Token, idempotency_key
from onexflow.core.instructions import ArmTimer, CancelAll, CancelAttempt, Dispatch, SendAuthorised
from onexflow.core.payload import NULL, Failure
from onexflow.core.turn import SECOND, Turn
from onexflow.engine.dispatcher import Dispatcher
from onexflow.engine.gathering import Gatherer
from onexflow.engine.kernel import Kernel
from onexflow.engine.readback import open_items, timers_of
from onexflow.engine.run import Attempt, Run
from onexflow.engine.sessions import WorkerSession
from onexflow.engine.shard import Shard
from onexflow.engine.tally import Tallies
from onexflow.engine.timers import Timers, again_at
from onexflow.ports.worker_link import Assignment, AttemptResult, Cancel, Demand, Progress, Role, ShardEpoch
from onexflow.spi.exceptions import SPIError

log = structlog.get_logger("onexflow.attempts")

#: Keeps attempts of a worker that is out of sight: (incarnation, worker, liveness address, attempts).
Watch = Callable[[str, str, str, Iterable[Attempt]], None]

#: Events of a run that may be undurable while its next pure task leaves: bounds the depth of speculation. As many again
#: for each so many attempts that are under way side by side: they are no depth.
SPECULATION = 64
SPECULATION_WIDTH = 16


class _Answer:
    """What a worker is told of its results: recorded, or not wanted. One in neither it keeps, and sends again."""

    __slots__ = ("discarded", "recorded")

    def __init__(self) -> None:
        self.recorded: list[Token] = []
        self.discarded: list[Token] = []


class AttemptBook:
    """All attempts of this orchestrator, by token."""

    def __init__(self, kernel: Kernel, watch: Watch) -> None:
        self._kernel = kernel
        self._watch = watch
        #: What is dispatched now was dispatched before: it goes ahead of what never was.
        self._repeating = False
        #: Where workers find the orchestrators: this one, and the others (told in Welcome).
        self.address = ""
        self.others: Callable[[], Iterable[str]] = tuple
        self.attempts: dict[Token, Attempt] = {}
        self.dispatcher = Dispatcher(self._place)
        self.timers = Timers(kernel.now, self._fire, _is_resident)
        self._dirty: dict[WorkerSession, None] = {}
        self._flushing = False
        self._told: dict[str, int] = {}
        self._sessions: dict[WorkerSession, None] = {}
        self._lookups: set[asyncio.Task[None]] = set()
        #: Called when a worker has joined, has given credits, or has gone.
        self.on_room: Callable[[Literal["joined", "credits", "gone"]], None] = _ignore
        self.gatherer = Gatherer(lambda session, results: self.on_results(session, results, gathered=True))
        self.tallies = Tallies()
        #: Results of attempts that the log does not wait for.
        self.superseded = 0

    # ---- instructions

    def carry_out(self, run: Run, turn: Turn) -> None:
        """Do what a decision asks for (but FinishRun, which is the orchestrator's)."""
        for instruction in turn.instructions:
            match instruction:
                case Dispatch():
                    self._dispatch(run, instruction)
                case SendAuthorised():
                    pass  # `_place` asked for it and goes on by itself
                case ArmTimer():
                    self.timers.add(
                        instruction.due_at,
                        run,
                        FireTimer(
                            instruction.kind, instruction.task, instruction.item, instruction.epoch, instruction.offset
                        ),
                    )
                case CancelAttempt():
                    token = Token(run.shard.id, instruction.epoch, instruction.offset, instruction.item)
                    attempt = self.attempts.get(token)
                    if attempt is not None:
                        self._cancel(attempt)
                case CancelAll():
                    for attempt in list(run.attempts.values()):
                        self._cancel(attempt)

    def _dispatch(self, run: Run, instruction: Dispatch) -> None:
        shard = run.shard.id
        for item in range(instruction.first, instruction.first + instruction.count):
            token = Token(shard, instruction.epoch, instruction.offset, item)
            if token not in self.attempts:
                self.attempts[token] = run.attempts[token] = attempt = Attempt(run, instruction.task, item, token)
                self.dispatcher.enqueue(attempt, first=self._repeating)

    def take_back(self, run: Run, member_liveness: Callable[[str], str]) -> None:
        """A run was read back: wait for what its workers hold, arm its timers, dispatch what never left."""
        for task, index, item in open_items(run):
            token = Token(run.shard.id, item.epoch, item.offset, index)
            known = self.attempts.get(token)
            if known is not None:  # the run was read back while it was at work
                known.run = run
                run.attempts[token] = known
                continue
            if item.status not in {"scheduled", "running"}:
                continue
            attempt = Attempt(run, task, index, token)
            if item.status == "running":
                self._keep(attempt)
                attempt.sent = True
                attempt.sent_at = attempt.progress_at = _loop_time()
                self._watch(item.incarnation, item.worker, member_liveness(item.incarnation), [attempt])
            elif index < run.state.tasks[task].window and run.may_dispatch(task):
                self._keep(attempt)
                if run.shard.adopting is not None and attempt.role != "effect":
                    run.shard.adopting.append(attempt)
                else:
                    self.dispatcher.enqueue(attempt)
        for timer in timers_of(run):
            self.timers.add(timer.due_at, run, FireTimer(timer.kind, timer.task, timer.item, timer.epoch, timer.offset))

    def place_anew(self, run: Run) -> None:
        """The run was assigned to a node: what waits for any worker waits for that one now."""
        if run.shard.adopting is not None:
            return  # placed when the workers have said what they hold
        for attempt in list(run.attempts.values()):
            if attempt.session is None and not attempt.sent and not attempt.withdrawn:
                attempt.withdrawn = True  # where it waits; its token goes on
                moved = Attempt(run, attempt.task, attempt.item, attempt.token)
                self._keep(moved)
                self.dispatcher.enqueue(moved)

    def forget(self, run: Run, task: int, item: int) -> None:
        """Know nothing more of the present attempt of that item: the run is about to be read back."""
        state = run.state.tasks[task].items[item]
        attempt = self.attempts.get(Token(run.shard.id, state.epoch, state.offset, item))
        if attempt is not None:
            self._forget(attempt)

    def claimed(self, shard: Shard) -> None:
        """The shard is owned from now on: have every worker say what it holds of it. Until they have, pure attempts of
        runs that are read back wait."""
        shard.adopting = []
        for session in self._sessions:
            session.told.discard(shard.id)
            session.send(ShardEpoch(shard.id, shard.epoch))

    def end_adoption(self, shard: Shard) -> int:
        """Dispatch the pure attempts that no worker holds. Returns how many were adopted."""
        waiting, shard.adopting = shard.adopting or [], None
        adopted = 0
        for attempt in waiting:
            if attempt.session is not None or attempt.withdrawn:
                adopted += 1
            else:
                self.dispatcher.enqueue(attempt)
        return adopted

    def left(self, shard: Shard) -> None:
        """The shard is not owned any more: its attempts go on where they are, for its next owner."""
        for run in shard.runs.values():
            for attempt in list(run.attempts.values()):
                self._forget(attempt)
        for session in self._sessions:
            session.told.discard(shard.id)

    def _keep(self, attempt: Attempt) -> None:
        self.attempts[attempt.token] = attempt
        attempt.run.attempts[attempt.token] = attempt

    def _forget(self, attempt: Attempt) -> None:
        token = attempt.token
        self.attempts.pop(token, None)
        attempt.run.attempts.pop(token, None)
        self.take_away(attempt)
        attempt.withdrawn = True

    def take_away(self, attempt: Attempt) -> None:
        """It is not for the worker any more on which it was placed, if it was: what has not left never will."""
        session = attempt.session
        if session is not None:
            session.inflight.pop(attempt.token, None)
            if not (attempt.sent or attempt.withdrawn) and session.is_open:
                self._return_credit(session, attempt.role)

    def _return_credit(self, session: WorkerSession, role: Role) -> None:
        """It was placed there and never leaves: the worker knows nothing of it, and will not give its slot again."""
        session.credits[role] = session.credits.get(role, 0) + 1
        asyncio.get_running_loop().call_soon(self._pump, session)

    def _pump(self, session: WorkerSession) -> None:
        if session.is_open:
            self.on_credits(session)

    def _cancel(self, attempt: Attempt) -> None:
        """Stop it if it was sent, once the decision is durable. Its session answers, or not: nobody waits."""
        session, token = attempt.session, attempt.token
        state = attempt.run.state.tasks[attempt.task]
        stopping = attempt.item < len(state.items) and state.items[attempt.item].stopping
        if not stopping:
            self._forget(attempt)
        if session is not None and attempt.sent:

            def release(error: Coded | None) -> None:
                if error is None:
                    session.cancels.append(token)
                    self._mark(session)

            self._kernel.lane.when_durable(release, attempt.run.shard)

    # ---- placing and sending

    def _place(self, attempt: Attempt, session: WorkerSession) -> bool:
        run = attempt.run
        if attempt.withdrawn or attempt.session is not None:
            return False
        if run.is_broken or not run.may_dispatch(attempt.task):
            self._forget(attempt)  # dispatched anew when the run is read back, or taken up
            return False
        if attempt.role == "effect":
            return self._place_effect(attempt, session)
        attempt.session = session
        session.inflight[attempt.token] = attempt
        undurable = run.state.seq - run.durable_seq
        # An orchestration makes calls as soon as it runs: what it was scheduled by must be durable by then.
        if attempt.role == "orchestrator" or undurable > SPECULATION * (1 + len(run.attempts) // SPECULATION_WIDTH):
            self._kernel.lane.when_durable(lambda error: self._send(attempt, session, error), run.shard)
        elif session.is_open:
            self._let_go(attempt, session)
        return True

    def _place_effect(self, attempt: Attempt, session: WorkerSession) -> bool:
        """Write that the effect may run there; send it when that is durable."""
        run = attempt.run
        turn = self._kernel.decide(
            run,
            AuthoriseAttempt(
                attempt.task,
                attempt.item,
                session.worker_id,
                session.incarnation,
                session.is_idempotent("effect", attempt.handler),
            ),
        )
        authorised = next((entry for entry in turn.instructions if isinstance(entry, SendAuthorised)), None)
        self._forget(attempt)
        if authorised is None:
            return False
        token = Token(run.shard.id, authorised.epoch, authorised.offset, attempt.item)
        started = Attempt(run, attempt.task, attempt.item, token)
        started.session = session
        self._keep(started)
        session.inflight[token] = started
        self._kernel.lane.when_durable(lambda error: self._send_effect(started, session, error), run.shard)
        return True

    def _send_effect(self, attempt: Attempt, session: WorkerSession, error: Coded | None) -> None:
        """As `_send`; what was told to stop meanwhile never leaves."""
        if (
            error is None
            and not attempt.withdrawn
            and attempt.session is session
            and session.is_open
            and attempt.run.state.tasks[attempt.task].items[attempt.item].stopping
        ):
            self.give_back(attempt)
        else:
            self._send(attempt, session, error)

    def _send(self, attempt: Attempt, session: WorkerSession, error: Coded | None) -> None:
        if error is not None or attempt.withdrawn or attempt.session is not session:
            return
        if session.is_open:  # else its end has made the attempt an orphan; it was never sent
            self._let_go(attempt, session)

    def _let_go(self, attempt: Attempt, session: WorkerSession) -> None:
        """It leaves with the flush at the end of this turn of the loop."""
        attempt.sent = True
        attempt.sent_at = attempt.progress_at = _loop_time()
        session.outbox.append(self._assignment(attempt))
        if session not in self._dirty:
            self._mark(session)

    def _assignment(self, attempt: Attempt) -> Assignment:
        run, task = attempt.run, attempt.task
        state, graph = run.state, run.graph
        item = state.tasks[task].items[attempt.item]
        source = item.source
        if source == RUN_INPUT:
            payload = state.input
        elif source == INLINE:
            payload = item.input or NULL
        else:
            payload = state.tasks[source].result or NULL
        timeouts = graph.specs[task].timeouts
        if timeouts.start_to_close or timeouts.heartbeat:
            self._arm_pure(attempt)
        name = graph.names[task]
        return Assignment(
            token=attempt.token,
            role=attempt.role,
            handler=attempt.handler,
            namespace=run.key.namespace,
            workflow_type=run.key.workflow_type,
            instance_id=run.instance_id,
            task=name,
            attempt=item.attempt,
            input=payload,
            idempotency_key=idempotency_key(run.key, name, attempt.item, state.causation_id)
            if attempt.role == "effect"
            else "",
            timeout=timeouts.start_to_close,
            heartbeat=timeouts.heartbeat,
            trace=state.trace,
            progress=run.progress.get((task, attempt.item)) if run.progress else None,
        )

    def _arm_pure(self, attempt: Attempt) -> None:
        """A pure attempt is with a worker: nothing in the log says so, its timers are the engine's own."""
        if attempt.role == "effect":
            return
        timeouts = attempt.run.graph.specs[attempt.task].timeouts
        now, token = self._kernel.now(), attempt.token
        for kind, seconds in (("start_to_close", timeouts.start_to_close), ("heartbeat", timeouts.heartbeat)):
            if seconds:
                command = FireTimer(kind, attempt.task, attempt.item, token.epoch, token.offset)  # type: ignore[arg-type]  # a timer's kind is one of its own words
                self.timers.add(now + int(seconds * SECOND), attempt.run, command)

    def _mark(self, session: WorkerSession) -> None:
        self._dirty[session] = None
        if not self._flushing:
            self._flushing = True
            asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        self._flushing = False
        dirty, self._dirty = self._dirty, {}
        for session in dirty:
            session.flush()

    def tell_demand(self) -> None:
        """Tell the workers what waits here. Again while something does: what they have been sent since they count as
        what they were told of."""
        waiting = self.dispatcher.waiting()
        if waiting or waiting != self._told:
            self._told = waiting
            for session in self._sessions:
                session.send(Demand(waiting))

    # ---- Attempts, for Sessions

    def join(self, session: WorkerSession) -> None:
        self._sessions[session] = None
        session.tally = self.tallies.of(session.worker_id, session.incarnation)
        self.dispatcher.add(session)
        session.send(Demand(self.dispatcher.waiting()))
        self.on_room("joined")

    def leave(self, session: WorkerSession) -> None:
        self.gatherer.left(session)
        self._sessions.pop(session, None)
        self.dispatcher.remove(session)
        self.on_room("gone")

    def pass_over(self, session: WorkerSession) -> None:
        self.gatherer.left(session)
        self.dispatcher.pass_over(session)

    def on_credits(self, session: WorkerSession) -> None:
        self.dispatcher.pump(session)
        self.on_room("credits")

    def epochs(self) -> dict[int, int]:
        return {shard.id: shard.epoch for shard in self._kernel.shards.values()}

    def owned(self, number: int) -> Shard | None:
        return self._kernel.shards.get(number)

    def addresses(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(address for address in (self.address, *self.others()) if address))

    def on_progress(self, token: Token, message: Progress) -> None:
        attempt = self.attempts.get(token)
        if attempt is not None:
            attempt.progress_at = _loop_time()
            attempt.run.progress[attempt.task, attempt.item] = message.details

    def on_adopted(self, session: WorkerSession, attempt: Attempt) -> None:
        """A worker runs it, as it said: its clocks begin anew, and a stop that it may not have heard is told again."""
        attempt.sent_at = attempt.progress_at = _loop_time()
        self._arm_pure(attempt)
        if attempt.run.state.tasks[attempt.task].items[attempt.item].stopping:
            session.cancels.append(attempt.token)
            self._mark(session)

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
            held = self.attempts.get(token)
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
                await work
            except SPIError as error:
                log.warning("lookup.failed", error=str(error))

        task = asyncio.get_running_loop().create_task(guarded())
        self._lookups.add(task)
        task.add_done_callback(self._lookups.discard)

    def on_results(self, session: WorkerSession, results: Sequence[AttemptResult], *, gathered: bool = False) -> None:
        """Decide what came in; acknowledge it when that is durable. Results that may wait for others of their task are
        held until they come again, `gathered`."""
        answer = _Answer()
        group: list[ItemResult] = []
        tokens: list[Token] = []
        first: Attempt | None = None
        started_at = 0
        worker, incarnation = session.worker_id, session.incarnation
        ended: list[AttemptResult] = []
        for result in results:
            token, status = result.token, result.status
            attempt = self.attempts.get(token)
            if attempt is None:
                self._on_unknown_result(session, result)
                continue
            if attempt.gathers and not gathered:
                if status == "completed" and attempt.session is session:  # else it may be placed anew meanwhile
                    self.gatherer.hold(session, attempt, result)
                    continue
                self.gatherer.let_go(attempt.run)  # they came before
            if first is not None and not (
                status == "completed" and attempt.run is first.run and attempt.task == first.task
            ):
                command = CompleteItems(first.task, group, worker, incarnation, started_at)
                self._decide(first.run, command, tokens, answer)
                first, group, tokens = None, [], []
            if status in {"stopped", "returned"} and attempt.session not in (None, session):
                answer.discarded.append(token)  # it runs elsewhere by now, under the same token
                continue
            self._forget(attempt)
            ended.append(result)
            if status == "completed":
                if first is None:
                    first, started_at = attempt, result.started_at
                group.append(ItemResult(attempt.item, token.epoch, token.offset, result.result))
                tokens.append(token)
            else:
                self._end(session, attempt, result, answer)
        if first is not None:
            command = CompleteItems(first.task, group, worker, incarnation, started_at)
            self._decide(first.run, command, tokens, answer)
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

    def _on_unknown_result(self, session: WorkerSession, result: AttemptResult) -> None:
        shard = self._kernel.shards.get(result.token.shard)
        if shard is None:
            return  # the worker keeps it for the shard's owner
        if shard.early is not None:  # its run may be read back just now
            shard.early.append(lambda: self.on_results(session, [result]))
        else:
            self._in_background(self._resolve_unknown(session, result))

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
        if not run.is_over:
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

    async def _resolve_unknown(self, session: WorkerSession, result: AttemptResult) -> None:
        """A result of an attempt that is not in memory: superseded, recorded before, or of a parked run."""
        shard = self._kernel.shards.get(result.token.shard)
        if shard is None:
            return  # the worker keeps it for the shard's owner
        await self._kernel.lane.durable(shard)
        answer = _Answer()
        attempt = await self._find(result.token)
        shard.check()
        if attempt is None:
            self.superseded += 1
            answer.discarded.append(result.token)
            self._acknowledge(session, answer)
            return
        session.tally.add([result])
        if result.status == "completed":
            group = [ItemResult(attempt.item, result.token.epoch, result.token.offset, result.result)]
            command = CompleteItems(attempt.task, group, session.worker_id, session.incarnation, result.started_at)
            self._decide(attempt.run, command, [result.token], answer)
        else:
            self._end(session, attempt, result, answer)
        self._acknowledge(session, answer)

    def lose(self, attempt: Attempt, worker: str) -> None:
        """The attempt's worker is dead. What was never sent did not start."""
        if attempt.withdrawn or attempt.run.shard.moved is not None:
            return
        if not attempt.sent:
            self.give_back(attempt)
            return
        self._forget(attempt)
        token = attempt.token
        self._repeat(attempt.run, LoseAttempt(attempt.task, attempt.item, token.epoch, token.offset, worker))

    def give_back(self, attempt: Attempt) -> None:
        """The attempt never began on its worker (or is pure): dispatch it anew."""
        if attempt.withdrawn or attempt.run.shard.moved is not None:
            return
        self._forget(attempt)
        token = attempt.token
        self._repeat(attempt.run, ReturnAttempt(attempt.task, attempt.item, token.epoch, token.offset))

    def _repeat(self, run: Run, command: LoseAttempt | ReturnAttempt) -> None:
        self._repeating = True
        try:
            self._decide(run, command, [], _Answer())
        finally:
            self._repeating = False

    # ---- timers

    def _fire(self, run: Run, command: FireTimer) -> None:
        if not _is_resident(run):
            return
        self.gatherer.let_go(run)  # its results came before
        token = Token(run.shard.id, command.epoch, command.offset, command.item)
        attempt = self.attempts.get(token)
        if command.kind == "schedule_to_start" and attempt is not None and attempt.sent:
            return
        if command.kind == "heartbeat" and attempt is not None:
            seconds = run.graph.specs[command.task].timeouts.heartbeat
            left = attempt.progress_at + seconds - _loop_time()
            if left > 0:
                self.timers.add(again_at(self._kernel.now(), left), run, command)
                return
        if command.kind == "start_to_close" and attempt is not None and attempt.role != "effect":
            left = attempt.sent_at + run.graph.specs[command.task].timeouts.start_to_close - _loop_time()
            if left > 0:  # it was sent again, under the same token
                self.timers.add(again_at(self._kernel.now(), left), run, command)
                return
        try:
            self._kernel.decide(run, command)
        except SPIError as error:
            log.warning("timer.failed", run=str(run.key), timer=command.kind, error=str(error))

    def stop(self) -> None:
        self.timers.stop()
        self.gatherer.stop()
        for task in self._lookups:
            task.cancel()


def _ignore(_: str) -> None:
    """Until the orchestrator sets the real one."""


def _item_of(run: Run, token: Token) -> tuple[int, int] | None:
    """(task, item) whose current attempt has that token."""
    for task, index, item in open_items(run):
        if index == token.item and item.epoch == token.epoch and item.offset == token.offset:
            return task, index
    return None


def _is_resident(run: Run) -> bool:
    return run.shard.moved is None and run.shard.runs.get(run.iid) is run


def _loop_time() -> float:
    return asyncio.get_running_loop().time()
