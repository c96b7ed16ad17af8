"""Who answers a call: this orchestrator, or the owner of the shard that it is about, asked once (rule 24 of the protocol).

A call is tried here first. `ShardMoved` says that the shard is another's, and as far as is known whose: then that one is
asked. An owner that was asked so does not pass the call on. While a shard is on its way between owners its calls wait,
so many and so long.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from typing import TYPE_CHECKING, Final, Protocol, TypeVar

from onexflow.core.errors import Overloaded, ShardMoved, Unavailable
from onexflow.core.identity import ON_BEHALF, Identity
from onexflow.ports.client_link import OrchestratorService, RunService
from onexflow.ports.events import EventService
from onexflow.ports.nodes import NodeRegistryService
from onexflow.ports.persistence import PersistenceService

if TYPE_CHECKING:
    from onexflow.engine.whereabouts import Whereabouts

T = TypeVar("T")

#: Was the call that is handled now passed on by another orchestrator?
FORWARDED: ContextVar[bool] = ContextVar("onexflow-forwarded", default=False)
#: Takes the address of the orchestrator that the present call was passed on to, for who has made it.
PASSED_ON: ContextVar[list[str] | None] = ContextVar("onexflow-passed-on", default=None)
#: Seconds that a call waits for an owner.
PATIENCE: Final = 10.0
#: Seconds between looks for him: at least, at most, and as a share of the time for which there has been none. Thousands of
#: calls that look all the time would leave no time to what they wait for.
LOOK_SECONDS: Final = 0.05
LOOK_AT_MOST: Final = 1.0
LOOK_SHARE: Final = 0.2
LONG_SECONDS: Final = 1.0
#: Calls that may wait for owners at a time.
MAX_WAITING: Final = 10_000


class Peer(RunService, Protocol):
    """Another orchestrator, asked for what it owns."""

    @property
    def events(self) -> EventService: ...
    @property
    def records(self) -> PersistenceService: ...
    @property
    def node_registry(self) -> NodeRegistryService: ...
    async def drain_node(self, node_id: str) -> bool: ...
    async def can_append(self) -> bool:
        """Does its store take what it writes, as far as it knows?"""


class Local(OrchestratorService, Protocol):
    """This orchestrator."""

    async def refresh_definitions(self) -> None: ...
    async def can_append(self) -> bool: ...

    @property
    def whereabouts(self) -> Whereabouts:
        """Where the others are, and the shards."""


#: The orchestrator at an address.
Peers = Callable[[str], Peer]


class Router:
    """Finds who answers. `is_forwarded` says of the present call that it must not be passed on."""

    def __init__(
        self, local: Local, peers: Peers, is_forwarded: Callable[[], bool], caller: Callable[[], Identity | None]
    ) -> None:
        """`caller` says for whom the present call is; None: this orchestrator's own."""
        self._local = local
        self._peers = peers
        self.is_forwarded = is_forwarded
        self.caller = caller
        self._waiting = 0

    async def ask(self, call: Callable[[Peer], Awaitable[T]], caller: Identity | None = None) -> T:
        """The answer of this orchestrator, or of the owner. `caller`: as it was when the call came, where this is later."""
        if self.is_forwarded():
            return await call(self._local)
        caller = caller or self.caller()
        try:
            return await call(self._local)
        except ShardMoved as error:
            moved = error.with_traceback(None)  # here and below: with it, it would hold the frame that holds it
        if self._waiting >= MAX_WAITING:
            raise Overloaded(f"{self._waiting} calls wait for the owners of their shards") from moved
        self._waiting += 1
        try:
            return await self._ask_owner(call, moved, caller)
        finally:
            self._waiting -= 1

    async def ask_peer(self, call: Callable[[Peer], Awaitable[T]], address: str, caller: Identity | None) -> T:
        """The answer of another orchestrator, which is told for whom it is."""
        behalf = ON_BEHALF.set(caller)
        try:
            return await call(self._peers(address))
        finally:
            ON_BEHALF.reset(behalf)

    async def _ask_owner(self, call: Callable[[Peer], Awaitable[T]], moved: ShardMoved, caller: Identity | None) -> T:
        loop = asyncio.get_running_loop()
        since = loop.time()
        error: Unavailable = moved
        while True:
            asked_at = loop.time()
            address = str(moved.context.get("address") or "")
            if address:
                try:
                    answer = await self._ask_while_owner(call, address, moved, caller)
                    if (told := PASSED_ON.get()) is not None:
                        told[:] = [address]
                    return answer
                except Unavailable as refused:  # it has gone, or has handed the shard over
                    error = refused.with_traceback(None)
            if asked_at >= since + PATIENCE:
                raise error
            slept = min(LOOK_AT_MOST, max(LOOK_SECONDS, LOOK_SHARE * (loop.time() - since)))
            await asyncio.sleep(slept)
            try:
                return await call(self._local)  # it may have come here meanwhile
            except ShardMoved as again:
                moved = again.with_traceback(None)
            if loop.time() - asked_at - slept > LONG_SECONDS:  # somebody had it for a while: a wait goes on
                since = loop.time()

    async def _ask_while_owner(
        self, call: Callable[[Peer], Awaitable[T]], address: str, moved: ShardMoved, caller: Identity | None
    ) -> T:
        """The answer of that orchestrator, unless it has lost the shard meanwhile: one that is frozen never says so."""
        asked = asyncio.ensure_future(self.ask_peer(call, address, caller))
        try:
            while not asked.done():
                await asyncio.wait({asked}, timeout=LONG_SECONDS)
                now = self._local.whereabouts.owner_address(int(moved.context.get("shard", -1)))
                if not asked.done() and now not in {"", address}:
                    raise ShardMoved(f"{address} has lost the shard", moved.context)
            return asked.result()
        finally:
            asked.cancel()
