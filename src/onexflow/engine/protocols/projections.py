"""Projections: the bus applies events to states, stores these with its position in one transaction, and answers from them.

One runner a projection and bus. It reads the log as a member of the projection's group, a shard at a time belonging to
one member; the store compares positions, so that two that think they have a shard cannot both write.
"""

from __future__ import annotations

import asyncio
import inspect
from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

import structlog

from onexflow.codec.payload import decode_value, encode_value
from onexflow.core.errors import Coded, DeadlineExceeded, InvalidArgument, InvalidTransition
from onexflow.core.ids import RunKey
from onexflow.core.payload import Payload
from onexflow.engine.protocols import bus_records
from onexflow.engine.protocols.feed import Feed, Listener
from onexflow.ports.events import MAX_STATE, Begun, Consume, Delivery, EventService, Filter, GroupView
from onexflow.spi.exceptions import SPIError
from onexflow.spi.types import Context

log = structlog.get_logger("onexflow.projection")

#: Events whose states are stored in one transaction, at most.
_BATCH: Final = 256
_WINDOW: Final = 1024
#: Bytes of the states of one transaction, about: with one state more they still fit into a message.
_BATCH_BYTES: Final = 2 << 20
#: States of runs that are kept at hand, for each shard, and how many are asked for at the same time.
_AT_HAND: Final = 4096
_AT_ONCE: Final = 64
#: Seconds between tries: of an event that fails, and of looking whether another member has got somewhere.
_FIRST_TRY: Final = 0.1
_LAST_TRY: Final = 30.0
_LOOK: Final = 0.05
#: A position that moved only over events that do not match is stored no more often than this (seconds).
_IDLE_SAVE: Final = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class ProjectionStatus:
    """A projection as it stands. `lag`: events of the log behind which its stored position is, of any kind, so an upper
    bound. `error`: why it does not get on, if it is registered here."""

    name: str
    positions: dict[int, int]
    lag: int
    members: int
    registered: bool
    error: SPIError | None = None


class ProjectionRunner(Listener):
    """One projection, applied here."""

    def __init__(self, service: EventService, namespace: str, projection: Any, patience: float) -> None:
        self.loop = asyncio.get_running_loop()
        self.name = name_of(projection)
        self.projection = projection
        self._service = service
        self._namespace = namespace
        self._patience = patience
        self._feed: Feed | None = None
        self._shards: dict[int, _ShardRunner] = {}
        self._again: asyncio.TimerHandle | None = None
        self._tries = 0
        self._closed = False
        self._reopening: asyncio.Task[None] | None = None
        #: What ended its consumer for good.
        self.lost: SPIError | None = None

    @property
    def error(self) -> SPIError | None:
        """Why it does not get on."""
        return self.lost or next((shard.error for shard in self._shards.values() if shard.error), None)

    async def start(self) -> None:
        """Return when it has applied all that is durable now. Raises HandlerFailed when an event cannot be applied."""
        begun = await self._open()
        behind = {shard: head for shard, head in begun.heads.items() if begun.positions.get(shard, 0) < head}
        await asyncio.gather(*(self.reach(shard, head) for shard, head in behind.items()))

    async def reach(self, shard: int, head: int) -> None:
        """Return when all events of the shard before `head` are in durable states, whoever writes them. Raises what keeps
        it from getting there; DeadlineExceeded when the position has not moved for so long as its patience is."""
        position, since = -1, self.loop.time()
        while True:
            if self.lost is not None:
                raise self.lost
            if self.loop.time() - since > self._patience:
                facts: Context = {"projection": self.name, "shard": shard, "position": position, "head": head}
                raise DeadlineExceeded(f"projection {self.name} has not moved for {self._patience:g} s", facts)
            runner = self._shards.get(shard)
            if runner is not None:
                runner.hurry()
                if await runner.reach(head, _LOOK):
                    return
            else:
                await asyncio.sleep(_LOOK)
            view = await self.view()
            stored = view.positions.get(shard, 0) if view is not None else 0
            if stored >= head:
                return
            if stored != position:
                position, since = stored, self.loop.time()

    async def view(self) -> GroupView | None:
        return await find_view(self._service, self._namespace, self.name)

    async def close(self) -> None:
        """End; what is stored stays."""
        self._closed = True
        if self._again is not None:
            self._again.cancel()
        if self._reopening is not None:
            self._reopening.cancel()
            await asyncio.gather(self._reopening, return_exceptions=True)
        await self._end()

    # ---- the feed

    async def _open(self) -> Begun:
        request = Consume(
            filter=Filter(namespace=self._namespace, event_types=bus_records.TYPES),
            group=self.name,
            start="earliest",
            window=_WINDOW,
            ack_timeout=0.0,
            max_deliveries=0,
            projection=True,
        )
        feed = self._feed = Feed(self._service, request, self, again=lambda _error: False)
        begun = await feed.start(self._patience)
        self._tries = 0
        return begun

    def deliver(self, deliveries: Sequence[Delivery]) -> None:
        for delivery in deliveries:
            self._of(delivery.position.shard).put(delivery)

    def reached(self, positions: dict[int, int]) -> None:
        for shard, offset in positions.items():
            self._of(shard).told(offset)

    def ended(self, error: SPIError) -> None:
        """The orchestrator was lost, or the projection is rebuilt by somebody: read again from what is stored."""
        if self._closed:
            return
        if not isinstance(error, Coded) or not (error.retryable or isinstance(error, InvalidTransition)):
            self.lost = error
            log.error("projection.ended", projection=self.name, error=str(error))
        log.info("projection.interrupted", projection=self.name, error=str(error))
        self._later()

    def _later(self) -> None:
        delay = min(_FIRST_TRY * 2**self._tries, _LAST_TRY if self.lost else 5.0)
        self._tries = min(self._tries + 1, 20)
        self._again = self.loop.call_later(delay, self._reopen)

    def _reopen(self) -> None:
        self._reopening = self.loop.create_task(self._restart(), name=f"onexflow-projection-{self.name}")

    async def _restart(self) -> None:
        await self._end()
        try:
            await self._open()
        except SPIError as error:
            if not isinstance(error, Coded) or not error.retryable:
                self.lost = error
            self._later()
        else:
            self.lost = None

    async def _end(self) -> None:
        if self._feed is not None:
            self._feed.close()
            self._feed = None
        shards, self._shards = self._shards, {}
        await asyncio.gather(*(shard.close() for shard in shards.values()))

    def _of(self, shard: int) -> _ShardRunner:
        runner = self._shards.get(shard)
        if runner is None:
            assert self._feed is not None, "it is told of by its feed"
            runner = _ShardRunner(shard, self._feed, self._service, self._namespace, self.projection)
            self._shards[shard] = runner
        return runner


class _ShardRunner:
    """Applies the events of one shard, in the order of its log."""

    def __init__(self, shard: int, feed: Feed, service: EventService, namespace: str, projection: Any) -> None:
        self.error: SPIError | None = None
        self._shard = shard
        self._feed = feed
        self._service = service
        self._namespace = namespace
        self._projection = projection
        self._name = name_of(projection)
        self._queue: deque[Delivery] = deque()
        self._states: OrderedDict[RunKey, Payload | None] = OrderedDict()
        #: The stored position; None: not known.
        self._position: int | None = None
        #: All that matches before it was delivered; and before `_done` it is stored.
        self._told = 0
        self._done = 0
        self._tries = self._failures = 0
        self._news = asyncio.Event()
        self._hurry = asyncio.Event()
        self._progress = asyncio.Event()
        self._task = asyncio.get_running_loop().create_task(self._run(), name=f"onexflow-projection-{self._name}")

    def put(self, delivery: Delivery) -> None:
        self._queue.append(delivery)
        self._news.set()

    def told(self, offset: int) -> None:
        self._told = max(self._told, offset)
        self._news.set()

    def hurry(self) -> None:
        """Somebody waits: do not put off the next try, or storing a position."""
        self._hurry.set()

    async def reach(self, head: int, seconds: float) -> bool:
        """Whether all before `head` is stored, within so many seconds. Raises why an event could not be applied, if it
        could not in that time."""
        failures = self._failures
        try:
            async with asyncio.timeout(seconds):
                while self._done < head:
                    if self.error is not None and self._failures > failures:
                        raise self.error
                    self._progress.clear()
                    await self._progress.wait()
        except TimeoutError:
            return False
        return True

    async def close(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        while True:
            if not self._queue and self._told <= (self._position or 0):
                self._news.clear()
                await self._news.wait()
            try:
                await self._turn()
            except SPIError as error:
                await self._failed(error)
            except Exception as error:  # noqa: BLE001 - a projection that breaks must say so
                await self._failed(bus_records.handler_failed(f"projection {self._name}", error, {}))

    async def _turn(self) -> None:
        """Apply what there is and store it, or only where that ends."""
        if self._position is None:
            await self._load_position()
        batch = [self._queue[n] for n in range(min(_BATCH, len(self._queue)))]
        if not batch and self._told - (self._position or 0) < _WINDOW and not self._hurry.is_set():
            # Only events of other kinds went by: one write for many of them.
            await self._wait(self._hurry, _IDLE_SAVE)
            if self._queue:
                return
        await self._fetch(batch)
        changed: dict[RunKey, Payload] = {}
        applied, size, failed = 0, 0, None
        for delivery in batch:
            if size >= _BATCH_BYTES:
                break
            if delivery.position.offset >= (self._position or 0):
                try:
                    size += await self._apply(delivery, changed)
                except SPIError as error:
                    failed = error
                    break
            applied += 1
        through = self._told
        if applied:
            through = batch[applied - 1].position.offset + 1
            if applied == len(self._queue):
                through = max(through, self._told)
        if failed is None or applied:
            await self._store(through if failed is None or applied else 0, changed, batch[:applied])
        if failed is not None:
            raise failed
        self.error, self._tries = None, 0
        self._hurry.clear()

    async def _load_position(self) -> int:
        view = await find_view(self._service, self._namespace, self._name)
        position = self._position = view.positions.get(self._shard, 0) if view is not None else 0
        self._moved(position)
        return position

    async def _fetch(self, batch: Sequence[Delivery]) -> None:
        """States of the batch's runs that are not at hand, many at the same time."""
        wanted = list({delivery.event.key for delivery in batch} - self._states.keys())
        for first in range(0, len(wanted), _AT_ONCE):
            keys = wanted[first : first + _AT_ONCE]
            found = await asyncio.gather(
                *(self._service.load_projection(self._namespace, self._name, key) for key in keys)
            )
            self._states.update((key, one.state) for key, one in zip(keys, found, strict=True))

    async def _apply(self, delivery: Delivery, changed: dict[RunKey, Payload]) -> int:
        """Returns by how many bytes `changed` has grown."""
        key = delivery.event.key
        before = changed[key] if key in changed else self._states[key]
        size = len(changed[key].data) if key in changed else 0
        facts: Context = {
            "projection": self._name,
            "run": str(key),
            "sequence": delivery.event.sequence,
            "offset": str(delivery.position),
        }
        try:
            state: Context = decode_value(before) if before is not None else {}
            after = self._projection.apply_event(bus_records.event_of(delivery.event), state)
            if inspect.isawaitable(after):
                after = await after
            if not isinstance(after, dict):
                raise TypeError(f"apply_event returned {type(after).__name__}, not a dict")
            encoded = encode_value(after)
            if len(encoded.data) > MAX_STATE:
                raise ValueError(f"the state has {len(encoded.data):,} bytes, the most are {MAX_STATE:,}")
            changed[key] = encoded
            return len(encoded.data) - size
        except (Exception, asyncio.CancelledError) as error:
            if bus_records.is_cancelled(error):
                raise
            raise bus_records.handler_failed(f"projection {self._name}", error, facts) from error

    async def _store(self, through: int, changed: dict[RunKey, Payload], applied: Sequence[Delivery]) -> None:
        position = self._position or 0
        if through > position:
            try:
                await self._service.save_projection(
                    self._namespace, self._name, self._shard, position, through, changed
                )
            except InvalidTransition:
                await self._lost_race(position)
                return
            self._position = through
        if changed:
            self.error = None
        for key, state in changed.items():
            self._states[key] = state
            self._states.move_to_end(key)
        while len(self._states) > _AT_HAND:
            self._states.popitem(last=False)
        for delivery in applied:
            self._queue.popleft()
            self._feed.ack(delivery.position)
        self._moved(through)

    async def _lost_race(self, position: int) -> None:
        """Another member has stored this shard: go on behind it. After a rebuild there is nothing to go on with: the
        feed ends, and what it still gave is dropped."""
        self._states.clear()
        self._position = None
        if await self._load_position() < position:
            for delivery in self._queue:
                self._feed.ack(delivery.position)
            self._queue.clear()

    def _moved(self, position: int) -> None:
        self._done = max(self._done, position)
        self._progress.set()

    async def _failed(self, error: SPIError) -> None:
        """Say so, and wait for the next try: longer each time, unless somebody asks."""
        if self._tries == 0:
            log.error("projection.failed", projection=self._name, shard=self._shard, error=str(error))
        self.error = error
        self._failures += 1
        self._states.clear()
        self._position = None
        self._hurry.clear()
        self._progress.set()
        delay = min(_FIRST_TRY * 2**self._tries, _LAST_TRY)
        self._tries = min(self._tries + 1, 20)
        await self._wait(self._hurry, delay)

    async def _wait(self, event: asyncio.Event, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await event.wait()
        except TimeoutError:
            return


def name_of(projection: Any) -> str:
    """Its name. Raises InvalidArgument when it is no projection."""
    name = bus_records.name(getattr(projection, "projection_name", None), "projection_name")
    if not callable(getattr(projection, "apply_event", None)):
        raise InvalidArgument(f"apply_event: projection {name} has none", field="apply_event")
    return name


async def find_view(service: EventService, namespace: str, name: str) -> GroupView | None:
    """The projection as it is stored; None when there is none of that name."""
    views = await service.list_groups(namespace)
    return next((view for view in views if view.projection and view.name == name), None)


async def ask(projection: Any, workflow_type: str, instance_id: UUID) -> Context:
    """The projection's own answer, when the bus has none; {} when it has none either. Raises HandlerFailed."""
    get_state = getattr(projection, "get_state", None)
    if get_state is None:
        return {}
    try:
        state = await get_state(workflow_type, instance_id)
    except NotImplementedError:
        return {}
    except Exception as error:
        facts: Context = {
            "projection": name_of(projection),
            "workflow_type": workflow_type,
            "instance_id": str(instance_id),
        }
        raise bus_records.handler_failed(f"projection {name_of(projection)}", error, facts) from error
    return dict(state) if state else {}
