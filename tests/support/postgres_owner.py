"""A process that owns all shards of a PostgreSQL store and appends to them without end: `python postgres_owner.py URL`.

It prints `owns` when it has claimed them, `stored SHARD OFFSET` for each append that it was told is durable, and, when an
append is refused, `refused` once; then it ends. As an orchestrator does, it asks again when it cannot know.
"""

from __future__ import annotations

import asyncio
import sys

from onexflow.core.errors import StoreUnavailable
from onexflow.ports.event_store import Row, ShardAppend
from onexflow.storage.postgres import PostgresStore


async def main(url: str) -> None:
    store = PostgresStore(url)
    await store.open()
    held: dict[int, tuple[int, int]] = {}
    for shard, epoch, _ in await store.owners():
        claim = await store.claim(shard, epoch, "owner")
        if claim is not None:
            held[shard] = (claim.epoch, claim.head)
    print("owns", flush=True)
    while True:
        batch = [
            ShardAppend(
                shard=shard, epoch=epoch, head=head, next=head + 1, rows=[Row(head, 1, epoch, 1, head, bytes(30_000))]
            )
            for shard, (epoch, head) in held.items()
        ]
        try:
            outcome = await store.append(batch)
        except StoreUnavailable:
            await asyncio.sleep(0.05)
            continue
        deposed = False
        for part in batch:
            if part.shard in outcome.stored or outcome.refused[part.shard] == (part.epoch, part.next):
                held[part.shard] = (part.epoch, part.next)
                print(f"stored {part.shard} {part.head}", flush=True)
            else:
                deposed = True
        if deposed:
            print("refused", flush=True)
            await store.close()
            return


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
