"""Which shards this orchestrator owns, of a store that several share (rules 6, 18 and 24 of the protocol).

There is no leader. The store says who owns what; the registry says who is there; rendezvous hashing, with an even part for
each, says to each member alike whose a shard should be: its home. A shard whose owner is gone, or that was handed over, is
claimed by its home, and when that one does not come, a second later by the next in the shard's ranking. A shard whose owner lives is moved by that owner
alone: to members that have been there for a while, one a second, and not while a member drains.

Nothing here is needed for safety: a claim is one compare-and-set in the store, and every append proves its epoch.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from functools import lru_cache
from hashlib import blake2b
from typing import Final

import structlog

from onexflow.core.errors import Unavailable
from onexflow.engine.kernel import Kernel
from onexflow.engine.shard import Shard
from onexflow.ports.registry import MemberEvent, NodeRecord, Prober, Registry
from onexflow.spi.exceptions import SPIError

log = structlog.get_logger("onexflow.placement")

#: Seconds between looks at what is to be claimed and moved; and at the store, when nothing else asks for it.
LOOK_SECONDS: Final = 0.2
CONFIRM_SECONDS: Final = 1.0
#: Seconds between probes of the peers; and after one that was refused and does not prove death yet.
PROBE_SECONDS: Final = 0.1
PROBE_AGAIN_SECONDS: Final = 0.05
#: Refused connections in a row that prove a peer's death.
PROOFS: Final = 2
#: Claims under way at a time: a takeover is many, and a store has few connections for them.
CLAIMS_TOGETHER: Final = 8
#: A member that has come is given shards after so long.
SETTLED_SECONDS: Final = 10.0
#: Seconds between shards that are handed over while their owner goes on.
MOVE_SECONDS: Final = 1.0
#: One that came back while its new home was there all the time is not handed over again for so long: the others see other
#: members, or reckon by another rule.
MOVE_AGAIN_SECONDS: Final = 60.0
#: Seconds that each member lower in a shard's ranking leaves to those above it.
RANK_SECONDS: Final = 1.0
#: Beyond the lease: the time that members have for registering again with a registry that has come back empty.
REGISTER_SECONDS: Final = 3.0


def ranking(shard: int, shards: int, members: Sequence[str]) -> list[str]:
    """The members in the order in which the shard should be theirs: its home, then by rendezvous hashing."""
    home = homes(shards, members)[shard]
    return [home, *(member for member in _hashed(shard, members) if member != home)]


def homes(shards: int, members: Sequence[str]) -> tuple[str, ...]:
    """Whose each of so many shards should be: the first by rendezvous hashing that has not got its even part yet. Chance alone
    would give one of two members half as many again as the other: with much to do that one is late, and the other has so
    little at a time that each task costs it twice as much. A member that comes or goes changes little beside what it gets
    or had. Members must reckon alike: with another rule in some of them shards would have two homes, or none."""
    return _homes(shards, tuple(sorted(members)))


def _hashed(shard: int, members: Sequence[str]) -> list[str]:
    return sorted(members, key=lambda member: blake2b(f"{shard}/{member}".encode(), digest_size=8).digest())


@lru_cache(maxsize=8)
def _homes(shards: int, members: tuple[str, ...]) -> tuple[str, ...]:
    part, more = divmod(shards, len(members))  # so many shards each, and so many members with one more
    got = dict.fromkeys(members, 0)
    found = []
    for shard in range(shards):
        home = next(one for one in _hashed(shard, members) if got[one] < part or (more and got[one] == part))
        more -= got[home] == part
        got[home] += 1
        found.append(home)
    return tuple(found)


async def _ask(prober: Prober, peer: NodeRecord) -> bool | None:
    """Whether the peer is where it says it is; None when nothing was heard."""
    try:
        return await prober.probe(peer.liveness) == peer.incarnation
    except Unavailable:
        return None


class Placement:
    """Claims and hands over. `serve` is called with each shard that was claimed, and reads it back."""

    def __init__(
        self,
        kernel: Kernel,
        registry: Registry,
        prober: Prober | None,
        *,
        orchestrator_id: str,
        incarnation: str,
        lease_ttl: float,
        serve: Callable[[Shard], None],
        announce: Callable[[], Awaitable[None]],
    ) -> None:
        self._kernel = kernel
        self._registry = registry
        self._prober = prober
        self._me = orchestrator_id
        self._incarnation = incarnation
        self._patience = lease_ttl + REGISTER_SECONDS
        self._serve = serve
        self._announce = announce
        #: (epoch, owner) as the store said last.
        self._owners: dict[int, tuple[int, str]] = {}
        #: Loop time at which a member (by incarnation) was seen first; refused probes of it, in a row.
        self._seen_at: dict[str, float] = {}
        self._refused: dict[str, int] = {}
        self._ever_seen: set[str] = set()
        #: Shards that the store may name as this orchestrator's without its knowing: of a life before, or as a claim
        #: was not answered.
        self._unsure: set[int] = set()
        self._has_twin = False
        #: It is no member for now: nothing is claimed.
        self.is_suspended = False
        #: Loop time since when a shard (at that epoch) has had no living owner.
        self._free_since: dict[tuple[int, int], float] = {}
        self._asked_at = self._moved_at = 0.0
        #: Loop time at which a shard was handed over while this orchestrator went on.
        self._handed_over: dict[int, float] = {}
        self._is_stale = True
        self._announced: frozenset[tuple[int, int]] = frozenset()
        self._wake = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._unsubscribe: Callable[[], None] | None = None

    def start(self) -> None:
        """From now on shards are claimed. After this orchestrator has been registered."""
        self._unsure.update(range(self._kernel.store.shards))
        self._unsubscribe = self._registry.subscribe(self._on_member)
        loop = asyncio.get_running_loop()
        self._tasks.append(loop.create_task(self._run(), name="placement"))
        if self._prober is not None:  # beside it: a peer that is silent must not delay what the registry says
            self._tasks.append(loop.create_task(self._watch(self._prober), name="placement-probes"))

    async def stop(self) -> None:
        """Claim and move nothing more. Idempotent."""
        if self._unsubscribe is not None:
            self._unsubscribe()
            self._unsubscribe = None
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def hand_over(self) -> None:
        """Give all shards to the others."""
        await self.stop()
        await asyncio.gather(*(self._release(number) for number in list(self._kernel.shards)))
        await self._tell()

    def locate(self, number: int) -> tuple[str, str]:
        """(owner, address) of a shard of another orchestrator, as far as is known."""
        owner = self._owners.get(number, (0, ""))[1]
        if owner in {"", self._me}:
            return "", ""
        return owner, next((one.address for one in self._peers() if one.node_id == owner), "")

    def heard(self, owners: Sequence[tuple[int, int, str]]) -> None:
        """Others say that they own these shards at these epochs, and the store cannot be asked: what is later than what
        is known was claimed there before. It is safe to believe: who is wrong about it loses a shard, and nothing else."""
        later = [one for one in owners if one[1] > self._owners.get(one[0], (0, ""))[0]]
        self._owners.update({number: (epoch, owner) for number, epoch, owner in later})
        self._kernel.claims.compare(later, 0.0)

    def free_since(self, number: int) -> float | None:
        """Loop time since when a shard has been seen without an owner that lives."""
        return min((at for (shard, _), at in self._free_since.items() if shard == number), default=None)

    # ---- the loop

    def _on_member(self, event: MemberEvent) -> None:
        if event.record.kind == "orchestrator":
            self._is_stale = True
            self._wake.set()

    async def _run(self) -> None:
        while True:
            self._wake.clear()  # before the look: what comes during it asks for the next
            try:
                await self._look()
            except SPIError as error:
                log.warning("placement.failed", error=str(error))
            except Exception:
                log.exception("placement.failed")
            try:
                async with asyncio.timeout(LOOK_SECONDS):
                    await self._wake.wait()
            except TimeoutError:
                pass

    async def _look(self) -> None:
        self._note_peers()
        began = asyncio.get_running_loop().time()
        if self._is_stale or self._free_since or began - self._asked_at >= CONFIRM_SECONDS:
            owners = await self._kernel.store.owners()
            self._asked_at, self._is_stale = began, False
            self._owners = {number: (epoch, owner) for number, epoch, owner in owners}
            self._kernel.claims.compare(owners, began)
            if not self.is_suspended:
                await self._claim_free(began)
        if began - self._moved_at >= MOVE_SECONDS and not self.is_suspended:
            await self._move_one(began)
        await self._tell()

    def _peers(self) -> list[NodeRecord]:
        return [
            one for one in self._registry.members("orchestrator")
            if one.incarnation != self._incarnation and one.node_id != self._me
        ]  # fmt: skip

    def _note_peers(self) -> list[NodeRecord]:
        """Learn who is there, and forget who is not."""
        now = asyncio.get_running_loop().time()
        peers = self._peers()
        for peer in peers:
            self._seen_at.setdefault(peer.incarnation, now)
            self._ever_seen.add(peer.node_id)
        present = {peer.incarnation for peer in peers}
        for gone in [incarnation for incarnation in self._seen_at if incarnation not in present]:
            del self._seen_at[gone]
            self._refused.pop(gone, None)
        return peers

    # ---- probes

    async def _watch(self, prober: Prober) -> None:
        """Learn who is proven dead."""
        while True:
            try:
                await self._probe(prober)
            except Exception:
                log.exception("probe.failed")
            in_doubt = any(count < PROOFS for count in self._refused.values())
            await asyncio.sleep(PROBE_AGAIN_SECONDS if in_doubt else PROBE_SECONDS)

    async def _probe(self, prober: Prober) -> None:
        """One round. Its answers count together: whether none of several answers must not depend on which came first."""
        peers = [peer for peer in self._note_peers() if peer.liveness]
        answers = await asyncio.gather(*(_ask(prober, peer) for peer in peers))
        for peer, is_there in zip(peers, answers, strict=True):
            if is_there is not None and peer.incarnation in self._seen_at:  # silence proves nothing
                self._answered(peer, is_there=is_there)

    def _answered(self, peer: NodeRecord, *, is_there: bool) -> None:
        if is_there:
            if self._refused.pop(peer.incarnation, 0) >= PROOFS:
                self._seen_at[peer.incarnation] = asyncio.get_running_loop().time()  # as if it had come now
            return
        count = self._refused[peer.incarnation] = self._refused.get(peer.incarnation, 0) + 1
        if count == PROOFS:
            self._is_stale = True
            self._wake.set()
            log.warning("peer.refused", peer=peer.node_id, incarnation=peer.incarnation)

    def _living(self) -> list[NodeRecord]:
        """The other members but those that are proven dead. When none of several answers, it is this process that is cut
        off: then nothing is proven."""
        peers = self._peers()
        living = [peer for peer in peers if self._refused.get(peer.incarnation, 0) < PROOFS]
        return peers if len(peers) > 1 and not living else living

    # ---- claims

    async def _claim_free(self, now: float) -> None:
        living = self._living()
        members = [peer.node_id for peer in living if peer.status == "ready"] + [self._me]
        shards = self._kernel.store.shards
        home = homes(shards, members)
        names = {peer.node_id for peer in living}
        free: dict[tuple[int, int], float] = {}
        due: deque[tuple[int, int, str]] = deque()
        for number, (epoch, owner) in self._owners.items():
            if number in self._kernel.shards or owner in names:
                continue
            since = free[number, epoch] = self._free_since.get((number, epoch), now)
            if owner == self._me and number not in self._unsure:
                self._tell_of_twin(number, epoch)
                continue
            if owner not in {"", self._me} and not self._is_gone(owner, now - since):
                continue
            is_first = self._me in {owner, home[number]}
            rank = 0 if is_first else ranking(number, shards, members).index(self._me)
            if now - since >= rank * RANK_SECONDS:
                due.append((number, epoch, owner))
        self._free_since = free
        workers = (self._claim_each(due) for _ in range(min(CLAIMS_TOGETHER, len(due))))
        for failure in await asyncio.gather(*workers, return_exceptions=True):
            if failure is not None:
                raise failure

    async def _claim_each(self, due: deque[tuple[int, int, str]]) -> None:
        """Claim what nobody claims yet, one after the other, until one cannot be."""
        while due and not self.is_suspended:
            number, epoch, owner = due.popleft()
            await self._claim(number, epoch, owner)
            self._free_since.pop((number, epoch), None)

    def _is_gone(self, owner: str, missed: float) -> bool:
        """Is an owner dead that has been missed for so long among the members? One that was never seen may be about to
        register: a registry that has just come back, empty, is evidence of nothing."""
        return owner in self._ever_seen or missed >= self._patience

    def _tell_of_twin(self, number: int, epoch: int) -> None:
        """The shard was taken under this orchestrator's own id, and not by it."""
        if not self._has_twin:
            self._has_twin = True
            log.error("shard.taken_by_twin", shard=number, epoch=epoch, node=self._me,
                      hint="two orchestrators have one node id: shards that the other has taken are left to it")  # fmt: skip

    async def _claim(self, number: int, epoch: int, owner: str) -> None:
        self._unsure.add(number)  # until there is an answer
        shard = await self._kernel.claims.claim(number, epoch, self._me)
        self._unsure.discard(number)
        if shard is None:
            self._is_stale = True  # somebody was faster
            return
        self._owners[number] = (shard.epoch, self._me)
        log.info("shard.claimed", shard=number, epoch=shard.epoch, before=owner)
        self._serve(shard)

    # ---- moves

    async def _move_one(self, now: float) -> None:
        """Hand over one shard that should be another's."""
        peers = self._living()
        if any(peer.status == "draining" for peer in self._peers()):
            return
        there_since = {peer.node_id: self._seen_at.get(peer.incarnation, now) for peer in peers}
        # By the members by which it is claimed then: else nobody would be its home.
        home = homes(self._kernel.store.shards, [*(peer.node_id for peer in peers), self._me])
        for number, shard in self._kernel.shards.items():
            since = there_since.get(home[number], now)
            if shard.early is None and now - since >= SETTLED_SECONDS and not self._came_back(number, since, now):
                self._moved_at = self._handed_over[number] = now
                await self._release(number)
                return

    def _came_back(self, number: int, since: float, now: float) -> bool:
        """Was it handed over lately, when its home had been there since then?"""
        return max(since, now - MOVE_AGAIN_SECONDS) <= self._handed_over.get(number, -1.0)

    async def _release(self, number: int) -> None:
        self._unsure.add(number)  # a claim that ends it may have been stored, or not
        try:
            if await self._kernel.claims.release(number):
                log.info("shard.handed_over", shard=number)
        except SPIError as error:  # its next owner claims it when this one is gone
            log.warning("shard.not_handed_over", shard=number, error=str(error))

    async def _tell(self) -> None:
        """Announce what is owned, when that has changed."""
        owned = frozenset((shard.id, shard.epoch) for shard in self._kernel.shards.values())
        if owned != self._announced:
            await self._announce()
            self._announced = owned
