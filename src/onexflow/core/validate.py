"""What must hold in a definition apart from its graph: names, ranges, kinds of value. Every problem has its place.

Values are judged as they are, whatever the annotations say: definitions are also built by programs without a type
checker. So the parameters here are `Any`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from typing import Any, Final

from onexflow.core.definition import (
    BACKOFFS,
    MAX_ATTEMPTS,
    MAX_NAME,
    MAX_SECONDS,
    MAX_TASKS,
    NO_TIMEOUTS,
    PRIORITIES,
    ROLES,
    Compensation,
    RetryPolicy,
    RunRetry,
    Timeouts,
)
from onexflow.core.errors import InvalidDefinition

_TASK_NAME: Final = re.compile(r"[A-Za-z][A-Za-z0-9_-]*", re.ASCII)
_TYPE_NAME: Final = re.compile(r"[A-Za-z][A-Za-z0-9_.-]*", re.ASCII)
_HANDLER_NAME: Final = re.compile(r"[^\s\x00-\x1f\x7f]+")
_MAX_HANDLER: Final = 256
_MAX_VERSION: Final = 2**31 - 1
#: Problems that one answer lists. A definition with more is a wrong file rather than a slip.
_LISTED: Final = 100
#: Looking for near names compares with every name: enough is enough.
_SUGGESTED: Final = 20


class Problems:
    """Collects what is wrong, so that one answer tells everything."""

    def __init__(self) -> None:
        self._found: list[dict[str, str]] = []
        self._more = 0
        self._suggested = 0

    def add(self, place: str, problem: str) -> None:
        if len(self._found) < _LISTED:
            self._found.append({"place": _clean(place), "problem": _clean(problem)})
        else:
            self._more += 1

    def near(self, name: object, known: Iterable[str]) -> str:
        """`; did you mean 'a'?`, or nothing."""
        self._suggested += 1
        if self._suggested > _SUGGESTED:
            return ""
        return nearest(name, known)

    def check(self) -> None:
        """Raises InvalidDefinition if anything was found."""
        if not self._found:
            return
        lines = [f"{one['place']}: {one['problem']}" if one["place"] else one["problem"] for one in self._found]
        if self._more:
            lines.append(f"and {self._more} more")
        message = lines[0] if len(lines) == 1 else "\n  ".join([f"{len(self._found) + self._more} problems:", *lines])
        raise InvalidDefinition(message, {"problems": self._found}, field=self._found[0]["place"])


def _clean(text: str) -> str:
    """`text` without lone surrogates: the answer crosses the wire as UTF-8."""
    return text.encode(errors="backslashreplace").decode()


def nearest(name: object, known: Iterable[str]) -> str:
    """`; did you mean 'a' or 'b'?` with the names in `known` that are like `name`, or nothing."""
    close = get_close_matches(str(name)[:MAX_NAME], list(known), n=3, cutoff=0.6)
    return f"; did you mean {' or '.join(repr(one) for one in close)}?" if close else ""


def listed(names: Sequence[str], separator: str) -> str:
    """All names in one line; of more than 20 the first ones and the last."""
    shown = names if len(names) <= 20 else [*names[:18], f"({len(names) - 19} more)", names[-1]]
    return separator.join(shown)


def check_definition(definition: Any, problems: Problems) -> None:
    """Everything but the tasks' graph and expressions."""
    name, version = definition.workflow_type, definition.version
    if not isinstance(name, str) or len(name) > MAX_NAME or not _TYPE_NAME.fullmatch(name):
        problems.add(
            "workflow_type",
            f"{_shown(name)} is no name of a workflow type: a letter, then letters, digits, `_`, `-` or `.`, "
            f"at most {MAX_NAME}",
        )
    if not _is_int(version) or not 1 <= version <= _MAX_VERSION:
        problems.add("version", f"{_shown(version)} is not a whole number from 1 to {_MAX_VERSION}")
    if not isinstance(definition.description, str):
        problems.add("description", f"{_shown(definition.description)} is not text")
    _duration(definition.timeout, "timeout", problems)
    if definition.retry is not None:
        _check_run_retry(definition.retry, problems)
    if not definition.tasks:
        problems.add("tasks", "the workflow has no tasks")
    elif len(definition.tasks) > MAX_TASKS:
        problems.add("tasks", f"the workflow has {len(definition.tasks)} tasks; {MAX_TASKS} is the limit")


def check_task(task: Any, place: str, problems: Problems) -> None:
    """The fields of one task that need no other task."""
    name = task.name
    if not isinstance(name, str) or len(name) > MAX_NAME or not _TASK_NAME.fullmatch(name):
        problems.add(
            f"{place}.name",
            f"{_shown(name)} is no task name: a letter, then letters, digits, `_` or `-`, at most {MAX_NAME}",
        )
    if task.role not in ROLES:
        problems.add(f"{place}.role", _role_problem(task.role, problems))
    if task.handler is not name:
        _check_handler(task.handler, f"{place}.handler", problems)
    if task.priority not in PRIORITIES:
        problems.add(f"{place}.priority", f"{_shown(task.priority)} is none of {', '.join(PRIORITIES)}")
    if not _is_int(task.max_parallel) or task.max_parallel < 0:
        problems.add(f"{place}.max_parallel", f"{_shown(task.max_parallel)} is not a whole number from 0")
    elif task.max_parallel and not task.map:
        problems.add(f"{place}.max_parallel", "only a task with `map` has items to limit")
    for field in ("allow_failure", "setup", "feed"):
        if not isinstance(getattr(task, field), bool):
            problems.add(f"{place}.{field}", f"{_shown(getattr(task, field))} is neither true nor false")
    if task.retry is not None:
        _check_retry(task.retry, f"{place}.retry", problems)
    if task.timeouts is not NO_TIMEOUTS:
        _check_timeouts(task.timeouts, f"{place}.timeouts", problems)
    if task.compensation is not None:
        _check_compensation(task, f"{place}.compensation", problems)


def _check_compensation(task: Any, place: str, problems: Problems) -> None:
    compensation = task.compensation
    if not isinstance(compensation, Compensation):
        problems.add(place, f"{_shown(compensation)} is not a Compensation")
        return
    if task.role != "effect":
        problems.add(place, f"only an effect has something to undo, and this task is of role {_shown(task.role)}")
    if task.map:
        problems.add(
            place, "a task with `map` cannot be undone item by item: let one task undo them all, or map a workflow"
        )
    _check_handler(compensation.handler, f"{place}.handler", problems)
    if compensation.retry is not None:
        _check_retry(compensation.retry, f"{place}.retry", problems)
    if compensation.timeouts is not NO_TIMEOUTS:
        _check_timeouts(compensation.timeouts, f"{place}.timeouts", problems)


def _check_handler(handler: Any, place: str, problems: Problems) -> None:
    if not isinstance(handler, str) or len(handler) > _MAX_HANDLER or not _HANDLER_NAME.fullmatch(handler):
        problems.add(place, f"{_shown(handler)} is no handler name: no spaces, at most {_MAX_HANDLER}")


def _role_problem(role: object, problems: Problems) -> str:
    return f"{_shown(role)} is none of {', '.join(ROLES)}{problems.near(role, ROLES)}"


def _check_retry(retry: Any, place: str, problems: Problems) -> None:
    if not isinstance(retry, RetryPolicy):
        problems.add(place, f"{_shown(retry)} is not a RetryPolicy")
        return
    if retry.policy not in BACKOFFS:
        problems.add(f"{place}.policy", f"{_shown(retry.policy)} is none of {', '.join(BACKOFFS)}")
    _attempts(retry.max_attempts, f"{place}.max_attempts", problems)
    fine = _duration(retry.initial_delay, f"{place}.initial_delay", problems)
    if _duration(retry.max_delay, f"{place}.max_delay", problems) and fine and retry.max_delay < retry.initial_delay:
        problems.add(f"{place}.max_delay", f"{retry.max_delay} is below initial_delay ({retry.initial_delay})")
    _between(retry.multiplier, 1, 1000, f"{place}.multiplier", problems)
    _between(retry.jitter, 0, 1, f"{place}.jitter", problems)
    for field in ("retryable", "non_retryable"):
        names = getattr(retry, field)
        if not isinstance(names, tuple | list) or not all(isinstance(name, str) and name for name in names):
            problems.add(f"{place}.{field}", f"{_shown(names)} is not a list of names of error classes")


def _check_run_retry(retry: Any, problems: Problems) -> None:
    if not isinstance(retry, RunRetry):
        problems.add("retry", f"{_shown(retry)} is not a RunRetry")
        return
    _attempts(retry.max_attempts, "retry.max_attempts", problems)
    _duration(retry.delay, "retry.delay", problems)


def _check_timeouts(timeouts: Any, place: str, problems: Problems) -> None:
    if not isinstance(timeouts, Timeouts):
        problems.add(place, f"{_shown(timeouts)} is not a Timeouts")
        return
    for field in timeouts.__struct_fields__:
        _duration(getattr(timeouts, field), f"{place}.{field}", problems)


def _attempts(value: object, place: str, problems: Problems) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= MAX_ATTEMPTS:
        problems.add(place, f"{_shown(value)} is not a whole number from 1 to {MAX_ATTEMPTS}")


def _between(value: object, low: int, high: int, place: str, problems: Problems) -> None:
    if not isinstance(value, int | float) or isinstance(value, bool) or not low <= value <= high:
        problems.add(place, f"{_shown(value)} is not a number from {low} to {high}")


def _duration(value: object, place: str, problems: Problems) -> bool:
    if not isinstance(value, int | float) or isinstance(value, bool) or math.isnan(value):
        problems.add(place, f"{_shown(value)} is not a number of seconds")
    elif value < 0:
        problems.add(place, f"{value} is negative; a duration is a number of seconds from 0")
    elif value > MAX_SECONDS:
        problems.add(place, f"{value} seconds are more than ten years")
    else:
        return True
    return False


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _shown(value: object) -> str:
    try:
        text = repr(value)
    except ValueError:  # an integer of thousands of digits
        text = f"this {type(value).__name__}"
    return text if len(text) <= 80 else f"{text[:77]}…"
