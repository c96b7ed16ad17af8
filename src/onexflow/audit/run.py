"""One run's story, as its events tell it: folded a second time, independently of the engine."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import msgspec

from onexflow.audit.rules import ITEM_MOVES, ITEM_TERMINAL, RUN_MOVES, TERMINAL
from onexflow.core.events import (
    CompensationStarted,
    Event,
    StateTransitioned,
    TaskCompleted,
    TaskFailed,
    TaskRetry,
    TaskScheduled,
    TaskStarted,
    WorkflowCancelled,
    WorkflowCreated,
)
from onexflow.core.payload import NULL, Payload
from onexflow.core.state import RunState

#: Told of a violation: rule and story.
Complain = Callable[[str, str], None]


class Plan:
    """What a definition says of the order of its tasks, read from its JSON."""

    def __init__(self, definition: bytes) -> None:
        tasks: list[dict[str, Any]] = msgspec.json.decode(definition)["tasks"]
        self.names = [task["name"] for task in tasks]
        place = {name: index for index, name in enumerate(self.names)}
        self.hard = [[place[parent] for parent in task.get("depends_on", ())] for task in tasks]
        self.soft = [[place[parent] for parent in task.get("after", ())] for task in tasks]
        self.parents = [[*hard, *soft] for hard, soft in zip(self.hard, self.soft, strict=True)]
        self.setup = [bool(task.get("setup")) for task in tasks]
        self.matters = [not task.get("allow_failure") for task in tasks]
        self.at_once = [int(task.get("max_parallel", 0)) for task in tasks]
        self.roles = [task["role"] for task in tasks]
        #: Of a fed reducer the task that feeds it, with which it begins; and the other way round.
        self.fed_by = [hard[0] if task.get("feed") else -1 for task, hard in zip(tasks, self.hard, strict=True)]
        self.feeds = [[fed for fed, feeder in enumerate(self.fed_by) if feeder == index] for index in range(len(tasks))]
        #: Behind the tasks come those that undo them.
        self.count = len(tasks)
        undone = [index for index, task in enumerate(tasks) if "compensation" in task]
        self.undo = {index: self.count + number for number, index in enumerate(undone)}
        self.names += [f"{self.names[index]}.undo" for index in undone]
        for lists in (self.hard, self.soft, self.parents, self.feeds):
            lists += [[] for _ in undone]
        self.fed_by += [-1] * len(undone)
        self.setup += [False] * len(undone)
        self.matters += [True] * len(undone)
        self.at_once += [0] * len(undone)
        self.roles += ["effect"] * len(undone)


class Item:
    """One item of a task. `worker` is one of its lives: (id, incarnation)."""

    __slots__ = (
        "attempt", "counted", "due_at", "epoch", "first_at", "idempotent", "input", "lost", "offset", "result",
        "scheduled_at", "source", "started_at", "status", "stopping", "worker",
    )  # fmt: skip

    def __init__(self, epoch: int, offset: int, at: int = 0, source: int = 0, input: Payload | None = None) -> None:
        self.status = "scheduled"
        self.attempt = self.counted = 1
        self.epoch, self.offset = epoch, offset
        self.first_at = self.scheduled_at = at
        self.source, self.input = source, input
        self.due_at = self.started_at = 0
        self.idempotent = True
        self.worker, self.stopping = ("", ""), ""
        self.lost: list[str] = []
        self.result: Payload | None = None

    @property
    def may_have_happened(self) -> bool:
        if self.status in {"scheduled", "retrying"}:
            return bool(self.lost) and self.idempotent
        return self.status in {"running", "waiting_for_input"}


class Task:
    """One task: "" until it is scheduled or skipped by a decision."""

    __slots__ = ("items", "of", "status", "window")

    def __init__(self) -> None:
        self.status = ""
        self.of, self.window = 1, 0
        self.items: list[Item] = []


class RunStory:
    """The state of a run after the events it was given. `tell` complains of each violation and goes on."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.status = "pending"
        self.seq = 1
        self.created_at = self.start_at = self.timeout_at = self.retry_at = 0
        #: Of its start, its last event, and its end.
        self.started_at = self.at = self.ended_at = 0
        self.is_started = self.is_cancelled = self.is_failing = False
        #: Event of the snapshot that the story goes on from.
        self.resumed_at = -1
        self.retries = 0
        self.node = self.outcome = ""
        #: What it was created with.
        self.name: tuple[str, str, bytes] = ("", "", b"")
        self.definition: tuple[int, str, int] = (0, "", 0)
        self.input: Payload = NULL
        self.correlation: tuple[str, ...] = ()
        self.tasks = [Task() for _ in range(plan.count)]
        #: What has completed and can be undone, and is not, in the order of completion.
        self.undoable: list[int] = []

    @classmethod
    def begin(cls, plan: Plan, event: WorkflowCreated, at: int) -> RunStory:
        story = cls(plan)
        story.at = story.created_at = at
        story.start_at, story.timeout_at = event.start_at, event.timeout_at
        story._take(event)
        return story

    def _take(self, origin: WorkflowCreated | RunState) -> None:
        self.name = origin.namespace, origin.workflow_type, origin.instance
        self.definition = origin.version, origin.definition, origin.semantics
        self.input = origin.input
        self.correlation = origin.correlation_id, origin.causation_id, origin.trace, origin.principal

    @classmethod
    def resume(cls, plan: Plan, state: RunState) -> RunStory:
        """From a snapshot, of a run whose earlier events were cut."""
        story = cls(plan)
        story.status, story.seq = state.status, state.seq
        story.resumed_at = state.seq
        story.start_at, story.timeout_at, story.retry_at = state.start_at, state.timeout_at, state.retry_at
        story.created_at, story.started_at, story.retries = state.created_at, state.started_at, state.retries
        story.at, story.ended_at = state.updated_at, state.completed_at
        story.is_started, story.is_failing = bool(state.started_at), state.failing is not None
        story.is_cancelled = state.outcome == "cancelled"
        story.node, story.outcome = state.node, state.outcome
        story._take(state)
        story.undoable = list(state.undoable)
        story.tasks += [Task() for _ in state.tasks[plan.count :]]
        for told, known in zip(story.tasks, state.tasks, strict=True):
            told.of, told.window = known.of, known.window
            told.status = "" if known.status in {"pending", "blocked"} else known.status
            for one in known.items:
                item = Item(one.epoch, one.offset, one.scheduled_at, one.source, one.input)
                item.status, item.attempt, item.due_at = one.status, one.attempt, one.due_at
                item.first_at, item.counted = one.first_scheduled_at, one.counted
                item.worker, item.stopping = (one.worker, one.incarnation), one.stopping
                item.started_at = one.started_at
                item.lost, item.idempotent = list(one.lost), one.idempotent
                item.result = known.result if one.result is None else one.result
                told.items.append(item)
        return story

    @property
    def is_over(self) -> bool:
        return self.status in TERMINAL

    def wake_at(self) -> int:
        """The earliest time at which something is due; 0: nothing."""
        due = [item.due_at for task in self.tasks for item in task.items if item.status == "retrying"]
        if self.status != "compensating":
            due.append(self.timeout_at)
        if self.status == "pending":
            due.append(self.start_at)
        if self.status == "retrying":
            due.append(self.retry_at)
        return min((at for at in due if at), default=0)

    def facts(self) -> dict[str, object]:
        """What is to be compared with a snapshot, beside its tasks."""
        return {
            "name": self.name,
            "definition": self.definition,
            "input": self.input,
            "correlation": self.correlation,
            "times": (self.created_at, self.started_at, self.at, self.ended_at),
            "timers": (self.start_at, self.timeout_at, self.retry_at),
            "retries": self.retries,
            "node": self.node,
            "outcome": self.outcome,
            "failing": self.is_failing,
        }

    # ---- the events

    def tell(self, event: Event, epoch: int, offset: int, at: int, complain: Complain) -> None:
        """The next event, which stands at (epoch, offset) and happened at store time `at`."""
        self.seq += 1
        self.at = at
        kind = event.kind if isinstance(event, StateTransitioned) else event.type
        if self.is_over:
            complain("after-the-end", f"{kind} follows {self.status}")
            return
        if isinstance(event, WorkflowCancelled) and event.kind:
            self.is_cancelled = True  # what it begins is told by the next event
            return
        if kind in RUN_MOVES:
            self._move_run(kind, event, complain)
            return
        match event:
            case WorkflowCreated():
                complain("created", "a second workflow.created")
            case TaskScheduled():
                self._scheduled(event, epoch, offset, at, complain)
            case TaskStarted():
                self._started(event, epoch, offset, at, complain)
            case TaskCompleted():
                self._completed(event, complain)
            case TaskFailed():
                self._failed(event, complain)
            case TaskRetry():
                item = self._move(event.task, event.item, "retrying", complain)
                item.due_at = event.due_at
                if event.kind == "lost":
                    item.lost = [*item.lost, event.worker]
                elif event.kind != "returned":
                    item.counted = 1 if event.kind == "run" else item.counted + 1
                self._follow(event.task)
            case StateTransitioned():
                self._transitioned(event, complain)
            case _:
                pass  # what changes no state, or comes from a newer release

    def _transitioned(self, event: StateTransitioned, complain: Complain) -> None:
        match event.kind:
            case "task.waiting_for_input":
                item = self._move(event.tasks[0], event.item, "waiting_for_input", complain)
                item.lost = [*item.lost, item.worker[0]]
                self._follow(event.tasks[0])
            case "task.cancelled":
                self._move(event.tasks[0], event.item, "cancelled", complain)
                self._follow(event.tasks[0])
            case "task.skipped":
                for task in event.tasks:
                    self.tasks[task].status = "skipped"
            case "attempt.stopping":
                self.tasks[event.tasks[0]].items[event.item].stopping = event.reason
            case "run.assigned":
                self.node = event.node
            case _:
                pass  # of a queue, or from a newer release

    def _move_run(self, kind: str, event: Event, complain: Complain) -> None:
        before, after = RUN_MOVES[kind]
        if self.status not in before:
            complain("run-transition", f"{kind} follows {self.status}")
        derived = self.statuses() if after in TERMINAL else []
        missing = [name for name, told in zip(self.plan.names, derived, strict=False) if told not in ITEM_TERMINAL]
        if after == "completed" and missing:
            complain("open-task", f"completed without {', '.join(missing[:5])}")
        if after == "compensated" or (after in {"failed", "cancelled", "timeout"} and self.status != "compensating"):
            self._check_undone(kind, complain)
        if isinstance(event, CompensationStarted):
            self._compensate(event, complain)
        self.status = after
        if kind == "workflow.started":
            self.is_started, self.started_at = True, self.started_at or self.at
        if after in TERMINAL:
            self.ended_at = self.at
        if isinstance(event, StateTransitioned) and after == "retrying":
            self.retry_at, self.retries = event.due_at, self.retries + 1
        elif after in {"running", "compensating"}:
            self.retry_at = 0
        if after in TERMINAL:
            for task, told in zip(self.tasks, derived, strict=True):
                task.status = "skipped" if after == "compensated" and told == "blocked" else told
                _cancel_rest(task)

    def _check_undone(self, kind: str, complain: Complain) -> None:
        left = [self.plan.names[task] for task in (*self._awaited(), *reversed(self.undoable))]
        if left:
            complain("compensation", f"{kind} though {', '.join(left[:5])} may have to be undone")

    def _awaited(self) -> list[int]:
        """Tasks that can be undone, and of which is not known whether they happened."""
        return [
            task for task in self.plan.undo
            if self.tasks[task].status not in ITEM_TERMINAL
            and any(item.may_have_happened for item in self.tasks[task].items)
        ]  # fmt: skip

    def _compensate(self, event: CompensationStarted, complain: Complain) -> None:
        awaited = self._awaited()
        if not awaited and not self.undoable:
            complain("compensation", "compensation.started though there is nothing to undo")
        # The word before it may have been cut: no snapshot has it.
        if (event.kind == "cancelled") != self.is_cancelled and self.seq != self.resumed_at + 1:
            complain("compensation", f"compensation.started as {event.kind}, and workflow.cancelled says otherwise")
        for index, told in enumerate(self.statuses()):
            task = self.tasks[index]
            task.status = told
            if index not in awaited:
                _cancel_rest(task)
            else:
                for item in task.items:
                    item.stopping = "compensation" if item.status == "running" else item.stopping
        self.tasks += [Task() for _ in self.plan.undo]
        self.outcome, self.is_failing = event.kind, False

    def _check_undo(self, index: int, complain: Complain) -> None:
        """Is this what is to be undone now?"""
        name, awaited = self.plan.names[index], self._awaited()
        if index >= len(self.tasks):
            complain("compensation", f"{name} was scheduled while the run was {self.status}")
            self.tasks += [Task() for _ in range(len(self.plan.names) - len(self.tasks))]
        if awaited:
            complain("compensation", f"{name} was scheduled before {self.plan.names[awaited[0]]} had ended")
        if not self.undoable or self.plan.undo[self.undoable[-1]] != index:
            last = self.plan.names[self.undoable[-1]] if self.undoable else "nothing"
            complain("compensation", f"{name} was scheduled while {last} was to be undone")

    def _scheduled(self, event: TaskScheduled, epoch: int, offset: int, at: int, complain: Complain) -> None:
        if event.task >= self.plan.count and (event.task >= len(self.tasks) or not self.tasks[event.task].status):
            self._check_undo(event.task, complain)
        task = self.tasks[event.task]
        if not task.status:
            self._check_parents(event.task, complain)
            task.status, task.of = "scheduled", event.of
            task.window = min(event.of, self.plan.at_once[event.task] or event.of)
        for index in range(event.first, event.first + event.count):
            if index == len(task.items):
                given = event.inputs[index - event.first] if event.inputs else None
                task.items.append(Item(epoch, offset, at, event.source, given))
                continue
            was = task.items[index].status if index < len(task.items) else ""
            item = self._move(event.task, index, "scheduled", complain)
            item.counted += was == "waiting_for_input" and event.kind == "again"
            item.scheduled_at, item.started_at, item.worker = at, 0, ("", "")
            if event.attempt != item.attempt + 1:
                complain("attempt", f"attempt {event.attempt} of {self.plan.names[event.task]} follows {item.attempt}")
            item.attempt, item.epoch, item.offset, item.due_at = event.attempt, epoch, offset, 0
        self._follow(event.task)

    def _check_parents(self, index: int, complain: Complain) -> None:
        name, derived = self.plan.names[index], self._resolve(self.plan.parents[index])
        if not self.plan.setup[index] and not self.is_started:
            complain("dependency", f"{name} was scheduled before the run was started")
        for parent in self.plan.hard[index]:
            if parent == self.plan.fed_by[index] and derived[parent] in {"scheduled", "running"}:
                continue
            if derived[parent] != "completed":
                complain("dependency", f"{name} was scheduled while {self.plan.names[parent]} was {derived[parent]}")
        for parent in self.plan.soft[index]:
            if derived[parent] not in ITEM_TERMINAL:
                complain("dependency", f"{name} was scheduled while {self.plan.names[parent]} was {derived[parent]}")

    def _started(self, event: TaskStarted, epoch: int, offset: int, at: int, complain: Complain) -> None:
        for index in event.items:
            item = self._move(event.task, index, "running", complain)
            item.idempotent, item.worker = event.idempotent, (event.worker, event.incarnation)
            item.started_at = event.started_at or at
            if self.plan.roles[event.task] == "effect":
                item.epoch, item.offset = epoch, offset
        task = self.tasks[event.task]
        if task.of == 1:
            self._follow(event.task)
        elif task.status == "scheduled":
            task.status = "running"

    def _completed(self, event: TaskCompleted, complain: Complain) -> None:
        task, feeder = self.tasks[event.task], self.plan.fed_by[event.task]
        if feeder >= 0 and self.tasks[feeder].status != "completed":
            names, status = self.plan.names, self.tasks[feeder].status
            complain("dependency", f"{names[event.task]} completed while {names[feeder]}, which feeds it, was {status}")
        for index, result in zip(event.items, event.results, strict=True):
            self._move(event.task, index, "completed", complain).result = result
        task.window = min(task.of, task.window + len(event.items))
        if len(task.items) >= task.of and all(item.status == "completed" for item in task.items):
            task.status = "completed"
        else:
            self._follow(event.task)
        if event.task in self.plan.undo:
            self.undoable.append(event.task)
        elif event.task >= self.plan.count and self.undoable:
            self.undoable.pop()

    def _failed(self, event: TaskFailed, complain: Complain) -> None:
        target = "timeout" if event.kind == "timeout" else "failed"
        task = self.tasks[event.task]
        if task.items:
            self._move(event.task, event.item, target, complain)
        _cancel_rest(task)
        task.status = target
        for fed in self.plan.feeds[event.task]:
            if self.tasks[fed].status:  # else it follows from the definition that it is skipped
                _cancel_rest(self.tasks[fed])
        if self.plan.matters[event.task] and (self.status != "compensating" or event.task >= self.plan.count):
            self.is_failing = True

    def _move(self, task: int, index: int, target: str, complain: Complain) -> Item:
        items = self.tasks[task].items
        if index >= len(items):
            complain(
                "task-transition", f"item {index} of {self.plan.names[task]} became {target} and was not scheduled"
            )
            return Item(0, 0)
        item = items[index]
        if item.status not in ITEM_MOVES[target]:
            complain("task-transition", f"item {index} of {self.plan.names[task]} went from {item.status} to {target}")
        item.status = target
        if target != "running":
            item.stopping = ""
        return item

    def _follow(self, index: int) -> None:
        """A plain task is in the state of its one item."""
        task = self.tasks[index]
        if task.of == 1 and task.items:
            task.status = task.items[0].status

    # ---- what follows

    def statuses(self) -> list[str]:
        """The state of every task, those that follow from the definition included."""
        everyone = range(len(self.tasks))
        found = self._resolve(everyone)
        return [found[index] for index in everyone]

    def _resolve(self, wanted: Iterable[int]) -> dict[int, str]:
        """The states of these tasks, and of what they follow from."""
        found: dict[int, str] = {}
        stack = list(wanted)
        while stack:
            index = stack[-1]
            if index not in found and (status := self.tasks[index].status):
                found[index] = status
            missing = [] if index in found else [parent for parent in self.plan.parents[index] if parent not in found]
            if missing:
                stack.extend(missing)
                continue
            stack.pop()
            if index not in found:
                found[index] = self._derived(index, found)
        return found

    def _derived(self, index: int, found: dict[int, str]) -> str:
        """The state of a task that no event speaks of."""
        if index >= self.plan.count:
            return "blocked"
        is_free = self.status != "pending" if self.plan.setup[index] else self.is_started
        if not is_free or self.waits_for(index, found):
            return "blocked"
        return "skipped" if self.waits_in_vain(index, found) else "pending"

    def waits_for(self, index: int, found: Mapping[int, str] | Sequence[str]) -> int:
        """How many tasks this one waits for. A fed reducer waits for the beginning of the one that feeds it."""
        begun = {*ITEM_TERMINAL, "scheduled", "running"}
        return sum(
            found[parent] not in (begun if parent == self.plan.fed_by[index] else ITEM_TERMINAL)
            for parent in self.plan.parents[index]
        )

    def waits_in_vain(self, index: int, found: Mapping[int, str] | Sequence[str]) -> bool:
        """Has one that it needs ended without a result?"""
        return any(found[parent] in ITEM_TERMINAL and found[parent] != "completed" for parent in self.plan.hard[index])


def _cancel_rest(task: Task) -> None:
    for item in task.items:
        if item.status not in ITEM_TERMINAL:
            item.status = "cancelled"
    if task.status not in ITEM_TERMINAL:
        task.status = "cancelled"
