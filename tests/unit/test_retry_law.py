"""The law of retries, case by case. tests/properties/test_graph_properties.py has what holds of every policy."""

from __future__ import annotations

import pytest

from onexflow.core.definition import RetryPolicy
from onexflow.core.payload import Failure
from onexflow.core.retry import DEFAULT_RETRY, NO_RETRY, delay, may_retry


def test_default_is_three_attempts_that_double_from_half_a_second() -> None:
    assert [delay(DEFAULT_RETRY, attempt, 0.0) for attempt in (1, 2, 3)] == [0.5, 1.0, 2.0]
    assert DEFAULT_RETRY.max_attempts == 3
    assert delay(DEFAULT_RETRY, 1, 1.0) == pytest.approx(0.4)


@pytest.mark.parametrize(
    ("policy", "delays"),
    [
        ("none", [0, 0, 0, 0]),
        ("fixed", [2, 2, 2, 2]),
        ("linear", [2, 4, 6, 7]),
        ("exponential", [2, 6, 7, 7]),
    ],
)
def test_delay_of_each_policy_up_to_its_maximum(policy: str, delays: list[float]) -> None:
    retry = RetryPolicy(policy=policy, initial_delay=2, max_delay=7, multiplier=3, jitter=0)
    assert [delay(retry, attempt, 0.5) for attempt in range(1, 5)] == delays


def test_delay_of_an_enormous_attempt_is_the_maximum() -> None:
    assert delay(RetryPolicy(multiplier=1000.0, jitter=0), 10_000, 0.3) == 30.0
    assert delay(RetryPolicy(initial_delay=0, multiplier=1000.0), 10_000, 0.3) == 0.0


def failure(type: str = "ValueError", *, code: str = "", retryable: bool = True) -> Failure:
    return Failure(type=type, message="m", code=code, retryable=retryable)


def test_attempts_end_at_the_policys_maximum() -> None:
    assert [may_retry(DEFAULT_RETRY, failure(), attempt) for attempt in (1, 2, 3, 4)] == [True, True, False, False]
    assert not may_retry(NO_RETRY, failure(), 1)
    assert not may_retry(RetryPolicy(policy="none", max_attempts=9), failure(), 1)


def test_handlers_own_word_goes_before_the_policys() -> None:
    assert not may_retry(RetryPolicy(retryable=("ValueError",)), failure(retryable=False), 1)


@pytest.mark.parametrize(
    ("retryable", "non_retryable", "error", "expected"),
    [
        ((), (), failure(), True),
        ((), ("ValueError",), failure(), False),
        ((), ("ValueError",), failure("shop.errors.ValueError"), False),
        ((), ("shop.errors.Declined",), failure("shop.errors.Declined"), False),
        (("TimeoutError",), (), failure(), False),
        (("TimeoutError",), (), failure("TimeoutError"), True),
        (("TimeoutError",), ("TimeoutError",), failure("TimeoutError"), False),
        (("OXF-4003",), (), failure("WorkerLost", code="OXF-4003"), True),
        ((), ("OXF-4004",), failure("TaskTimedOut", code="OXF-4004"), False),
    ],
)
def test_names_of_errors(
    retryable: tuple[str, ...], non_retryable: tuple[str, ...], error: Failure, expected: bool
) -> None:
    assert may_retry(RetryPolicy(retryable=retryable, non_retryable=non_retryable), error, 1) is expected
