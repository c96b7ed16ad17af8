"""Topics: names with a count of partitions. A topic comes to be when it is created or first published to."""

from __future__ import annotations

from hashlib import blake2b
from typing import Final

from onexflow.core.errors import InvalidArgument, Overloaded
from onexflow.engine.events import names
from onexflow.engine.events.checks import MAX_TOPIC_BYTES, MAX_TOPICS, size_of_topic
from onexflow.engine.events.names import TopicRecord
from onexflow.engine.events.registers import registers
from onexflow.engine.kernel import Kernel
from onexflow.ports.events import TopicView

MAX_PARTITIONS: Final = 100_000
#: Of a topic that nobody created.
DEFAULT_PARTITIONS: Final = 1


def partition_of(key: str, partitions: int) -> int:
    """The partition of a partition key: the same everywhere and for ever."""
    if partitions <= 1:
        return 0
    return int.from_bytes(blake2b(key.encode(), digest_size=8).digest(), "big") % partitions


class Topics:
    """The topics of one orchestrator, read from their registers when a shard is claimed."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._known: dict[tuple[str, str], TopicRecord] = {}
        self._bytes = 0

    async def load(self, shard: int) -> None:
        """Read those whose home is that shard."""
        async for name, data in registers(self._kernel, shard, names.TOPICS):
            namespace, topic = names.parts_of(name)
            self._keep(namespace, topic, names.decode(data, TopicRecord))

    def partitions(self, namespace: str, name: str) -> int:
        known = self._known.get((namespace, name))
        return known.partitions if known is not None and known.exists else DEFAULT_PARTITIONS

    def begins(self, namespace: str, name: str, shard: int) -> int:
        """Where the topic begins in a shard: what stands before is of one that was deleted."""
        known = self._known.get((namespace, name))
        return known.begins.get(shard, 0) if known is not None else 0

    def is_here(self, namespace: str, name: str) -> bool:
        """Does this orchestrator own the topic's home?"""
        return self._kernel.number_of(names.home("topic", namespace, name)) in self._kernel.shards

    async def learn(self, namespace: str, name: str) -> bool:
        """Know a topic whose home another orchestrator owns, as the store has it. False when there is none."""
        home = self._kernel.number_of(names.home("topic", namespace, name))
        data = await self._kernel.store.get_register(home, names.topic(namespace, name))
        if data:
            self._keep(namespace, name, names.decode(data, TopicRecord))
        return self.exists(namespace, name)

    def exists(self, namespace: str, name: str) -> bool:
        known = self._known.get((namespace, name))
        return known is not None and known.exists

    def create(self, namespace: str, name: str, partitions: int = DEFAULT_PARTITIONS) -> bool:
        """Decide it; durable with the next append. False when it exists."""
        if not 1 <= partitions <= MAX_PARTITIONS:
            raise InvalidArgument(
                f"partitions must be between 1 and {MAX_PARTITIONS:,}, not {partitions}", field="partitions"
            )
        if self.exists(namespace, name):
            return False
        known = self._known.get((namespace, name))
        if known is None and (len(self._known) >= MAX_TOPICS or self._bytes + size_of_topic(name) > MAX_TOPIC_BYTES):
            raise Overloaded(f"there are {len(self._known):,} topics: no room for another one", {"topic": name})
        begins = known.begins if known is not None else {}
        self._put(namespace, name, TopicRecord(partitions, self._kernel.now(), begins=begins))
        return True

    def delete(self, namespace: str, name: str) -> bool:
        """Decide it. What is recorded so far is never delivered by a later topic of that name."""
        known = self._known.get((namespace, name))
        if known is None or not known.exists:
            return False
        begins = {shard.id: shard.next for shard in self._kernel.shards.values() if shard.next > 1}
        self._put(namespace, name, TopicRecord(known.partitions, known.created_at, exists=False, begins=begins))
        return True

    def views(self, namespace: str) -> list[TopicView]:
        return [
            TopicView(name=name, partitions=record.partitions, created_at=record.created_at)
            for (of, name), record in sorted(self._known.items())
            if of == namespace and record.exists
        ]

    def _put(self, namespace: str, name: str, record: TopicRecord) -> None:
        shard = self._kernel.shard_of(names.home("topic", namespace, name))
        self._keep(namespace, name, record)
        shard.put(names.topic(namespace, name), names.encode(record))
        self._kernel.lane.mark()

    def _keep(self, namespace: str, name: str, record: TopicRecord) -> None:
        if (namespace, name) not in self._known:
            self._bytes += size_of_topic(name)
        self._known[namespace, name] = record
