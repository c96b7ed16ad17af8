"""Workers that say nothing while their stream stands: a suspicion within half a second, and what it may not do."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from onexflow.core.builder import workflow
from onexflow.engine.pulse import AT_ONCE, BEAT_SECONDS, LOOKS, Pulse
from onexflow.ports.worker_link import Cancel
from onexflow.testing import Cluster, virtual_time
from support.engine_kit import Script, ready, single, types, until

#: A suspicion is promised by then: a moment of silence, a beat, and looks that nobody answers.
SUSPECTED_BY = 0.6


def now() -> float:
    return asyncio.get_running_loop().time()


@virtual_time
async def test_a_pure_task_of_a_stopped_worker_is_begun_elsewhere_at_once_and_its_first_result_wins() -> None:
    script = Script()
    gate = script.gate("calc")
    async with Cluster() as cluster:
        await ready(cluster, script, single("compute", "calc"), workers=2)
        key = (await cluster.start("single", 5)).key
        await script.called("calc")
        frozen = cluster.workers[script.calls[0].worker]
        frozen.freeze()
        frozen_at = now()
        await script.called("calc", 2)
        assert script.calls[1].worker != frozen.id
        assert script.calls[1].at - frozen_at < SUSPECTED_BY
        gate.set()
        assert await cluster.result(key) == 5
        assert cluster.engine._book.superseded == 0
        frozen.thaw()
        await asyncio.sleep(1)
        assert cluster.engine._book.superseded >= 1, "what it made late is refused, as often as it is said"
        assert types(await cluster.history(key)).count("task.completed") == 1


@virtual_time
async def test_the_effects_of_a_stopped_worker_wait_and_new_ones_go_elsewhere() -> None:
    script = Script()
    gate = script.gate("send")
    async with Cluster() as cluster:
        await ready(cluster, script, single("effect", "send"), workers=2)
        await cluster.start("single", 5)
        await script.called("send")
        frozen = cluster.workers[script.calls[0].worker]
        frozen.freeze()
        await asyncio.sleep(SUSPECTED_BY)
        for value in range(4):
            await cluster.start("single", value)
        await script.called("send", 5)
        assert {call.worker for call in script.calls[1:]}.isdisjoint({frozen.id})
        frozen.thaw()
        await asyncio.sleep(1)
        gate.set()
        await until(lambda: not any(w.runtime.statistics().running["effect"] for w in cluster.workers.values()))
        assert script.count("send") == 5, "the effect that waited was not begun again"


@virtual_time
async def test_a_worker_that_is_busy_and_answers_is_never_suspected() -> None:
    script = Script()
    gate = script.gate("calc")
    async with Cluster() as cluster:
        await ready(cluster, script, single("compute", "calc"), workers=2)
        key = (await cluster.start("single", 5)).key
        await script.called("calc")
        await asyncio.sleep(60)
        gate.set()
        assert await cluster.result(key) == 5
        assert script.count("calc") == 1


class Owing:
    """What a pulse sees of a worker that was given something."""

    def __init__(self) -> None:
        self.inflight = {"token": "attempt"}
        self.is_silent = False
        self.is_open = True
        self.heard_at = now()


def unexpected(session: Owing) -> None:
    raise AssertionError("it answered")


@pytest.mark.parametrize(
    ("answers", "is_suspected"),
    [([None, "i"] * 10, False), (["", None] * 10, False), (["i"] * 9 + [None] * LOOKS, True)],
    ids=["every-second-look", "dead-at-times", "at-last"],
)
def test_so_many_looks_in_a_row_make_a_suspicion(answers: list[str | None], is_suspected: bool) -> None:
    @virtual_time
    async def scenario() -> None:
        session, left = Owing(), list(answers)
        silent: list[Owing] = []

        async def look(_: Any) -> str | None:
            return left.pop(0) if left else "i"

        pulse = Pulse(lambda: [session], look, silent.append)
        pulse.begin()
        await until(lambda: not left)
        await asyncio.sleep(1)
        assert bool(silent) == is_suspected
        await pulse.stop()

    scenario()


@virtual_time
async def test_a_word_that_comes_while_it_is_looked_for_is_an_answer() -> None:
    session, looks = Owing(), 0
    silent: list[Owing] = []

    async def look(_: Any) -> str | None:
        nonlocal looks
        looks += 1
        session.heard_at = now()
        return None

    pulse = Pulse(lambda: [session], look, silent.append)
    pulse.begin()
    await until(lambda: looks == 20)
    assert not silent
    await pulse.stop()


@virtual_time
async def test_of_hundreds_of_silent_workers_a_few_are_looked_for_at_once_and_all_in_turn() -> None:
    crowd = [Owing() for _ in range(100)]
    at_once: set[int] = set()
    most, seen = 0, []

    async def look(session: Any) -> str | None:
        nonlocal most
        at_once.add(id(session))
        most = max(most, len(at_once))
        seen.append(id(session))
        await asyncio.sleep(BEAT_SECONDS / 2)
        at_once.discard(id(session))
        return "i"

    pulse = Pulse(lambda: crowd, look, unexpected)
    pulse.begin()
    await asyncio.sleep(3)
    assert most <= AT_ONCE
    assert set(seen) == {id(session) for session in crowd}
    await pulse.stop()


@virtual_time
async def test_a_pulse_rests_while_nobody_owes_anything() -> None:
    session = Owing()
    beats = 0

    def sessions() -> list[Any]:
        nonlocal beats
        beats += 1
        return [session]

    async def look(_: Any) -> str | None:
        return "i"

    pulse = Pulse(sessions, look, unexpected)
    pulse.begin()
    pulse.begin()
    await asyncio.sleep(1)
    session.inflight.clear()
    await asyncio.sleep(1)
    rested = beats
    assert 8 <= rested <= 12
    await asyncio.sleep(60)
    assert beats == rested


@virtual_time
async def test_without_another_worker_a_silent_one_goes_on_with_what_it_has() -> None:
    script = Script()
    gate = script.gate("calc")
    flow = workflow("fan")
    flow.compute("a", handler="calc", map="input")
    async with Cluster() as cluster:
        await ready(cluster, script, flow)
        key = (await cluster.start("fan", [1, 2, 3])).key
        await script.called("calc", 3)
        only = cluster.workers["w1"]
        only.freeze()
        await asyncio.sleep(2)
        only.thaw()
        await asyncio.sleep(0.05)
        gate.set()
        assert await cluster.result(key) == [1, 2, 3]
        assert script.count("calc") == 3, "it said what it held, and kept it"


@virtual_time
async def test_a_worker_that_wakes_is_told_to_stop_what_runs_elsewhere_and_takes_work_again() -> None:
    script = Script()
    gate = script.gate("calc")
    async with Cluster() as cluster:
        await ready(cluster, script, single("compute", "calc"), workers=2)
        await cluster.start("single", 5)
        await script.called("calc")
        frozen = cluster.workers[script.calls[0].worker]
        frozen.freeze()
        await script.called("calc", 2)
        frozen.thaw()
        await asyncio.sleep(0.1)
        assert frozen.stream is not None
        assert [m for m in frozen.stream.log if isinstance(m, Cancel)], "its copy runs for nobody"
        for value in range(20):
            await cluster.start("single", value)
        await until(lambda: frozen.id in {call.worker for call in script.calls[2:]})
        gate.set()


@virtual_time
async def test_a_reducer_of_a_stopped_worker_is_begun_elsewhere() -> None:
    script = Script()
    gate = script.gate("sum")
    async with Cluster() as cluster:
        await ready(cluster, script, single("reducer", "sum"), workers=2)
        key = (await cluster.start("single", [1])).key
        await script.called("sum")
        frozen = cluster.workers[script.calls[0].worker]
        frozen.freeze()
        await script.called("sum", 2)
        gate.set()
        await cluster.result(key)
        assert script.calls[1].worker != frozen.id


@pytest.mark.parametrize("away", ["stopped", "cut off"])
@pytest.mark.parametrize("handler", ["send", "charge"])
def test_a_member_that_cannot_be_reached_keeps_its_effects_for_the_time_of_a_lease(handler: str, away: str) -> None:
    """Its lease goes on, as it reaches the registry. What may run twice is begun elsewhere all the same, and what may not
    waits for it."""

    @virtual_time
    async def scenario() -> None:
        script = Script()
        gate = script.gate(handler)
        async with Cluster() as cluster:
            await ready(cluster, script, single("effect", handler), workers=2)
            key = (await cluster.start("single", 5)).key
            await script.called(handler)
            there = cluster.workers[script.calls[0].worker]
            there.freeze()
            if away == "cut off":
                there.cut()
            away_at = now()
            await asyncio.sleep(4.9)
            assert script.count(handler) == 1
            await asyncio.sleep(1.0)
            assert script.count(handler) == (2 if handler == "send" else 1)
            if handler == "send":
                assert script.calls[1].worker != there.id
                assert script.calls[1].at - away_at < 6.0
            await asyncio.sleep(30)
            gate.set()
            there.thaw()
            if there.stream is None or not there.stream.is_open:
                cluster.reconnect(there.id)
            assert await cluster.result(key) == 5
            assert script.count(handler) == (2 if handler == "send" else 1)

    scenario()
