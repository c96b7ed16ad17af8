"""For whom another orchestrator is asked: for the caller of the call, whatever the engine does in between."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextvars import Context
from typing import Any
from uuid import UUID

from onexflow.core.errors import ShardMoved
from onexflow.core.identity import CALLER, ON_BEHALF, Identity
from onexflow.core.ids import RunKey
from onexflow.engine.gateway import Gateway, gateways
from onexflow.ports.client_link import ControlRequest, RunOutcome, StartOutcome, StartRequest

KEY = RunKey("default", "w", UUID(int=1))
MOVED = ShardMoved("elsewhere", {"address": "other:1"})


class Local:
    """Owns nothing, and says so when it is told to."""

    orchestrator_id = "here"
    events = records = node_registry = None
    shard_count = 1

    def __init__(self) -> None:
        self.whereabouts = self
        self.replies: list[Callable[[Any], None]] = []
        self.has_said = False

    def start_run(self, request: Any, reply: Callable[[Any], None]) -> None:
        assert ON_BEHALF.get() is None
        if self.has_said:
            reply(MOVED)
        else:
            self.replies.append(reply)

    def wait_run(self, key: Any, reply: Callable[[Any], None]) -> Callable[[], None]:
        self.start_run(key, reply)
        return lambda: None

    def say(self) -> None:
        """As the engine would, later, on its own account."""
        self.has_said = True
        for reply in self.replies:
            Context().run(reply, MOVED)

    async def control(self, request: Any) -> Any:
        raise MOVED

    async def drain_node(self, node_id: str) -> bool:
        assert ON_BEHALF.get() is None
        return False

    def other_addresses(self) -> tuple[str, ...]:
        return ("other:1",)

    def owner_address(self, number: int) -> str:
        return "other:1"


class Peer:
    """Remembers for whom it was asked."""

    def __init__(self) -> None:
        self.asked: list[Identity | None] = []

    def start_run(self, request: Any, reply: Callable[[Any], None]) -> None:
        self.asked.append(ON_BEHALF.get())
        reply(StartOutcome(key=KEY, version=1, created=True, state="running", sequence=1))

    def wait_run(self, key: Any, reply: Callable[[Any], None]) -> Callable[[], None]:
        self.asked.append(ON_BEHALF.get())
        reply(RunOutcome(key=KEY, state="completed"))
        return lambda: None

    async def control(self, request: Any) -> Any:
        self.asked.append(ON_BEHALF.get())

    async def drain_node(self, node_id: str) -> bool:
        self.asked.append(ON_BEHALF.get())
        return True


class Ids:
    def uuid(self) -> UUID:
        return UUID(int=7)

    def random(self) -> float:
        return 0.5


ADA = Identity("ada", frozenset({"client"}))


async def ask(gateway: Gateway, local: Local, answers: list[Any]) -> None:
    gateway.start_run(StartRequest(workflow_type="w"), answers.append)
    gateway.wait_run(KEY, answers.append)
    local.say()
    async with asyncio.timeout(5):
        while len(answers) < 2:
            await asyncio.sleep(0)
    await gateway.control(ControlRequest(key=KEY, action="pause"))
    assert await gateway.drain_node("n")
    assert ON_BEHALF.get() is None


async def test_the_caller_is_who_called_also_when_the_shard_moves_later() -> None:
    local, peer = Local(), Peer()
    for_clients, _ = gateways(local, lambda _: peer, Ids())
    CALLER.set(ADA)
    await ask(for_clients, local, [])
    assert peer.asked == [ADA] * 4


async def test_what_the_orchestrator_asks_itself_is_for_nobody_else_whoever_woke_it() -> None:
    local, peer = Local(), Peer()
    _, own = gateways(local, lambda _: peer, Ids())
    CALLER.set(ADA)
    await ask(own, local, [])
    assert peer.asked == [None] * 4
