"""A process that owns all shards of a PostgreSQL store and appends to them without end: `python postgres_owner.py URL`.

It prints `owns` when it has claimed them, `stored SHARD OFFSET` for each append that it was told is durable, and, when an
append is refused, `refused SHARD…`; then it claims them anew once a line comes in, and ends with its input. As an
orchestrator does, it asks again when it cannot know. `python postgres_owner.py URL locked` begins a transaction instead
that holds the rows of all its shards, prints `holds`, and `ended` when it finds that transaction gone.
"""

from __future__ import annotations

import asyncio
import sys

from onexflow.core.errors import StoreUnavailable
from onexflow.storage.postgres import PostgresStore
from onexflow.storage.postgres.errors import DriverError
from onexflow.storage.postgres.server import Connection
from support.audited_rows import define, part_at

Held = dict[int, tuple[int, int]]


async def claimed(store: PostgresStore) -> Held:
    held: Held = {}
    for shard, epoch, _ in await store.owners():
        claim = await store.claim(shard, epoch, "owner")
        if claim is not None:
            held[shard] = (claim.epoch, claim.head)
    print("owns", flush=True)
    return held


async def append_until_deposed(store: PostgresStore, held: Held) -> None:
    while True:
        batch = [part_at(shard, epoch, head, 30_000) for shard, (epoch, head) in held.items()]
        try:
            outcome = await store.append(batch)
        except StoreUnavailable:
            await asyncio.sleep(0.05)
            continue
        deposed = []
        for part in batch:
            if part.shard in outcome.stored or outcome.refused[part.shard] == (part.epoch, part.next):
                held[part.shard] = (part.epoch, part.next)
                print(f"stored {part.shard} {part.head}", flush=True)
            else:
                deposed.append(part.shard)
        if deposed:
            print("refused", *deposed, flush=True)
            return


async def hold(connection: Connection) -> None:
    """What an owner would be that stands still in the middle of a transaction."""
    await connection.execute("BEGIN")
    await connection.execute("SELECT * FROM shards FOR UPDATE")
    print("holds", flush=True)
    await lines()  # it is stopped and continued meanwhile
    try:
        await connection.execute("UPDATE shards SET head = head + 100")
        await connection.execute("COMMIT")
    except DriverError:
        print("ended", flush=True)


async def lines() -> str:
    return await asyncio.to_thread(sys.stdin.readline)


async def main(url: str, *, locked: bool) -> None:
    store = PostgresStore(url)
    await store.open()
    await define(store)
    while True:
        held = await claimed(store)
        if locked:
            await store._control(hold)
        else:
            await append_until_deposed(store, held)
        if not await lines():
            break
    await store.close()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], locked=sys.argv[2:] == ["locked"]))
