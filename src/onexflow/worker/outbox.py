"""Results on their way: sent in batches to the owner of their shard, kept until the owner has acknowledged them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Final, Protocol

from onexflow.core.ids import Token
from onexflow.ports.worker_link import AttemptResult, OrchestratorLink, Results

BATCH_RESULTS: Final = 64
BATCH_BYTES: Final = 1024 * 1024
#: What a result weighs beside its payload.
_OVERHEAD: Final = 96


class _Owner(Protocol):
    @property
    def link(self) -> OrchestratorLink: ...


class _Batch:
    """What the next message to one owner has."""

    __slots__ = ("results", "size")

    def __init__(self) -> None:
        self.results: list[AttemptResult] = []
        self.size = 0


class Outbox:
    """Results that were not acknowledged yet, and the batch that is being filled."""

    def __init__(self, owner_of: Callable[[int], _Owner | None], after_flush: Callable[[], None]) -> None:
        #: Unacknowledged results, sent or not.
        self.waiting: dict[Token, AttemptResult] = {}
        #: Set while nothing is unacknowledged.
        self.empty = asyncio.Event()
        self.empty.set()
        self._owner_of = owner_of
        self._after_flush = after_flush
        self._pending: list[AttemptResult] = []
        self._scheduled = False

    def add(self, result: AttemptResult) -> None:
        """A result to be sent, and kept until it is acknowledged."""
        if not self.waiting:
            self.empty.clear()
        self.waiting[result.token] = result
        self._pending.append(result)
        if len(self._pending) >= BATCH_RESULTS:
            self.flush()
        elif not self._scheduled:
            self.schedule()

    def repeat(self, token: Token) -> None:
        """Send a result again, if there is one."""
        result = self.waiting.get(token)
        if result is not None and result not in self._pending:
            self._pending.append(result)
            self.schedule()

    def send_again(self, shards: set[int]) -> None:
        """These shards have a new owner, or their owner a new link: send it all that is unacknowledged of them."""
        if shards and self.waiting:
            self._pending = [r for r in self._pending if r.token.shard not in shards]
            self._pending.extend(r for r in self.waiting.values() if r.token.shard in shards)
            self.flush()

    def forget(self, tokens: Iterable[Token]) -> None:
        """They are acknowledged."""
        drop = self.waiting.pop
        for token in tokens:
            drop(token, None)
        if not self.waiting:
            self.empty.set()

    def schedule(self) -> None:
        """Flush in the loop's next turn: what else ends in this one goes along."""
        if not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._flush_scheduled)

    def _flush_scheduled(self) -> None:
        self._scheduled = False
        self.flush()

    def flush(self) -> None:
        """Send the batch. Results of a shard without an owner stay in `waiting`, until one says that it is it."""
        pending, self._pending = self._pending, []
        batches: dict[_Owner, _Batch] = {}
        for result in pending:
            owner = self._owner_of(result.token.shard)
            if owner is None:
                continue
            weight = _OVERHEAD + len(result.result.data)
            if result.error is not None:
                weight += len(result.error.message) + len(result.error.traceback)
            batch = batches.get(owner)
            if batch is None:
                batch = batches[owner] = _Batch()
            elif len(batch.results) >= BATCH_RESULTS or batch.size + weight > BATCH_BYTES:
                owner.link.send(Results(batch.results))
                batch = batches[owner] = _Batch()
            batch.results.append(result)
            batch.size += weight
        for owner, batch in batches.items():
            owner.link.send(Results(batch.results))
        self._after_flush()
