"""Workers that are silent while their stream stands: stopped, or cut off so that nobody was told.

What a worker has been given makes it owe a sign of life. One that has said nothing for a moment is looked for at its
liveness port, which a process answers however busy its handlers are. Two looks without an answer make a suspicion. It is
no proof of anything: what may run twice is begun elsewhere at once, everything else waits as it did
(`suspects.Suspects`), and the first word of the worker ends it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Collection, Hashable, Iterable
from typing import Final, Generic, Protocol, TypeVar

#: Seconds between two looks at who is silent, and of silence after which a worker that owes something is looked for.
BEAT_SECONDS: Final = 0.1
SILENT_SECONDS: Final = 0.15
#: Looks without an answer, one after the other, until a worker is suspected; seconds after which there is none.
LOOKS: Final = 2
LOOK_SECONDS: Final = 0.2
#: Workers that are looked for at most in each beat: bounds the cost when hundreds have long tasks only.
AT_ONCE: Final = 8
#: A beat or a look that was late by so much tells of this process, not of any worker.
OWN_STALL_SECONDS: Final = 0.05


class Silent(Hashable, Protocol):
    """A worker's stream, as far as it matters here."""

    is_open: bool
    #: It is under suspicion already.
    is_silent: bool
    #: Loop time.
    heard_at: float

    @property
    def inflight(self) -> Collection[object]:
        """What it was given."""


S = TypeVar("S", bound=Silent)


class Pulse(Generic[S]):
    """Beats while any worker owes something. One look at a worker at a time."""

    def __init__(
        self,
        sessions: Callable[[], Iterable[S]],
        look: Callable[[S], Awaitable[str | None]],
        on_silent: Callable[[S], None],
    ) -> None:
        """`look` gives the incarnation that answers for a worker ("": nobody is there), or None for silence."""
        self._sessions = sessions
        self._look = look
        self._on_silent = on_silent
        self._beat: asyncio.TimerHandle | None = None
        #: When those that say nothing answered a look last.
        self._answered: dict[S, float] = {}
        self._looking: dict[S, asyncio.Task[None]] = {}

    def begin(self) -> None:
        """A worker was given something. Cheap, and called for every message to one."""
        if self._beat is None:
            loop = asyncio.get_running_loop()
            due = loop.time() + BEAT_SECONDS
            self._beat = loop.call_at(due, self._on_beat, due)

    def _on_beat(self, due: float) -> None:
        loop = asyncio.get_running_loop()
        self._beat = None
        now = loop.time()
        owing = [session for session in self._sessions() if session.inflight and not session.is_silent]
        if owing:
            self.begin()
        self._answered = {session: at for session, at in self._answered.items() if session in owing}
        if now - due > OWN_STALL_SECONDS:
            self._answered.update(dict.fromkeys(owing, now))  # what they said meanwhile may be unread
            return
        silent = [
            (at, session)
            for session in owing
            if session not in self._looking
            and now - (at := max(session.heard_at, self._answered.get(session, 0.0))) >= SILENT_SECONDS
        ]
        silent.sort(key=lambda entry: entry[0])
        for _, session in silent[:AT_ONCE]:
            self._looking[session] = loop.create_task(self._look_for(session), name="worker-look")

    async def _look_for(self, session: S) -> None:
        loop = asyncio.get_running_loop()
        heard_at, looks = session.heard_at, 0
        try:
            while looks < LOOKS:
                began, answer = loop.time(), None
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(LOOK_SECONDS):
                        answer = await self._look(session)
                if not session.is_open or session.heard_at != heard_at:
                    return
                if answer is not None:  # dead or another's: its stream ends, which is dealt with there
                    self._answered[session] = loop.time()
                    return
                if loop.time() - began <= LOOK_SECONDS + OWN_STALL_SECONDS:
                    looks += 1
            self._on_silent(session)
        finally:
            del self._looking[session]

    async def stop(self) -> None:
        if self._beat is not None:
            self._beat.cancel()
        for task in self._looking.values():
            task.cancel()
        await asyncio.gather(*self._looking.values(), return_exceptions=True)
