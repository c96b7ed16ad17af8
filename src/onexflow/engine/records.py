"""The records of one orchestrator (`ports.persistence`): saved states of external streams, snapshots, cut histories.

All of it stands in registers of the shard that the key belongs to: `state/…` the saved state of an external stream,
`snapshot/…` the newest snapshot that was asked for, `base/…` the state right before the first event that a cut has left,
on which any later sequence number can be folded. What the engine itself recovers from is not touched by any of these.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from hashlib import blake2b
from typing import Final, NamedTuple
from urllib.parse import quote

import msgspec

from onexflow.codec.payload import UNREADABLE
from onexflow.codec.rows import decode_snapshot, encode_snapshot
from onexflow.core.errors import InvalidArgument, InvalidTransition, OutOfRange, StoreUnavailable, UnknownRun
from onexflow.core.ids import RunKey
from onexflow.core.machine import WORKFLOW_STATE_INDEX
from onexflow.core.payload import Payload
from onexflow.core.queue_state import is_system_type
from onexflow.core.state import RunState
from onexflow.engine import cuts, stream
from onexflow.engine.events.book import EventBook
from onexflow.engine.events.checks import check_key
from onexflow.engine.kernel import Kernel
from onexflow.engine.queries import Queries
from onexflow.engine.recovery import fold, read_rows
from onexflow.engine.run import Run
from onexflow.engine.shard import Shard
from onexflow.engine.stream import Stream
from onexflow.engine.views import past_view
from onexflow.ports.client_link import RunView
from onexflow.ports.event_store import RequestRecord, SnapshotRecord
from onexflow.ports.events import EventRecord, Publish
from onexflow.ports.persistence import CutView, SnapshotView, StateRecord

#: How long a call waits for the store to confirm a write.
CONFIRM_SECONDS: Final = 10.0
#: Beyond all numbers that there are, and within what stores can compare.
MAX_SEQUENCE: Final = 1 << 62
_FORMAT: Final = 1


class _State(msgspec.Struct, array_like=True):
    """The register of a saved state."""

    format: int
    state: str
    sequence: int
    data: Payload
    saved_at: int


class _Snapshot(msgspec.Struct, array_like=True):
    """The register of a snapshot: of a run (as `codec.rows` packs its state) or of a saved state (a packed `_State`)."""

    format: int
    of_run: bool
    sequence: int
    created_at: int
    data: bytes


def register_name(kind: str, key: RunKey) -> str:
    """The register of that kind that belongs to a run or a stream."""
    return f"{kind}/{quote(key.namespace, safe='')}/{quote(key.workflow_type, safe='')}/{key.instance_id}"


class _History(NamedTuple):
    """A history to be cut below its event `end`."""

    shard: Shard
    iid: int
    key: RunKey  #: of the entity
    end: int
    #: Keep what stands in for the events below a number; the snapshot to go on from.
    keep: Callable[[int], Awaitable[SnapshotRecord]]
    #: What its readers call its event of that number.
    number: Callable[[int], Awaitable[int]]


class RecordBook:
    """Implements `PersistenceService`."""

    def __init__(
        self,
        kernel: Kernel,
        queries: Queries,
        events: EventBook,
        *,
        owner: str,
        refuse: Callable[[], None],
        payload_limit: int,
        confirm_seconds: float = CONFIRM_SECONDS,
    ) -> None:
        """`refuse` raises what keeps this orchestrator from taking anything new, if something does."""
        self._kernel = kernel
        self._store = kernel.store
        self._queries = queries
        self._events = events
        self._owner = owner
        self._refuse = refuse
        self._payload_limit = payload_limit
        self._confirm_seconds = confirm_seconds
        self._cutting: dict[int, asyncio.Lock] = {}

    # ---- states

    async def save_state(self, record: StateRecord) -> bool:
        self._check(record)
        self._refuse()
        async with self._patience():
            run = await self._run(record.key)
            if run is not None:
                return await self._is_so(run, record)
            shard, name = self._kernel.shard_of(record.key), register_name("state", record.key)
            stored = _state(await shard.register(self._store, name))  # nothing is awaited from here to the writing
            is_newest = stored is None or stored.sequence <= record.sequence
            if is_newest:
                saved = _State(_FORMAT, record.state, record.sequence, record.data, self._store.now())
                self._put(shard, name, saved)
            await self._kernel.lane.durable()
            return is_newest

    async def load_state(self, key: RunKey) -> RunView | StateRecord | None:
        check_key(key)
        async with self._patience():
            try:
                return await self._queries.describe(key)
            except UnknownRun:
                stored = await self._saved(key)
            await self._kernel.lane.durable()
        return None if stored is None else _record(key, stored)

    async def _saved(self, key: RunKey) -> _State | None:
        """The saved state of an external stream, durable or not."""
        return _state(await self._kernel.shard_of(key).register(self._store, register_name("state", key)))

    async def _is_so(self, run: Run, record: StateRecord) -> bool:
        """A run's state follows from its events: it can be confirmed, not changed."""
        state, sequence = run.state.status, run.state.seq
        await self._kernel.lane.durable()
        if (state, sequence) == (record.state, record.sequence):
            return True
        raise InvalidTransition(
            f"the state of run {run.key} follows from its events: it is {state} at event {sequence},"
            f" not {record.state} at event {record.sequence}",
            {
                "run": str(run.key),
                "current_state": state,
                "required_state": record.state,
                "current_sequence": sequence,
                "required_sequence": record.sequence,
            },
        )

    def _check(self, record: StateRecord) -> None:
        check_key(record.key)
        if is_system_type(record.key.workflow_type):
            raise InvalidArgument("workflow types that begin with $ are onexflow's own", field="workflow_type")
        if record.state not in WORKFLOW_STATE_INDEX:
            raise InvalidArgument(
                f"{record.state!r} is not a workflow state: {', '.join(WORKFLOW_STATE_INDEX)}", field="state"
            )
        if not 0 <= record.sequence <= MAX_SEQUENCE:
            raise InvalidArgument(f"the sequence number is {record.sequence}: that is none", field="sequence")
        if len(record.data.data) > self._payload_limit:
            raise InvalidArgument(
                f"the state has {len(record.data.data):,} bytes, the limit is {self._payload_limit:,}", field="data"
            )

    # ---- events

    async def save_event(self, event: EventRecord) -> bool:
        self._refuse()
        async with self._patience():
            await self._events.publish_event(Publish(event=event))
            return True

    async def load_events(
        self, key: RunKey, from_sequence: int = 1, to_sequence: int | None = None, limit: int = 1000
    ) -> Sequence[EventRecord]:
        try:
            return await self._events.read_events(key, min(from_sequence, MAX_SEQUENCE), to_sequence, limit)
        except UnknownRun:
            return []

    # ---- snapshots

    async def create_snapshot(self, key: RunKey, sequence: int) -> bool:
        if sequence < 0:
            raise InvalidArgument("sequence must not be negative", field="sequence")
        self._refuse()
        async with self._patience():
            run = await self._run(key)
            if run is None:
                return await self._snapshot_saved(key, sequence)
            head = run.state.seq
            await self._kernel.lane.durable()
            if not 1 <= sequence <= head:
                return False
            state = await self._fold(run.shard, run.iid, key, sequence)
            await self._keep(run.shard, "snapshot", key, _of_run(state, self._store.now()))
            await self._kernel.lane.durable()
            return True

    async def load_snapshot(self, key: RunKey) -> SnapshotView | None:
        async with self._patience():
            run = await self._run(key)
            shard = self._kernel.shard_of(key)
            kinds = ("snapshot", "base")
            found = [_snapshot(await shard.register(self._store, register_name(kind, key))) for kind in kinds]
            await self._kernel.lane.durable()
        kept = [one for one in found if one is not None and one.of_run == (run is not None)]
        newest = max(kept, key=lambda one: one.sequence, default=None)
        if newest is None:
            return None
        if not newest.of_run:
            stored = _state(newest.data)
            return None if stored is None else SnapshotView(record=_record(key, stored), created_at=newest.created_at)
        state = decode_snapshot(newest.data)
        if state is None:  # its form is not this release's
            return None
        graph = self._kernel.catalog.graph_of_run(key.namespace, key.workflow_type, state.version, state.definition)
        view = past_view(Run(shard, run.iid if run else 0, graph, state, b"", key), self._owner)
        return SnapshotView(view=view, created_at=newest.created_at)

    async def _snapshot_saved(self, key: RunKey, sequence: int) -> bool:
        """An external stream has no state but what its user saved."""
        saved = await self._saved(key)
        if saved is None or saved.sequence != sequence:
            if saved is None and await self._events.stream(key) is None:
                raise UnknownRun(f"there is no run {key}", {"run": str(key)})
            return False
        data = msgspec.msgpack.encode(saved)
        kept = _Snapshot(_FORMAT, False, sequence, self._store.now(), data)
        await self._keep(self._kernel.shard_of(key), "snapshot", key, kept)
        await self._kernel.lane.durable()
        return True

    async def _keep(self, shard: Shard, kind: str, key: RunKey, snapshot: _Snapshot) -> None:
        """Write it with the next append, unless one of a higher number is there."""
        name = register_name(kind, key)
        known = _snapshot(await shard.register(self._store, name))
        if known is None or known.of_run != snapshot.of_run or known.sequence < snapshot.sequence:
            self._put(shard, name, snapshot)

    async def _fold(self, shard: Shard, iid: int, key: RunKey, sequence: int) -> RunState:
        """A run's state at exactly that number, from the nearest state that is kept. Durable events only."""
        while True:
            seen = await cuts.uncut(shard)
            earliest = await cuts.earliest_kept(self._store, shard.id, iid)
            base = await self._nearest(shard, iid, key, sequence, earliest)
            first = base.seq + 1 if base is not None else 1
            rows = await read_rows(self._store, shard.id, iid, first, sequence)
            if shard.cuts == seen:
                break
        if base is None and earliest > 1:
            raise OutOfRange(
                f"the events of run {key} below {earliest} were cut: its state at {sequence} cannot be told",
                {"run": str(key), "earliest": earliest, "requested": sequence},
            )
        return fold(self._kernel.catalog, base, rows, sequence)[1]

    async def _nearest(self, shard: Shard, iid: int, key: RunKey, sequence: int, earliest: int) -> RunState | None:
        """The newest state that is kept and can be folded on up to `sequence`."""
        engines = await self._store.load_snapshot(shard.id, iid, sequence)
        packed = [] if engines is None else [(engines.seq, engines.data)]
        for kind in ("snapshot", "base"):
            kept = _snapshot(await self._store.get_register(shard.id, register_name(kind, key)))
            if kept is not None and kept.of_run and kept.sequence <= sequence:
                packed.append((kept.sequence, kept.data))
        for seq, data in sorted(packed, reverse=True):
            if seq >= earliest - 1 and (state := decode_snapshot(data)) is not None:
                return state
        return None

    # ---- cuts

    async def cut_history(self, key: RunKey, before: int, request_id: str = "") -> CutView:
        if before < 0:
            raise InvalidArgument("before must not be negative", field="before")
        check_key(key)
        async with self._cutting.setdefault(self._kernel.shard_of(key).id, asyncio.Lock()):
            async with self._patience():
                history = await self._history(key, before)
                await self._kernel.lane.durable()
            if history is None:
                return CutView(deleted=0, earliest=1)
            shard, iid = history.shard, history.iid
            earliest = await cuts.earliest_kept(self._store, shard.id, iid)
            # Who asks again under a request id has the rest of the same range cut, and all of it counted.
            body = blake2b(msgspec.msgpack.encode(("cut", str(key), before)), digest_size=16).digest()
            span = await self._span(shard, key.namespace, request_id, body)
            if span is None:
                span = (earliest, await self._unneeded(history, earliest))
                if request_id:
                    answer = msgspec.msgpack.encode(span)
                    record = RequestRecord(key.namespace, request_id, body, answer, self._store.now())
                    shard.check()
                    shard.answer(record)
                    self._kernel.lane.mark()
            first, end = span
            if end > earliest:
                snapshot = await history.keep(end)
                await cuts.cut_history(self._store, self._kernel.lane, shard, iid, end, snapshot)
            await self._kernel.lane.durable()
            graves = await self._store.tombstones(shard.id, 0, iid)
            deleted = sum(grave.count for grave in graves if first <= grave.first_seq and grave.last_seq < end)
            return CutView(deleted=deleted, earliest=await history.number(max(earliest, end)))

    async def _history(self, key: RunKey, before: int) -> _History | None:
        """What of a run or a stream could be cut; None when there is a saved state and no event. Raises UnknownRun."""
        run = await self._run(key)
        if run is not None:
            end = min(before, run.state.seq + 1)
            return _History(run.shard, run.iid, key, end, partial(self._keep_base, run), _itself)
        external, saved = await self._events.stream(key), await self._saved(key)
        if external is not None:
            earliest = await cuts.earliest_kept(self._store, external.shard.id, external.iid)
            covered = min(before, saved.sequence + 1) if saved is not None else 0
            end = await stream.inner_sequence(self._store, external, covered, earliest)
            keep, number = partial(self._keep_saved, external, key), partial(self._published, external)
            return _History(external.shard, external.iid, external.key, end, keep, number)
        if saved is not None:
            return None
        raise UnknownRun(f"there is no run {key}", {"run": str(key)})

    async def _span(self, shard: Shard, namespace: str, request_id: str, body: bytes) -> tuple[int, int] | None:
        """What was cut, or was going to be, under that request id: from the first number on, below the other."""
        known = await self._store.find_request(shard.id, namespace, request_id) if request_id else None
        if known is None:
            return None
        if known.body_hash != body:
            raise InvalidArgument("this request_id was used with another body", field="request_id")
        return msgspec.msgpack.decode(known.response, type=tuple[int, int])

    async def _unneeded(self, history: _History, earliest: int) -> int:
        """Below which number nobody has to read any more, `history.end` at most."""
        held = self._events.held(history.shard.id, history.key)
        if held is None or history.end <= earliest:
            return history.end
        for row in await read_rows(self._store, history.shard.id, history.iid, earliest, history.end - 1):
            if row.offset + row.count > held:
                return min(history.end, row.seq + max(0, held - row.offset))
        return history.end

    async def _keep_base(self, run: Run, end: int) -> SnapshotRecord:
        """A run's state before event `end`: what can be told of it hereafter begins there."""
        state = await self._fold(run.shard, run.iid, run.key, end - 1)
        kept = _of_run(state, self._store.now())
        await self._keep(run.shard, "base", run.key, kept)
        return SnapshotRecord(run.iid, end - 1, kept.data)

    async def _keep_saved(self, external: Stream, key: RunKey, _end: int) -> SnapshotRecord:
        """The saved state of a stream stands in for its events; publishing goes on from the stream's own."""
        saved = await self._saved(key)
        if saved is not None:
            data = msgspec.msgpack.encode(saved)
            kept = _Snapshot(_FORMAT, False, saved.sequence, self._store.now(), data)
            await self._keep(self._kernel.shard_of(key), "snapshot", key, kept)
        return SnapshotRecord(external.iid, external.state.seq, external.snapshot())

    async def _published(self, external: Stream, seq: int) -> int:
        """The number that a stream's event `seq` was, or at least will be, published under."""
        number = await stream.published_number(self._store, external, seq)
        return min(number, external.state.head + 1)

    # ---- helpers

    async def _run(self, key: RunKey) -> Run | None:
        check_key(key)
        try:
            return await self._kernel.find(key)
        except UnknownRun:
            return None

    def _put(self, shard: Shard, name: str, value: _State | _Snapshot) -> None:
        shard.put(name, msgspec.msgpack.encode(value))
        self._kernel.lane.mark()

    @asynccontextmanager
    async def _patience(self) -> AsyncIterator[None]:
        """A store that does not confirm is no reason to wait for ever."""
        limit = asyncio.timeout(self._confirm_seconds)
        try:
            async with limit:
                yield
        except TimeoutError:
            if not limit.expired():
                raise
            self._refuse()  # it may be full
            raise StoreUnavailable(
                f"the store has not confirmed within {self._confirm_seconds:g} s; what was asked may still happen"
            ) from None


async def _itself(seq: int) -> int:
    return seq


def _of_run(state: RunState, now: int) -> _Snapshot:
    return _Snapshot(_FORMAT, True, state.seq, now, encode_snapshot(state))


def _state(data: bytes | None) -> _State | None:
    """None also when its form is not this release's."""
    try:
        found = msgspec.msgpack.decode(data, type=_State) if data else None
    except UNREADABLE:
        return None
    return found if found is not None and found.format == _FORMAT else None


def _snapshot(data: bytes | None) -> _Snapshot | None:
    try:
        found = msgspec.msgpack.decode(data, type=_Snapshot) if data else None
    except UNREADABLE:
        return None
    return found if found is not None and found.format == _FORMAT else None


def _record(key: RunKey, stored: _State) -> StateRecord:
    return StateRecord(
        key=key, state=stored.state, sequence=stored.sequence, data=stored.data, saved_at=stored.saved_at
    )
