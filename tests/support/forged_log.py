"""Logs to be forged: one shard of a memory store that a run was written to, and changes of its events."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from onexflow import Worker, workflow
from onexflow.audit import Report
from onexflow.audit.shard import STATES
from onexflow.codec.definitions import dump_definition
from onexflow.codec.rows import decode_row, encode_row
from onexflow.core.events import Event
from onexflow.ports.event_store import DefinitionRecord, Row, RunRecord, ShardAppend
from onexflow.storage.memory import MemoryStore
from onexflow.testing import Cluster
from onexflow.testing.clock import VirtualClock
from support.core_driver import BEGIN, Model


class Log:
    """One shard's content, to be forged: rows as (run, events)."""

    def __init__(self, store: MemoryStore) -> None:
        self.store = store
        self.shard = store._shards[0]

    def rewrite(self, change: Callable[[list[Event]], list[Event]]) -> None:
        """Change the events of the run, keeping places, and make the rows anew."""
        events: list[Event] = []
        for row in self.shard.rows:
            events += decode_row(row.data)[1]
        iid, at = self.iid, decode_row(self.shard.rows[0].data)[0]
        events = change(events)
        row = Row(1, len(events), 1, iid, 1, encode_row(at, events))
        self.shard.rows = [row]
        self.shard.runs_rows[iid] = [row]

    def replace(self, index: int, **fields: object) -> None:
        """One row with other fields."""
        row = msgspec.structs.replace(self.shard.rows[index], **fields)
        self.shard.rows[index] = row
        self.shard.runs_rows[row.iid][index] = row

    @property
    def iid(self) -> int:
        return self.shard.rows[0].iid


async def made(*, is_open: bool = False) -> Log:
    """The log of one run: an effect, then a compute task behind it; ended, or parked before its start."""
    worker = Worker("w")
    worker.effect("charge")(lambda _: {"ok": True})
    worker.compute("double")(lambda contract: contract)
    flow = workflow("order")
    flow.compute("double", depends_on=[flow.effect("charge")])
    clock = VirtualClock()
    store = MemoryStore(clock, shards=1)
    async with Cluster(store=store, clock=clock) as cluster:
        await cluster.register(flow.build())
        await cluster.add_worker(worker)
        if is_open:
            await cluster.start("order", {}, delay=3600.0)
            await cluster.clock.sleep(30.0)
        else:
            await cluster.run("order", {})
    await store.open()
    return Log(store)


def drop(kind: type[Event]) -> Callable[[list[Event]], list[Event]]:
    """No event of a kind."""
    return lambda events: [event for event in events if not isinstance(event, kind)]


def insert(kind: type[Event], event: Event) -> Callable[[list[Event]], list[Event]]:
    """`event` before the first of a kind."""

    def change(events: list[Event]) -> list[Event]:
        place = next(index for index, one in enumerate(events) if isinstance(one, kind))
        return [*events[:place], event, *events[place:]]

    return change


def again(kind: type[Event]) -> Callable[[list[Event]], list[Event]]:
    """The first event of a kind stands twice."""
    return lambda events: insert(kind, next(one for one in events if isinstance(one, kind)))(events)


async def stored(model: Model) -> Log:
    """A row for each event of the model's log, and no checkpoint: the run is listed as being at work."""
    store = MemoryStore(VirtualClock(), shards=1)
    await store.open()
    claim = await store.claim(0, 0, "me")
    assert claim is not None
    definition, state = model.graph.definition, model.state
    record = DefinitionRecord("default", definition.workflow_type, 1, model.graph.hash, dump_definition(definition), 1)
    await store.save_definition(record)
    run = RunRecord(1, state.key.to_bytes(), STATES.index(state.status), BEGIN, BEGIN, b"start", len(model.log))
    rows = [Row(one.offset, 1, 1, 1, one.offset, encode_row(one.at, [one.event])) for one in model.log]
    head = len(rows) + 1
    await store.append([ShardAppend(shard=0, epoch=1, head=1, next=head, rows=rows, runs=[run])])
    return Log(store)


def rules(report: Report) -> set[str]:
    """The rules that are broken."""
    return {finding.rule for finding in report.findings}
