"""A shell that obeys a run's instructions, and has chance decide what happens."""

from __future__ import annotations

import random
from typing import Any

from hypothesis import currently_in_test_context, note

from onexflow.codec.payload import encode_value
from onexflow.core.commands import (
    AuthoriseAttempt,
    CancelRun,
    CompleteItems,
    FailAttempt,
    FireTimer,
    LoseAttempt,
    PauseRun,
    ResolveItem,
    ResumeRun,
    ReturnAttempt,
    StopAttempt,
)
from onexflow.core.errors import InvalidTransition
from onexflow.core.graph import Graph
from onexflow.core.ids import Token
from onexflow.core.instructions import ArmTimer, Dispatch, FinishRun, SendAuthorised
from onexflow.core.payload import Failure
from onexflow.core.turn import SECOND
from support.core_driver import BEGIN, Model
from support.random_graphs import INPUT


class Shell:
    """A shell that obeys: it does with a run what its instructions allow, in an order that chance decides."""

    def __init__(self, graph: Graph, chance: random.Random) -> None:
        self.chance = chance
        self.model = Model(graph, INPUT, start_at=chance.choice((0, 0, BEGIN + 50 * SECOND)))
        self.running: dict[tuple[int, int, int, int], str] = {}
        self.waiting: dict[tuple[int, int, int, int], None] = {}
        self.timers: list[ArmTimer] = []
        self.past: list[tuple[int, int, int, int]] = []
        self.finished = 0
        self.obey()

    def obey(self) -> None:
        for instruction in self.model.turn.instructions:
            match instruction:
                case Dispatch(task, first, count, epoch, offset):
                    for item in range(first, first + count):
                        self.waiting[task, item, epoch, offset] = None
                case SendAuthorised(task, item, epoch, offset):
                    self.running[task, item, epoch, offset] = "w1"
                case ArmTimer():
                    self.timers.append(instruction)
                case FinishRun():
                    self.finished += 1

    def do(self, command: Any) -> None:
        if currently_in_test_context():
            note(repr(command))
        try:
            self.model.do(command)
        except InvalidTransition:
            assert isinstance(command, PauseRun | ResumeRun | CancelRun | ResolveItem), "workers and timers never err"
            return
        self.obey()

    def step(self) -> None:
        kind = self.chance.choice(
            ("dispatch",) * 4
            + ("end",) * 6
            + ("timer",) * 2
            + ("person", "stray", "stray", "stray", "resolve", "takeover")
        )
        getattr(self, f"_{kind}")()

    def _dispatch(self) -> None:
        if not self.waiting:
            return
        place = self.chance.choice(list(self.waiting))
        del self.waiting[place]
        task, item, _, _ = place
        if self.model.graph.specs[task].role == "effect":
            self.do(AuthoriseAttempt(task, item, "w1", "w1.1", self.chance.choice((True, False))))
        else:
            self.running[place] = "w1"

    def _end(self) -> None:
        if self.running:
            place = self.chance.choice(list(self.running))
            del self.running[place]
            self.past.append(place)
            self.do(self._ending(place))

    def _stray(self) -> None:
        """Something late, or of an attempt that nobody knows."""
        task, item, epoch, offset = self.chance.choice(self.past[-3:]) if self.past else (0, 0, 9, 9)
        self.do(self._ending((task, item, epoch, offset + self.chance.choice((0, 0, 1)))))

    def _ending(self, place: tuple[int, int, int, int]) -> Any:
        task, item, epoch, offset = place
        chosen = self.chance.choice(("complete",) * 5 + ("fail", "fatal", "crash", "stop", "lose", "return"))
        match chosen:
            case "complete":
                value = encode_value(self.chance.randrange(100))
                return CompleteItems(task, [Token(0, epoch, offset, item)], [value], "w1", "w1.1", self.model.now)
            case "fail":
                return FailAttempt(task, item, epoch, offset, Failure("Boom", "it broke"), "w1", "w1.1")
            case "fatal":
                return FailAttempt(task, item, epoch, offset, Failure("Boom", "for good", retryable=False), "w1")
            case "crash":
                return FailAttempt(task, item, epoch, offset, Failure("WorkerLost", "", code="OXF-4003"), "w1")
            case "stop":
                return StopAttempt(task, item, epoch, offset)
            case "lose":
                return LoseAttempt(task, item, epoch, offset, "w1")
        return ReturnAttempt(task, item, epoch, offset)

    def _timer(self) -> None:
        if self.timers:
            timer = self.timers.pop(self.chance.randrange(len(self.timers)))
            self.model.now = max(self.model.now, min(timer.due_at, self.model.now + 100 * SECOND))
            self.do(FireTimer(timer.kind, timer.task, timer.item, timer.epoch, timer.offset))

    def _person(self) -> None:
        command = self.chance.choice((PauseRun, ResumeRun, ResumeRun, CancelRun))
        if command is not CancelRun or self.chance.random() < 0.1:
            self.do(command("because"))

    def _takeover(self) -> None:
        """Another owner decides from now on."""
        self.model.epoch += 1

    def _resolve(self) -> None:
        for task, state in enumerate(self.model.state.tasks):
            for index, item in enumerate(state.items):
                if item.status == "waiting_for_input":
                    answers: list[dict[str, Any]] = [{"retry": True}, {"result": encode_value(1)}, {"fail": "no"}]
                    self.do(ResolveItem(task, index, **self.chance.choice(answers)))
                    return

    def finish(self, steps: int = 2000) -> None:
        """People resume and resolve, workers answer, timers fire: the run comes to its end, or waits for nothing."""
        for _ in range(steps):
            if self.finished:
                return
            model = self.model
            if model.state.status == "paused":
                self.do(ResumeRun())
            elif self.waiting:
                self._dispatch()
            elif self.running:
                place = next(iter(self.running))
                del self.running[place]
                task, item, epoch, offset = place
                self.do(CompleteItems(task, [Token(0, epoch, offset, item)], [encode_value(1)], "w1", "w1.1"))
            elif any(i.status == "waiting_for_input" for t in model.state.tasks for i in t.items):
                self._resolve()
            elif self.timers:
                timer = min(self.timers, key=lambda t: t.due_at)
                self.timers.remove(timer)
                model.now = max(model.now, timer.due_at)
                self.do(FireTimer(timer.kind, timer.task, timer.item, timer.epoch, timer.offset))
            else:
                return
