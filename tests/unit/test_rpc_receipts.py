"""Receipts: who sends to a busy end waits for it, nobody waits for ever, and without receipts nobody waits."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onexflow.codec.wire.common import MAX_BATCH
from onexflow.rpc import receipts
from onexflow.rpc.receipts import FULL_WINDOW, PATIENCE, TURNS, WINDOW, Taken, Untaken


class Loop:
    """Turns by hand. Nothing passes the time."""

    def __init__(self) -> None:
        self.soon: list[Callable[[], None]] = []
        self.later: list[tuple[float, Callable[[], None]]] = []

    def call_soon(self, callback: Callable[..., None], *arguments: Any) -> None:
        self.soon.append(lambda: callback(*arguments))

    def call_later(self, seconds: float, callback: Callable[[], None]) -> None:
        self.later.append((seconds, callback))

    def turn(self) -> None:
        soon, self.soon = self.soon, []
        for callback in soon:
            callback()


def taken_on(loop: Loop, say: Callable[[], None] = lambda: None) -> Taken:
    return Taken(cast("asyncio.AbstractEventLoop", loop), say, lambda: PATIENCE)


def test_with_no_word_of_the_other_end_there_is_always_room() -> None:
    untaken = Untaken()
    for _ in range(10 * WINDOW):
        assert untaken.has_room(1)
        untaken.sent()
        assert not untaken.told(0)


def test_who_has_a_window_on_its_way_has_no_room_until_some_of_it_is_taken() -> None:
    untaken = Untaken()
    untaken.sent()
    untaken.told(1)
    for _ in range(WINDOW):
        assert untaken.has_room(1)
        untaken.sent()
    assert not untaken.has_room(1)
    assert untaken.told(2), "there is room now"
    assert untaken.has_room(1)
    assert not untaken.told(3), "there was room before"


def test_what_is_full_goes_earlier_than_what_may_still_get_company() -> None:
    untaken = Untaken()
    untaken.sent()
    untaken.told(1)
    for _ in range(FULL_WINDOW):
        assert untaken.has_room(MAX_BATCH)
        untaken.sent()
    assert not untaken.has_room(MAX_BATCH)
    assert untaken.told(2), "there is room for a full one"
    assert untaken.has_room(MAX_BATCH)
    assert not untaken.has_room(MAX_BATCH - 1)


def test_what_waits_for_no_room_takes_none() -> None:
    """A worker that has a new owner says what it holds of each of its shards, and then what it can take."""
    untaken = Untaken()
    untaken.sent(waits=False)
    untaken.told(1)
    for _ in range(1024):
        untaken.sent(waits=False)
    for _ in range(WINDOW):
        assert untaken.has_room(1)
        untaken.sent()
    assert not untaken.told(1025)
    assert not untaken.has_room(1)
    assert untaken.told(1026)


def test_who_did_not_ask_is_told_nothing() -> None:
    loop = Loop()
    taken = taken_on(loop)
    for _ in range(3 * WINDOW):
        taken.took()
        assert not taken.is_due
        assert taken.tell() == 0
    assert not loop.soon


@pytest.mark.parametrize("is_idle", [True, False])
def test_an_idle_end_says_so_within_some_turns_and_a_busy_one_later(
    is_idle: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(receipts, "IDLE_SECONDS", 1e9 if is_idle else 0.0)
    loop, told = Loop(), []
    taken = taken_on(loop, lambda: told.append(taken.tell()))
    taken.wanted = True
    for _ in range(3 * WINDOW):
        taken.took()
    assert len(loop.soon) == 1, "one is planned, and no other until it was said"
    for _ in range(TURNS - 1):
        loop.turn()
    assert not told
    loop.turn()
    if not is_idle:
        ((seconds, callback),) = loop.later
        assert seconds == PATIENCE
        assert not told
        callback()
    assert told == [3 * WINDOW]
    for _ in range(WINDOW):
        taken.took()
    assert len(loop.soon) == 1, "and the next"


def test_what_another_message_has_told_meanwhile_needs_no_receipt() -> None:
    loop = Loop()
    said: list[None] = []
    taken = taken_on(loop, lambda: said.append(None))
    taken.wanted = True
    for _ in range(WINDOW):
        taken.took()
    assert taken.tell() == WINDOW
    while loop.soon:
        loop.turn()
    for _, callback in loop.later:
        callback()
    assert not said


@given(st.lists(st.sampled_from(("send", "send full", "take", "answer", "deliver")), max_size=200))
def test_a_sender_that_waits_is_always_owed_a_receipt(steps: list[str]) -> None:
    """Whatever the order in which messages are sent, taken, answered and delivered: no more than a window is on its way,
    who may have waited for room hears of it, and once all that is on its way has come, a sender without room has an end that
    knows it has to speak."""
    untaken, taken = Untaken(), taken_on(Loop())
    taken.wanted = True
    there: deque[None] = deque()
    back: deque[int] = deque()

    def take() -> None:
        there.popleft()
        taken.took()

    def deliver(receipt: int) -> None:
        before = [untaken.has_room(entries) for entries in (1, MAX_BATCH)]
        is_told = untaken.told(receipt)
        assert is_told or before == [untaken.has_room(entries) for entries in (1, MAX_BATCH)]

    untaken.sent()
    there.append(None)
    take()
    untaken.told(taken.tell())
    for step in steps:
        if step.startswith("send"):
            window, entries = (FULL_WINDOW, MAX_BATCH) if step == "send full" else (WINDOW, 1)
            if untaken.has_room(entries):
                assert len(there) < window
                untaken.sent()
                there.append(None)
        elif step == "take" and there:
            take()
        elif step == "answer":
            back.append(taken.tell())
        elif step == "deliver" and back:
            deliver(back.popleft())
    while there:
        take()
    while back:
        deliver(back.popleft())
    assert untaken.has_room(1) or taken.is_due
    untaken.told(taken.tell())
    assert untaken.has_room(1)
