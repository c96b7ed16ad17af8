"""One round of a simulation: a cluster, the runs, a storm, and what came of them."""

from __future__ import annotations

import asyncio
import contextlib
import gc
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from hashlib import blake2b
from random import Random
from typing import Any, Final, TypeVar
from uuid import UUID

import msgspec

from onexflow.codec.payload import decode_value
from onexflow.core.definition import WorkflowDefinition
from onexflow.core.errors import DeadlineExceeded, InvalidTransition, Overloaded, StoreFull, Unavailable
from onexflow.core.ids import RunKey
from onexflow.core.payload import Failure
from onexflow.ports.client_link import ControlRequest, RunView, TaskView
from onexflow.spi.exceptions import SPIError
from onexflow.testing.multi_cluster import MultiCluster
from onexflow.testing.simulation.handlers import Ledger, simulated
from onexflow.testing.simulation.storm import Storm
from onexflow.worker.handlers import Worker

#: Virtual seconds that a storm lasts at least, and at most.
_SHORTEST: Final = 10.0
_LONGEST: Final = 60.0
#: Virtual seconds after the storm in which every run must have ended, besides twice what it takes in a calm.
_PATIENCE: Final = 300.0
#: Virtual seconds between two looks of the person who resolves effects of unknown outcome.
_LOOK: Final = 2.0
#: Virtual seconds after which a client repeats a call.
_RETRY: Final = 0.5
#: Seconds that a call of the store takes at most.
_SLOWEST: Final = 0.01


T = TypeVar("T")

#: What is asked for later, again.
_LATER: Final = (Unavailable, DeadlineExceeded, StoreFull, Overloaded)


class Stage(msgspec.Struct, frozen=True, kw_only=True):
    """What all rounds have in common. The first definition is that of the runs."""

    make_worker: Callable[[], Worker]
    definitions: Sequence[WorkflowDefinition]
    inputs: Sequence[Any]
    faults: Sequence[str]
    orchestrators: int
    workers: int


class Ended(msgspec.Struct, frozen=True):
    """How a run ended. `result` is decoded, of a completed one."""

    state: str
    result: Any = None
    error: Failure | None = None


class Play:
    """`run` plays one round; the rest says what happened, also when that raised."""

    def __init__(self, stage: Stage, seed: int, calm_seconds: float = 0.0) -> None:
        """`calm_seconds`: how long the round takes without faults."""
        self.seed = seed
        self.ends: list[Ended] = []
        self.findings: list[str] = []
        self.story: list[str] = []
        self.faults: Counter[str] = Counter()
        self.executions = 0
        self.resolved = 0
        self.events = 0
        self.seconds = 0.0
        self.fingerprint = ""
        self._stage = stage
        self._chance = Random(seed)
        self._calm_seconds = calm_seconds
        self._storm_seconds = min(max(_SHORTEST, 2 * calm_seconds), _LONGEST) if stage.faults else 0.0
        self._ledger = Ledger()
        #: Of the runs, one for each input; those that are open; how many workers there were.
        ids = Random(seed)
        workflow_type = stage.definitions[0].workflow_type
        self._keys = [RunKey("default", workflow_type, UUID(int=ids.getrandbits(128), version=4)) for _ in stage.inputs]
        self._open: set[RunKey] = set()
        self._workers = 0

    async def run(self) -> None:
        """Play it. What broke a promise is in `findings` then."""
        asyncio.get_running_loop().set_exception_handler(self._on_loose_end)
        self._cluster = cluster = MultiCluster(seed=self.seed, slowest=_SLOWEST)
        storm = Storm(cluster, self._chance, self._stage.faults, self._add_worker, self._ledger.died)
        self.story, self.faults = storm.story, storm.counts
        try:
            async with cluster:
                await self._begin()
                await self._through(storm)
                self.seconds = cluster.clock.monotonic()
                await self._read_log()
        except AssertionError as error:  # the cluster's own: its audit, an append out of turn, a stall
            self.findings.append(str(error))
        gc.collect()  # what ended in a cycle of its own, with an error that nobody took
        self.findings += self._ledger.findings
        self.executions = self._ledger.executions

    def _on_loose_end(self, _: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        where = f" in {error.__traceback__.tb_frame.f_code.co_name}" if error and error.__traceback__ else ""
        self.findings.append(f"nobody took an error{where}: {context['message']}: {error!r}")

    async def _begin(self) -> None:
        for number in range(self._stage.orchestrators):
            await self._cluster.add_orchestrator(f"orchestrator-{number + 1}")
        for definition in self._stage.definitions:
            await self._cluster.register(definition)
        for _ in range(self._stage.workers):
            await self._add_worker()
        await self._cluster.settled()

    async def _add_worker(self) -> None:
        self._workers += 1
        name = f"worker-{self._workers}"
        served = simulated(self._stage.make_worker(), name, self._ledger, self._chance)
        await self._cluster.add_worker(served, name)

    async def _through(self, storm: Storm) -> None:
        """Start the runs, and return when all have ended, or have had the time for it."""
        runs = [asyncio.ensure_future(self._run(number)) for number in range(len(self._keys))]
        person = asyncio.ensure_future(self._resolve())
        try:
            await storm.blow(self._storm_seconds)
            await storm.calm()
            await asyncio.wait(runs, timeout=_PATIENCE + 2 * self._calm_seconds)
            for run, key in zip(runs, self._keys, strict=True):
                self.ends.append(await self._end_of(run, key))
            if person.done():
                self.findings.append(f"nobody resolves effects any more: {person.exception()!r}")
        finally:
            for task in (person, *runs):
                task.cancel()
            await asyncio.gather(person, *runs, return_exceptions=True)

    async def _end_of(self, run: asyncio.Task[Ended], key: RunKey) -> Ended:
        if not run.done():
            self.findings.append(f"{key} has not ended: {await self._why(key)}")
            return Ended("open")
        try:
            return run.result()
        except SPIError as error:  # it was refused; or acknowledged, and is not known any more
            self.findings.append(f"{key}: {error!r}")
            return Ended("unknown")

    async def _run(self, number: int) -> Ended:
        """Start a run at some time of the storm's first half, and wait for its end, as a client would."""
        await self._cluster.clock.sleep(self._chance.uniform(0.0, self._storm_seconds / 2))
        key = self._keys[number]
        workflow_type = key.workflow_type
        input = self._stage.inputs[number]
        await _patiently(lambda: self._cluster.start(workflow_type, input, instance_id=key.instance_id))
        self._open.add(key)
        outcome = await _patiently(lambda: self._cluster.wait(key))
        self._open.discard(key)
        return Ended(outcome.state, decode_value(outcome.result) if outcome.result else None, outcome.error)

    async def _view(self, key: RunKey) -> RunView:
        return await self._cluster.call(key, lambda engine: engine.describe_run(key))

    async def _why(self, key: RunKey) -> str:
        """What an open run says that it waits for."""
        try:
            view = await self._view(key)
        except SPIError as error:
            return str(error)
        return view.blocked_because or view.state

    async def _resolve(self) -> None:
        """The person who is asked when a worker was lost in the middle of an effect that must not run twice: here it had
        not happened, and is run again."""
        while True:
            await self._cluster.clock.sleep(_LOOK)
            for key in sorted(self._open):
                try:
                    view = await self._view(key)
                except _LATER:
                    continue
                for task in view.tasks:
                    if task.blocked is not None and task.blocked.kind == "unknown_outcome":
                        await self._retry(key, task)

    async def _retry(self, key: RunKey, task: TaskView) -> None:
        for item in range(task.items):
            request = ControlRequest(key=key, action="resolve", task=task.name, item=item, retry=True)
            with contextlib.suppress(InvalidTransition, *_LATER):  # the former: of items that are none of it
                await self._cluster.control(request)
                self.resolved += 1

    async def _read_log(self) -> None:
        """Count and hash it, and see that there is an event of its epoch at the place that each attempt's token names."""
        store, log = self._cluster.store, blake2b(digest_size=8)
        places: set[tuple[int, int, int]] = set()
        for shard, _, _ in sorted(await store.owners()):
            offset = 1
            while rows := await store.read_shard(shard, offset):
                for row in rows:
                    log.update(repr(tuple(row)).encode())
                    places.update((shard, row.epoch, row.offset + n) for n in range(row.count))
                offset = rows[-1].offset + rows[-1].count
        self.events, self.fingerprint = len(places), log.hexdigest()
        for token in self._ledger.begun:
            shard, epoch, offset, _ = map(int, token.split("."))
            if (shard, epoch, offset) not in places:
                self.findings.append(f"attempt {token} of an effect was run, and the log knows nothing of it")


async def _patiently(call: Callable[[], Awaitable[T]]) -> T:
    """Repeat a call that is harmless when done twice for as long as there is hope, as clients do."""
    while True:
        try:
            return await call()
        except _LATER:
            await asyncio.sleep(_RETRY)
