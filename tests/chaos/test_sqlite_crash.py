"""kill -9 of a writing process, at random moments: nothing that it acknowledged is lost, and nothing is half there.

(What a power cut does is another matter: see `testing.faults.store`.)
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from onexflow.ports.event_store import RegisterRecord, Row
from onexflow.storage.sqlite import SqliteStore
from support.audited_rows import assert_consistent, row_at, run_at

pytestmark = [pytest.mark.chaos, pytest.mark.slow]

WRITER = Path(__file__).with_name("crash_writer.py")
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}


@pytest.mark.timeout(300)
async def test_nothing_acknowledged_is_lost(tmp_path: Path, rounds: Callable[..., int]) -> None:
    path = tmp_path / "store.db"
    chance = random.Random(4)
    acknowledged = dict.fromkeys(range(8), 1)
    checked = dict.fromkeys(range(8), 1)
    count = rounds(4, 60)
    for number in range(count):
        acknowledged |= write_and_kill(path, chance.uniform(0.0, 0.4))
        store = SqliteStore(path)
        await store.open()  # the lock went with the process
        for shard, head in acknowledged.items():
            checked[shard] = await check(store, shard, checked[shard], head)
        if number % 10 == 3 or number == count - 1:  # of all that is there: it grows, and the last one sees all of it
            await assert_consistent(store)
        await store.close()
    assert min(acknowledged.values()) > 10


def write_and_kill(path: Path, seconds: float) -> dict[int, int]:
    """Run the writer until `seconds` after its first acknowledgement; the heads that it acknowledged last."""
    with subprocess.Popen([sys.executable, str(WRITER), str(path)], stdout=subprocess.PIPE, env=ENVIRONMENT) as writer:
        assert writer.stdout is not None
        lines = [writer.stdout.readline()]
        assert lines[0], "the writer ended by itself"
        time.sleep(seconds)  # the moment of the kill is the experiment
        writer.kill()
        lines += writer.stdout.readlines()
    whole = [line for line in lines if line.endswith(b"\n")]
    return {int(shard): int(head) for shard, head in (pair.split(b":") for pair in whole[-1].split())}


async def check(store: SqliteStore, shard: int, offset: int, acknowledged: int) -> int:
    """All from `offset` to the head is there, once, as it was sent, and the tables agree; the head."""
    rows: list[Row] = []
    expected = offset
    while page := await store.read_shard(shard, expected):
        for row in page:
            assert row == row_at(shard, expected, row.epoch, row.iid)
            expected = row.offset + row.count
        rows += page
    assert expected >= acknowledged
    if expected > 1:  # the registers are those of the last append that is there
        wanted = [RegisterRecord(f"at/{expected}", b"here"), RegisterRecord("head", b"%d" % expected)]
        assert await store.list_registers(shard) == wanted
    epoch = (await store.owners())[shard][1]
    claim = await store.claim(shard, epoch, "check")
    assert claim is not None
    assert claim.head == expected
    assert [row.epoch for row in rows] == sorted(row.epoch for row in rows)
    records = {record.iid: record for record in await store.get_runs(shard, [row.iid for row in rows])}
    parked = {entry.iid: entry for entry in await store.due_parked(shard, 1 << 60, 1 << 30)}
    for row in rows:
        assert records[row.iid] == run_at(shard, row)
        assert parked[row.iid].wake_at == row.offset
    assert claim.next_iid == max([*parked, 0]) + 1
    return expected
