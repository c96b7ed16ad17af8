"""Open-loop load: chains of three tasks are started at fixed times, whether or not the cluster keeps up.

What a start, a result or an error took is counted from the time at which the start was due, so that a stall is seen by
all that were due in it (no coordinated omission). Every acknowledged start must give its result in the end.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import onexflow
from onexflow.client import Client, RunHandle
from onexflow.core.definition import WorkflowDefinition
from onexflow.core.errors import RunFailed
from onexflow.core.ids import DEFAULT_NAMESPACE, RunKey, shard_of_slot
from onexflow.spi.exceptions import SPIError

from .figures import percentile

CHAIN = "chaos-chain"
ONCE = "chaos-once"
LONG = "chaos-long"
PURE = "chaos-pure"
TASKS = 3
#: Chains a second, unless the command says otherwise.
RATE = 100.0
#: Seconds between tries to learn of a run that an error hid.
_AGAIN = 0.2


def definitions() -> list[WorkflowDefinition]:
    """`chaos-chain` is the load: effect, compute, effect. The others are single tasks that scenarios add."""
    chain = onexflow.workflow(CHAIN)
    first = chain.effect("first", handler="charge")
    second = chain.compute("second", handler="calculate", depends_on=[first])
    chain.effect("third", handler="charge", depends_on=[second])
    found = [chain.build()]
    for name, role, handler in (
        (ONCE, "effect", "charge_once"),
        (LONG, "effect", "charge"),
        (PURE, "compute", "calculate"),
    ):
        flow = onexflow.workflow(name)
        getattr(flow, role)("only", handler=handler)
        found.append(flow.build())
    return found


@dataclass
class Started:
    """One start, as its client saw it. Times are UTC ns, 0: not yet."""

    key: RunKey
    shard: int
    due_ns: int
    acked_ns: int = 0
    done_ns: int = 0
    errors: list[str] = field(default_factory=list)

    @property
    def instance(self) -> str:
        return str(self.key.instance_id)


@dataclass(frozen=True)
class Failure:
    """An error that a client saw."""

    at_ns: int
    #: What was asked for: start or result.
    call: str
    error: SPIError
    #: From the time it was due (a start), or was asked for.
    after_s: float

    def __str__(self) -> str:
        return f"{self.call} after {self.after_s:.2f} s: {type(self.error).__name__}: {self.error}"


class Load:
    """Drives the chains through clients of every orchestrator, in turn. `avoid` names orchestrators that get no new calls:
    a client learns only slowly that one is frozen, and what is measured then is not the takeover."""

    def __init__(self, clients: Mapping[str, Client], shards: int, rate: float = RATE) -> None:
        self._clients = clients
        self._turns = itertools.cycle(clients)
        self._shards = shards
        self.rate = rate
        self.avoid: set[str] = set()
        self.started: list[Started] = []
        self.failures: list[Failure] = []
        #: Acknowledged, and not known to have ended; longest first.
        self._open: dict[RunKey, Started] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._driver: asyncio.Task[None] | None = None
        self._began = 0
        self._ended = 0

    async def register(self) -> None:
        client = next(iter(self._clients.values()))
        for definition in definitions():
            await client.register(definition)

    def begin(self) -> None:
        self._began = time.time_ns()
        self._driver = asyncio.get_running_loop().create_task(self._drive(), name="load")

    async def stop(self, seconds: float = 60.0) -> None:
        """Start no more, and wait for what was acknowledged: the rest is lost."""
        if self._driver is not None:
            self._driver.cancel()
            await asyncio.gather(self._driver, return_exceptions=True)
            self._ended = time.time_ns()
            self._driver = None
        if self._tasks:
            _, left = await asyncio.wait(self._tasks, timeout=seconds)
            for task in left:
                task.cancel()
            await asyncio.gather(*left, return_exceptions=True)

    async def _drive(self) -> None:
        loop = asyncio.get_running_loop()
        first, first_ns = loop.time(), time.time_ns()
        for number in itertools.count():
            due = number / self.rate
            await asyncio.sleep(max(0.0, first + due - loop.time()))
            self.add(due_ns=first_ns + int(due * 1e9))

    def add(
        self, workflow_type: str = CHAIN, input: Any = None, *, delay: float = 0.0, due_ns: int = 0, shard: int = -1
    ) -> Started:
        """Start a run now, in that shard if one is named."""
        while True:
            key = RunKey(DEFAULT_NAMESPACE, workflow_type, uuid4())
            found = shard_of_slot(key.slot, self._shards)
            if shard in (-1, found):
                break
        one = Started(key, found, due_ns or time.time_ns())
        self.started.append(one)
        task = asyncio.get_running_loop().create_task(self._run(one, input, delay))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return one

    def client(self) -> Client:
        """The next one in turn."""
        for name in self._turns:
            if name not in self.avoid or self.avoid >= set(self._clients):
                return self._clients[name]
        raise AssertionError("unreachable")

    async def _run(self, one: Started, input: Any, delay: float) -> None:
        client = self.client()
        try:
            handle = await client.start(
                one.key.workflow_type, input if input is not None else {}, instance_id=one.key.instance_id, delay=delay
            )
        except SPIError as error:
            self._failed(one, "start", error, one.due_ns)
            return
        one.acked_ns = time.time_ns()
        self._open[one.key] = one
        await self._result(one, handle)
        del self._open[one.key]

    async def _result(self, one: Started, handle: RunHandle) -> None:
        while not one.done_ns:
            asked = time.time_ns()
            try:
                await handle.result()
            except RunFailed as error:
                self._failed(one, "result", error, asked)
                return
            except SPIError as error:
                self._failed(one, "result", error, asked)
                await asyncio.sleep(_AGAIN)
                handle = self.client().get(one.key.workflow_type, one.key.instance_id)
            else:
                one.done_ns = time.time_ns()

    def _failed(self, one: Started, call: str, error: SPIError, since_ns: int) -> None:
        now = time.time_ns()
        self.failures.append(Failure(now, call, error, (now - since_ns) / 1e9))
        one.errors.append(str(error))

    @staticmethod
    async def acknowledged(runs: Sequence[Started], seconds: float = 30.0) -> None:
        """Return when each of these starts was answered."""
        async with asyncio.timeout(seconds):
            while not all(one.acked_ns or one.errors for one in runs):
                await asyncio.sleep(0.01)

    # ---- what came of it

    def lost(self) -> list[Started]:
        """Acknowledged, and never given a result."""
        return [one for one in self.started if one.acked_ns and not one.done_ns]

    def open_at(self, at_ns: int) -> list[Started]:
        """Runs that were acknowledged and had no result at that time."""
        return [one for one in self.started if 0 < one.acked_ns <= at_ns and not 0 < one.done_ns <= at_ns]

    def open_longest(self, at_most: int) -> list[RunKey]:
        """Runs that are open now, as far as their clients know."""
        return list(itertools.islice(self._open, at_most))

    def is_open(self, key: RunKey) -> bool:
        return key in self._open

    def latencies_ms(self, since_ns: int = 0, until_ns: int = 1 << 62) -> list[float]:
        """From due to done, of the chains that were due in that time."""
        return [
            (one.done_ns - one.due_ns) / 1e6 for one in self.started
            if one.done_ns and since_ns <= one.due_ns < until_ns and one.key.workflow_type == CHAIN
        ]  # fmt: skip

    def tasks_a_second(self, since_ns: int = 0, until_ns: int = 0) -> float:
        """Tasks of the chains that were done in that time."""
        since, until = since_ns or self._began, until_ns or self._ended or time.time_ns()
        done = sum(since <= one.done_ns < until for one in self.started if one.key.workflow_type == CHAIN)
        return TASKS * done / ((until - since) / 1e9)

    def summary(self) -> str:
        latencies = self.latencies_ms()
        at = f"p50 {percentile(latencies, 0.5):.0f} p99 {percentile(latencies, 0.99):.0f} ms" if latencies else "none"
        return (
            f"{len(self.started)} starts at {self.rate:g} a second, {self.tasks_a_second():.0f} tasks/s done, {at},"
            f" {len(self.failures)} errors seen by clients, {len(self.lost())} lost"
        )
