"""The client for scripts without `async`: the same calls, blocking.

    import onexflow.sync

    with onexflow.sync.connect() as client:
        client.register(flow.build())
        print(client.run("greet", {"name": "Ada"}))

One thread of its own runs the loop of one `onexflow.Client`; any number of threads may call. Ctrl-C interrupts what the
main thread waits for, and what was started goes on. Inside a running loop these calls would stop it, so they are refused
there: `await onexflow.connect()` is for such programs. What is not here, `Client.call` reaches.
"""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, Self, TypeVar
from uuid import UUID

import onexflow.client
from onexflow.client.handle import NOTHING
from onexflow.client.handle import RunHandle as AsyncHandle
from onexflow.config import Tls
from onexflow.core.definition import WorkflowDefinition
from onexflow.core.errors import InvalidTransition, Unavailable
from onexflow.core.ids import DEFAULT_NAMESPACE, RunKey
from onexflow.ports.client_link import (
    BlockedRun,
    ControlOutcome,
    DefinitionInfo,
    EventView,
    Health,
    NodeView,
    RunMetrics,
    RunOutcome,
    RunSummary,
    RunView,
)

__all__ = ["Client", "RunHandle", "connect"]

T = TypeVar("T")

#: Seconds that the end of a client may take.
_CLOSE_SECONDS = 10.0


def connect(
    addresses: str | Iterable[str] | None = None,
    *,
    namespace: str = DEFAULT_NAMESPACE,
    timeout: float = 5.0,
    call_timeout: float = 30.0,
    patience: float = 60.0,
    client_id: str = "",
    tls: Tls | None = None,
    token: str | None = None,
    token_file: str | Path | None = None,
) -> Client:
    """A client of the orchestrators at `addresses`: as `onexflow.connect`. Close it, or use it as a context manager."""
    loop = _Loop()
    try:
        client = loop.run(
            lambda: onexflow.client.connect(
                addresses,
                namespace=namespace,
                timeout=timeout,
                call_timeout=call_timeout,
                patience=patience,
                client_id=client_id,
                tls=tls,
                token=token,
                token_file=token_file,
            )
        )
    except BaseException:
        loop.close()
        raise
    return Client(client, loop)


class _Loop:
    """A loop in a thread of its own, and the ways in."""

    def __init__(self) -> None:
        _refuse_in_a_loop()
        self._loop = asyncio.new_event_loop()
        self._lock = threading.Lock()
        self._closed = False
        self._thread = threading.Thread(target=_serve, args=(self._loop,), name="onexflow-sync", daemon=True)
        self._thread.start()

    def run(self, call: Callable[[], Awaitable[T]]) -> T:
        """What `call` gives, awaited in the loop. Interrupted, it is cancelled there."""
        _refuse_in_a_loop()
        with self._lock:
            if self._closed:
                raise InvalidTransition("the client is closed", {"current_state": "closed", "required_state": "open"})
            future = asyncio.run_coroutine_threadsafe(_awaited(call), self._loop)
        try:
            return future.result()
        except CancelledError:
            raise Unavailable("the client was closed before the answer came") from None
        except BaseException:  # KeyboardInterrupt before all
            future.cancel()
            raise

    def close(self) -> None:
        """End what runs in the loop, the loop, and its thread. Idempotent; never raises what the loop raised."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            ending = asyncio.run_coroutine_threadsafe(_end(), self._loop)
        try:
            ending.result(_CLOSE_SECONDS)
        except TimeoutError:  # something in it does not obey; the thread is a daemon
            return
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(_CLOSE_SECONDS)


def _serve(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(loop)
    try:
        loop.run_forever()
    finally:
        loop.close()


async def _awaited(call: Callable[[], Awaitable[T]]) -> T:
    return await call()


async def _end() -> None:
    """Cancel everything else."""
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
    await asyncio.get_running_loop().shutdown_asyncgens()


def _refuse_in_a_loop() -> None:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    raise InvalidTransition(
        "onexflow.sync would stop the loop that is running in this thread: use `await onexflow.connect()` there, or "
        "`asyncio.to_thread`",
        {"current_state": "inside a running loop", "required_state": "a thread without one"},
    )


def _shut(client: onexflow.client.Client, loop: _Loop) -> None:
    try:
        loop.run(client.close)
    except (InvalidTransition, Unavailable):
        return
    finally:
        loop.close()


class _Items(Iterator[T], Generic[T]):
    """An asynchronous iterator's items, each waited for when it is asked for. Closed when nobody wants more."""

    def __init__(self, loop: _Loop, items: AsyncIterator[T]) -> None:
        self._loop = loop
        self._items = items

    def __next__(self) -> T:
        try:
            return self._loop.run(lambda: anext(self._items))
        except StopAsyncIteration:
            raise StopIteration from None


class Client:
    """As `onexflow.Client`, blocking. Made by `connect`; may be used by several threads. Errors are the same."""

    def __init__(self, client: onexflow.client.Client, loop: _Loop) -> None:
        self._client = client
        self._loop = loop
        #: Also at the end of a program that does not close it.
        self._finalizer = weakref.finalize(self, _shut, client, loop)

    @property
    def namespace(self) -> str:
        return self._client.namespace

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the connection and its thread; calls that wait fail with Unavailable. Idempotent."""
        _refuse_in_a_loop()
        self._finalizer()

    def call(self, function: Callable[[onexflow.client.Client], Awaitable[T]]) -> T:
        """What `function` makes of the asynchronous client: `client.call(lambda c: c.work_queue().enqueue_task(t))`."""
        return self._loop.run(lambda: function(self._client))

    # ---- runs

    def start(
        self,
        workflow_type: str,
        input: Any = None,
        *,
        instance_id: UUID | str | None = None,
        version: int = 0,
        correlation_id: UUID | str = "",
        causation_id: str = "",
        delay: float = 0.0,
        timeout: float = 0.0,
        request_id: str = "",
    ) -> RunHandle:
        handle = self.call(
            lambda client: client.start(
                workflow_type,
                input,
                instance_id=instance_id,
                version=version,
                correlation_id=correlation_id,
                causation_id=causation_id,
                delay=delay,
                timeout=timeout,
                request_id=request_id,
            )
        )
        return RunHandle(self._loop, handle)

    def run(
        self,
        workflow_type: str,
        input: Any = None,
        *,
        instance_id: UUID | str | None = None,
        version: int = 0,
        correlation_id: UUID | str = "",
        causation_id: str = "",
        delay: float = 0.0,
        timeout: float = 0.0,
        request_id: str = "",
        wait_timeout: float | None = None,
    ) -> Any:
        return self.call(
            lambda client: client.run(
                workflow_type,
                input,
                instance_id=instance_id,
                version=version,
                correlation_id=correlation_id,
                causation_id=causation_id,
                delay=delay,
                timeout=timeout,
                request_id=request_id,
                wait_timeout=wait_timeout,
            )
        )

    def get(self, workflow_type: str, instance_id: UUID | str) -> RunHandle:
        return RunHandle(self._loop, self._client.get(workflow_type, instance_id))

    def list(
        self, workflow_type: str = "", states: Iterable[str] = (), *, limit: int | None = None
    ) -> Iterator[RunSummary]:
        return _Items(self._loop, self._client.list(workflow_type, states, limit=limit))

    def metrics(self, workflow_type: str = "") -> RunMetrics:
        return self.call(lambda client: client.metrics(workflow_type))

    # ---- definitions

    def register(self, definition: WorkflowDefinition | Mapping[str, Any] | bytes) -> DefinitionInfo:
        return self.call(lambda client: client.register(definition))

    def definitions(self) -> Sequence[DefinitionInfo]:
        return self.call(lambda client: client.definitions())

    def definition(self, workflow_type: str, version: int = 0) -> WorkflowDefinition:
        return self.call(lambda client: client.definition(workflow_type, version))

    # ---- the cluster

    def nodes(self) -> Sequence[NodeView]:
        return self.call(lambda client: client.nodes())

    def drain(self, node_id: str) -> bool:
        return self.call(lambda client: client.drain(node_id))

    def blocked(
        self, workflow_type: str = "", *, keys: Iterable[RunKey] | None = None, limit: int | None = None
    ) -> Iterator[BlockedRun]:
        return _Items(self._loop, self._client.blocked(workflow_type, keys=keys, limit=limit))

    def health(self) -> Health:
        return self.call(lambda client: client.health())


class RunHandle:
    """As `onexflow.RunHandle`, blocking."""

    __slots__ = ("_handle", "_loop")

    def __init__(self, loop: _Loop, handle: AsyncHandle) -> None:
        self._loop = loop
        self._handle = handle

    @property
    def key(self) -> RunKey:
        return self._handle.key

    @property
    def version(self) -> int:
        """Version of the definition, 0 when the handle was made by `Client.get`."""
        return self._handle.version

    @property
    def created(self) -> bool:
        """This very start made the run."""
        return self._handle.created

    @property
    def workflow_type(self) -> str:
        return self._handle.workflow_type

    @property
    def instance_id(self) -> UUID:
        return self._handle.instance_id

    def __repr__(self) -> str:
        return repr(self._handle)

    def result(self, timeout: float | None = None) -> Any:
        return self._loop.run(lambda: self._handle.result(timeout))

    def outcome(self, timeout: float | None = None) -> RunOutcome:
        return self._loop.run(lambda: self._handle.outcome(timeout))

    def state(self) -> RunView:
        return self._loop.run(self._handle.state)

    def history(self, from_sequence: int = 1) -> list[EventView]:
        return self._loop.run(lambda: self._handle.history(from_sequence))

    def follow(self, from_sequence: int = 1) -> Iterator[EventView]:
        return _Items(self._loop, self._handle.follow(from_sequence))

    def pause(self, reason: str = "") -> ControlOutcome:
        return self._loop.run(lambda: self._handle.pause(reason))

    def resume(self, reason: str = "") -> ControlOutcome:
        return self._loop.run(lambda: self._handle.resume(reason))

    def cancel(self, reason: str = "") -> ControlOutcome:
        return self._loop.run(lambda: self._handle.cancel(reason))

    def assign(self, node_id: str) -> ControlOutcome:
        return self._loop.run(lambda: self._handle.assign(node_id))

    def resolve(
        self,
        task: str,
        item: int = 0,
        *,
        retry: bool = False,
        result: Any = NOTHING,
        fail: str = "",
        reason: str = "",
    ) -> ControlOutcome:
        return self._loop.run(
            lambda: self._handle.resolve(task, item, retry=retry, result=result, fail=fail, reason=reason)
        )
