"""Results of attempts that are not in memory: looked for in the store a few at a time, and once however often they are said."""

from __future__ import annotations

import asyncio
from typing import Any

from onexflow.core.ids import Token
from onexflow.core.payload import NULL
from onexflow.engine.results import LOOKUPS
from onexflow.ports.worker_link import AttemptResult, Results
from onexflow.testing import Cluster, virtual_time
from support.engine_kit import Script, ready, single, until


class Slow:
    """Reads of the store that wait for each other."""

    def __init__(self, cluster: Cluster) -> None:
        self.gate = asyncio.Event()
        self.at_once = self.most = self.asked = 0
        store: Any = cluster.store
        self._read = store.read_shard
        store.read_shard = self.read

    async def read(self, *arguments: Any) -> Any:
        self.asked += 1
        self.at_once += 1
        self.most = max(self.most, self.at_once)
        await self.gate.wait()
        self.at_once -= 1
        return await self._read(*arguments)


@virtual_time
async def test_a_flood_of_unknown_results_reads_a_few_at_a_time_and_each_gets_its_answer() -> None:
    script = Script()
    async with Cluster() as cluster:
        await ready(cluster, script, single("compute", "calc"), workers=2)
        keys = [(await cluster.start("single", number)).key for number in range(20)]
        for key in keys:
            await cluster.result(key)
        await asyncio.sleep(1)
        sessions = list(cluster.engine._sessions.by_worker.values())
        shards = cluster.engine._kernel.shards
        tokens = [Token(shard.id, shard.epoch, 0, 0) for shard in shards.values() if shard.durable]
        assert len(tokens) > LOOKUPS
        answers: list[tuple[str, Token]] = []
        for session in sessions:
            _hear(session, answers)
        slow = Slow(cluster)
        for _ in range(3):  # a stream that breaks has all of them said again
            for session in sessions:
                for token in tokens:
                    session.on_message(Results([AttemptResult(token, "completed", NULL, None, 1, 2)]))
        await asyncio.sleep(1)
        assert slow.most == LOOKUPS
        slow.gate.set()
        await until(lambda: len(answers) == len(tokens) * len(sessions))
        assert slow.most == LOOKUPS
        assert slow.asked == len(answers) == len(set(answers)), "once for each worker that has said it"


def _hear(session: Any, answers: list[tuple[str, Token]]) -> None:
    """Note what the worker is told of its results."""

    def acknowledge(kept: list[Token], dropped: list[Token], offsets: dict[int, int]) -> None:
        answers.extend((session.worker_id, token) for token in kept + dropped)

    session.acknowledge = acknowledge
