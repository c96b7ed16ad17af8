"""The ledger of one role's slots: who may send how many more attempts. Pure.

The worker is the only authority over its slots. What it has promised (credits given and not yet used), what waits and
what runs never exceeds its capacity when a credit is given: the slots, for pure roles plus a window of attempts that
wait here for the next free slot. A credit ends in exactly one way: used by an assignment, given back when the worker
asked for it, or void with its link.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Final, Generic, TypeVar

#: Work of this many seconds may wait at a worker of a pure role.
PREFETCH_SECONDS: Final = 0.020
PREFETCH_LIMIT: Final = 256
#: Weight of the newest attempt in the mean service time.
_WEIGHT: Final = 0.1

L = TypeVar("L", bound=Hashable)


class Account:
    """One link's side of the ledger."""

    __slots__ = ("asked", "granted", "placed", "turn", "waiting")

    def __init__(self, turn: int) -> None:
        self.granted = 0  #: credits given and not yet used
        self.asked = 0  #: of them, how many we have asked back and not yet heard of
        #: Of them, how many it did not give back as something is placed on them, and waits for the disk there: asking
        #: again before it states its demand anew would be answered the same, at the speed of the wire.
        self.placed = 0
        self.waiting = 0  #: what the orchestrator said waits there, less what it has sent since
        self.turn = turn  #: when it last used a credit: the smallest is served first


class Ledger(Generic[L]):
    """Credits, waiting and running attempts of one role."""

    __slots__ = ("_accounts", "_prefetch", "_turn", "closed", "mean", "queued", "running", "slots")

    def __init__(self, slots: int, *, prefetch: bool) -> None:
        self.slots = slots
        self.queued = 0  #: assigned here, not begun
        self.running = 0
        self.mean = 0.0  #: moving average of the service time, in seconds; 0 = nothing measured
        self.closed = False  #: draining: nothing more is given
        self._prefetch = prefetch
        self._accounts: dict[L, Account] = {}
        self._turn = 0

    @property
    def window(self) -> int:
        """How many attempts may wait here beyond the slots."""
        if not self._prefetch or self.mean <= 0.0:
            return 0
        return min(PREFETCH_LIMIT, int(PREFETCH_SECONDS * self.slots / self.mean))

    @property
    def granted(self) -> int:
        """Credits out in the world."""
        return sum(account.granted for account in self._accounts.values())

    @property
    def room(self) -> int:
        """How many credits may be out."""
        return 0 if self.closed else max(0, self.slots + self.window - self.queued - self.running)

    # ---- what happens

    def attach(self, link: L) -> None:
        """A link may be given credits from now on."""
        self._turn += 1
        self._accounts[link] = Account(self._turn)

    def detach(self, link: L) -> None:
        """The link has ended, or wants nothing more: its credits are void."""
        self._accounts.pop(link, None)

    def demand(self, link: L, waiting: int) -> None:
        """The orchestrator states how many attempts wait there."""
        if (account := self._accounts.get(link)) is not None:
            account.waiting = max(0, waiting)
            account.placed = 0

    def spend(self, link: L, count: int = 1) -> int:
        """So many attempts have arrived: how many of them, the first, use credits. The link has none for the others."""
        account = self._accounts.get(link)
        if account is None:
            return 0
        count = min(count, account.granted)
        account.granted -= count
        account.asked = min(account.asked, account.granted)
        account.placed = max(0, account.placed - count)
        account.waiting = max(0, account.waiting - count)
        if count:
            self._turn += 1
            account.turn = self._turn
        return count

    def give_back(self, link: L, count: int) -> None:
        """The orchestrator gives back `count` credits that it has not used, as it was asked to."""
        if (account := self._accounts.get(link)) is not None:
            account.granted -= min(count, account.granted)
            if count < account.asked:
                account.placed = account.granted
            account.asked = 0

    def took(self, seconds: float) -> None:
        """An attempt took so long."""
        seconds = max(seconds, 1e-6)
        self.mean = seconds if self.mean <= 0.0 else self.mean + (seconds - self.mean) * _WEIGHT

    # ---- what to do

    def grants(self) -> dict[L, int]:
        """New credits to tell, by link; they are booked. Small changes are held back while a link has plenty."""
        free = self.room - self.granted
        if free < 1 or not self._accounts:
            return {}
        shares = self._shares()
        given: dict[L, int] = {}
        for link, account in sorted(self._accounts.items(), key=lambda pair: pair[1].turn):
            more = min(shares[link] - account.granted, free)
            # Each message costs more than a credit is worth while the link still has half of its share unused.
            if more < 1 or (account.granted * 2 > shares[link] and account.waiting <= account.granted):
                continue
            account.granted += more
            free -= more
            given[link] = more
        return given

    def recalls(self) -> dict[L, int]:
        """Credits to ask back, by link: those above its share, while another link is short of its own, or while far more
        are out than there is room for, because the window has shrunk."""
        over = self.granted - self.room
        if not self._accounts or (len(self._accounts) < 2 and over <= self.slots):
            return {}
        shares = self._shares()
        short = sum(max(0, min(shares[k], a.waiting) - a.granted) for k, a in self._accounts.items()) - max(0, -over)
        short = max(short, over if over > self.slots else 0) - sum(a.asked for a in self._accounts.values())
        asked: dict[L, int] = {}
        for link, account in self._accounts.items():
            over = min(account.granted - account.placed - shares[link] - account.asked, short)
            if over > 0:
                account.asked += over
                short -= over
                asked[link] = over
        return asked

    def _shares(self) -> dict[L, int]:
        """How the room is parted: one to each that has demand, then by demand, and what is left evenly."""
        room = self.room
        if len(self._accounts) == 1:
            return dict.fromkeys(self._accounts, room)
        links = sorted(self._accounts, key=lambda link: self._accounts[link].turn)
        shares = dict.fromkeys(links, 0)
        hungry = [link for link in links if self._accounts[link].waiting > 0]
        for link in hungry[:room]:
            shares[link] = 1
        room -= min(room, len(hungry))
        wanted = {link: self._accounts[link].waiting - 1 for link in hungry}
        total = sum(wanted.values())
        if room and total:
            for link in hungry:
                shares[link] += min(wanted[link], wanted[link] * room // total)
            room = self.room - sum(shares.values())
        for link in hungry:  # what the division left over
            more = min(room, self._accounts[link].waiting - shares[link])
            if more > 0:
                shares[link] += more
                room -= more
        for position, link in enumerate(links):
            shares[link] += room // len(links) + (1 if position < room % len(links) else 0)
        return shares
