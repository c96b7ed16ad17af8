"""The event bus under kills: publishers that repeat, a group of two that acknowledges, an orchestrator that dies."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence

from onexflow import Client
from onexflow.client.remote import RemoteService
from onexflow.codec.payload import encode_value
from onexflow.core.errors import Unavailable
from onexflow.core.ids import RunKey, derived_uuid
from onexflow.engine.protocols.feed import Feed, Listener
from onexflow.examples import greet
from onexflow.ports.events import Consume, Delivery, EventRecord, Filter, Position, Publish
from onexflow.spi.exceptions import SPIError

from .processes import Processes, until

STREAMS = [RunKey("default", "chaos-events", derived_uuid(f"stream:{number}")) for number in range(8)]

#: Seconds that a delivery may be on its way: when a shard has changed hands, the late word of the one who had it may be
#: durable before the other one has read what was sent to him.
ON_THE_WAY = 2.0


class _Member(Listener):
    """Acknowledges at once. `settled`: when what was said to be durable, of all members together."""

    def __init__(self, seen: Counter[Position], settled: dict[Position, float], first: dict[RunKey, list[int]]) -> None:
        self._seen = seen
        self._settled = settled
        self._first = first
        self._loop = asyncio.get_running_loop()
        self.feed: Feed | None = None
        #: What came again although it was acknowledged durably.
        self.repeated: list[Position] = []
        self.ended_with: SPIError | None = None

    def deliver(self, deliveries: Sequence[Delivery]) -> None:
        assert self.feed is not None
        for delivery in deliveries:
            place = delivery.position
            settled_at = self._settled.get(place, self._loop.time())
            if self._loop.time() - settled_at > ON_THE_WAY:
                self.repeated.append(place)
            if not self._seen[place]:
                self._first[delivery.event.key].append(delivery.event.sequence)
            self._seen[place] += 1

            def done(error: SPIError | None, place: Position = place) -> None:
                if error is None:
                    self._settled.setdefault(place, self._loop.time())

            self.feed.ack(place, done)

    def ended(self, error: SPIError) -> None:
        self.ended_with = error


async def _publish(client: Client, key: RunKey, count: int) -> None:
    bus = RemoteService.of(client).events
    for number in range(1, count + 1):
        event = EventRecord(
            key=key, type="task.completed", event_id=derived_uuid(f"{key}:{number}"), payload=encode_value(number)
        )
        while True:
            try:
                await bus.publish_event(Publish(event=event))
                break
            except Unavailable:
                await asyncio.sleep(0.05)  # until it is durable, as a caller that wants it does


async def kill_orchestrator_under_events(count: int = 150, kills: int = 3) -> dict[str, float]:
    """kill -9 and restart of the orchestrator while events are published and consumed: each is in its stream once, each
    reaches the group, in order the first time, and none comes again that was acknowledged durably."""
    seen: Counter[Position] = Counter()
    settled: dict[Position, float] = {}
    first: dict[RunKey, list[int]] = {key: [] for key in STREAMS}
    total = count * len(STREAMS)
    async with Processes() as cluster:
        async with await cluster.client() as client:
            await client.register(greet.definition())
            await client.start("greet", {"name": "Ada"})
            request = Consume(filter=Filter(topics=("chaos-events",)), group="g", start="earliest", max_deliveries=0)
            members = []
            for _ in range(2):
                member = _Member(seen, settled, first)
                member.feed = Feed(RemoteService.of(client).events, request, member)
                await member.feed.start(30.0)
                members.append(member)
            publishers = [asyncio.create_task(_publish(client, key, count)) for key in STREAMS]
            for number in range(1, kills + 1):
                await until(lambda n=number: len(settled) > n * total // (kills + 2), "events under way")  # type: ignore[misc]  # a default
                assert cluster.orchestrator is not None
                cluster.kill(cluster.orchestrator)
                await cluster.orchestrator.wait()
                await cluster.start_orchestrator()
            await asyncio.gather(*publishers)
            await until(lambda: len(settled) == total, "the group to have everything")
            for key in STREAMS:
                records = await RemoteService.of(client).events.read_events(key, limit=count + 1)
                assert [record.sequence for record in records] == list(range(1, count + 1)), "published twice, or lost"
                assert first[key] == list(range(1, count + 1)), "not in order"
            assert all(member.ended_with is None for member in members)
            assert not any(member.repeated for member in members), "came again, and was acknowledged durably"
            for member in members:
                assert member.feed is not None
                member.feed.close()
        return {"events": total, "delivered again": seen.total() - total}
