"""The calls of orchestrations: each number of an execution stands for one start, whatever becomes of the worker.

A register of the caller's shard remembers what was called under a number, written before the called run can be durable:
`call/<namespace>/<type>/<instance>/<task>/<item>/<number>` holds the hash of the start and the type of the run. The run's id is made of the
register's name, so nothing else is needed to find it. When the caller has ended, the runs that it left open are cancelled
and its registers are taken away; what a crash kept from being done is done at the next start.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final
from urllib.parse import quote, unquote
from uuid import UUID

import msgspec
import structlog

from onexflow.core.errors import (
    InvalidArgument,
    InvalidTransition,
    NotDeterministic,
    ShardMoved,
    Unavailable,
    UnknownRun,
    UnknownTask,
)
from onexflow.core.ids import RunKey, derived_uuid
from onexflow.core.machine import TERMINAL_TASK_STATES, TERMINAL_WORKFLOW_STATES, WORKFLOW_STATES
from onexflow.engine.kernel import Kernel
from onexflow.engine.run import Run
from onexflow.engine.shard import Shard
from onexflow.ports.client_link import Caller, ControlOutcome, ControlRequest, StartRequest
from onexflow.spi.exceptions import SPIError

log = structlog.get_logger("onexflow.calls")

_PREFIX: Final = "call/"
_DIGEST: Final = 16
#: A number has a part for each level of calls side by side.
MAX_NUMBER: Final = 256
_PAGE: Final = 1000
#: Of the open calls of an orchestration so many are shown, and so many are looked at for them.
SHOWN: Final = 3
LOOKED_AT: Final = 200
#: Seconds until a run that could not be cancelled is tried again.
_CANCEL_AGAIN_SECONDS: Final = 5.0


class CallBook:
    """What orchestrations have called. `control` cancels a run."""

    def __init__(self, kernel: Kernel, control: Callable[[ControlRequest], Awaitable[ControlOutcome]]) -> None:
        self._kernel = kernel
        self._control = control

    def named(self, request: StartRequest, caller: Caller) -> StartRequest:
        """The request with the id of its run. Raises InvalidArgument when it names one itself."""
        for field, given in (
            ("instance_id", request.instance_id is not None),
            ("correlation_id", request.correlation_id),
            ("causation_id", request.causation_id),
        ):
            if given:
                raise InvalidArgument(f"a call of an orchestration has no {field} of its own", field=field)
        if not 0 < len(caller.number) <= MAX_NUMBER:
            raise InvalidArgument(f"a number has 1 to {MAX_NUMBER} characters", field="caller.number")
        return msgspec.structs.replace(request, instance_id=derived_uuid(_name(caller)))

    async def admit(self, caller: Caller, key: RunKey, digest: bytes) -> tuple[Run, bool]:
        """Give the call its number. Returns the caller and whether the run is to be created: at once, before anything is
        awaited. Raises UnknownRun, UnknownTask, InvalidTransition when the caller has ended, NotDeterministic when the
        number is another call's."""
        store, name, mine = self._kernel.store, _name(caller), digest + key.workflow_type.encode()
        parent = await self._kernel.find(caller.run)
        exists = await store.find_run(self._kernel.number_of(key), key.to_bytes()) is not None
        known = await parent.shard.register(store, name)
        # Nothing is awaited from here on.
        self._check_open(parent, caller)
        if known is None:
            parent.shard.put(name, mine)
            self._kernel.lane.mark()
        elif known != mine:
            raise NotDeterministic(
                f"call {caller.number} of task {caller.task} of run {caller.run} was "
                + ("made with another contract" if known[_DIGEST:] == mine[_DIGEST:] else f"one of {_type(known)}")
                + f" before, and is now one of {key.workflow_type}: the code of the orchestration is not deterministic",
                {
                    "run": str(caller.run), "task": caller.task, "call": caller.number, "called": key.workflow_type,
                    "called_before": _type(known), "current_state": f"call {caller.number} was made",
                    "required_state": "the same call in every execution",
                },
            )  # fmt: skip
        is_seen = self._kernel.number_of(key) in self._kernel.shards and self._kernel.has_started(key)
        return parent, not exists and known is None and not is_seen

    @staticmethod
    def _check_open(parent: Run, caller: Caller) -> None:
        task = parent.graph.index.get(caller.task)
        if task is None or parent.graph.specs[task].role != "orchestrator":
            raise UnknownTask(
                f"run {caller.run} has no orchestration {caller.task!r}", {"run": str(caller.run), "task": caller.task}
            )
        items = parent.state.tasks[task].items
        status = items[caller.item].status if caller.item < len(items) else "pending"
        if parent.is_over or status in TERMINAL_TASK_STATES:
            state = parent.state.status if parent.is_over else status
            raise InvalidTransition(
                f"task {caller.task} of run {caller.run} is {state}: it makes no more calls",
                {"run": str(caller.run), "task": caller.task, "current_state": state, "required_state": "running"},
            )

    async def open_calls(self, caller: RunKey, task: str) -> tuple[str, ...]:
        """Up to SHOWN runs that a task of the caller has called and that have not ended, of its first LOOKED_AT calls."""
        shard, prefix = self._kernel.shard_of(caller), f"{_of(caller)}{quote(task, safe='')}/"
        found: list[str] = []
        for call in await self._kernel.store.list_registers(shard.id, prefix, limit=LOOKED_AT):
            run = RunKey(caller.namespace, _type(call.data), derived_uuid(call.name))
            if not await self._is_over(run):
                found.append(f"{run.workflow_type}/{run.instance_id}")
                if len(found) == SHOWN:
                    break
        return tuple(found)

    async def close(self, caller: RunKey) -> None:
        """The caller has ended, and that is durable: cancel what it left open, and forget its calls."""
        is_closed = await self._closed(caller)
        while not is_closed:
            await asyncio.sleep(_CANCEL_AGAIN_SECONDS)
            is_closed = await self._closed(caller)

    async def _closed(self, caller: RunKey) -> bool:
        """False when that could not be done now, and can be later."""
        try:
            return await self._close(caller)
        except SPIError as error:
            log.warning("calls.not_closed", run=str(caller), error=str(error))
            return not _is_passing(error)

    async def _close(self, caller: RunKey) -> bool:
        shard, prefix = self._kernel.shard_of(caller), _of(caller)
        last, late = "", False
        while calls := await self._kernel.store.list_registers(shard.id, prefix, after=last, limit=_PAGE):
            last = calls[-1].name
            for call in calls:
                run = RunKey(caller.namespace, _type(call.data), derived_uuid(call.name))
                try:
                    await self._cancel(run, f"its caller {caller} has ended")
                except SPIError as error:  # its number stays: that is how the run is found again
                    log.warning("call.not_cancelled", run=str(run), error=str(error))
                    late = late or _is_passing(error)
                else:
                    shard.put(call.name, b"")
            self._kernel.lane.mark()
            await self._kernel.lane.durable()
        return not late

    async def close_ended(self) -> None:
        """`close_ended_of` for all shards that were there at the start."""
        shards = list(self._kernel.shards.values())
        while True:
            shards = [shard for shard in shards if not await self._ended_are_closed(shard)]
            if not shards:
                return
            await asyncio.sleep(_CANCEL_AGAIN_SECONDS)

    async def _ended_are_closed(self, shard: Shard) -> bool:
        try:
            await self.close_ended_of(shard)
        except SPIError as error:
            log.warning("calls.not_closed", shard=shard.id, error=str(error))
            return not _is_passing(error)
        return True

    async def close_ended_of(self, shard: Shard) -> None:
        """`close` for every caller of a shard that ended before the shard was claimed. Raises Unavailable when some of
        it has still to be done."""
        last, late = "", 0
        while calls := await self._kernel.store.list_registers(shard.id, _PREFIX, after=last, limit=1):
            namespace, workflow_type, instance = calls[0].name.split("/")[1:4]
            caller = RunKey(unquote(namespace), unquote(workflow_type), UUID(instance))
            last = f"{_of(caller)[:-1]}0"  # "0" comes after "/": past all calls of this caller
            if await self._is_over(caller) and not await self._closed(caller):
                late += 1
        if late:
            raise Unavailable(f"calls of {late} runs that have ended could not be cancelled yet", {"shard": shard.id})

    async def _is_over(self, key: RunKey) -> bool:
        record = await self._kernel.store.find_run(self._kernel.number_of(key), key.to_bytes())
        return record is None or WORKFLOW_STATES[record.state] in TERMINAL_WORKFLOW_STATES

    async def _cancel(self, key: RunKey, reason: str) -> None:
        if await self._is_over(key):
            return
        try:
            await self._control(ControlRequest(key=key, action="cancel", reason=reason))
        except (InvalidTransition, UnknownRun):
            return  # it has ended meanwhile


def _is_passing(error: SPIError) -> bool:
    """May it go better when it is tried again, here?"""
    return isinstance(error, Unavailable) and not isinstance(error, ShardMoved)


def _of(caller: RunKey) -> str:
    return f"{_PREFIX}{quote(caller.namespace, safe='')}/{quote(caller.workflow_type, safe='')}/{caller.instance_id}/"


def _name(caller: Caller) -> str:
    return f"{_of(caller.run)}{quote(caller.task, safe='')}/{caller.item}/{quote(caller.number, safe='')}"


def _type(value: bytes) -> str:
    return value[_DIGEST:].decode()
