"""The attempts that are under way: from a decision's instruction to a worker's credit, and from a result to a decision.

Implements what `Sessions` asks (`Attempts`) and carries out the instructions about attempts and timers. The way to a
worker is `engine.placing`, the way back `engine.results`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Literal

import structlog

from onexflow.core.commands import FireTimer
from onexflow.core.errors import Coded, ProtocolViolation
from onexflow.core.ids import Token
from onexflow.core.instructions import ArmTimer, CancelAll, CancelAttempt, Dispatch, SendAuthorised
from onexflow.core.turn import Turn
from onexflow.engine.admission import Admission
from onexflow.engine.feeding import Feeding
from onexflow.engine.kernel import Kernel
from onexflow.engine.placing import Placing, loop_time
from onexflow.engine.readback import open_items, timers_of
from onexflow.engine.results import ResultIntake
from onexflow.engine.run import Attempt, Run
from onexflow.engine.sessions import WorkerSession
from onexflow.engine.shard import Shard
from onexflow.engine.tally import Tallies
from onexflow.engine.timers import Timers, again_at
from onexflow.ports.worker_link import AttemptResult, Demand, Fed, Progress, ShardEpoch
from onexflow.spi.exceptions import SPIError

log = structlog.get_logger("onexflow.attempts")

#: Events of a run that may be undurable while its next pure task leaves: bounds the depth of speculation.
SPECULATION = 64

#: Keeps attempts of a worker that is out of sight: (incarnation, worker, liveness address, attempts).
Watch = Callable[[str, str, str, Iterable[Attempt]], None]


class AttemptBook:
    """All attempts of this orchestrator, by token."""

    def __init__(self, kernel: Kernel, watch: Watch, *, speculation: bool) -> None:
        self._kernel = kernel
        self._watch = watch
        #: Where workers find the orchestrators: this one, and the others (told in Welcome).
        self.address = ""
        self.others: Callable[[], Iterable[str]] = tuple
        self.timers = Timers(kernel.now, self._fire, _is_resident)
        #: Is told how long results are on their way.
        self.admission = Admission()
        self._placing = Placing(kernel, self.timers, ahead=SPECULATION if speculation else 0)
        self._results = ResultIntake(kernel, self._placing, self.admission)
        self.gatherer = self._results.gatherer
        self._placing.give_back = self._results.give_back
        self._placing.on_returned = self._pump
        self.feeding = Feeding(self._placing)
        self._placing.on_sent_again = self.feeding.look
        self._results.on_ended = self.feeding.ended
        self._results.on_overtaken = self._stop
        self.attempts = self._placing.attempts
        self.dispatcher = self._placing.dispatcher
        self._told: dict[str, int] = {}
        self._sessions: dict[WorkerSession, None] = {}
        #: Called when a worker has joined, has given credits, or has gone.
        self.on_room: Callable[[Literal["joined", "credits", "gone"]], None] = _ignore
        self.tallies = Tallies()

    # ---- instructions

    def carry_out(self, run: Run, turn: Turn) -> None:
        """Do what a decision asks for (but FinishRun, which is for `engine.consequences`)."""
        for instruction in turn.instructions:
            if type(instruction) is Dispatch:  # nearly all are, and a case costs more
                self._dispatch(run, instruction)
                continue
            match instruction:
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
        shard, known, first = run.shard.id, self.attempts, instruction.first
        for item in range(first, first + instruction.count):
            token = Token(shard, instruction.epoch, instruction.offset, item)
            if token not in known:
                known[token] = run.attempts[token] = attempt = Attempt(run, instruction.task, item, token)
                self.dispatcher.enqueue(attempt, first=self._results.is_repeating)

    def take_back(self, run: Run, member_liveness: Callable[[str], str]) -> None:
        """A run was read back: wait for what its workers hold, arm its timers, dispatch what never left."""
        for task, index, item in open_items(run):
            token = Token(run.shard.id, item.epoch, item.offset, index)
            known = self.attempts.get(token)
            if known is not None:  # the run was read back while it was at work
                known.run = run
                run.attempts[token] = known
                if known.session is not None and known.sent:
                    self.feeding.look(known.session, token)
                continue
            if item.status not in {"scheduled", "running"}:
                continue
            attempt = Attempt(run, task, index, token)
            if item.status == "running":
                self._placing.keep(attempt)
                attempt.sent = True
                attempt.sent_at = attempt.progress_at = loop_time()
                self._watch(item.incarnation, item.worker, member_liveness(item.incarnation), [attempt])
            elif index < run.state.tasks[task].window and run.may_dispatch(task):
                self._placing.keep(attempt)
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
                self._placing.keep(moved)
                self.dispatcher.enqueue(moved)

    def forget(self, run: Run, task: int, item: int) -> None:
        """Know nothing more of the present attempt of that item: the run is about to be read back."""
        state = run.state.tasks[task].items[item]
        attempt = self.attempts.get(Token(run.shard.id, state.epoch, state.offset, item))
        if attempt is not None:
            self._placing.forget(attempt)

    def claimed(self, shard: Shard) -> None:
        """The shard is owned from now on: have every worker say what it holds of it. Until they have, pure attempts of
        runs that are read back wait."""
        shard.adopting = []
        for session in self._sessions:
            session.told.discard(shard.id)
            session.asked.add(shard.id)
            self.feeding.cut_off(session, shard.id)
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
                self._placing.forget(attempt)
        for session in self._sessions:
            session.told.discard(shard.id)
            self.feeding.cut_off(session, shard.id)

    def _cancel(self, attempt: Attempt) -> None:
        """Stop it if it was sent, once the decision is durable. Its session answers, or not: nobody waits."""
        state = attempt.run.state.tasks[attempt.task]
        stopping = attempt.item < len(state.items) and state.items[attempt.item].stopping
        if not stopping:
            self._placing.forget(attempt)
        self._stop(attempt)

    def _stop(self, attempt: Attempt) -> None:
        """Tell its worker, if it was sent, once what was decided is durable."""
        session, token = attempt.session, attempt.token
        if session is not None and attempt.sent:

            def release(error: Coded | None) -> None:
                if error is None:
                    session.cancels.append(token)
                    self._placing.mark(session)

            self._kernel.lane.when_durable(release, attempt.run.shard)

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
        if not session.is_open:
            self.feeding.cut_off(session)
        self._sessions.pop(session, None)
        self.dispatcher.remove(session)
        self.on_room("gone")

    def pass_over(self, session: WorkerSession) -> None:
        self.gatherer.left(session)
        self.dispatcher.pass_over(session)

    def on_credits(self, session: WorkerSession) -> None:
        self.dispatcher.pump(session)
        self.on_room("credits")

    def _pump(self, session: WorkerSession) -> None:
        if session.is_open:
            self.on_credits(session)

    def on_results(self, session: WorkerSession, results: Sequence[AttemptResult]) -> None:
        self._results.on_results(session, results)

    def on_unknown(self, session: WorkerSession, tokens: Sequence[Token]) -> None:
        self._results.on_unknown(session, tokens)

    def lose(self, attempt: Attempt, worker: str) -> None:
        self._results.lose(attempt, worker)

    def give_back(self, attempt: Attempt) -> None:
        self._results.give_back(attempt)

    def take_away(self, attempt: Attempt) -> None:
        self._placing.take_away(attempt)

    @property
    def superseded(self) -> int:
        """Results of attempts that the log does not wait for."""
        return self._results.superseded

    def epochs(self) -> dict[int, int]:
        return {shard.id: shard.epoch for shard in self._kernel.shards.values()}

    def owned(self, number: int) -> Shard | None:
        return self._kernel.shards.get(number)

    def addresses(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(address for address in (self.address, *self.others()) if address))

    def on_progress(self, token: Token, message: Progress) -> None:
        attempt = self.attempts.get(token)
        if attempt is not None:
            attempt.progress_at = loop_time()
            attempt.run.progress[attempt.task, attempt.item] = message.details

    def on_fed(self, session: WorkerSession, message: Fed) -> None:
        """A fed attempt begins, or has taken items: a sign of life, too."""
        attempt, shard = self.attempts.get(message.token), self._kernel.shards.get(message.token.shard)
        if shard is not None and shard.early is not None:  # after what the worker says that it holds
            shard.early.append(lambda: self._on_fed_early(session, message))
            return
        if attempt is not None and attempt.session is session:
            attempt.progress_at = loop_time()
        elif attempt is None and shard is not None:
            self.on_unknown(session, [message.token])  # nobody will feed it
        if not self.feeding.on_fed(session, message):
            raise ProtocolViolation(f"{message.count} items of {message.token} were taken that were not given")

    def _on_fed_early(self, session: WorkerSession, message: Fed) -> None:
        """It was said while the shard was read back: a fault in it must not keep the shard from being served."""
        try:
            if session.is_open:
                self.on_fed(session, message)
        except ProtocolViolation as error:
            session.close(str(error))

    def on_adopted(self, session: WorkerSession, attempt: Attempt) -> None:
        """A worker runs it, as it said: its clocks begin anew, and a stop that it may not have heard is told again."""
        attempt.sent_at = attempt.progress_at = loop_time()
        self._placing.arm_pure(attempt)
        self.feeding.look(session, attempt.token)
        if attempt.run.state.tasks[attempt.task].items[attempt.item].stopping:
            session.cancels.append(attempt.token)
            self._placing.mark(session)

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
            if self.feeding.waits(attempt):  # it is not the one who is silent
                attempt.progress_at = loop_time()
            left = attempt.progress_at + seconds - loop_time()
            if left > 0:
                self.timers.add(again_at(self._kernel.now(), left), run, command)
                return
        if command.kind == "start_to_close" and attempt is not None and attempt.role != "effect":
            left = attempt.sent_at + run.graph.specs[command.task].timeouts.start_to_close - loop_time()
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
        self._results.stop()


def _ignore(_: str) -> None:
    """Until the orchestrator sets the real one."""


def _is_resident(run: Run) -> bool:
    return run.shard.moved is None and run.shard.runs.get(run.iid) is run
