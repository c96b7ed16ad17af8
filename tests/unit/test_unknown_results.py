"""Results of attempts that are not in memory: looked for in the store a few at a time, and once however often they are said."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from onexflow.core.builder import workflow
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


@virtual_time
async def test_a_result_whose_run_is_read_back_for_it_leaves_no_attempt_behind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Reading back makes the attempt anew: that one has ended, too, and is not to be sent (found by `scripts/simulate`)."""
    script = Script()
    gate, goes_on = script.gate("calc"), script.gate("send")
    flow = workflow("fan")
    each = flow.compute("each", handler="calc", map="input")
    flow.effect("send", depends_on=[each])
    async with Cluster() as cluster:
        await ready(cluster, script, flow)
        key = (await cluster.start("fan", [1, 2, 3])).key
        await until(lambda: script.running["calc"] == 3)
        kernel, book = cluster.engine._kernel, cluster.engine._book
        await kernel.lane.durable()
        run = kernel.resident(key)
        assert run is not None
        for attempt in list(run.attempts.values()):
            book._placing.forget(attempt)
        run.shard.remove(run)
        run.shard.absent.add(run.iid)
        enqueue = book.dispatcher.enqueue
        monkeypatch.setattr(
            book.dispatcher, "enqueue", lambda one, **more: one.info.name == "send" and enqueue(one, **more)
        )  # no worker has a slot for the others
        gate.set()
        await until(lambda: script.running["send"] == 1)
        assert [attempt.info.name for attempt in book.attempts.values()] == ["send"]
        goes_on.set()
        await cluster.result(key)
