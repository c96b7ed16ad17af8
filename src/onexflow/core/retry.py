"""The law of retries: whether there is another attempt, and when. Pure; chance comes in as an argument."""

from __future__ import annotations

from typing import Final

from onexflow.core.definition import RetryPolicy
from onexflow.core.payload import Failure

#: For tasks that say nothing: three attempts, 0.5 s and then 1 s apart.
DEFAULT_RETRY: Final = RetryPolicy()
NO_RETRY: Final = RetryPolicy(policy="none", max_attempts=1)
#: For orchestrations that say nothing: again when a call could not be made. What became of a call that was made is
#: recorded, so another attempt would only hear it again.
ORCHESTRATION_RETRY: Final = RetryPolicy(
    max_attempts=6,
    retryable=(
        "DeadlineExceeded", "Draining", "Overloaded", "ShardMoved", "StoreFull", "StoreUnavailable", "Unavailable",
        "UnknownNode",
    ),
)  # fmt: skip


def delay(policy: RetryPolicy, attempt: int, jitter: float) -> float:
    """Seconds to wait after attempt number `attempt` (from 1) before the next.

    `jitter` is a random number from 0 to 1. Chance only ever shortens a delay, so that `max_delay` holds and attempts
    that failed together spread out even when all have reached it.
    """
    match policy.policy:
        case "none":
            return 0.0
        case "fixed":
            base = policy.initial_delay
        case "linear":
            base = policy.initial_delay * attempt
        case _:
            base = _grown(policy, attempt)
    return min(base, policy.max_delay) * (1.0 - policy.jitter * min(max(jitter, 0.0), 1.0))


def _grown(policy: RetryPolicy, attempt: int) -> float:
    try:
        return policy.initial_delay * policy.multiplier ** (attempt - 1)
    except OverflowError:
        return policy.max_delay if policy.initial_delay > 0 else 0.0


def may_retry(policy: RetryPolicy, failure: Failure, attempt: int) -> bool:
    """Whether attempt number `attempt`, which ended with `failure`, is followed by another.

    Names in the policy match the error's class name, with or without its module, or its stable code. The handler's own
    word (`failure.retryable`) goes before the policy's.
    """
    if policy.policy == "none" or attempt >= policy.max_attempts or not failure.retryable:
        return False
    names = {failure.type, failure.type.rpartition(".")[2], failure.code} - {""}
    if not names.isdisjoint(policy.non_retryable):
        return False
    return not policy.retryable or not names.isdisjoint(policy.retryable)
