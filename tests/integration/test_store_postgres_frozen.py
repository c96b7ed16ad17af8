"""An owner that is stopped in the middle of anything, and wakes when it owns nothing more."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

import support
from onexflow.ports.event_store import EventStore, Row, ShardClaim
from onexflow.storage.postgres import PostgresStore
from onexflow.storage.postgres.embedded import EmbeddedPostgres
from postgres_support import new_schema, postgres  # noqa: F401 - a fixture
from support.audited_rows import assert_consistent, define, part_at

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

OWNER = Path(next(iter(support.__path__))) / "postgres_owner.py"
SHARDS = 4
#: A frozen owner delays the takeover of all its shards by no more.
TAKEOVER_SECONDS = 2.0


async def all_rows(store: EventStore, shard: int) -> list[Row]:
    rows: list[Row] = []
    while page := await store.read_shard(shard, len(rows) + 1):
        rows += page
    return rows


class Owner:
    """The process, line by line."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        #: Offsets that it was told are stored, by shard.
        self.told: dict[int, int] = {}

    async def says(self, word: str) -> list[int]:
        """Return when it says that; the numbers that follow. What it was told is stored is kept account of."""
        assert self.process.stdout is not None
        async with asyncio.timeout(20):
            while line := await self.process.stdout.readline():
                said, *numbers = line.decode().split()
                if said == "stored":
                    self.told[int(numbers[0])] = int(numbers[1])
                if said == word:
                    return [int(number) for number in numbers]
        assert self.process.stderr is not None
        raise AssertionError(f"it ended before it said {word}: {await self.process.stderr.read()!r}")

    def again(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(b"again\n")

    def freeze(self) -> None:
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self.process.send_signal(signal.SIGCONT)


@asynccontextmanager
async def an_owner(url: str, *mode: str) -> AsyncIterator[Owner]:
    pipe = asyncio.subprocess.PIPE
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(OWNER), url, *mode, env=environment, stdin=pipe, stdout=pipe, stderr=pipe
    )
    try:
        yield Owner(process)
        process.stdin.close()
        assert await asyncio.wait_for(process.wait(), 20) == 0, await process.stderr.read()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def take_over(store: PostgresStore) -> dict[int, ShardClaim]:
    """Claim all shards, within the time that a frozen owner may cost."""
    claims = {}
    began = time.monotonic()
    for shard, epoch, _ in await store.owners():
        claim = await store.claim(shard, epoch, "successor")
        assert claim is not None
        claims[shard] = claim
    assert time.monotonic() - began < TAKEOVER_SECONDS
    return claims


async def test_a_stopped_owner_is_deposed_in_time_and_stores_nothing_after_it(
    postgres: EmbeddedPostgres,  # noqa: F811 - the fixture
    rounds: Callable[..., int],
) -> None:
    url = new_schema(postgres)
    successor = PostgresStore(url, SHARDS)
    await successor.open()
    await define(successor)
    heads: dict[int, int] = {}
    async with an_owner(url) as owner:
        for number in range(rounds(20, 60)):
            if number:
                owner.again()
            await owner.says("owns")
            for _ in range(random.randrange(4, 30)):
                await owner.says("stored")
            await asyncio.sleep(random.random() * 0.01)  # anywhere within an append
            owner.freeze()
            claims = await take_over(successor)
            for shard, claim in claims.items():
                outcome = await successor.append([part_at(shard, claim.epoch, claim.head)])
                assert outcome.stored == {shard}
                heads[shard] = claim.head + 1
            owner.thaw()
            assert await owner.says("refused"), "it has a go at its next append"
            for shard, claim in claims.items():
                # What it was told is stored, was stored before the takeover; and nothing of it after.
                assert owner.told[shard] < claim.head
                rows = await successor.read_shard(shard, claim.head)
                assert [(row.epoch, row.offset) for row in rows] == [(claim.epoch, claim.head)]
    for shard in range(SHARDS):
        rows = await all_rows(successor, shard)
        assert [row.offset for row in rows] == list(range(1, heads[shard]))
    await assert_consistent(successor)
    await successor.close()


async def test_an_owner_that_is_stopped_in_a_transaction_which_holds_its_shards_is_deposed_in_time(
    postgres: EmbeddedPostgres,  # noqa: F811 - the fixture
) -> None:
    url = new_schema(postgres)
    successor = PostgresStore(url, SHARDS)
    await successor.open()
    await define(successor)
    async with an_owner(url, "locked") as owner:
        for number in range(3):
            if number:
                owner.again()
            await owner.says("owns")
            await owner.says("holds")
            owner.freeze()
            claims = await take_over(successor)
            for shard, claim in claims.items():
                assert claim.head == 1 + number
                assert (await successor.append([part_at(shard, claim.epoch, claim.head)])).stored == {shard}
            owner.thaw()
            owner.again()
            await owner.says("ended")
    await assert_consistent(successor)
    await successor.close()
