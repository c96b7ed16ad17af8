"""A cluster in virtual time that keeps account of what it promises: what was acknowledged, which bodies ran under which
token, what clients were told. `World.judge` compares that with the log, and names every promise that does not hold."""

from __future__ import annotations

import asyncio
from collections import Counter
from random import Random
from typing import Any, Final, NamedTuple, cast
from zlib import crc32

from onexflow.audit import audit
from onexflow.codec.payload import decode_value
from onexflow.codec.rows import decode_row
from onexflow.core.builder import WorkflowBuilder, workflow
from onexflow.core.definition import RetryPolicy
from onexflow.core.errors import StoreUnavailable, UnknownRun
from onexflow.core.events import Event, TaskCompleted, TaskScheduled, TaskStarted
from onexflow.core.ids import RunKey, Token
from onexflow.core.machine import TERMINAL_WORKFLOW_STATES, WORKFLOW_STATES
from onexflow.ports.event_store import EventStore, RunRecord
from onexflow.spi.exceptions import SPIError
from onexflow.testing.faults.store import Fault, FaultyStore
from onexflow.testing.multi_cluster import ClusterMember, MultiCluster
from onexflow.worker.context import Context
from onexflow.worker.handlers import Worker

#: What is found by the checks of this file; `audit` has rules of its own (`onexflow.audit.rules`).
PROMISES: Final = {
    "fence": "an append was stored after another owner had claimed the shard",
    "deposed-effect": "an effect began under the token of an owner that had lost the shard long before",
    "owner-ended": "an orchestrator ended itself, as the store contradicted what it had acknowledged",
    "lost": "a start that was acknowledged is not in the store",
    "two-outcomes": "a client was told another outcome than the log has",
    "twice": "the body of an effect ran twice, though no worker had died",
    "at-once": "the body of an effect ran twice at the same time",
    "unauthorised": "the body of an effect ran under a token that the log does not have",
    "wrong-result": "a recorded result is not that of the attempt that the log had authorised",
    "stalled": "a run, or a client's wait, has not ended though nothing was in its way any more",
    "late": "a timer fired more than a second and a half late",
    "request-twice": "a repeated request was answered otherwise than the first time",
    "missed": "the registry shows a node that has gone",
    "failed": "a call was answered by an error that it must not have",
}  # fmt: skip


class Body(NamedTuple):
    """The body of an effect was run."""

    key: str  #: its idempotency key
    token: str
    worker: str
    repeatable: bool  #: declared so, and may overlap with a copy that is out of sight


def steps() -> WorkflowBuilder:
    flow = workflow("steps")
    flow.effect("first", handler="charge")
    flow.compute("second", handler="calc", after="first")
    flow.effect("third", handler="send", after="second", retry=RetryPolicy(initial_delay=0.4, jitter=0.0))
    return flow


class World:
    """The cluster, its workers, and what is known of them from outside."""

    def __init__(self, seed: int = 0, *, shards: int = 4, slowest: float = 0.02) -> None:
        self.chance = Random(seed)
        self.cluster = MultiCluster(seed=seed, shards=shards, slowest=slowest, audited=False)
        self.started: list[RunKey] = []
        self.told: dict[RunKey, str] = {}
        self.bodies: list[Body] = []
        self.found: set[str] = set()
        #: Why: for people, when the unchanged code is accused.
        self.stories: list[str] = []
        #: Of an owner that was deposed while it stood still: seconds until all its shards were others'; its appends
        #: that were refused afterwards.
        self.taken_within, self.rejected = 0.0, 0
        #: Epochs of the shards that it lost, and when it did.
        self.lost_at: dict[int, int] = {}
        self.lost_since: dict[int, float] = {}
        #: What the first attempt of a `linger` waits for, and the second.
        self.slow, self.slower = asyncio.Event(), asyncio.Event()
        self._running: Counter[str] = Counter()
        self._failures: Counter[str] = Counter()

    def accuse(self, promise: str, story: str) -> None:
        self.found.add(promise)
        self.stories.append(f"{promise}: {story}")

    # ---- processes

    async def add_orchestrator(self, name: str) -> ClusterMember:
        member = await self.cluster.add_orchestrator(name)
        member.store.inner = cast("EventStore", FaultyStore(member.store.inner))
        return member

    def faults(self, name: str) -> FaultyStore:
        store: object = self.cluster.members[name].store.inner
        assert isinstance(store, FaultyStore)
        return store

    async def add_worker(self, name: str) -> None:
        worker = Worker(name)

        async def flaky(contract: Any, ctx: Context) -> Any:
            self._failures[ctx.idempotency_key] += 1
            if self._failures[ctx.idempotency_key] <= contract:
                raise ConnectionError("so often it fails")
            return await self.body(name, ctx)

        async def linger(contract: Any, ctx: Context) -> Any:
            gate = self.slow if not self.bodies else self.slower
            return await self.body(name, ctx, gate=gate)

        async def charge(contract: Any, ctx: Context) -> Any:
            return await self.body(name, ctx, self.chance.uniform(0.0, 0.4))

        async def send(contract: Any, ctx: Context) -> Any:
            answer = await self.body(name, ctx, self.chance.uniform(0.0, 0.2))
            if ctx.attempt == 1 and crc32(ctx.idempotency_key.encode()) % 3 == 0:
                raise ConnectionError("the first time it fails")
            return answer

        async def calc(contract: Any, ctx: Context) -> Any:
            return {"token": ctx.token}

        worker.effect("flaky", idempotent=True)(flaky)
        worker.effect("linger", idempotent=True)(linger)
        worker.effect("charge")(charge)
        worker.effect("send", idempotent=True)(send)
        worker.compute("calc")(calc)
        await self.cluster.add_worker(worker, name)

    async def body(self, worker: str, ctx: Context, seconds: float = 0.0, *, gate: asyncio.Event | None = None) -> Any:
        """The body of an effect: kept account of while it runs. One that waits at a gate may have copies."""
        key = ctx.idempotency_key
        self.bodies.append(Body(key, ctx.token, worker, gate is not None))
        shard, epoch = (int(number) for number in ctx.token.split(".")[:2])
        known_since = self.cluster.clock.monotonic() - self.lost_since.get(shard, 0.0)
        if epoch < self.lost_at.get(shard, 0) and known_since > 1.0:  # what was sent before may arrive a little later
            self.accuse("deposed-effect", f"{key} under {ctx.token}")
        self._running[key] += 1
        if self._running[key] > 1 and gate is None:
            self.accuse("at-once", f"{key} under {ctx.token}")
        try:
            await self.cluster.clock.sleep(seconds)
            if gate is not None:
                await gate.wait()
        finally:
            self._running[key] -= 1
        return {"token": ctx.token}

    async def begin(self, *flows: WorkflowBuilder, orchestrators: int = 3, workers: int = 2) -> None:
        """Processes o0, o1, … and w1, w2, …, and every shard with an owner."""
        for number in range(orchestrators):
            await self.add_orchestrator(f"o{number}")
        for flow in flows:
            await self.cluster.register(flow.build())
        for number in range(1, workers + 1):
            await self.add_worker(f"w{number}")
        await self.cluster.settled()

    async def owner_of(self, key: RunKey) -> ClusterMember:
        member = await self.cluster.owner_of(self.cluster.number_of(key))
        assert member is not None, "the shard has an owner"
        return member

    # ---- clients

    async def start(self, workflow_type: str = "steps", contract: Any = 1, **fields: Any) -> RunKey:
        key = await self.cluster.start(workflow_type, contract, **fields)
        self.started.append(key)
        return key

    async def wait(self, key: RunKey) -> None:
        """Ask how the run ended, as a client does."""
        outcome = await self.cluster.wait(key)
        self.told[key] = outcome.state

    # ---- the verdict

    async def ended(self, seconds: float) -> None:
        """Return when the store says that every run has ended; accuse it of a stall when that takes longer. No
        orchestrator is asked: a run that is forgotten must not be looked for, and so be found again."""
        end = self.cluster.clock.monotonic() + seconds
        while any(not self._is_over(key) for key in self.started) and self.cluster.clock.monotonic() < end:
            await self.cluster.clock.sleep(0.1)
        for key in self.started:
            if (record := self._record(key)) is not None and not self._is_over(key):
                self.accuse("stalled", f"{key} is {WORKFLOW_STATES[record.state]}")

    def _record(self, key: RunKey) -> RunRecord | None:
        shard = self.cluster.store._shards[self.cluster.number_of(key)]
        iid = shard.by_key.get(key.to_bytes())
        return None if iid is None else shard.runs[iid]

    def _is_over(self, key: RunKey) -> bool:
        record = self._record(key)
        return record is None or WORKFLOW_STATES[record.state] in TERMINAL_WORKFLOW_STATES

    async def judge(self) -> set[str]:
        """What does not hold: rules of the auditor as `audit:…`, and words of PROMISES."""
        report = await audit(self.cluster.store)
        for finding in report.findings:
            self.accuse(f"audit:{finding.rule}", str(finding))
        for member in self.cluster.lives:
            if member.store.deposed:
                self.accuse("fence", f"{member.id}: {member.store.deposed[:3]}")
        for error in self.cluster.fatal:
            if not isinstance(error, StoreUnavailable):  # it was killed
                self.accuse("owner-ended", str(error))
        for key in self.started:
            record = self._record(key)
            if record is None:
                self.accuse("lost", str(key))
            elif self.told.get(key, WORKFLOW_STATES[record.state]) != WORKFLOW_STATES[record.state]:
                self.accuse("two-outcomes", f"{key}: {self.told[key]}, and {WORKFLOW_STATES[record.state]}")
        self._compare_tokens()
        return self.found

    def _compare_tokens(self) -> None:
        authorised: set[str] = set()
        for number, shard in enumerate(self.cluster.store._shards):
            for iid, rows in shard.runs_rows.items():
                places: list[tuple[Event, Token]] = []
                for row in rows:
                    events = decode_row(row.data)[1]
                    places += [(one, Token(number, row.epoch, row.offset + at)) for at, one in enumerate(events)]
                    authorised.update(str(place) for one, place in places if isinstance(one, TaskStarted))
                self._compare_results(number, iid, places)
        for token, count in Counter(body.token for body in self.bodies).items():
            if token not in authorised:
                self.accuse("unauthorised", token)
            if count > 1:
                self.accuse("twice", f"{count} times under {token}")
        charged = Counter(body.key for body in self.bodies if ":third:" not in body.key and not body.repeatable)
        for key, count in charged.items():
            if count > 1:
                self.accuse("twice", f"{key}: {count} times")

    def _compare_results(self, number: int, iid: int, places: list[tuple[Event, Token]]) -> None:
        """Each result names the token of its attempt: it must be the one that was authorised last."""
        latest: dict[int, set[str]] = {}
        for event, place in places:
            if isinstance(event, TaskScheduled):
                latest[event.task] = {str(place)}
            elif isinstance(event, TaskStarted):
                latest.setdefault(event.task, set()).add(str(place))
            elif isinstance(event, TaskCompleted):
                for payload in event.results:
                    result = decode_value(payload)
                    if isinstance(result, dict) and result.get("token") not in latest.get(event.task, set()):
                        self.accuse(
                            "wrong-result", f"shard {number}, run {iid}: {result} after {latest.get(event.task)}"
                        )


async def storm(seed: int) -> World:
    """Orchestrators die, freeze, leave and come, and their appends stay without an answer, while runs are started."""
    world = World(seed)
    cluster, chance = world.cluster, world.chance
    async with cluster:
        await world.begin(steps())
        count = 3
        clients = [asyncio.ensure_future(_client(world)) for _ in range(6)]
        for _ in range(12):
            await cluster.clock.sleep(chance.choice([0.02, 0.1, 0.3, 0.7, 2.0]))
            running = [name for name, member in cluster.members.items() if member.state == "running"]
            frozen = [name for name, member in cluster.members.items() if member.state == "frozen"]
            action = chance.choice(["kill", "stop", "freeze", "thaw", "unanswered", "unanswered", "lost"])
            if action == "thaw" and frozen:
                cluster.thaw(chance.choice(frozen))
            elif action in {"unanswered", "lost"} and running:
                fault = Fault.UNANSWERED if action == "unanswered" else Fault.LOST
                world.faults(chance.choice(running)).fail(fault, chance.randint(1, 3))
            elif action in {"kill", "stop", "freeze"} and len(running) > 1:
                name = chance.choice(running)
                if action == "freeze":
                    cluster.freeze(name)
                else:
                    await (cluster.kill(name) if action == "kill" else cluster.stop(name))
            if len(cluster.members) < 3:
                await world.add_orchestrator(f"o{count}")
                count += 1
            clients += [asyncio.ensure_future(_client(world)) for _ in range(chance.randint(0, 4))]
        for name, member in list(cluster.members.items()):
            if member.state == "frozen":
                cluster.thaw(name)
        done, pending = await asyncio.wait(clients, timeout=30.0)
        for late in pending:
            late.cancel()
        await world.ended(20.0)
        for error in [one.exception() for one in done if one.exception() is not None]:
            world.accuse("failed", repr(error))
        if pending:
            world.accuse("stalled", f"{len(pending)} clients wait")
        await world.judge()
    return world


async def _client(world: World) -> None:
    try:
        key = await world.start()
        await world.wait(key)
    except SPIError as error:
        world.accuse("lost" if isinstance(error, UnknownRun) else "failed", repr(error))
