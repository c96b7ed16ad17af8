"""Input that means harm, or might as well: it hurts its own run at most."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import UUID

import pytest

from onexflow.codec.rows import encode_row
from onexflow.core.errors import InternalError, InvalidArgument, RunFailed, UnknownRun
from onexflow.core.events import TaskCompleted
from onexflow.core.ids import RunKey
from onexflow.core.payload import NULL
from onexflow.core.turn import SECOND
from onexflow.engine.recovery import RecentRuns
from onexflow.ports.event_store import Row, ShardAppend
from onexflow.spi.exceptions import SPIError
from onexflow.testing import Cluster, virtual_time
from support.engine_kit import Script, ready, single, until


@pytest.mark.parametrize("context", [{"amount": 10**30}, {"amounts": [{"low": -(2**70)}]}])
def test_an_error_context_that_the_log_cannot_hold_fails_its_run_alone(context: dict[str, Any]) -> None:
    @virtual_time
    async def scenario() -> None:
        script = Script()
        script.errors["charge"] = [SPIError("no such account", context)]
        async with Cluster() as cluster:
            await ready(cluster, script, single("effect", "charge"))
            with pytest.raises(RunFailed, match="no such account"):
                await cluster.run("single", 1)
            assert cluster.fatal is None
            assert await cluster.run("single", 2) == 2

    scenario()


@virtual_time
async def test_nothing_is_kept_of_waits_for_runs_that_have_ended_or_do_not_exist() -> None:
    script = Script()
    async with Cluster() as cluster:
        await ready(cluster, script, single("compute", "calc"))
        key = (await cluster.start("single", "x" * 100_000)).key
        await cluster.result(key)
        for _ in range(3):
            assert await cluster.result(key) == "x" * 100_000  # too large to be kept: read back
        with pytest.raises(UnknownRun):
            await cluster.wait(RunKey("default", "single", UUID(int=1)))
        await cluster.crash_orchestrator()
        await cluster.restart_orchestrator()
        assert len(await cluster.result(key)) == 100_000
        assert not cluster.engine._outcomes.waiting
        assert not cluster.engine._outcomes._ended


@virtual_time
async def test_an_end_is_kept_only_for_a_caller_that_has_yet_to_ask() -> None:
    script = Script()
    async with Cluster() as cluster:
        await ready(cluster, script, single("compute", "calc"))
        asked = (await cluster.start("single", 1)).key
        assert await cluster.result(asked) == 1
        assert not cluster.engine._outcomes._ended, "it was told who waited"
        assert await cluster.result(asked) == 1, "read back"
        later = (await cluster.start("single", 2)).key
        await until(lambda: later in cluster.engine._outcomes._ended)
        assert await cluster.result(later) == 2


@virtual_time
async def test_a_second_worker_of_the_same_id_is_refused_while_the_first_lives() -> None:
    script = Script()
    gate = script.gate("charge")
    async with Cluster() as cluster:
        await ready(cluster, script, single("effect", "charge"))
        key = (await cluster.start("single", 5)).key
        await script.called("charge")
        first = cluster.workers["w1"]
        twin = await cluster.add_worker(script.worker("twin"), "w1")
        await until(lambda: twin.stream is not None and not twin.stream.is_open)
        assert first.stream is not None
        assert first.stream.is_open
        gate.set()
        assert await cluster.result(key) == 5  # nobody took the attempt for lost
        first.kill()
        await until(lambda: "w1" not in cluster.engine._sessions.by_worker)
        cluster.reconnect("w1")
        assert await cluster.run("single", 6) == 6
        assert [call.worker for call in script.calls] == ["w1", "twin"]


def _uuid7(at: int, number: int = 0) -> UUID:
    """One that was minted at that time (ns)."""
    return UUID(int=(at // 1_000_000) << 80 | 7 << 76 | 2 << 62 | number)


@virtual_time
async def test_an_id_of_the_future_cannot_pass_for_new_after_a_restart() -> None:
    script = Script()
    async with Cluster() as cluster:
        await ready(cluster, script, single("compute", "calc"))
        now = cluster.clock.now()
        with pytest.raises(InvalidArgument, match="of the future"):
            await cluster.start("single", 1, instance_id=_uuid7(now + 60 * SECOND))
        ahead = _uuid7(now + 12 * SECOND)
        assert (await cluster.start("single", 1, instance_id=ahead)).created
        await cluster.crash_orchestrator()
        await cluster.restart_orchestrator()
        await cluster.clock.sleep(13)
        assert not (await cluster.start("single", 1, instance_id=ahead)).created


def test_starts_in_plenty_are_known_to_be_new_without_a_look_up() -> None:
    """Forgetting keys by the thousand a second does not make the memory doubt ids of now."""
    recent, now = RecentRuns(0, limit=100), 1_700_000_000 * SECOND
    for number in range(10_000):
        now += SECOND // 5000
        key = RunKey("default", "single", _uuid7(now, number))
        assert recent.must_be_new(key)
        recent.add(key)
    assert not recent.must_be_new(RunKey("default", "single", _uuid7(now - SECOND)))


def test_an_id_that_was_minted_after_this_turn_began_is_known_to_be_new() -> None:
    """Store time is read once a turn, and a client may be ahead: neither costs a look-up."""
    recent, now = RecentRuns(1_700_000_000 * SECOND, limit=100), 1_700_000_100 * SECOND
    ahead = RunKey("default", "single", _uuid7(now + RecentRuns.AHEAD_NS))
    assert recent.must_be_new(ahead)
    recent.add(ahead)
    for number in range(100):
        assert not recent.must_be_new(ahead)
        recent.add(RunKey("default", "single", _uuid7(now, number)))
    assert not recent.must_be_new(ahead), "it was forgotten"


@virtual_time
async def test_a_run_whose_stored_events_make_no_sense_stops_nothing_else() -> None:
    script = Script()
    gate = script.gate("calc")
    async with Cluster(audited=False) as cluster:
        await ready(cluster, script, single("compute", "calc"))
        bad, good = [(await cluster.start("single", number)).key for number in range(2)]
        await script.called("calc", 2)
        run = cluster.engine._kernel.resident(bad)
        assert run is not None
        shard, iid, seq = run.shard.id, run.iid, run.state.seq
        await cluster.crash_orchestrator()
        await cluster.store.open()
        epoch = next(epoch for number, epoch, _ in await cluster.store.owners() if number == shard)
        claim = await cluster.store.claim(shard, epoch, "nobody")
        assert claim is not None
        data = encode_row(cluster.clock.now(), [TaskCompleted(99, [7], [NULL])])
        row = Row(claim.head, 1, claim.epoch, iid, seq + 1, data)
        append = ShardAppend(shard=shard, epoch=claim.epoch, head=claim.head, next=claim.head + 1, rows=[row])
        await cluster.store.append([append])
        await cluster.store.close()
        await cluster.restart_orchestrator()
        gate.set()
        assert await cluster.result(good) == 1
        with pytest.raises(InternalError, match="cannot be read back"):
            await cluster.state(bad)


@virtual_time
async def test_runs_that_were_parked_cost_the_next_owner_nothing() -> None:
    script = Script()
    async with Cluster() as cluster:
        await ready(cluster, script, single("compute", "calc"))
        await asyncio.sleep(3)  # so that the start writes a checkpoint, and parking comes with no events behind that
        keys = [(await cluster.start("single", 0, delay=60.0)).key]
        await until(lambda: not list(cluster.engine._kernel.runs()))
        await cluster.engine._kernel.lane.durable()
        await cluster.crash_orchestrator()
        await cluster.restart_orchestrator()
        assert not list(cluster.engine._kernel.runs())
        assert [await cluster.result(key) for key in keys] == [0]
