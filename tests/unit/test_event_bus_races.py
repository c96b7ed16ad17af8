"""The event bus when something happens in the middle of a read: cuts, states that are forgotten, letters that come again."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest

from onexflow.core.definition import RetryPolicy
from onexflow.core.errors import InvalidTransition, OutOfRange, UnknownWorkflowType
from onexflow.core.payload import Payload
from onexflow.engine.events import log as event_log
from onexflow.engine.protocols.subscriptions import HandlerSubscription, Options
from onexflow.engine.stream import stream_key
from onexflow.ports.event_store import AppendOutcome, RegisterRecord, Row, ShardAppend
from onexflow.ports.events import Consume, Filter, Published
from onexflow.storage.memory import MemoryStore
from onexflow.testing import Cluster, virtual_time
from onexflow.testing.clock import VirtualClock
from onexflow.testing.faults.store import FaultyStore
from support.bus_kit import Reader, cut, publish, stream, uuid
from support.engine_kit import single, until


class SlowReads(FaultyStore):
    """Holds the next read of a kind until the test lets it go: what is found is read before (`stale`) or after that."""

    def __init__(self) -> None:
        self.clock = VirtualClock()
        super().__init__(MemoryStore(self.clock))
        self._held: Callable[[str, str], bool] = lambda *_: False
        self._stale = False
        self.arrived = asyncio.Event()
        self.go = asyncio.Event()

    def hold_read(self, kind: str, prefix: str = "", *, stale: bool = False) -> None:
        self._held = lambda name, what: name == kind and what.startswith(prefix)
        self._stale = stale

    async def _read(self, kind: str, what: str, read: Callable[[], Awaitable[Any]]) -> Any:
        if not self._held(kind, what):
            return await read()
        self._held = lambda *_: False
        found = await read() if self._stale else None
        self.arrived.set()
        await self.go.wait()
        return found if self._stale else await read()

    async def read_shard(self, shard: int, offset: int, limit: int = 1024) -> list[Row]:
        found: list[Row] = await self._read("shard", "", lambda: self.inner.read_shard(shard, offset, limit))
        return found

    async def read_run(self, shard: int, iid: int, from_seq: int = 1, limit: int = 1024) -> list[Row]:
        found: list[Row] = await self._read("run", "", lambda: self.inner.read_run(shard, iid, from_seq, limit))
        return found

    async def list_registers(
        self, shard: int, prefix: str = "", after: str = "", limit: int = 1000
    ) -> list[RegisterRecord]:
        found: list[RegisterRecord] = await self._read(
            "registers", f"{prefix}@{shard}", lambda: self.inner.list_registers(shard, prefix, after, limit)
        )
        return found


@virtual_time
async def test_a_reader_is_told_of_a_cut_that_was_made_while_it_read() -> None:
    store = SlowReads()
    async with Cluster(seed=1, store=store, clock=store.clock) as cluster:
        bus = cluster.engine.events
        for n in range(5):
            await publish(bus, stream(), n)
        store.hold_read("shard")
        reader = await Reader(bus, start="earliest", auto=True).begin()
        await store.arrived.wait()
        await cut(cluster, stream(), 4)
        store.go.set()
        assert isinstance(await reader.fails(), OutOfRange)
        assert reader.values == []


@virtual_time
async def test_a_stream_that_is_cut_while_it_is_read_has_no_silent_gap() -> None:
    store = SlowReads()
    async with Cluster(seed=1, store=store, clock=store.clock) as cluster:
        bus = cluster.engine.events
        for n in range(5):
            await publish(bus, stream(), n)
        store.hold_read("run")
        reading = asyncio.create_task(bus.read_events(stream()))
        await store.arrived.wait()
        await cut(cluster, stream(), 4)
        store.go.set()
        with pytest.raises(OutOfRange) as refused:
            await reading
        assert refused.value.context["earliest"] == 4


async def fold(cluster: Cluster, event: Published, state: bytes) -> None:
    """What a projection does with its first event."""
    bus = cluster.engine.events
    reader = await Reader(bus, group="p", projection=True, start="earliest", max_deliveries=0).begin()
    await reader.have(1)
    shard, offset = event.position
    await bus.save_projection("default", "p", shard, 0, offset + 1, {stream(): Payload(state)})


@virtual_time
async def test_a_state_that_was_stored_anew_is_not_forgotten_with_the_old_one() -> None:
    store = SlowReads()
    async with Cluster(seed=1, store=store, clock=store.clock) as cluster:
        event = await publish(cluster.engine.events, stream(), 1)
        await fold(cluster, event, b'"old"')
        store.hold_read("registers", f"projection-state/default/p/@{event.position.shard}", stale=True)
        resetting = asyncio.create_task(cluster.engine.events.reset_projection("default", "p"))
        await store.arrived.wait()
        await fold(cluster, event, b'"new"')
        store.go.set()
        await resetting
        found = await cluster.engine.events.load_projection("default", "p", stream())
        assert found.state == Payload(b'"new"')


@virtual_time
async def test_an_event_that_cannot_be_read_stops_no_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    read = event_log._stream_events

    def unreadable(row: Row, source: event_log.Source) -> list[event_log.Located]:
        if source.key == stream():
            raise UnknownWorkflowType("its definition is gone")
        return read(row, source)

    monkeypatch.setattr(event_log, "_stream_events", unreadable)
    async with Cluster(seed=1) as cluster:
        bus = cluster.engine.events
        await publish(bus, stream(), 1)
        await publish(bus, stream("b"), 2)
        reader = await Reader(bus, start="earliest").begin()
        assert await reader.have(1) == [2]
        assert reader.error is None


@virtual_time
async def test_a_dead_letter_comes_again_to_those_who_read_for_themselves_and_want_it() -> None:
    async with Cluster(seed=1) as cluster:
        bus = cluster.engine.events
        got: list[int] = []
        broken = [True]

        def handle(event: Any, _context: Any) -> None:
            got.append(event.sequence)
            if broken and event.sequence == 1:
                raise ValueError

        once = Options(retries=RetryPolicy(max_attempts=1))
        request = Consume(filter=Filter(), start="earliest", ack_timeout=0.0)
        subscription = HandlerSubscription(bus, request, once, "s", "*", handle)
        await subscription.start()
        other = await Reader(bus, start="earliest", topics=("other",)).begin()
        for n in range(3):
            await publish(bus, stream(), n)
        await until(lambda: got == [1, 2, 3])
        await cluster.crash_orchestrator()
        await cluster.restart_orchestrator()
        subscription._feed._service = bus = cluster.engine.events  # as a client finds the next one
        await until(lambda: subscription.status.state == "active")
        assert got == [1, 2, 3]
        broken.clear()
        assert await bus.requeue_dead_letters("default", "") == 1
        await until(lambda: len(got) > 3)
        await asyncio.sleep(5)
        assert got == [1, 2, 3, 1]
        assert other.got == []
        await subscription.close()


@virtual_time
async def test_a_dead_letter_whose_event_was_cut_stays_a_dead_letter() -> None:
    async with Cluster(seed=1) as cluster:
        bus = cluster.engine.events
        group = await Reader(bus, group="g", start="earliest").begin()
        for n in range(3):
            await publish(bus, stream(), n)
        await group.have(3)
        await group.bury(group.places[0])
        await group.ack(*group.places[1:])
        await cut(cluster, stream(), 2)
        assert await bus.requeue_dead_letters("default", "g") == 0
        assert len(await bus.list_dead_letters("default", "g")) == 1
        await publish(bus, stream(), 3)
        assert (await group.have(4))[-1] == 3
        assert group.error is None


@virtual_time
async def test_a_run_that_starts_while_an_event_is_published_for_it_has_no_stream_beside_it() -> None:
    async with Cluster(seed=1) as cluster:
        bus = cluster.engine.events
        await cluster.register(single("compute", "calc").build())
        key = stream(workflow_type="single")
        streams = bus._publisher._streams
        async with streams.lock(cluster.engine._kernel.shard_of(stream_key(key))):  # somebody else publishes just now
            publishing = asyncio.create_task(publish(bus, key, "forged", type="workflow.completed"))
            await asyncio.sleep(1)
            assert not publishing.done()
            await cluster.start("single", 1, instance_id=key.instance_id)
        with pytest.raises(InvalidTransition):
            await publishing
        assert await bus.stream(key) is None
        assert {event.source for event in await bus.read_events(key)} == {"onexflow"}


@virtual_time
async def test_what_comes_again_comes_in_order_however_often_its_consumers_are_lost() -> None:
    async with Cluster(seed=1) as cluster:
        bus = cluster.engine.events
        first = await Reader(bus, group="g", start="earliest", window=5).begin()
        for n in range(7):
            await publish(bus, stream(), n)
        await first.have(5)
        first.close()
        second = await Reader(bus, group="g", window=2).begin()
        assert await second.have(2) == [0, 1]
        await asyncio.sleep(1.0)
        second.close()
        assert await Reader(bus, group="g").have(7) == [0, 1, 2, 3, 4, 5, 6]


@virtual_time
async def test_what_was_about_to_come_again_when_its_consumer_was_lost_comes_to_the_next() -> None:
    store = SlowReads()
    async with Cluster(seed=1, store=store, clock=store.clock) as cluster:
        bus = cluster.engine.events
        first = await Reader(bus, group="g", start="earliest").begin()
        await publish(bus, stream(), 1)
        await first.have(1)
        first.close()
        store.hold_read("shard")
        second = await Reader(bus, group="g").begin()
        await store.arrived.wait()
        second.close()
        store.go.set()
        assert await Reader(bus, group="g").have(1) == [1]


class EvenStore(FaultyStore):
    """Every look-up of a register takes as long as every append."""

    async def append(self, batch: Sequence[ShardAppend]) -> AppendOutcome:
        await asyncio.sleep(0.001)
        return await super().append(batch)

    async def get_register(self, shard: int, name: str) -> bytes | None:
        await asyncio.sleep(0.001)
        return await super().get_register(shard, name)


@virtual_time
async def test_events_that_are_published_side_by_side_share_commits() -> None:
    clock = VirtualClock()
    store = EvenStore(MemoryStore(clock))
    async with Cluster(seed=1, store=store, clock=clock) as cluster:
        bus = cluster.engine.events
        await publish(bus, stream(), 0)
        for keys in (["a"], [str(n) for n in range(10)]):
            commits = len(store.asked)
            published = await asyncio.gather(
                *(publish(bus, stream(keys[n % len(keys)]), n, idempotency_key=f"k{n}") for n in range(100))
            )
            assert all(one.created for one in published)
            assert len(store.asked) - commits <= 3, "nobody waits for another one's look-up"


@virtual_time
async def test_the_same_event_published_side_by_side_is_there_once() -> None:
    clock = VirtualClock()
    store = EvenStore(MemoryStore(clock))
    async with Cluster(seed=1, store=store, clock=clock) as cluster:
        bus = cluster.engine.events
        for fields in ({"event_id": uuid("x")}, {"idempotency_key": "k"}, {"idempotency_key": str(uuid("y"))}):
            published = await asyncio.gather(*(publish(bus, stream(), 1, **fields) for _ in range(20)))
            assert len({one.position for one in published}) == 1
            assert sum(one.created for one in published) == 1
        again = await publish(bus, stream(), 1, idempotency_key=str(uuid("x")))
        assert not again.created, "an id is its event's key, too"
