"""The ledger under any sequence of events: never more promised than there is, and nobody with demand forgotten."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from onexflow.worker.credits import PREFETCH_LIMIT, Ledger

LINKS = st.sampled_from(["a", "b", "c"])


class Model(RuleBasedStateMachine):
    """Orchestrators that obey: they send with credit only, and answer when they are asked."""

    slots = 4
    prefetch = False

    def __init__(self) -> None:
        super().__init__()
        self.ledger: Ledger[str] = Ledger(self.slots, prefetch=self.prefetch)
        self.credits: dict[str, int] = {}  # as the orchestrators count
        self.asked: dict[str, int] = {}
        self.queued = self.running = 0

    @rule(link=LINKS)
    def attach(self, link: str) -> None:
        if link not in self.credits:
            self.ledger.attach(link)
            self.credits[link] = 0

    @rule(link=LINKS)
    def detach(self, link: str) -> None:
        self.ledger.detach(link)
        self.credits.pop(link, None)
        self.asked.pop(link, None)

    @rule(link=LINKS, waiting=st.integers(0, 500))
    def demand(self, link: str, waiting: int) -> None:
        self.ledger.demand(link, waiting)

    @rule()
    def grant(self) -> None:
        before = self.ledger.granted
        given = self.ledger.grants()
        for link, count in given.items():
            assert count > 0
            self.credits[link] += count
        used = self.queued + self.running
        if given:
            assert used + self.ledger.granted <= self.ledger.slots + self.ledger.window
        assert self.ledger.granted == before + sum(given.values())

    @rule()
    def recall(self) -> None:
        for link, count in self.ledger.recalls().items():
            assert count > 0
            self.asked[link] = self.asked.get(link, 0) + count
            assert self.asked[link] <= self.ledger.slots + PREFETCH_LIMIT

    @rule(link=LINKS)
    def answer(self, link: str) -> None:
        if link in self.asked:
            count = min(self.asked.pop(link), self.credits[link])
            self.credits[link] -= count
            self.ledger.give_back(link, count)

    @rule(link=LINKS, count=st.integers(1, 300))
    def assign(self, link: str, count: int) -> None:
        used = min(count, self.credits.get(link, 0))
        assert self.ledger.spend(link, count) == used  # used or given back, never both
        if used:
            self.credits[link] -= used
            self.queued += used
            self.ledger.queued += used

    @precondition(lambda self: self.queued and self.running < self.slots)
    @rule()
    def begin(self) -> None:
        self.queued -= 1
        self.running += 1
        self.ledger.queued -= 1
        self.ledger.running += 1

    @precondition(lambda self: self.running)
    @rule(seconds=st.floats(0, 2))
    def end(self, seconds: float) -> None:
        self.running -= 1
        self.ledger.running -= 1
        self.ledger.took(seconds)

    @precondition(lambda self: self.queued)
    @rule()
    def give_back_queued(self) -> None:
        self.queued -= 1
        self.ledger.queued -= 1

    @invariant()
    def books_agree(self) -> None:
        assert self.ledger.granted == sum(self.credits.values())
        assert self.ledger.window <= PREFETCH_LIMIT

    @invariant()
    def no_effect_waits_for_a_slot(self) -> None:
        if not self.prefetch:
            assert self.queued + self.running + self.ledger.granted <= self.slots

    @invariant()
    def whoever_has_demand_gets_some_in_the_end(self) -> None:
        """From here on only we act, and orchestrators give back when asked: nobody with demand is left without."""
        ledger: Any = self.ledger
        hungry = [link for link, account in ledger._accounts.items() if account.waiting]
        assert all(share >= 0 for share in ledger._shares().values()) if ledger._accounts else True
        if ledger._accounts:
            assert sum(ledger._shares().values()) == ledger.room
            assert sum(ledger._shares()[link] > 0 for link in hungry) >= min(len(hungry), ledger.room)


class PureModel(Model):
    prefetch = True
    slots = 2


TestEffectLedger = Model.TestCase
TestPureLedger = PureModel.TestCase


def test_a_window_holds_twenty_milliseconds_of_work() -> None:
    ledger: Ledger[str] = Ledger(4, prefetch=True)
    assert ledger.window == 0
    ledger.took(0.002)
    assert ledger.window == 40
    for _ in range(200):
        ledger.took(0.0)
    assert ledger.window == PREFETCH_LIMIT
    for _ in range(200):
        ledger.took(1.0)
    assert ledger.window == 0


def test_credits_are_asked_back_when_the_window_has_shrunk() -> None:
    ledger: Ledger[str] = Ledger(4, prefetch=True)
    ledger.attach("a")
    ledger.took(0.001)
    assert ledger.grants() == {"a": 84}
    for _ in range(50):
        ledger.took(1.0)
    assert ledger.recalls() == {"a": 80}
    assert ledger.recalls() == {}  # asked once
    ledger.give_back("a", 60)  # 20 were on their way
    for _ in range(20):
        assert ledger.spend("a")
    ledger.queued = 20
    assert ledger.granted == 4


def test_one_slot_goes_round() -> None:
    ledger: Ledger[str] = Ledger(1, prefetch=False)
    served = []
    for link in "abc":
        ledger.attach(link)
        ledger.demand(link, 100)
    for _ in range(6):
        ((link, count),) = ledger.grants().items()
        assert count == 1
        assert ledger.spend(link)
        served.append(link)
    assert sorted(served[:3]) == sorted(served[3:]) == ["a", "b", "c"]


def test_small_changes_are_held_back_while_there_is_plenty() -> None:
    ledger: Ledger[str] = Ledger(16, prefetch=False)
    ledger.attach("a")
    assert ledger.grants() == {"a": 16}
    for _ in range(7):
        ledger.spend("a")
    assert ledger.grants() == {}  # 9 of 16 are left
    ledger.spend("a")
    assert ledger.grants() == {"a": 8}
    ledger.spend("a")
    ledger.demand("a", 16)
    assert ledger.grants() == {"a": 1}  # it wants more than it has


def settle(ledger: Ledger[str], held: dict[str, int]) -> int:
    """Grant and ask back until nothing changes any more, as two orchestrators would that place nothing (what they
    `held` is in use there, and is not given back); how many messages that took."""
    for messages in range(1, 100):
        grants, asked = ledger.grants(), ledger.recalls()
        if not grants and not asked:
            return messages
        for link, count in asked.items():
            ledger.give_back(link, max(0, min(count, ledger._accounts[link].granted - held.get(link, 0))))
    raise AssertionError("credits go back and forth without end")


def test_one_credit_that_two_want_stays_where_it_is_until_it_is_used() -> None:
    ledger: Ledger[str] = Ledger(1, prefetch=False)
    for link in "ab":
        ledger.attach(link)
        ledger.demand(link, 5)
    settle(ledger, {})
    ledger.demand("a", 9)
    ledger.demand("b", 9)
    settle(ledger, {})
    assert ledger.granted == 1


def test_credits_that_something_is_placed_on_are_not_asked_for_again_and_again() -> None:
    ledger: Ledger[str] = Ledger(4, prefetch=False)
    ledger.attach("a")
    assert ledger.grants() == {"a": 4}
    ledger.attach("b")
    ledger.demand("b", 4)
    settle(ledger, {"a": 4})  # it waits for its disk with all of them
    ledger.demand("a", 0)
    assert ledger.recalls() == {"a": 4}  # it has said anew what it wants: it may have changed its mind
    ledger.give_back("a", 4)
    assert ledger.grants() == {"b": 4}
