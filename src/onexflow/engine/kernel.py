"""The kernel: the one place where commands are decided and recorded, and the way to a run of this process's shards.

Everything else of the engine asks the kernel: `resident`, `find`, `start` and `decide`. It knows nothing of workers and
clients; what a decision asks for goes to `carry_out`, which `engine.consequences` sets.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence

import structlog

from onexflow.core.commands import Command, StartRun
from onexflow.core.decide import decide, start
from onexflow.core.errors import Coded, InternalError, ShardMoved, Unavailable, UnknownRun
from onexflow.core.graph import Graph
from onexflow.core.ids import RunKey, shard_of_slot
from onexflow.core.payload import PayloadCodec
from onexflow.core.queue import QueueTurn
from onexflow.core.queue_state import is_system_type
from onexflow.core.turn import Context, Turn
from onexflow.engine.background import Background
from onexflow.engine.catalog import Catalog
from onexflow.engine.claims import Claims
from onexflow.engine.cuts import Trimmer
from onexflow.engine.lane import CommitLane
from onexflow.engine.loader import READ_AGAIN_SECONDS, Loader
from onexflow.engine.queue import Queue, read_queue
from onexflow.engine.run import Run
from onexflow.engine.shard import Entity, Shard
from onexflow.ports.event_store import EventStore, RunRecord
from onexflow.spi.exceptions import SPIError

log = structlog.get_logger("onexflow.kernel")

#: Keys whose shard is remembered.
KEPT_PLACES = 4096
#: How long a stop waits for the store to take what is decided.
STOP_SECONDS = 5.0


class Kernel:
    """Owned shards, open runs, decisions."""

    def __init__(
        self,
        store: EventStore,
        codec: PayloadCodec,
        jitter: Callable[[], float],
        *,
        shared: bool = False,
    ) -> None:
        """`shared`: other orchestrators own shards of this store, and may take those of this one. Else a shard that
        another one has claimed is the end."""
        self.store = store
        self.catalog = Catalog(store, store.now)
        self.is_shared = shared
        self.lane = CommitLane(
            store,
            on_stored=self._on_stored,
            on_full=lambda full: self.on_full(full),  # noqa: PLW0108 - set later
            on_lost=lambda error: self.on_lost(error),  # noqa: PLW0108 - set later
            on_moved=lambda shard, error: self.claims.fenced(shard, error),  # noqa: PLW0108 - made below
        )
        self._codec = codec
        self._jitter = jitter
        self._shard_count = 0
        self._places: dict[RunKey, int] = {}
        self._background = Background()
        self.loader = Loader(store, self.catalog, self.lane, lambda run: self.on_loaded(run))  # noqa: PLW0108 - set later
        #: What is owned here, and how it comes and goes.
        self.claims = Claims(
            store, self.catalog, self.lane, self.loader, now=self.now, read_queue=self.queue, shared=shared
        )
        #: The shards that are served, by number.
        self.shards = self.claims.shards
        self._queue_lock = asyncio.Lock()
        #: Runs that left memory because a decision failed, until they are read back.
        self.reading: set[tuple[Shard, int]] = set()
        self._trimmer = Trimmer(store, self.lane)
        #: Called with each decision, after its events are recorded.
        self.carry_out: Callable[[Run, Turn], None] = _ignore
        #: Called when a run enters memory by being read back.
        self.on_loaded: Callable[[Run], None] = _ignore
        #: Called with the runs whose events have become durable, and up to which sequence number.
        self.on_durable: Callable[[Sequence[tuple[Entity, int]]], None] = _ignore
        #: Called when a work queue enters memory by being read back.
        self.on_queue: Callable[[Queue], None] = _ignore
        #: Called when the store's space is used up (True), and when there is some again.
        self.on_full: Callable[[bool], None] = _ignore
        #: Called when the store can no longer be trusted: this owner is at its end.
        self.on_lost: Callable[[Coded], None] = _ignore
        #: Read once a turn of the loop: store time, and events that are not durable (-1: not counted in this turn).
        self._now = 0
        self._undurable = -1

    async def open(self, owner: str) -> None:
        """Open the store, and claim what is this owner's from the start."""
        await self.store.open()
        await self.catalog.load()
        self._shard_count = self.store.shards
        self.lane.start()
        await self.claims.begin(owner)

    async def abandon(self) -> None:
        """Write nothing more."""
        await self.lane.abort()

    async def close(self) -> None:
        await self._trimmer.stop()
        await self.claims.stop()
        await self._background.stop()
        await self.lane.stop(STOP_SECONDS)
        await self.store.close()

    @property
    def undurable(self) -> int:
        """Events that are decided and not durable yet, counted once a turn of the loop; starts in it are added."""
        if self._undurable < 0:
            self._undurable = self.lane.undurable
            self.now()  # forgotten with the time of this turn
        return self._undurable

    # ---- time

    def now(self) -> int:
        """Store time (UTC ns), read once in each turn of the loop: what is decided in one turn happens at one time, and
        a timer that is due for who asks is due for who decides."""
        if not self._now:
            self._now = self.store.now()
            asyncio.get_running_loop().call_soon(self._pass)
        return self._now

    def _pass(self) -> None:
        self._now = 0
        self._undurable = -1

    # ---- the way to a run

    def shard_of(self, key: RunKey) -> Shard:
        """Raises ShardMoved, with its owner as far as is known, when it is not owned here."""
        shard = self.shards.get(self._places.get(key, -1))
        return self.owned(self.number_of(key)) if shard is None else shard

    def owned(self, number: int) -> Shard:
        """The shard of that number. Raises ShardMoved as `shard_of`."""
        shard = self.shards.get(number)
        if shard is None:
            raise self.claims.moved(number)
        return shard

    def number_of(self, key: RunKey) -> int:
        """The number of the key's shard, whoever owns it."""
        number = self._places.get(key)
        if number is None:  # else asked before: each run's is, several times
            if len(self._places) >= KEPT_PLACES:
                self._places.clear()
            number = self._places[key] = shard_of_slot(key.slot, self._shard_count)
        return number

    def resident(self, key: RunKey) -> Run | None:
        """The open run, if it is in memory."""
        return self.shard_of(key).by_key.get(key)

    def runs(self) -> Iterator[Run]:
        """All runs in memory."""
        for shard in self.shards.values():
            yield from shard.runs.values()

    async def find(self, key: RunKey) -> Run:
        """The run: in memory, or read back. An ended run is read for this caller alone. Raises UnknownRun."""
        run = self.resident(key)
        if run is not None:
            return run
        shard = self.shard_of(key)
        is_run = not is_system_type(key.workflow_type)
        record = await self.store.find_run(shard.id, key.to_bytes()) if is_run else None
        found = self.resident(key) or (await self.loader.load(shard, record) if record is not None else None)
        if record is not None and found is None:
            raise InternalError(f"run {key} cannot be read back: the log of this process says why", {"run": str(key)})
        if found is None:
            raise UnknownRun(f"there is no run {key}", {"run": str(key)})
        return found

    async def find_numbered(self, shard: Shard, iid: int) -> Run | None:
        """The run with that number within the shard."""
        if iid in shard.runs:
            return shard.runs[iid]
        records = await self.store.get_runs(shard.id, [iid])
        if not records or is_system_type(RunKey.from_bytes(records[0].key).workflow_type):
            return None
        return await self.loader.load(shard, records[0])

    async def find_all_numbered(self, shard: Shard, iids: Sequence[int]) -> int:
        """Have those runs of the shard in memory. Returns how many are."""
        records = await self.store.get_runs(shard.id, iids)
        runs = [one for one in records if not is_system_type(RunKey.from_bytes(one.key).workflow_type)]
        return await self.loader.load_all(shard, runs)

    # ---- work queues

    async def queue(self, key: RunKey, name: str) -> Queue:
        """The work queue: in memory, read back, or new."""
        shard = self.shard_of(key)
        if (queue := shard.queues.get(key)) is not None:
            return queue
        async with self._queue_lock:
            if (queue := shard.queues.get(key)) is not None:
                return queue
            await self.lane.durable(shard)
            record = await self.store.find_run(shard.id, key.to_bytes())
            if record is not None:
                return await self._load_queue(shard, record)
            shard.check()
            turn = QueueTurn.first(key, name, self.now(), self._jitter)
            queue = Queue(shard, shard.next_iid, turn.state, turn.index)
            shard.next_iid += 1
            shard.queues[key] = queue
            self.record_queue(queue, turn)
            return queue

    async def _load_queue(self, shard: Shard, record: RunRecord) -> Queue:
        try:
            queue = await read_queue(self.store, shard, record)
        except Unavailable:
            raise
        except Exception as error:
            key = RunKey.from_bytes(record.key)
            log.exception("queue.unreadable", queue=str(key), shard=shard.id, iid=record.iid, error=str(error))
            raise InternalError(f"work queue {key} cannot be read back: {error!r}", {"queue": str(key)}) from error
        shard.check()
        shard.queues[queue.key] = queue
        self.on_queue(queue)
        return queue

    def known_queue(self, key: RunKey) -> Queue | None:
        """The work queue, if it is in memory."""
        shard = self.shards.get(self.number_of(key))
        return shard.queues.get(key) if shard is not None else None

    def queues(self) -> Iterator[Queue]:
        """All work queues in memory."""
        for shard in self.shards.values():
            yield from shard.queues.values()

    def queue_turn(self, queue: Queue) -> QueueTurn:
        """A decision about a queue, to be recorded by `record_queue` in the same turn of the loop."""
        now = max(self.now(), queue.state.updated_at)
        return QueueTurn(queue.state, queue.index, now, self._jitter)

    def record_queue(self, queue: Queue, turn: QueueTurn) -> None:
        if turn.events:
            queue.shard.record(queue, turn)
            self.lane.mark()

    # ---- decisions

    def has_started(self, key: RunKey) -> bool:
        """Has this owner seen the start of that run, not too long ago? It may not be durable yet."""
        return self.shard_of(key).recent.has(key)

    def start(self, shard: Shard, graph: Graph, key: RunKey, command: StartRun, start_hash: bytes) -> tuple[Run, Turn]:
        """Create a run in its shard. The caller has made sure that its key is new. Raises ShardMoved when the shard has
        gone since it was found."""
        shard.check()
        now = self.now()
        try:
            turn = start(graph, command, Context(now, shard.epoch, shard.next, self._codec, self._jitter))
        except SPIError:
            raise
        except Exception as error:
            log.exception("start.failed", run=str(key))
            raise InternalError(f"starting the run failed: {error!r}", {"run": str(key)}) from error
        run = Run(shard, shard.next_iid, graph, turn.state, start_hash, key)
        shard.next_iid += 1
        shard.add(run)
        shard.recent.add(key)
        shard.record(run, turn)
        self.lane.mark()
        if self._undurable >= 0:
            self._undurable += len(turn.events)
        return run, turn

    def decide(self, run: Run, command: Command, meta: dict[str, str] | None = None) -> Turn:
        """Decide a command, record its events and carry out what it asks for.

        Raises what `decide` raises. A bug in a decision takes the run out of memory: it is read back from the log."""
        shard, state = run.shard, run.state
        if shard.moved is not None:
            raise shard.moved
        if run.is_broken:
            raise Unavailable(f"run {run.key} is being read back", {"run": str(run.key)})
        seq, now = state.seq, self._now or self.now()
        if now < state.updated_at:  # noqa: PLR1730 - max() is a call for each decision
            now = state.updated_at
        try:
            turn = decide(run.graph, state, command, Context(now, shard.epoch, shard.next, self._codec, self._jitter))
        except SPIError as error:
            if state.seq != seq or isinstance(error, InternalError):  # refused halfway: a bug
                self._quarantine(run)
            raise
        except Exception as error:
            self._quarantine(run)
            log.exception("decision.failed", run=str(run.key), command=type(command).__name__)
            raise InternalError(
                f"deciding {type(command).__name__} failed: {error!r}", {"run": str(run.key), "state": state.status}
            ) from error
        if turn.events:
            shard.record(run, turn, meta)
            if not self.lane.is_marked:
                self.lane.mark()
        self.carry_out(run, turn)
        return turn

    def is_reading(self, shard: Shard, iid: int) -> bool:
        """Is the run on its way into memory?"""
        return iid in shard.unread or self.loader.is_loading(shard, iid) or (shard, iid) in self.reading

    def read_anew(self, run: Run) -> None:
        """Have the run read back from the log."""
        self._quarantine(run)

    def _quarantine(self, run: Run) -> None:
        """Its state in memory cannot be trusted: once what was recorded is durable, read it back."""
        run.is_broken = True
        run.mended_after = self.lane.covering
        self.lane.when_durable(lambda error: self._reload(run) if error is None else None, run.shard)

    def _reload(self, run: Run) -> None:
        run.shard.remove(run)
        run.shard.absent.add(run.iid)
        self._background.spawn(self._read_again(run))

    async def _read_again(self, run: Run) -> Run | None:
        """Until it is read, or is another owner's to read: nothing else would ever look for it."""
        place = run.shard, run.iid
        self.reading.add(place)
        try:
            while run.shard.moved is None:
                try:
                    return await self.find_numbered(run.shard, run.iid)
                except ShardMoved:
                    break
                except Unavailable as error:
                    log.warning("run.not_read_back", run=str(run.key), error=str(error))
                    await asyncio.sleep(READ_AGAIN_SECONDS)
        finally:
            self.reading.discard(place)
        return None

    def _on_stored(self, runs: Sequence[tuple[Entity, int]]) -> None:
        for run, seq in runs:
            run.durable_seq = seq
            # An ended run leaves memory only now: read back earlier, it would still be open.
            if isinstance(run, Run):
                if seq == run.state.seq and run.is_over:
                    run.shard.remove(run)
            elif isinstance(run, Queue):
                self._trimmer.on_stored(run)
        if self.claims.leaving:
            runs = [(run, seq) for run, seq in runs if run.shard.moved is None]
        self.on_durable(runs)


def _ignore(*_: object) -> None:
    """Until the real one is set."""
