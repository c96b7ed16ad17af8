"""The ends of runs: who waits for one, and what those are told who ask soon after."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Final

from onexflow.core.errors import Coded, Draining
from onexflow.core.ids import RunKey
from onexflow.engine import views
from onexflow.engine.kernel import Kernel
from onexflow.engine.queries import Queries
from onexflow.engine.shard import Shard
from onexflow.ports.client_link import RunOutcome
from onexflow.spi.exceptions import SPIError

#: Outcomes that are kept in memory after the end of their runs, and the largest result of one.
KEPT_OUTCOMES: Final = 1000
KEPT_BYTES: Final = 16 * 1024

WaitReply = Callable[[RunOutcome | SPIError], None]
#: Runs work in the background; what it raises of ours goes to the reply.
InBackground = Callable[[Awaitable[None], Callable[[SPIError], None]], None]


class Outcomes:
    """Of the runs of the shards that are owned here. Everything it tells is durable."""

    def __init__(self, kernel: Kernel, queries: Queries, in_background: InBackground) -> None:
        self._kernel = kernel
        self._queries = queries
        self._in_background = in_background
        self._waiters: dict[RunKey, list[WaitReply]] = {}
        self._ended: OrderedDict[RunKey, RunOutcome] = OrderedDict()

    @property
    def waiting(self) -> int:
        """Runs that somebody waits for."""
        return len(self._waiters)

    def ended(self, outcome: RunOutcome) -> None:
        """A run's end has become durable."""
        waiting = self._waiters.pop(outcome.key, None)
        if waiting is None:
            self._keep(outcome)
        else:
            for reply in waiting:
                reply(outcome)

    def _keep(self, outcome: RunOutcome) -> None:
        """For who has started it and is about to ask. Who asks later, or for one that somebody waited for, or for what is
        large, has it read back."""
        if outcome.result is not None and len(outcome.result.data) > KEPT_BYTES:
            return
        self._ended[outcome.key] = outcome
        if len(self._ended) > KEPT_OUTCOMES:
            self._ended.popitem(last=False)

    def wait(self, key: RunKey, reply: WaitReply) -> Callable[[], None]:
        """Answer once, when the run has ended. Returns what gives up the wait."""
        ended = self._ended.get(key)
        if ended is not None:
            reply(ended)
            return _nothing
        try:
            is_resident = self._kernel.resident(key) is not None
        except SPIError as error:
            reply(error)
            return _nothing
        self._waiters.setdefault(key, []).append(reply)
        if not is_resident:
            self._in_background(self._wait_absent(key, reply), reply)

        def give_up() -> None:
            self._waits_no_more(key, reply)

        return give_up

    def _waits_no_more(self, key: RunKey, reply: WaitReply) -> bool:
        """Take `reply` from those who wait. False when it has been answered, or has given up."""
        waiting = self._waiters.get(key, [])
        if reply not in waiting:
            return False
        waiting.remove(reply)
        if not waiting:
            del self._waiters[key]
        return True

    async def _wait_absent(self, key: RunKey, reply: WaitReply) -> None:
        """The run is not in memory: ended (perhaps not durably yet), parked, or unknown."""
        try:
            await self._queries.durable(key, patient=True)
            if reply not in self._waiters.get(key, ()):
                return
            run = await self._kernel.find(key)
        except SPIError as error:
            if self._waits_no_more(key, reply):
                reply(error)
            return
        # An end that is not durable is told when it is, as to all who wait.
        if run.is_over and run.durable_seq == run.state.seq and self._waits_no_more(key, reply):
            reply(views.outcome_of(key, run.state))

    def refuse(self, key: RunKey, error: Coded) -> None:
        """It is not known whether the run's start will be durable: send away who waits for its end."""
        for reply in self._waiters.pop(key, ()):
            reply(error)

    def left(self, shard: Shard, error: Coded) -> None:
        """The shard is not owned any more: send away who waits for its runs. Of a run whose start is not durable the next
        owner may know nothing: its caller is to start it again, under the same id."""
        for key in [key for key in self._waiters if self._kernel.number_of(key) == shard.id]:
            run = shard.by_key.get(key)
            is_certain = run is None or run.durable_seq > 0
            for reply in self._waiters.pop(key):
                reply(
                    error if is_certain else Draining(f"run {key} is not durable, and its shard moves: start it again")
                )

    def fail(self, error: Coded) -> None:
        """The store is lost: send everybody away."""
        for replies in self._waiters.values():
            for reply in replies:
                reply(error)
        self._waiters.clear()


def _nothing() -> None:
    """There is no wait to give up."""
