"""Dead letters: what a group gave up, kept beside the event in its shard until somebody decides."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence

from onexflow.core.errors import InvalidTransition, UnknownGroup
from onexflow.engine.events import names
from onexflow.engine.events.log import Log, wants
from onexflow.engine.events.reader import Reader
from onexflow.engine.events.registers import registers
from onexflow.engine.kernel import Kernel
from onexflow.ports.events import DeadLetter, Position


class DeadLetters:
    """Of all groups; `readers(namespace, group)` are those who can be given one again."""

    def __init__(self, kernel: Kernel, log: Log, readers: Callable[[str, str], list[Reader]]) -> None:
        self._kernel = kernel
        self._log = log
        self._readers = readers

    async def letters(self, namespace: str, group: str, limit: int) -> list[DeadLetter]:
        await self._kernel.lane.durable()
        found: list[DeadLetter] = []
        for shard in range(self._kernel.store.shards):
            async for _, data in registers(self._kernel, shard, names.dead_letters(namespace, group)):
                if len(found) >= limit:
                    return found
                found.append(names.decode_dead(data))
        return found

    async def count(self, namespace: str, group: str) -> int:
        """Those in the shards that are owned here."""
        total = 0
        for shard in list(self._kernel.shards):
            async for _ in registers(self._kernel, shard, names.dead_letters(namespace, group)):
                total += 1
        return total

    async def requeue(self, namespace: str, group: str, positions: Sequence[Position]) -> int:
        readers = self._readers(namespace, group)
        if group and not readers:
            raise UnknownGroup(f"there is no group {group!r}", {"group": group})
        if not readers or readers[0].is_projection:
            raise InvalidTransition(
                "a dead letter of a projection, or of those who read for themselves and are gone, cannot come again",
                {"group": group, "current_state": "nobody to deliver to", "required_state": "a group, or a reader"},
            )
        count = 0
        async for place, letter in self._named(namespace, group, positions):
            wanting = [
                reader for reader in readers
                if place.shard in reader.cursors and (group or wants(reader.where, letter.delivery))
            ]  # fmt: skip
            # What was cut out of its history stands in its letter alone: there it stays.
            if wanting and await self._log.at(*place) is not None:
                self._forget(namespace, group, place)
                for reader in wanting:
                    reader.deliveries.reopen(*place)
                count += 1
        await self._kernel.lane.durable()
        return count

    async def discard(self, namespace: str, group: str, positions: Sequence[Position] = ()) -> int:
        count = 0
        async for place, _ in self._named(namespace, group, positions):
            self._forget(namespace, group, place)
            count += 1
        await self._kernel.lane.durable()
        return count

    async def _named(
        self, namespace: str, group: str, positions: Sequence[Position]
    ) -> AsyncIterator[tuple[Position, DeadLetter]]:
        """Those that are there, of these or of all."""
        await self._kernel.lane.durable()
        prefix = names.dead_letters(namespace, group)
        if not positions:
            for shard in list(self._kernel.shards):
                async for name, data in registers(self._kernel, shard, prefix):
                    yield Position(shard, int(name[len(prefix) :])), names.decode_dead(data)
        for place in positions:
            if not 0 <= place.shard < self._kernel.store.shards:
                continue
            name = names.dead_letter(namespace, group, place.offset)
            found = await self._kernel.owned(place.shard).register(self._kernel.store, name)
            if found is not None:
                yield Position(*place), names.decode_dead(found)

    def _forget(self, namespace: str, group: str, place: Position) -> None:
        self._kernel.owned(place.shard).put(names.dead_letter(namespace, group, place.offset), b"")
        self._kernel.lane.mark()
