"""Runs that are assigned to nodes, by node. The truth is in each run's history; a register `assignment/<node>/<run>`, written
with the event that assigns it and taken away with the one that ends that, finds the runs of a node, parked ones too."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Final
from urllib.parse import quote

import msgspec
import structlog

from onexflow.codec.payload import UNREADABLE
from onexflow.core.commands import AssignRun
from onexflow.core.errors import InternalError, InvalidTransition
from onexflow.core.ids import RunKey
from onexflow.core.machine import WORKFLOW_STATES
from onexflow.engine.kernel import Kernel
from onexflow.engine.queries import Queries
from onexflow.engine.run import Run
from onexflow.engine.shard import Shard
from onexflow.ports.event_store import RegisterRecord
from onexflow.ports.nodes import AssignmentView
from onexflow.ports.registry import Assignment, Registry
from onexflow.spi.exceptions import SPIError

log = structlog.get_logger("onexflow.nodes")

PREFIX: Final = "assignment/"
_PAGE: Final = 1000


class _Pin(msgspec.Struct, frozen=True, array_like=True):
    """What a register says."""

    key: bytes
    node_id: str
    assigned_at: int
    epoch: int

    @property
    def assignment(self) -> Assignment:
        return Assignment(
            key=RunKey.from_bytes(self.key), node_id=self.node_id, assigned_at=self.assigned_at, epoch=self.epoch
        )


class Pins:
    """The assignments of this orchestrator's runs, and their mirror in the registry, for others to see."""

    def __init__(self, kernel: Kernel, registry: Registry) -> None:
        self._kernel = kernel
        self._registry = registry

    def follow(self, run: Run) -> None:
        """Part of a decision that has assigned the run, taken that back, or ended the run: goes into the same append."""
        node = "" if run.is_over else run.state.node
        if node == run.pinned:
            return
        shard = run.shard
        if run.pinned:
            shard.put(_name(run.pinned, run.key), b"")
        if node:
            pin = _Pin(run.key.to_bytes(), node, run.state.updated_at, shard.epoch)
            shard.put(_name(node, run.key), msgspec.msgpack.encode(pin))
        run.pinned = node
        self._kernel.lane.mark()

    async def of(self, node_id: str) -> Sequence[AssignmentView]:
        """The open runs that are assigned to a node. Durable ones only."""
        await self._kernel.lane.durable()
        found = []
        async for pin in self._stored(_folder(node_id)):
            key = RunKey.from_bytes(pin.key)
            shard = self._kernel.shard_of(key)
            record = await self._kernel.store.find_run(shard.id, pin.key)
            if record is not None:
                state = WORKFLOW_STATES[Queries.current(shard, record).state]
                found.append(
                    AssignmentView(
                        key=key, node_id=pin.node_id, assigned_at=pin.assigned_at, epoch=pin.epoch, state=state
                    )
                )
        return sorted(found, key=lambda view: (view.key.namespace, view.key.workflow_type, view.key.instance_id.int))

    async def nodes(self) -> set[str]:
        """All nodes that runs are assigned to."""
        return {pin.node_id async for pin in self._stored(PREFIX)}

    async def mirror(self, key: RunKey) -> None:
        """Show in the registry how it stands with an open run: there it lives as long as the node does."""
        run = self._kernel.resident(key)
        node = run.pinned if run is not None else ""
        try:
            data = await self._kernel.shard_of(key).register(self._kernel.store, _name(node, key)) if node else None
        except SPIError as error:  # the assignment stands; only who looks into the registry misses it
            log.warning("assignments.not_shown", run=str(key), error=str(error))
            return
        pin = _pin_of(RegisterRecord(_name(node, key), data)) if data else None
        if pin is not None:
            await self._registry.assign(pin.assignment)
        else:
            await self._registry.unassign(key)

    async def mirror_all(self) -> None:
        """Show all of them, as a new orchestrator must."""
        for shard in list(self._kernel.shards.values()):
            await self.mirror_all_of(shard)

    async def mirror_all_of(self, shard: Shard) -> None:
        """Show all of a shard, as its new owner must."""
        try:
            async for pin in self._stored_in(shard, PREFIX):
                await self._registry.assign(pin.assignment)
        except SPIError as error:
            log.warning("assignments.not_shown", error=str(error))

    async def give_back(self, node_id: str) -> int:
        """The node is gone: its runs are assigned to nobody. Returns how many were. Raises Unavailable and the like with
        some of them left: ask again."""
        await self._kernel.lane.durable()
        given = 0
        async for pin in self._stored(_folder(node_id)):
            key = RunKey.from_bytes(pin.key)
            try:
                run = await self._kernel.find(key)
            except InternalError as error:  # it cannot be read back, which is told; it hurts no other run
                log.warning("assignment.kept", run=str(key), node=node_id, error=str(error))
                continue
            if run.is_over or run.state.node != node_id:
                continue
            try:
                self._kernel.decide(run, AssignRun(""))
            except (InvalidTransition, InternalError):  # it has ended, or its decision fails, which is told
                continue
            given += 1
            await self._kernel.lane.durable()
            await self._registry.unassign(key)
        return given

    async def _stored(self, prefix: str) -> AsyncIterator[_Pin]:
        for shard in list(self._kernel.shards.values()):
            async for pin in self._stored_in(shard, prefix):
                yield pin

    async def _stored_in(self, shard: Shard, prefix: str) -> AsyncIterator[_Pin]:
        after = ""
        while page := await self._kernel.store.list_registers(shard.id, prefix, after, _PAGE):
            after = page[-1].name
            for record in page:
                pin = _pin_of(record)
                if pin is not None:
                    yield pin


def _pin_of(record: RegisterRecord) -> _Pin | None:
    try:
        return msgspec.msgpack.decode(record.data, type=_Pin)
    except UNREADABLE:
        log.warning("assignment.unreadable", register=record.name)
        return None


def _folder(node_id: str) -> str:
    return f"{PREFIX}{quote(node_id, safe='')}/"


def _name(node_id: str, key: RunKey) -> str:
    """Of the register. Names may hold anything, so they are quoted."""
    run = "/".join((quote(key.namespace, safe=""), quote(key.workflow_type, safe=""), str(key.instance_id)))
    return _folder(node_id) + run
