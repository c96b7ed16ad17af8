"""Workflow definitions as data: what the builder makes, files hold, and `core.compiler` checks and compiles.

A definition is only shape here. Constructing one checks nothing: `compile_graph` reports every problem at once, with
its place. All durations are seconds. docs/definitions.md is the reference for those who write definitions.
"""

from __future__ import annotations

from typing import Final, Literal

import msgspec

#: What runs a task, and so what onexflow promises about it (docs/guarantees.md).
Role = Literal["effect", "compute", "reducer", "orchestrator"]
ROLES: Final[tuple[Role, ...]] = ("effect", "compute", "reducer", "orchestrator")

Priority = Literal["low", "normal", "high", "critical", "urgent"]
PRIORITIES: Final[tuple[Priority, ...]] = ("low", "normal", "high", "critical", "urgent")

Backoff = Literal["none", "fixed", "exponential", "linear"]
BACKOFFS: Final[tuple[Backoff, ...]] = ("none", "fixed", "exponential", "linear")

#: One JMESPath expression, or an object of them: field name → expression. None: the default, see `core.mapping`.
Mapping = str | dict[str, str] | None

MAX_TASKS: Final = 10_000
#: Bytes of canonical text, and of a JSON file.
MAX_TEXT: Final = 4 * 1024 * 1024
MAX_NAME: Final = 128
MAX_EXPRESSION: Final = 4096
MAX_ATTEMPTS: Final = 10_000
#: Longest duration that a definition may name: ten years.
MAX_SECONDS: Final = 10 * 366 * 86_400.0


class RetryPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """How often a task's item is attempted, and how long it waits between (`core.retry` is the law)."""

    policy: Backoff = "exponential"
    #: Attempts in all, the first included. Not looked at when `policy` is `none`.
    max_attempts: int = 3
    #: Seconds before the second attempt.
    initial_delay: float = 0.5
    #: No delay is longer.
    max_delay: float = 30.0
    #: Growth of an exponential delay from attempt to attempt.
    multiplier: float = 2.0
    #: The part of each delay (0 to 1) that is left to chance: a delay d lies between d × (1 - jitter) and d.
    jitter: float = 0.2
    #: Names of error classes. Empty: every error is tried again.
    retryable: tuple[str, ...] = ()
    #: Names of error classes that are never tried again. Goes before `retryable`.
    non_retryable: tuple[str, ...] = ()


class RunRetry(msgspec.Struct, frozen=True, kw_only=True):
    """A failed run goes back to its failed tasks: `max_attempts` rounds in all, `delay` seconds between them."""

    max_attempts: int = 2
    delay: float = 0.0


class Timeouts(msgspec.Struct, frozen=True, kw_only=True):
    """The four timeouts of a task in seconds; 0 = none."""

    #: From scheduled until a worker begins it.
    schedule_to_start: float = 0.0
    #: One attempt.
    start_to_close: float = 0.0
    #: All attempts and the waits between them.
    schedule_to_close: float = 0.0
    #: Longest silence of a running attempt.
    heartbeat: float = 0.0


NO_TIMEOUTS: Final = Timeouts()


class Compensation(msgspec.Struct, frozen=True, kw_only=True):
    """How what an effect did is undone: by another effect, when its run is cancelled, fails or times out."""

    #: Name of the effect handler on the workers.
    handler: str
    #: Beside `input`, `tasks` and `run` it sees `result` (of the task that is undone), `outcome` and `reason` (why).
    #: None: the object of the `input` that the task had and its `result`.
    input: Mapping = None
    #: As for any effect.
    retry: RetryPolicy | None = None
    timeouts: Timeouts = NO_TIMEOUTS


class TaskSpec(msgspec.Struct, frozen=True, kw_only=True):
    """One task of a workflow."""

    #: Letters, digits, `_` and `-`, beginning with a letter.
    name: str
    role: Role
    #: Name of the handler on the workers; empty means the task's own name.
    handler: str = ""
    #: Tasks that must complete first. If one fails or is skipped, this task is skipped.
    depends_on: tuple[str, ...] = ()
    #: Tasks that must have ended first, in whatever way. Their result is null if they did not complete.
    after: tuple[str, ...] = ()
    input: Mapping = None
    #: Condition: the task is skipped when it is false. Empty: always.
    when: str = ""
    #: Expression of a list: the task runs once an item, and its result is the list of results.
    map: str = ""
    #: Items of a mapped task that may be in flight at a time; 0 = no limit.
    max_parallel: int = 0
    #: This reducer is fed: it begins with the mapped task that it depends on, and gets that one's results as they come.
    feed: bool = False
    #: None: `core.retry.DEFAULT_RETRY`, but an effect whose handler is not idempotent is not tried again.
    retry: RetryPolicy | None = None
    timeouts: Timeouts = NO_TIMEOUTS
    priority: Priority = "normal"
    #: A failure of this task does not fail the run. Tasks that depend on it are skipped all the same.
    allow_failure: bool = False
    #: Runs while the run is `initializing`, before every task that is not set-up.
    setup: bool = False
    #: How this effect is undone when the run does not complete. None: it is not.
    compensation: Compensation | None = None

    def __post_init__(self) -> None:
        if not self.handler:
            msgspec.structs.force_setattr(self, "handler", self.name)


class TaskInfo(msgspec.Struct, frozen=True, cache_hash=True, gc=False):
    """What a worker is told of a task: the same for all attempts, in all runs."""

    workflow_type: str
    name: str
    role: Role
    handler: str
    timeout: float = (
        0.0  #: seconds an attempt may run; 0 = no limit. Enforced by the orchestrator, told for the context.
    )
    heartbeat: float = 0.0  #: seconds between progress reports; 0 = none asked for
    fed: bool = False  #: an attempt's items come by Feed, when it has said Fed


class WorkflowDefinition(msgspec.Struct, frozen=True, kw_only=True):
    """A workflow: its tasks and how its result is made. Named by (workflow_type, version); never changed, only replaced."""

    workflow_type: str
    version: int = 1
    description: str = ""
    tasks: tuple[TaskSpec, ...] = ()
    #: The run's result. None: the result of the only task that no other waits for, or the object of all such tasks.
    output: Mapping = None
    #: None: a run is not tried again.
    retry: RunRetry | None = None
    #: Seconds from start until the run times out; 0 = never.
    timeout: float = 0.0
