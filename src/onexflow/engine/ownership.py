"""The shards of one orchestrator as they come and go: read back, adopted from the workers, announced, handed over."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import msgspec
import structlog

from onexflow.core.errors import ShardMoved
from onexflow.engine.attempts import AttemptBook
from onexflow.engine.kernel import STOP_SECONDS, Kernel
from onexflow.engine.placement import Placement
from onexflow.engine.sessions import Sessions
from onexflow.engine.shard import Shard
from onexflow.ports.clock import Clock
from onexflow.ports.registry import NodeRecord, Prober, Registry, ShardAnnouncement, role_of
from onexflow.spi.exceptions import SPIError

log = structlog.get_logger("onexflow.shards")

#: Seconds after a claim in which pure tasks wait for the workers that may still run them.
ADOPTION_SECONDS: Final = 1.0
#: A shard that could not be read back is tried again after so long.
SERVE_AGAIN_SECONDS: Final = 0.25

#: Seconds that the start waits for what is read back: somebody may wait for the rest less than for anything at all.
BEGIN_SECONDS: Final = 0.5

Duty = Callable[[Shard], Awaitable[None]]


class Ownership:
    """`duties` are done with each shard that is claimed while others are served, after it was read back."""

    def __init__(
        self,
        kernel: Kernel,
        book: AttemptBook,
        sessions: Sessions,
        registry: Registry,
        prober: Prober | None,
        *,
        clock: Clock,
        orchestrator_id: str,
        incarnation: str,
        lease_ttl: float,
        duties: Sequence[Duty],
    ) -> None:
        self._kernel = kernel
        self._book = book
        self._sessions = sessions
        self._registry = registry
        self._clock = clock
        self._id = orchestrator_id
        self._duties = duties
        self._record: NodeRecord | None = None
        #: Shards whose workers have still to say what they hold: when that is waited for no longer.
        self._adoptions: dict[Shard, asyncio.TimerHandle] = {}
        self._serving: dict[asyncio.Task[None], Shard] = {}
        #: None: nobody else is at this store.
        self._placement: Placement | None = None
        if kernel.is_shared:
            self._placement = Placement(
                kernel,
                registry,
                prober,
                orchestrator_id=orchestrator_id,
                incarnation=incarnation,
                lease_ttl=lease_ttl,
                serve=self.serve,
                announce=self.announce,
            )
            kernel.claims.locate = self._placement.locate

    def free_since(self, number: int) -> float | None:
        """Loop time since when a shard of others has been seen without an owner that lives."""
        return self._placement.free_since(number) if self._placement is not None else None

    # ---- life

    async def begin(self) -> int:
        """Read back what was at work in the shards that were claimed at the start, as far as that takes no longer than
        BEGIN_SECONDS: the rest while they are served. Returns how many runs are there."""
        loop = asyncio.get_running_loop()
        for shard in self._kernel.shards.values():
            task = loop.create_task(self._recover(shard), name=f"shard-{shard.id}")
            self._serving[task] = shard
            task.add_done_callback(self._begun)
        if self._serving:
            done, _ = await asyncio.wait(self._serving, timeout=BEGIN_SECONDS)
            for task in done:
                await task
        return sum(len(shard.runs) for shard in self._kernel.shards.values())

    def _begun(self, task: asyncio.Task[None]) -> None:
        shard = self._serving.pop(task)
        if not task.cancelled() and (error := task.exception()) is not None:  # the watchdog has it read again
            log.warning("shard.not_served_yet", shard=shard.id, error=str(error))

    async def register(self, record: NodeRecord) -> None:
        """Tell the registry where this orchestrator serves and which shards it owns; from now on they may come and go."""
        self._record = record
        await self._registry.register(record)
        await self.announce()
        if self._placement is not None:
            self._placement.start()

    async def announce(self) -> None:
        """Tell the registry which shards are owned."""
        address = self._record.address if self._record is not None else ""
        shards = self._kernel.shards.values()
        await self._registry.announce(
            [ShardAnnouncement(shard=one.id, owner=self._id, epoch=one.epoch, address=address) for one in shards]
        )

    async def withdraw(self) -> None:
        """Be no member until `rejoin`: the others claim the shards, and this one claims none."""
        if self._placement is not None and self._record is not None:
            self._placement.is_suspended = True
            await self._registry.unregister("orchestrator", self._id)

    async def rejoin(self) -> None:
        """Be a member again."""
        if self._placement is not None and self._record is not None:
            await self._registry.register(self._record)
            self._placement.is_suspended = False

    async def believe_announcements(self) -> None:
        """Learn who owns what from the registry, while the store cannot be asked."""
        if self._placement is not None:
            said = [(one.shard, one.epoch, one.owner) for one in await self._registry.announcements()]
            self._placement.heard([one for one in said if one[2] != self._id])

    async def hand_over(self) -> None:
        """Give all shards to the others, if there may be some."""
        if self._placement is None:
            return
        if self._record is not None:
            self._record = msgspec.structs.replace(self._record, status="draining")
            await self._registry.register(self._record)
        try:
            async with asyncio.timeout(STOP_SECONDS):
                await self._placement.hand_over()
        except TimeoutError:
            shards = len(self._kernel.shards)
            log.error("shards.not_handed_over", shards=shards)  # noqa: TRY400 - they are claimed when this one is gone

    async def stop(self) -> None:
        """Nothing comes or goes any more. Idempotent."""
        if self._placement is not None:
            await self._placement.stop()
        for adoption in self._adoptions.values():
            adoption.cancel()
        for task in list(self._serving):
            task.cancel()
        await asyncio.gather(*self._serving, return_exceptions=True)

    # ---- a shard comes

    def unserved(self) -> list[Shard]:
        """Owned shards that were not read back, and that nobody reads back."""
        served = set(self._serving.values())
        return [one for one in self._kernel.shards.values() if one.early is not None and one not in served]

    def serve(self, shard: Shard) -> None:
        """Read a claimed shard back, and see to it, in the background."""
        task = asyncio.get_running_loop().create_task(self._serve(shard), name=f"shard-{shard.id}")
        self._serving[task] = shard
        task.add_done_callback(self._serving.pop)

    async def _serve(self, shard: Shard) -> None:
        """It was claimed while others are served: read back what was at work, and see to it."""
        try:
            for duty in (self._recover, *self._duties):
                await self._insist(shard, duty)
        except ShardMoved:
            return
        except Exception:
            log.exception("shard.not_served", shard=shard.id)
            return
        log.info("shard.served", shard=shard.id, epoch=shard.epoch)

    async def _recover(self, shard: Shard) -> None:
        self._adopt(shard, await self._kernel.claims.recover(shard))

    async def _insist(self, shard: Shard, duty: Duty) -> None:
        """Do it until it is done, or the shard is another's."""
        while True:
            shard.check()
            try:
                await duty(shard)
            except ShardMoved:
                raise
            except SPIError as error:
                log.warning("shard.not_served_yet", shard=shard.id, error=str(error))
                await self._clock.sleep(SERVE_AGAIN_SECONDS)
            else:
                return

    # ---- what workers still run of it

    def _adopt(self, shard: Shard, recovered: int) -> None:
        """So many runs of the shard were read back: wait for the workers that may still run what belongs to them."""
        if recovered:
            loop = asyncio.get_running_loop()
            self._adoptions[shard] = loop.call_later(ADOPTION_SECONDS, self._end_adoption, shard)
            self.on_told(shard)
        else:
            self._book.end_adoption(shard)

    def on_told(self, shard: Shard) -> None:
        """A worker has said what it holds: once all that are registered have, nothing more can be adopted."""
        adoption = self._adoptions.get(shard)
        if adoption is None:
            return
        told = {session.incarnation for session in self._sessions.by_worker.values() if shard.id in session.told}
        workers = {member.incarnation for member in self._registry.members() if role_of(member.kind)}
        if workers and workers <= told:
            adoption.cancel()
            self._end_adoption(shard)

    def _end_adoption(self, shard: Shard) -> None:
        del self._adoptions[shard]
        adopted = self._book.end_adoption(shard)
        log.info("adoption.ended", shard=shard.id, adopted=adopted)

    # ---- a shard goes

    def left(self, shard: Shard) -> None:
        """It is not owned any more."""
        log.info("shard.left", shard=shard.id, epoch=shard.epoch)
        adoption = self._adoptions.pop(shard, None)
        if adoption is not None:
            adoption.cancel()
        self._book.left(shard)
        self._sessions.suspects.left(shard)
