"""Exceptions as data: cut where they are huge, and never the cause of another failure."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from onexflow.core.errors import UnknownRun
from onexflow.worker.errors import MESSAGE_LIMIT, TRACEBACK_LIMIT, ContractError, Fatal, Retry, clip, failure_of


def raised(error: BaseException) -> BaseException:
    try:
        raise error
    except BaseException as caught:  # noqa: BLE001 - that is the test
        return caught


def test_type_message_and_traceback_carry_over() -> None:
    failure = failure_of(raised(KeyError("sku")))
    assert (failure.type, failure.message, failure.retryable, failure.code) == ("KeyError", "'sku'", True, "")
    assert "test_worker_failures.py" in failure.traceback


def test_fatal_and_contract_errors_are_not_retryable() -> None:
    assert not failure_of(Fatal("no")).retryable
    assert not failure_of(ContractError("no")).retryable


def test_retry_carries_its_wish() -> None:
    assert failure_of(Retry(after=2.5)).context == {"retry_after": 2.5}


def test_our_own_errors_keep_code_and_context() -> None:
    failure = failure_of(UnknownRun("gone", {"id": "x", "odd": object}))
    assert failure.code == "OXF-2002"
    assert failure.context is not None
    assert failure.context["id"] == "x"


def test_huge_messages_and_tracebacks_are_cut() -> None:
    failure = failure_of(raised(ValueError("ü" * 100_000)))
    assert len(failure.message.encode()) <= MESSAGE_LIMIT
    assert failure.message.endswith("… [200000 bytes, cut]")
    assert len(failure.traceback.encode()) <= TRACEBACK_LIMIT
    msgspec.msgpack.encode(failure)


def test_a_traceback_keeps_its_end() -> None:
    def deep(n: int) -> None:
        if n == 0:
            raise ValueError("the cause")
        deep(n - 1)

    try:
        deep(300)
    except ValueError as error:
        error.add_note("x" * 20_000)
        failure = failure_of(error)
        assert failure.traceback.startswith("[")
        assert len(failure.traceback.encode()) <= TRACEBACK_LIMIT


class Broken(Exception):
    def __str__(self) -> str:
        raise RuntimeError("broken")


def test_a_broken_str_hides_nothing() -> None:
    assert failure_of(raised(Broken())).message == "Broken (its __str__ raises)"


@pytest.mark.parametrize("text", ["", "short", "ü" * 10, "\ud800"])
def test_clip_gives_valid_utf8(text: str) -> None:
    assert len(clip(text, 30).encode()) <= 30


def test_groups_are_told_whole() -> None:
    error: Any = ExceptionGroup("two", [ValueError("a"), TypeError("b")])
    failure = failure_of(raised(error))
    assert failure.type == "ExceptionGroup"
    assert "TypeError: b" in failure.traceback
