"""How soon an orchestrator that was away is asked again."""

from __future__ import annotations

import random
import time

import pytest
from tenacity import Future, RetryCallState, Retrying

from onexflow.rpc.channel import pause
from onexflow.rpc.worker_connection import _NotSettledError, _pause


@pytest.mark.parametrize(
    ("away", "longest"), [(0.0, 0.05), (0.4, 0.05), (1.0, 0.1), (5.0, 0.5), (10.0, 1.0), (3600.0, 1.0)]
)
def test_the_pause_grows_with_the_time_that_nobody_has_answered(
    away: float, longest: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = RetryCallState(Retrying(), None, (), {})
    state.start_time, state.outcome_timestamp = time.monotonic() - away, time.monotonic()
    monkeypatch.setattr(random, "uniform", lambda low, high: high)
    assert pause(state) == pytest.approx(longest, abs=0.001)
    monkeypatch.setattr(random, "uniform", lambda low, high: low)
    assert pause(state) == 0.0


def test_before_any_attempt_has_ended_it_is_the_shortest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(random, "uniform", lambda low, high: high)
    assert pause(RetryCallState(Retrying(), None, (), {})) == 0.05


@pytest.mark.parametrize(
    ("took", "longest"), [(0.01, 0.2), (0.04, 0.2), (0.1, 0.5), (3.0, 1.0)], ids=["quick", "as-ever", "slow", "stuck"]
)
def test_a_worker_whose_streams_break_soon_gives_no_more_time_to_connecting_than_to_work(
    took: float, longest: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = RetryCallState(Retrying(), None, (), {})
    state.attempt_number = 20
    monkeypatch.setattr(random, "uniform", lambda low, high: high)
    failed: Future = Future(20)
    failed.set_exception(_NotSettledError(took))
    state.outcome = failed
    assert _pause(state) == pytest.approx(longest)
    monkeypatch.setattr(random, "uniform", lambda low, high: low)
    assert _pause(state) == 0.0
