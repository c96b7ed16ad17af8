"""An owner that is stopped in the middle of anything, and wakes when it owns nothing more."""

from __future__ import annotations

import asyncio
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import support
from onexflow.ports.event_store import EventStore, Row
from onexflow.storage.postgres import PostgresStore
from onexflow.storage.postgres.embedded import EmbeddedPostgres
from onexflow.testing.conformance.store_kit import one_row
from postgres_support import new_schema, postgres  # noqa: F401 - a fixture

OWNER = Path(next(iter(support.__path__))) / "postgres_owner.py"
SHARDS = 4


async def all_rows(store: EventStore, shard: int) -> list[Row]:
    rows: list[Row] = []
    while page := await store.read_shard(shard, len(rows) + 1):
        rows += page
    return rows


@pytest.mark.slow
@pytest.mark.timeout(240)
async def test_a_stopped_owner_is_deposed_in_time_and_stores_nothing_after_it(
    postgres: EmbeddedPostgres,  # noqa: F811 - the fixture
    rounds: Callable[..., int],
) -> None:
    url = new_schema(postgres)
    successor = PostgresStore(url, SHARDS)
    await successor.open()
    longest = 0.0
    for _ in range(rounds(6, 40)):
        owner = await asyncio.create_subprocess_exec(
            sys.executable, str(OWNER), url, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
        )
        assert owner.stdout is not None
        try:
            assert await owner.stdout.readline() == b"owns\n"
            told = [await owner.stdout.readline() for _ in range(random.randrange(4, 30))]
            await asyncio.sleep(random.random() * 0.01)  # anywhere within an append
            owner.send_signal(signal.SIGSTOP)
            heads = {}
            for shard, epoch, _ in await successor.owners():
                began = time.monotonic()
                claim = await successor.claim(shard, epoch, "successor")
                longest = max(longest, time.monotonic() - began)
                assert claim is not None
                heads[shard] = claim
            for shard, claim in heads.items():
                outcome = await successor.append([one_row(shard, claim.epoch, claim.head, seq=claim.head)])
                assert outcome.stored == {shard}
            owner.send_signal(signal.SIGCONT)
            rest, errors = await asyncio.wait_for(owner.communicate(), 20)
        finally:
            if owner.returncode is None:
                owner.kill()
                await owner.wait()
        lines = [*told, *rest.splitlines(keepends=True)]
        assert lines[-1] == b"refused\n", errors
        for line in lines:
            word, *numbers = line.split()
            if word == b"stored":  # and nothing that it was told is stored came after the takeover
                shard, offset = map(int, numbers)
                assert offset < heads[shard].head
        for shard, claim in heads.items():
            rows = await all_rows(successor, shard)
            assert [row.offset for row in rows] == list(range(1, len(rows) + 1))
            assert [row.epoch for row in rows] == sorted(row.epoch for row in rows)
            assert rows[-1].epoch == claim.epoch
            assert rows[-1].offset == claim.head
    assert longest < 2
    await successor.close()
