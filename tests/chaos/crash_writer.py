"""A process that appends as fast as it can and prints what was acknowledged, until it is killed.

python crash_writer.py STORE
"""

from __future__ import annotations

import asyncio
import os
import sys

from onexflow.ports.event_store import ParkedRecord, RegisterRecord, ShardAppend, ShardClaim
from onexflow.storage.sqlite import SqliteStore
from support.audited_rows import define, row_at, run_at


class Shard:
    def __init__(self, claim: ShardClaim) -> None:
        self.claim = claim
        self.head = claim.head
        self.iid = claim.next_iid

    def part(self, rows: int) -> ShardAppend:
        shard, head = self.claim.shard, self.head
        made = []
        for _ in range(rows):
            made.append(row_at(shard, self.head, self.claim.epoch, self.iid))
            self.head += made[-1].count
            self.iid += 1
        return ShardAppend(
            shard=shard,
            epoch=self.claim.epoch,
            head=head,
            next=self.head,
            rows=made,
            runs=[run_at(shard, row) for row in made],
            parked=[ParkedRecord(row.iid, row.offset, "crash") for row in made],
            registers=[
                RegisterRecord("head", b"%d" % self.head),
                RegisterRecord(f"at/{head}", b""),  # where the last append has put one
                RegisterRecord(f"at/{self.head}", b"here"),
            ],
        )


async def main(path: str) -> None:
    store = SqliteStore(path)
    await store.open()
    await define(store)
    shards = []
    for number, epoch, _ in await store.owners():
        claim = await store.claim(number, epoch, "crash")
        assert claim is not None
        shards.append(Shard(claim))
    turn = 0
    while True:
        turn += 1
        batch = [shard.part(1 + (turn + shard.claim.shard) % 9) for shard in shards]
        outcome = await store.append(batch)
        assert len(outcome.stored) == len(batch)
        line = " ".join(f"{part.shard}:{part.next}" for part in batch)
        os.write(1, f"{line}\n".encode())


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
