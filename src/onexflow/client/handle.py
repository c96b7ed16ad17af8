"""One run, as its caller holds it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any
from uuid import UUID

from onexflow.codec.payload import encode_value
from onexflow.core.errors import InvalidArgument
from onexflow.core.ids import RunKey
from onexflow.ports.client_link import ControlOutcome, ControlRequest, EventView, RunOutcome, RunView

if TYPE_CHECKING:
    from onexflow.client.client import Client

#: What `resolve` takes as "no result given": None is a result.
NOTHING: Any = object()


class RunHandle:
    """A run. Made by `Client.start` and `Client.get`; having one says nothing of whether the run exists."""

    __slots__ = ("_client", "created", "key", "version")

    def __init__(self, client: Client, key: RunKey, *, version: int = 0, created: bool = False) -> None:
        self._client = client
        self.key = key
        #: Version of the definition, 0 when the handle was made by `Client.get`.
        self.version = version
        #: This very start made the run (it had not been started before).
        self.created = created

    @property
    def workflow_type(self) -> str:
        return self.key.workflow_type

    @property
    def instance_id(self) -> UUID:
        return self.key.instance_id

    def __repr__(self) -> str:
        return f"<RunHandle {self.key}>"

    async def result(self, timeout: float | None = None) -> Any:
        """The run's result, decoded; waits for its end. Raises RunFailed (context: state, error_type, task …) when it
        ended without one, DeadlineExceeded after `timeout` seconds (the run goes on), UnknownRun."""
        return await self._client._result(self.key, timeout)

    async def outcome(self, timeout: float | None = None) -> RunOutcome:
        """How the run ended, whatever way; waits for it. Raises DeadlineExceeded, UnknownRun."""
        return await self._client._outcome(self.key, timeout)

    async def state(self) -> RunView:
        """The run as it stands, with its tasks."""
        return await self._client._describe(self.key)

    async def history(self, from_sequence: int = 1) -> list[EventView]:
        """All its events from that sequence on, in order."""
        return [event async for event in self._client._history(self.key, from_sequence)]

    def follow(self, from_sequence: int = 1) -> AsyncIterator[EventView]:
        """Its events as they become durable, each once and in order, until its last. Survives lost connections."""
        return self._client._follow(self.key, from_sequence)

    async def pause(self, reason: str = "") -> ControlOutcome:
        """Stop dispatching; what runs ends and is recorded."""
        return await self._client._control(ControlRequest(key=self.key, action="pause", reason=reason))

    async def resume(self, reason: str = "") -> ControlOutcome:
        return await self._client._control(ControlRequest(key=self.key, action="resume", reason=reason))

    async def cancel(self, reason: str = "") -> ControlOutcome:
        """End the run; running attempts are told to stop."""
        return await self._client._control(ControlRequest(key=self.key, action="cancel", reason=reason))

    async def assign(self, node_id: str) -> ControlOutcome:
        """Send its tasks to that node from now on, while the node is connected; "" takes that back. Raises
        UnknownNode."""
        return await self._client._control(ControlRequest(key=self.key, action="assign", node_id=node_id))

    async def resolve(
        self,
        task: str,
        item: int = 0,
        *,
        retry: bool = False,
        result: Any = NOTHING,
        fail: str = "",
        reason: str = "",
    ) -> ControlOutcome:
        """Decide a task of unknown outcome, by exactly one of: run it again (`retry`), it was done and this is its
        result (`result`), it was not and will not be done (`fail`, saying why)."""
        given = retry + (result is not NOTHING) + bool(fail)
        if given != 1:
            raise InvalidArgument("exactly one of retry, result and fail is needed", field="decision")
        payload = None if result is NOTHING else encode_value(result)
        decision = ControlRequest(
            key=self.key, action="resolve", task=task, item=item, retry=retry, result=payload, fail=fail, reason=reason
        )
        return await self._client._control(decision)
