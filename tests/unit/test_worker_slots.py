"""A worker's slots and what runs in them: runners, contexts, nodes that are classes."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from onexflow.core.errors import InvalidConfiguration
from onexflow.worker import Worker
from support.worker_kit import Assigner, FakeLink, Shop, connect, runtime, serving, settle


async def test_a_handler_that_cancels_itself_leaves_no_trace_in_its_slot() -> None:
    worker, assign = Worker("w"), Assigner()

    @worker.effect("selfish")
    async def selfish(contract: Any) -> int:
        task = asyncio.current_task()
        assert task is not None
        if contract:
            task.cancel()
        await asyncio.sleep(0)
        return task.cancelling()

    async with serving(worker, effect=1) as running:
        link = connect(running)
        first, second = assign("effect", "selfish", 1), assign("effect", "selfish", 0)
        link.assign(first)
        assert (await link.result(first)).status == "failed"
        link.assign(second)
        assert (await link.result(second)).result.data == b"0"


async def test_a_batch_of_waiting_handlers_fills_all_slots() -> None:
    shop, assign = Shop(), Assigner()
    async with serving(shop.worker, effect=64) as worker:
        link = connect(worker)
        link.assign(*[assign("effect", "hold", n) for n in range(64)])
        await settle()
        assert worker.statistics().running["effect"] == 64
        assert worker.statistics().queued["effect"] == 0


async def test_quick_handlers_share_one_runner_and_let_the_loop_go_on() -> None:
    worker, assign = Worker("w"), Assigner()
    tasks: set[Any] = set()
    turns = 0

    @worker.effect("quick")
    async def quick(contract: Any) -> int:
        tasks.add(asyncio.current_task())
        return turns

    async def count() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    async with serving(worker, effect=300) as running:
        link = connect(running)
        counter = asyncio.ensure_future(count())
        batch = [assign("effect", "quick") for _ in range(300)]
        link.assign(*batch)
        await link.until(lambda: len(link.results) == 300)
        counter.cancel()
        assert len(tasks) < 10
        assert link.results[batch[-1].token].result.data != b"0"


async def test_attempts_do_not_see_each_others_context_variables() -> None:
    from contextvars import ContextVar

    user: ContextVar[str] = ContextVar("user", default="nobody")
    worker, assign = Worker("w"), Assigner()

    @worker.effect("who")
    async def who(contract: Any) -> str:
        before = user.get()
        user.set(str(contract))
        await asyncio.sleep(0)
        return f"{before} {user.get()}"

    async with serving(worker, effect=1) as running:
        link = connect(running)
        for name in ("ada", "bob"):
            attempt = assign("effect", "who", name)
            link.assign(attempt)
            assert (await link.result(attempt)).result.data == f'"nobody {name}"'.encode()


class Node:
    node_id = "node"
    node_type = "effect"

    def __init__(self, *, broken: bool = False) -> None:
        self.story: list[str] = []
        self.broken = broken

    async def initialize(self) -> None:
        if self.broken:
            raise OSError("no such device")
        self.story.append("initialize")

    async def execute_effect(self, contract: Any) -> Any:
        self.story.append("execute")
        return contract

    async def shutdown(self) -> None:
        self.story.append("shutdown")


async def test_class_nodes_live_as_long_as_the_runtime() -> None:
    node, worker, assign = Node(), Worker("w"), Assigner()
    worker.add_node(node)
    async with serving(worker) as running:
        link = connect(running)
        attempt = assign("effect", "node", {"a": 1})
        link.assign(attempt)
        assert (await link.result(attempt)).result.data == b'{"a":1}'
    assert node.story == ["initialize", "execute", "shutdown"]


async def test_a_node_that_cannot_initialise_is_named() -> None:
    from onexflow.spi.exceptions import HandlerInitializationError

    good, worker = Node(), Worker("w")
    worker.add_node(good, name="good")
    worker.add_node(Node(broken=True), name="bad")
    with pytest.raises(HandlerInitializationError, match=r"node 'bad' failed: no such device"):
        await runtime(worker).start()
    assert good.story == ["initialize", "shutdown"]


async def test_links_are_taken_only_while_it_runs() -> None:
    worker = runtime(Shop().worker)
    with pytest.raises(InvalidConfiguration, match="while it runs"):
        worker.attach(FakeLink())
    await worker.close()
