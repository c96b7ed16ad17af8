"""The readers that have members: who must hear of new events."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from onexflow.engine.events.reader import Reader
from onexflow.engine.kernel import Kernel
from onexflow.engine.shard import Entity, Shard
from onexflow.engine.stream import is_stream
from onexflow.ports.events import Filter


class Audience:
    """Of one orchestrator: groups, and those who read for themselves."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._readers: dict[Reader, None] = {}
        self._heads: dict[int, int] = {}

    def __iter__(self) -> Iterator[Reader]:
        """As they are now: they may come and go meanwhile."""
        return iter(list(self._readers))

    def add(self, reader: Reader) -> None:
        if not self._readers:
            self._heads = {shard.id: shard.durable for shard in self._kernel.shards.values()}
        self._readers[reader] = None

    def remove(self, reader: Reader) -> None:
        self._readers.pop(reader, None)

    def claimed(self, shard: Shard) -> None:
        """The shard is owned here: what is durable of it by now is no news."""
        self._heads[shard.id] = shard.durable

    def on_durable(self, entities: Sequence[tuple[Entity, int]]) -> None:
        """Events have become durable: tell the readers of their shards."""
        if not self._readers:
            return
        touched: dict[int, set[tuple[str, str]]] = {}
        for entity, _ in entities:
            key = entity.key
            topic = "" if is_stream(key.workflow_type) else key.workflow_type  # a stream's events name their topics
            touched.setdefault(entity.shard.id, set()).add((key.namespace, topic))
        for shard, kinds in touched.items():
            head = self._kernel.owned(shard).durable
            before = self._heads.get(shard, 0)
            self._heads[shard] = head
            for reader in self:
                concerns = any(_concerns(reader.where, *kind) for kind in kinds)
                reader.on_commit(shard, before, head, concerns=concerns)


def _concerns(where: Filter, namespace: str, topic: str) -> bool:
    return where.namespace == namespace and (not where.topics or not topic or topic in where.topics)
