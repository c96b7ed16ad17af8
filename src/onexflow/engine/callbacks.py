"""Calls that are answered by callback, where the answer may be another orchestrator's: a start, a wait for a run's end, and
the events of a run as they come."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

import msgspec

from onexflow.core.errors import Draining, ShardMoved
from onexflow.core.identity import Identity
from onexflow.core.ids import RunKey
from onexflow.engine.routing import Local, Peer, Router
from onexflow.ports.client_link import EventView, RunOutcome, StartOutcome, StartRequest
from onexflow.ports.clock import IdSource
from onexflow.spi.exceptions import SPIError

T = TypeVar("T")


class _Told:
    """A call that is answered by callback: a start, or a wait that can be given up."""

    def __init__(self) -> None:
        self.task: asyncio.Task[None] | None = None
        self.stop: Callable[[], None] | None = None
        self.is_over = False

    def give_up(self) -> None:
        stop, task = self.stop, self.task
        self.end()
        if stop is not None:
            stop()
        if task is not None:
            task.cancel()

    def end(self) -> None:
        """It has its answer, or wants none. What it knows knows of it: no cycle is to be left."""
        self.is_over = True
        self.stop = self.task = None


class Callbacks:
    """Asks here first; who is answered `ShardMoved` is answered by the owner instead, and a wait goes on there."""

    def __init__(self, local: Local, router: Router, ids: IdSource) -> None:
        self._local = local
        self._router = router
        self._ids = ids
        self._tasks: set[asyncio.Task[None]] = set()

    async def close(self) -> None:
        """Nothing that was passed on is answered any more."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def start_run(self, request: StartRequest, reply: Callable[[StartOutcome | SPIError], None]) -> None:
        if self._router.is_forwarded():
            self._local.start_run(request, reply)
            return
        if request.instance_id is None and not request.request_id and request.caller is None:
            request = msgspec.structs.replace(request, instance_id=self._ids.uuid())  # asked twice, it starts one run

        caller = self._router.caller()

        def answered(outcome: StartOutcome | SPIError) -> None:
            if isinstance(outcome, ShardMoved):
                told = _Told()
                told.task = self._spawn(self._forward(told, lambda peer: _started(peer, request), reply, caller))
            else:
                reply(outcome)

        self._local.start_run(request, answered)

    def wait_run(self, key: RunKey, reply: Callable[[RunOutcome | SPIError], None]) -> Callable[[], None]:
        if self._router.is_forwarded():
            return self._local.wait_run(key, reply)
        told = _Told()
        caller = self._router.caller()

        def answered(outcome: RunOutcome | SPIError) -> None:
            if told.is_over:
                return
            if isinstance(outcome, ShardMoved):
                told.stop = None
                told.task = self._spawn(self._forward(told, lambda peer: _ended(peer, key), reply, caller))
            else:
                told.end()
                reply(outcome)

        stop = self._local.wait_run(key, answered)
        if told.task is None and not told.is_over:
            told.stop = stop
        return told.give_up

    async def _forward(
        self,
        told: _Told,
        call: Callable[[Peer], Awaitable[T]],
        reply: Callable[[T | SPIError], None],
        caller: Identity | None,
    ) -> None:
        """Ask the owner; a wait goes on for as long as there is one to be found."""
        outcome: T | SPIError
        try:
            outcome = await self._router.ask(call, caller)
        except SPIError as error:
            outcome = error.with_traceback(None)
        if not told.is_over:
            told.end()
            reply(outcome)

    def follow_run(
        self, key: RunKey, from_sequence: int, listener: Callable[[Sequence[EventView] | SPIError | None], None]
    ) -> Callable[[], None]:
        if self._router.is_forwarded():
            return self._local.follow_run(key, from_sequence, listener)
        task = self._spawn(self._follow(key, max(1, from_sequence), listener))

        def stop() -> None:
            task.cancel()

        return stop

    async def _follow(
        self, key: RunKey, start: int, listener: Callable[[Sequence[EventView] | SPIError | None], None]
    ) -> None:
        position = start

        async def until_end(peer: Peer) -> None:
            nonlocal position
            heard: asyncio.Queue[Sequence[EventView] | SPIError | None] = asyncio.Queue()
            stop = peer.follow_run(key, position, heard.put_nowait)
            try:
                while (events := await heard.get()) is not None:
                    if isinstance(events, SPIError):
                        raise events
                    listener(events)
                    position = events[-1].sequence + 1
            finally:
                stop()

        try:
            while True:
                before = position
                try:
                    await self._router.ask(until_end)
                except (ShardMoved, Draining):
                    if position == before:  # a while without anybody to follow
                        raise
                else:
                    break
        except SPIError as error:
            listener(error)
        else:
            listener(None)

    def _spawn(self, work: Any) -> asyncio.Task[None]:
        task: asyncio.Task[None] = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


async def _started(peer: Peer, request: StartRequest) -> StartOutcome:
    answer: asyncio.Future[StartOutcome | SPIError] = asyncio.get_running_loop().create_future()
    peer.start_run(request, lambda outcome: _tell(answer, outcome))
    return _value(await answer)


async def _ended(peer: Peer, key: RunKey) -> RunOutcome:
    answer: asyncio.Future[RunOutcome | SPIError] = asyncio.get_running_loop().create_future()
    give_up = peer.wait_run(key, lambda outcome: _tell(answer, outcome))
    try:
        return _value(await answer)
    finally:
        give_up()


def _tell(answer: asyncio.Future[T], outcome: T) -> None:
    if not answer.done():
        answer.set_result(outcome)


def _value(answer: T | SPIError) -> T:
    if not isinstance(answer, SPIError):
        return answer
    try:
        raise answer
    finally:
        del answer  # its traceback holds this frame
