"""Storms of orchestrators under consumers: whoever owns the shards, a group gets every event at least once and those of a
stream in order, who reads for himself gets each once, and a projection applies each once."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar, cast
from uuid import UUID

from hypothesis import example, given, settings
from hypothesis import strategies as st

from onexflow.codec.payload import decode_value
from onexflow.core.errors import Unavailable
from onexflow.engine.protocols import WorkflowEventBus
from onexflow.engine.protocols.feed import Feed, Listener
from onexflow.ports.events import Consume, ConsumeListener, Consumer, Delivery, EventService, Filter, Told
from onexflow.testing.clock import run_virtual
from onexflow.testing.conformance.onex_projections import Totals
from onexflow.testing.multi_cluster import ClusterMember, MultiCluster
from support.bus_kit import publish, stream

T = TypeVar("T")
NAMES = [f"s{number}" for number in range(12)]
ACTIONS = st.tuples(
    st.sampled_from(["kill", "stop", "add", "freeze", "thaw", "send", "send", "send"]),
    st.integers(0, 3),
    st.sampled_from([0.0, 0.01, 0.3, 1.1, 7.0]),
)


class Roving:
    """An event bus as a client has it that goes from one orchestrator to the next."""

    def __init__(self, cluster: MultiCluster) -> None:
        self._cluster = cluster
        self._turn = 0
        self._watches: set[asyncio.Task[None]] = set()

    def _member(self) -> ClusterMember:
        running = [member for member in self._cluster.members.values() if not member.gone.is_set()]
        if not running:
            raise Unavailable("nobody is there")
        self._turn += 1
        return running[self._turn % len(running)]

    def consume(self, request: Consume, listener: ConsumeListener) -> Consumer:
        member = self._member()
        gone = False

        def told(what: Told) -> None:
            if not gone:
                listener(what)

        consumer = member.engine.gateway.events.consume(request, told)

        async def watch() -> None:
            nonlocal gone
            await member.gone.wait()
            gone = True
            listener(Unavailable("the connection broke"))
            consumer.close()

        task = asyncio.get_running_loop().create_task(watch())
        self._watches.add(task)
        return consumer

    def __getattr__(self, name: str) -> Callable[..., Awaitable[Any]]:
        async def ask(*arguments: Any, **named: Any) -> Any:
            while True:
                try:
                    async with asyncio.timeout(5.0):
                        return await getattr(self._member().engine.gateway.events, name)(*arguments, **named)
                except (TimeoutError, Unavailable):
                    await self._cluster.clock.sleep(0.1)

        return ask

    async def close(self) -> None:
        for task in self._watches:
            task.cancel()
        await asyncio.gather(*self._watches, return_exceptions=True)


class Heard(Listener):
    """Acknowledges what it is given, at once or a little later."""

    def __init__(self, values: list[Any], delay: float) -> None:
        self.values = values
        self._delay = delay
        self.feed: Feed | None = None

    def deliver(self, deliveries: Sequence[Delivery]) -> None:
        loop = asyncio.get_running_loop()
        for delivery in deliveries:
            self.values.append(decode_value(delivery.event.payload))
            assert self.feed is not None
            loop.call_later(self._delay, self.feed.ack, delivery.position)


def firsts(values: list[Any]) -> dict[str, list[int]]:
    """Of each stream, the numbers as they came first."""
    found: dict[str, list[int]] = {}
    for name, number in values:
        if number not in found.setdefault(name, []):
            found[name].append(number)
    return found


@settings(max_examples=20, deadline=None)
@example(
    1, [("send", 0, 0.0), ("kill", 0, 0.01), ("send", 0, 0.3), ("add", 0, 7.0), ("send", 1, 7.0), ("stop", 0, 0.0)]
)
@example(2, [("freeze", 1, 7.0), ("send", 0, 1.1), ("thaw", 0, 0.0), ("send", 0, 0.3), ("freeze", 0, 7.0)])
@given(st.integers(0, 1 << 16), st.lists(ACTIONS, min_size=3, max_size=12))
def test_consumers_miss_nothing_while_orchestrators_come_and_go(
    seed: int, actions: list[tuple[str, int, float]]
) -> None:
    run_virtual(_storm(seed, actions))


async def _storm(seed: int, actions: list[tuple[str, int, float]]) -> None:
    async with MultiCluster(seed=seed, slowest=0.05 * (seed % 3)) as cluster:
        count = 3
        for number in range(count):
            await cluster.add_orchestrator(f"o{number}")
        await cluster.settled()
        roving = Roving(cluster)
        service = cast("EventService", roving)
        shared: list[Any] = []
        alone: list[Any] = []
        feeds = []
        for values, group, delay in ((shared, "g", 0.0), (shared, "g", 0.2), (alone, "", 0.05)):
            heard = Heard(values, delay)
            window = 1 + seed % 20
            request = Consume(filter=Filter(), group=group, start="earliest", window=window, max_deliveries=0)
            heard.feed = Feed(service, request, heard)
            await heard.feed.start(60.0)
            feeds.append(heard.feed)
        bus = WorkflowEventBus(service)
        await bus.register_projection(Totals())
        sent: dict[str, list[int]] = {name: [] for name in NAMES}
        sending: list[asyncio.Future[None]] = []
        lines: dict[str, asyncio.Lock] = {name: asyncio.Lock() for name in NAMES}

        async def send(name: str, number: int) -> None:
            async with lines[name]:
                await publish(service, stream(name), [name, number], event_id=UUID(int=1 + number))
                sent[name].append(number)

        total = 0
        for action, which, pause in actions:
            running = [name for name, member in cluster.members.items() if member.state == "running"]
            frozen = [name for name, member in cluster.members.items() if member.state == "frozen"]
            if action == "add" and len(cluster.members) < 4:
                await cluster.add_orchestrator(f"o{count}")
                count += 1
            elif action == "thaw" and frozen:
                cluster.thaw(frozen[which % len(frozen)])
            elif action == "send":
                for _ in range(10):
                    sending.append(asyncio.ensure_future(send(NAMES[total % len(NAMES)], total)))
                    total += 1
            elif action in {"kill", "stop", "freeze"} and len(running) > 1:
                name = running[which % len(running)]
                if action == "freeze":
                    cluster.freeze(name)
                else:
                    await getattr(cluster, action)(name)
            await cluster.clock.sleep(pause)
        for name, member in list(cluster.members.items()):
            if member.state == "frozen":
                cluster.thaw(name)
        sending.append(asyncio.ensure_future(send(NAMES[total % len(NAMES)], total)))
        await asyncio.gather(*sending)
        expected = {name: numbers for name, numbers in sent.items() if numbers}
        async with asyncio.timeout(300):
            while firsts(shared) != expected or firsts(alone) != expected:
                await cluster.clock.sleep(0.5)
        assert len(alone) == sum(map(len, expected.values())), "who reads for himself gets nothing twice"
        for name, numbers in expected.items():
            state = await bus.get_projection_state(Totals().projection_name, "ext", stream(name).instance_id)
            assert state["count"] == len(numbers), (name, state)
        for feed in feeds:
            feed.close()
        await bus.close()
        await roving.close()
