"""A worker that drains: what it gives back, what it finishes, and when it ends."""

from __future__ import annotations

import asyncio

from onexflow.ports.worker_link import Credits, Goodbye, WorkerDraining
from support.worker_kit import Assigner, ManualClock, Shop, connect, runtime, settle


async def test_drain_returns_the_queue_finishes_what_runs_and_says_goodbye() -> None:
    shop, assign, clock = Shop(), Assigner(), ManualClock()
    worker = runtime(shop.worker, clock=clock, effect=1)
    await worker.start()
    link = connect(worker)
    running = assign("effect", "hold", 1)
    link.assign(running)
    await settle()
    draining = asyncio.ensure_future(worker.drain(30))
    await settle()
    assert link.of(WorkerDraining)
    late = assign("effect", "fast", 2)
    link.assign(late)
    await settle()
    assert link.results[late.token].status == "returned"
    shop.gate.set()
    async with asyncio.timeout(5):
        await draining
    assert link.results[running.token].status == "completed"
    assert isinstance(link.sent[-1], Goodbye)
    assert link.closed
    assert shop.ran == [1]


async def test_drain_stops_what_takes_too_long() -> None:
    shop, assign, clock = Shop(), Assigner(), ManualClock()
    worker = runtime(shop.worker, clock=clock)
    await worker.start()
    link = connect(worker)
    running = assign("effect", "hold", 1)
    link.assign(running)
    await settle()
    draining = asyncio.ensure_future(worker.drain(30))
    await settle()
    await clock.advance(29)
    assert not link.results
    await clock.advance(2)
    async with asyncio.timeout(5):
        await draining
    assert link.results[running.token].status == "stopped"


async def test_a_link_that_comes_back_during_the_drain_gets_the_results() -> None:
    shop, assign, clock = Shop(), Assigner(), ManualClock()
    worker = runtime(shop.worker, clock=clock)
    await worker.start()
    link = connect(worker)
    held = assign("effect", "hold", 1)
    link.assign(held)
    await settle()
    draining = asyncio.ensure_future(worker.drain(30))
    await settle()
    assert link.peer is not None
    link.peer.on_close("cut")
    shop.gate.set()
    await settle()
    assert not draining.done()
    back = connect(worker)
    assert back.of(Credits) == []
    assert back.results[held.token].status == "completed"
    async with asyncio.timeout(5):
        await draining
    assert isinstance(back.sent[-1], Goodbye)


async def test_a_second_signal_ends_a_drain_at_once() -> None:
    shop, assign = Shop(), Assigner()
    worker = runtime(shop.worker)
    await worker.start()
    link = connect(worker)
    held = assign("effect", "hold", 1)
    link.assign(held)
    await settle()
    draining = asyncio.ensure_future(worker.drain(30))
    await settle()
    async with asyncio.timeout(5):
        await worker.close()
        await draining
    assert link.results[held.token].status == "stopped"
    assert link.closed


async def test_unacknowledged_results_hold_the_end_up_only_briefly() -> None:
    shop, assign, clock = Shop(), Assigner(), ManualClock()
    worker = runtime(shop.worker, clock=clock)
    await worker.start()
    link = connect(worker, acks=False)
    link.assign(assign("effect", "fast", 1))
    await settle()
    closing = asyncio.ensure_future(worker.close())
    await settle()
    assert not closing.done()
    await clock.advance(3)
    async with asyncio.timeout(5):
        await closing
    assert link.closed
