"""A worker between two orchestrators that take shards from each other, over links that break: nothing is lost or run twice."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest

from onexflow.core.ids import Token
from onexflow.ports.worker_link import Ack, Cancel, Credits, Held, Recall, Results, Role, ShardEpoch
from onexflow.worker import Worker
from onexflow.worker.credits import PREFETCH_LIMIT
from onexflow.worker.runtime import WorkerRuntime
from support.worker_kit import Assigner, FakeLink, ManualClock, connect, runtime, settle

SHARDS = range(4)


class Storm:
    """The orchestrators' side: who owns what, what was sent, what came back to whom."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.clock = ManualClock()
        self.runs: dict[int, int] = {}
        self.sent: set[Token] = set()
        self.answered: dict[Token, str] = {}
        self.epochs = dict.fromkeys(SHARDS, 1)
        self.owner = {shard: shard % 2 for shard in SHARDS}
        self.links: list[FakeLink | None] = [None, None]
        self.seen = [0, 0]
        self.used: list[dict[str, int]] = [{}, {}]
        self.assign = Assigner()
        self.serial = 0
        worker = Worker("w")
        worker.effect("work")(self._work)
        worker.compute("work")(self._work)
        self.worker: WorkerRuntime = runtime(worker, clock=self.clock, effect=5, compute=3)

    async def _work(self, contract: Any) -> Any:
        self.runs[contract] = self.runs.get(contract, 0) + 1
        if contract % 3:
            await self.clock.sleep(0.001 * (contract % 7))
        if contract % 5 == 0:
            raise ValueError(contract)
        return contract

    async def go(self, steps: int) -> None:
        await self.worker.start()
        actions = [
            self.dispatch,
            self.dispatch,
            self.dispatch,
            self.cut,
            self.move,
            self.cancel,
            self.recall,
            self.time,
        ]
        for _ in range(steps):
            for name in (0, 1):
                if self.links[name] is None:
                    self.join(name)
            action = self.random.choice(actions)
            answer = action()
            if asyncio.iscoroutine(answer):
                await answer
            self.listen(acks=self.random.random() < 0.7)

    async def end(self) -> None:
        for name in (0, 1):
            if self.links[name] is None:
                self.join(name)
        for _ in range(50):
            await self.clock.advance(0.01)
            self.listen(acks=True)
        for shard in SHARDS:  # whatever was not acknowledged comes once more
            self.move(shard)
        await settle()
        self.listen(acks=True)

    def join(self, name: int) -> None:
        mine = {shard: epoch for shard, epoch in self.epochs.items() if self.owner[shard] == name}
        self.links[name] = connect(self.worker, mine, name=f"o{name}", acks=False)
        self.seen[name], self.used[name] = 0, {}

    def dispatch(self) -> None:
        name = self.random.randrange(2)
        link, mine = self.links[name], [shard for shard in SHARDS if self.owner[shard] == name]
        if link is None or not mine:
            return
        role: Role = self.random.choice(["effect", "compute"])
        free = link.credits.get(role, 0) - self.used[name].get(role, 0)
        batch = []
        for _ in range(self.random.randint(0, max(free, 0))):
            self.serial += 1
            shard = self.random.choice(mine)
            batch.append(self.assign(role, "work", self.serial, shard=shard, epoch=self.epochs[shard]))
        if batch:
            self.used[name][role] = self.used[name].get(role, 0) + len(batch)
            self.sent.update(one.token for one in batch)
            link.assign(*batch)

    def cut(self) -> None:
        name = self.random.randrange(2)
        link = self.links[name]
        if link is not None and link.peer is not None and self.random.random() < 0.3:
            self.listen(acks=False)
            link.peer.on_close("cut")
            self.links[name] = None

    def move(self, shard: int | None = None) -> None:
        """The other one takes a shard over."""
        shard = self.random.choice(SHARDS) if shard is None else shard
        self.owner[shard] ^= 1
        self.epochs[shard] += 1
        link = self.links[self.owner[shard]]
        if link is not None:
            link.say(ShardEpoch(shard, self.epochs[shard]))

    def cancel(self) -> None:
        tokens = [token for token in self.sent if token not in self.answered]
        if tokens:
            token = self.random.choice(sorted(tokens))
            link = self.links[self.owner[token.shard]]
            if link is not None:
                link.say(Cancel([token]))

    def recall(self) -> None:
        link = self.links[self.random.randrange(2)]
        if link is not None:
            link.say(Recall("compute", self.random.randint(1, 5)))

    async def time(self) -> None:
        await self.clock.advance(self.random.choice([0.0, 0.001, 0.01]))

    def listen(self, *, acks: bool) -> None:
        for name, link in enumerate(self.links):
            if link is None:
                continue
            news, self.seen[name] = link.sent[self.seen[name] :], len(link.sent)
            for message in news:
                if isinstance(message, Results):
                    self.take(name, link, message, acks=acks)
                assert not isinstance(message, Credits) or all(count > 0 for count in message.granted.values())

    def take(self, name: int, link: FakeLink, message: Results, *, acks: bool) -> None:
        assert len(message.results) <= 64
        for result in message.results:
            assert result.token in self.sent
            # What was delivered once is delivered the same again, until it is acknowledged.
            known = self.answered.setdefault(result.token, result.status)
            assert known == result.status or "returned" in (known, result.status)
        if acks:
            link.say(Ack([result.token for result in message.results]))


@pytest.mark.parametrize("seed", range(12))
async def test_nothing_is_lost_or_run_twice(seed: int) -> None:
    storm = Storm(seed)
    await storm.go(150)
    await storm.end()
    statistics = storm.worker.statistics()
    assert storm.serial > 20
    assert statistics.running == statistics.queued == {"effect": 0, "compute": 0}
    assert statistics.unacknowledged == 0
    assert max(storm.runs.values()) == 1
    # Whatever began has answered; what never began was refused as stale, and the last owner hears that it is not held.
    assert all(storm.answered.get(token) for token in storm.sent if token.offset in storm.runs)
    assert statistics.refused_uncredited == 0
    for role in ("effect", "compute"):
        ledger = storm.worker._attempts.lanes[role].ledger
        assert ledger.granted <= ledger.slots + (PREFETCH_LIMIT if role == "compute" else 0)
    held = [message for link in storm.links if link is not None for message in link.of(Held)]
    assert held
    closing = asyncio.ensure_future(storm.worker.close())
    await settle()
    await storm.clock.advance(5)
    await closing
