"""One run's story, as its events tell it: folded a second time, independently of the engine."""

from __future__ import annotations

from collections.abc import Callable, Iterable
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
from onexflow.core.payload import Payload
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
        self.roles = [task["role"] for task in tasks]
        #: Behind the tasks come those that undo them.
        self.count = len(tasks)
        undone = [index for index, task in enumerate(tasks) if "compensation" in task]
        self.undo = {index: self.count + number for number, index in enumerate(undone)}
        self.names += [f"{self.names[index]}.undo" for index in undone]
        for lists in (self.hard, self.soft, self.parents):
            lists += [[] for _ in undone]
        self.setup += [False] * len(undone)
        self.roles += ["effect"] * len(undone)


class Item:
    """One item of a task."""

    __slots__ = ("attempt", "due_at", "epoch", "idempotent", "lost", "offset", "result", "status")

    def __init__(self, epoch: int, offset: int) -> None:
        self.status = "scheduled"
        self.attempt = 1
        self.epoch, self.offset = epoch, offset
        self.due_at = 0
        self.lost, self.idempotent = False, True
        self.result: Payload | None = None

    @property
    def may_have_happened(self) -> bool:
        if self.status in {"scheduled", "retrying"}:
            return self.lost and self.idempotent
        return self.status in {"running", "waiting_for_input"}


class Task:
    """One task: "" until it is scheduled or skipped by a decision."""

    __slots__ = ("items", "of", "status")

    def __init__(self) -> None:
        self.status = ""
        self.of = 1
        self.items: list[Item] = []


class RunStory:
    """The state of a run after the events it was given. `tell` complains of each violation and goes on."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.status = "pending"
        self.seq = 1
        self.start_at = self.timeout_at = self.retry_at = 0
        self.is_started = self.is_cancelled = False
        self.tasks = [Task() for _ in range(plan.count)]
        #: What has completed and can be undone, and is not, in the order of completion.
        self.undoable: list[int] = []

    @classmethod
    def begin(cls, plan: Plan, event: WorkflowCreated) -> RunStory:
        story = cls(plan)
        story.start_at, story.timeout_at = event.start_at, event.timeout_at
        return story

    @classmethod
    def resume(cls, plan: Plan, state: RunState) -> RunStory:
        """From a snapshot, of a run whose earlier events were cut."""
        story = cls(plan)
        story.status, story.seq = state.status, state.seq
        story.start_at, story.timeout_at, story.retry_at = state.start_at, state.timeout_at, state.retry_at
        story.is_started = bool(state.started_at)
        story.undoable = list(state.undoable)
        story.tasks += [Task() for _ in state.tasks[plan.count :]]
        for told, known in zip(story.tasks, state.tasks, strict=True):
            told.of = known.of
            told.status = "" if known.status in {"pending", "blocked"} else known.status
            for one in known.items:
                item = Item(one.epoch, one.offset)
                item.status, item.attempt, item.due_at = one.status, one.attempt, one.due_at
                item.lost, item.idempotent = bool(one.lost), one.idempotent
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

    # ---- the events

    def tell(self, event: Event, epoch: int, offset: int, complain: Complain) -> None:
        """The next event, which stands at (epoch, offset)."""
        self.seq += 1
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
                self._scheduled(event, epoch, offset, complain)
            case TaskStarted():
                self._started(event, epoch, offset, complain)
            case TaskCompleted():
                self._completed(event, complain)
            case TaskFailed():
                self._failed(event, complain)
            case TaskRetry():
                item = self._move(event.task, event.item, "retrying", complain)
                item.due_at, item.lost = event.due_at, item.lost or event.kind == "lost"
                self._follow(event.task)
            case StateTransitioned(kind="task.waiting_for_input"):
                self._move(event.tasks[0], event.item, "waiting_for_input", complain).lost = True
                self._follow(event.tasks[0])
            case StateTransitioned(kind="task.cancelled"):
                self._move(event.tasks[0], event.item, "cancelled", complain)
                self._follow(event.tasks[0])
            case StateTransitioned(kind="task.skipped"):
                for task in event.tasks:
                    self.tasks[task].status = "skipped"
            case _:
                pass  # what changes no state, or comes from a newer release

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
        self.is_started = self.is_started or kind == "workflow.started"
        self.retry_at = event.due_at if isinstance(event, StateTransitioned) and after == "retrying" else 0
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
        if (event.kind == "cancelled") != self.is_cancelled:
            complain("compensation", f"compensation.started as {event.kind}, and workflow.cancelled says otherwise")
        for index, told in enumerate(self.statuses()):
            task = self.tasks[index]
            task.status = told
            if index not in awaited:
                _cancel_rest(task)
        self.tasks += [Task() for _ in self.plan.undo]

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

    def _scheduled(self, event: TaskScheduled, epoch: int, offset: int, complain: Complain) -> None:
        if event.task >= self.plan.count and (event.task >= len(self.tasks) or not self.tasks[event.task].status):
            self._check_undo(event.task, complain)
        task = self.tasks[event.task]
        if not task.status:
            self._check_parents(event.task, complain)
            task.status, task.of = "scheduled", event.of
        for index in range(event.first, event.first + event.count):
            if index == len(task.items):
                task.items.append(Item(epoch, offset))
                continue
            item = self._move(event.task, index, "scheduled", complain)
            if event.attempt != item.attempt + 1:
                complain("attempt", f"attempt {event.attempt} of {self.plan.names[event.task]} follows {item.attempt}")
            item.attempt, item.epoch, item.offset, item.due_at = event.attempt, epoch, offset, 0
        self._follow(event.task)

    def _check_parents(self, index: int, complain: Complain) -> None:
        name, derived = self.plan.names[index], self._resolve(self.plan.parents[index])
        if not self.plan.setup[index] and not self.is_started:
            complain("dependency", f"{name} was scheduled before the run was started")
        for parent in self.plan.hard[index]:
            if derived[parent] != "completed":
                complain("dependency", f"{name} was scheduled while {self.plan.names[parent]} was {derived[parent]}")
        for parent in self.plan.soft[index]:
            if derived[parent] not in ITEM_TERMINAL:
                complain("dependency", f"{name} was scheduled while {self.plan.names[parent]} was {derived[parent]}")

    def _started(self, event: TaskStarted, epoch: int, offset: int, complain: Complain) -> None:
        for index in event.items:
            item = self._move(event.task, index, "running", complain)
            item.idempotent = event.idempotent
            if self.plan.roles[event.task] == "effect":
                item.epoch, item.offset = epoch, offset
        task = self.tasks[event.task]
        if task.of == 1:
            self._follow(event.task)
        elif task.status == "scheduled":
            task.status = "running"

    def _completed(self, event: TaskCompleted, complain: Complain) -> None:
        task = self.tasks[event.task]
        for index, result in zip(event.items, event.results, strict=True):
            self._move(event.task, index, "completed", complain).result = result
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
        if not is_free or any(found[parent] not in ITEM_TERMINAL for parent in self.plan.parents[index]):
            return "blocked"
        return "pending" if all(found[parent] == "completed" for parent in self.plan.hard[index]) else "skipped"

    def differs_from(self, state: RunState) -> str:
        """What of a snapshot is not what the events make; "" when nothing is."""
        if (state.status, state.seq) != (self.status, self.seq):
            return f"it is {state.status} at event {state.seq}, the events make {self.status} at {self.seq}"
        if len(self.tasks) != len(state.tasks):
            return f"it has {len(state.tasks)} tasks, the events make {len(self.tasks)}"
        if self.undoable != state.undoable:
            return "other tasks are to be undone than the events make"
        names = self.plan.names[: len(self.tasks)]
        for name, told, known, status in zip(names, self.tasks, state.tasks, self.statuses(), strict=True):
            if known.status != status:
                return f"task {name} is {known.status}, the events make it {status}"
            if known.items and len(known.items) != len(told.items):
                return f"task {name} has {len(known.items)} items, the events make {len(told.items)}"
            for index, (item, one) in enumerate(zip(told.items, known.items, strict=False)):
                if (one.status, one.attempt, one.epoch, one.offset) != (
                    item.status, item.attempt, item.epoch, item.offset,
                ):  # fmt: skip
                    return f"item {index} of {name} is {one.status} in attempt {one.attempt}, the events say {item.status} in {item.attempt}"
            if told.of == 1 and known.result is not None and told.items and known.result != told.items[0].result:
                bare = told.items[0].result
                if bare is None or known.result.data != b"[" + bare.data + b"]":
                    return f"task {name} has another result than its event"
        return ""


def _cancel_rest(task: Task) -> None:
    for item in task.items:
        if item.status not in ITEM_TERMINAL:
            item.status = "cancelled"
    if task.status not in ITEM_TERMINAL:
        task.status = "cancelled"
