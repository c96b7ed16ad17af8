"""Copying a store, whole, into another one: SQLite to PostgreSQL or back, while nobody works on it.

The log of the source is audited first and that of the copy last; between them everything is counted and hashed on both
sides. The copy has its name only when all of that agrees.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Iterator
from hashlib import blake2b
from typing import Any, Final, NamedTuple, TypeVar

import msgspec

from onexflow.app.adapters import need_postgres_driver
from onexflow.audit import Report, audit
from onexflow.core.address import without_password
from onexflow.core.errors import InvalidArgument, StoreUnavailable, StoreUnusable
from onexflow.ports.event_store import AppendOutcome, Cut, ShardAppend, Tombstone
from onexflow.ports.store_image import KINDS, ShardState, StoreImage

T = TypeVar("T", bound=Iterable[object])

OWNER: Final = "copy"
PAGE: Final = 1000
#: Bytes of an append.
BYTES: Final = 1 << 20


class Census(NamedTuple):
    """How many records of one kind a store has, and a hash that is the same in whatever order they come."""

    records: int
    hash: str


class CopyReport(msgspec.Struct):
    """What was copied: each kind with its count and its hash, the same on both sides; and the audit of the copy."""

    shards: int
    contents: dict[str, Census]
    audit: Report


def image_of(url: str, password: str = "") -> StoreImage:
    """The store with that URL, not opened. Raises InvalidArgument when it is none that can be copied."""
    scheme, _, path = url.partition(":")
    if scheme == "sqlite" and path:
        from onexflow.storage.sqlite.image import SqliteImage

        return SqliteImage(path.removeprefix("//") or path)
    if scheme in ("postgresql", "postgres"):
        need_postgres_driver()
        from onexflow.storage.postgres.image import PostgresImage

        return PostgresImage(url, password=password)
    shown = without_password(url)
    raise InvalidArgument(f"{shown!r} is neither sqlite:PATH nor postgresql://…", field="store")


async def copy_store(source: StoreImage, target: StoreImage) -> CopyReport:
    """Copy `source` into a new store. Raises StoreUnusable when the source's log is not consistent, when it is changed
    meanwhile, when the copy differs, or when the target exists; then there is no copy."""
    await source.open()
    try:
        _must_be_consistent(await audit(source), "The store")
        states = await source.states()
        before = await census(source, states)
        await target.draft(source.shards)
        try:
            for state in states:
                await _copy_shard(source, target, state)
            for definition in await source.load_definitions():
                await target.save_definition(definition)
            await target.adopt(states)
            after = await census(target, await target.states())
            report = await audit(target)
            if await source.states() != states:
                raise StoreUnusable("The store was written to while it was copied. There is no copy.")
            if before != after:
                differing = sorted(kind for kind in before if before[kind] != after.get(kind))
                raise StoreUnusable(f"The copy differs in {', '.join(differing)}. There is no copy.")
            _must_be_consistent(report, "The copy")
            await target.publish()
        finally:
            await target.close()
    finally:
        await source.close()
    return CopyReport(len(states), after, report)


async def census(store: StoreImage, states: Iterable[ShardState]) -> dict[str, Census]:
    """All of a store, counted and hashed."""
    kinds = ("shards", "rows", *KINDS, "registers", "tombstones", "checkpoints", "definitions")
    sums: dict[str, list[int]] = {kind: [0, 0] for kind in kinds}

    def count(kind: str, shard: int, records: Iterable[Any]) -> None:
        at = sums[kind]
        for record in records:
            digest = blake2b(repr((shard, tuple(record))).encode(), digest_size=16).digest()
            at[0] += 1
            at[1] += int.from_bytes(digest, "big")

    for state in states:
        count("shards", state.shard, [state])
        async for kind, records in _contents(store, state.shard):
            count(kind, state.shard, records)
    count("definitions", 0, await store.load_definitions())
    return {kind: Census(number, f"{total % (1 << 128):032x}") for kind, (number, total) in sums.items()}


async def _contents(store: StoreImage, shard: int) -> AsyncIterator[tuple[str, list[Any]]]:
    """What a shard holds, in pages, rows and registers in their order."""
    at = 1
    while rows := await store.read_shard(shard, at, PAGE):
        yield "rows", list(rows)
        at = rows[-1].offset + rows[-1].count
    for kind in KINDS:
        async for records in store.every(kind, shard):
            yield kind, records
    after = ""
    while True:
        registers = await store.list_registers(shard, "", after, PAGE)
        yield "registers", list(registers)
        if len(registers) < PAGE:
            break
        after = registers[-1].name
    yield "tombstones", await store.tombstones(shard)
    checkpoint = await store.load_checkpoint(shard)
    yield "checkpoints", [] if checkpoint is None else [checkpoint]


async def _copy_shard(source: StoreImage, target: StoreImage, state: ShardState) -> None:
    claim = await target.claim(state.shard, 0, OWNER)
    if claim is None:
        raise StoreUnusable(f"Somebody else works on the copy: shard {state.shard} is taken.")
    head = claim.head
    async for kind, records in _contents(source, state.shard):
        for part in _parts(records):
            append = ShardAppend(shard=state.shard, epoch=claim.epoch, head=head, next=head)
            if kind == "rows":
                append.rows = part
                append.next = part[-1].offset + part[-1].count
            elif kind == "tombstones":
                append.cuts = [_grave(tombstone) for tombstone in part]
            elif kind == "checkpoints":
                append.checkpoint = part[-1]
            else:
                setattr(append, kind, part)
            _must_be_stored(await target.append([append]), append)
            head = append.next


def _grave(tombstone: Tombstone) -> Cut:
    """A cut that leaves the tombstone and cuts nothing: what it tells of is not in the copy."""
    return Cut(0, tombstone)


def _parts(records: list[T]) -> Iterator[list[T]]:
    """The records in pieces of about BYTES."""
    part: list[T] = []
    size = 0
    for record in records:
        own = _size(record)
        if part and size + own > BYTES:
            yield part
            part, size = [], 0
        part.append(record)
        size += own
    if part:
        yield part


def _size(record: Iterable[object]) -> int:
    return sum(len(value) if isinstance(value, (bytes, str)) else 8 for value in record)


def _must_be_stored(outcome: AppendOutcome, append: ShardAppend) -> None:
    if append.shard not in outcome.stored:
        raise StoreUnavailable(f"Somebody else works on the copy: {outcome.refused}.")


def _must_be_consistent(report: Report, what: str) -> None:
    if not report.is_consistent:
        raise StoreUnusable(
            f"{what} is not consistent: {report.violations} violations, the first: {report.findings[0]}",
            {"hint": "`onexflow audit STORE` lists them."},
        )
