"""The view kept: one watch on the cluster's prefix, resumed after anything.

Resuming starts at the revision after the last event applied, never at one taken from a header (a watch that still
catches up would lose all between). Before each resume one transaction asks for the registry's life: another cluster id,
another `incarnation` key or a revision that went back mean an etcd that was wiped, on which the old watch would be
accepted and stay silent for ever. Then, and after a compaction, the whole content is listed and the difference told.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from typing import Any, Final
from uuid import uuid4

import grpc
import grpc.aio
import structlog
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, wait_random_exponential

from onexflow.registry.etcd.access import EtcdError
from onexflow.registry.etcd.client import TXN, WATCH, EtcdClient, last_write_is, prefix_end, put_op, range_op
from onexflow.registry.etcd.v1 import etcd_pb2 as pb
from onexflow.registry.keys import INCARNATION
from onexflow.registry.view import Kv, View, wiped_hold
from onexflow.telemetry import metrics, names

_log = structlog.get_logger("onexflow.registry")

_DELETE: Final = 1


class Watcher:
    """Feeds a view for ever. `on_live()` is called whenever the view is current again, `on_failure(error)` whenever
    that has not come about."""

    def __init__(
        self,
        client: EtcdClient,
        view: View,
        *,
        on_live: Callable[[], None],
        on_failure: Callable[[Exception], None],
        expiry_suspect: Callable[[], bool],
    ) -> None:
        self.live = False
        #: Why it is not live.
        self.failure: Exception | None = None
        self._client = client
        self._settings = client.settings
        self._view = view
        self._on_live = on_live
        self._on_failure = on_failure
        self._expiry_suspect = expiry_suspect
        self._prefix = client.settings.prefix.encode()
        #: (cluster id, incarnation key): which life of etcd the view is of.
        self._life: tuple[int, bytes] | None = None
        self._must_list = True
        self._lost_at: float | None = None
        #: Revisions between the view and etcd, when its life was looked at last.
        self._gap = 0
        self._list_at = 0.0
        self._hold_until = 0.0
        self._release: asyncio.TimerHandle | None = None
        self._waiters: list[tuple[int, asyncio.Future[None]]] = []
        self._reconnects = metrics.counter(names.REGISTRY_RECONNECTS)
        self._gaps = metrics.histogram(names.REGISTRY_GAP)

    async def run(self) -> None:
        """Connect, follow, and begin anew; ends by cancellation only."""
        try:
            while True:
                call = await self._connect()
                try:
                    await self._follow(call)
                except EtcdError as error:
                    self._lost(error)
                except Exception as error:  # noqa: BLE001 - a bug in one event must not end the view
                    _log.exception("watch.failed")
                    self._must_list = True
                    self._lost(error)
                finally:
                    call.cancel()
        finally:
            self.live = False
            if self._release is not None:
                self._release.cancel()

    async def reach(self, revision: int, timeout: float) -> bool:
        """Wait until the view holds everything up to `revision`; False when it does not in time."""
        if self._view.revision >= revision:
            return True
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        entry = (revision, future)
        self._waiters.append(entry)
        try:
            async with asyncio.timeout(timeout):  # unlike wait_for, it lets no cancellation get lost
                await future
        except TimeoutError:
            return False
        finally:
            with contextlib.suppress(ValueError):
                self._waiters.remove(entry)
        return True

    # ------------------------------------------------------------------------------------------- connecting
    async def _connect(self) -> Any:
        def note(state: RetryCallState) -> None:
            error = state.outcome.exception() if state.outcome is not None else None
            if isinstance(error, EtcdError):
                self.failure = error
                self._on_failure(error)

        retrying = AsyncRetrying(
            retry=retry_if_exception_type(EtcdError),
            wait=wait_random_exponential(multiplier=0.05, max=0.5),
            sleep=asyncio.sleep,
            before_sleep=note,
        )
        call: Any = await retrying(self._open)
        if self._lost_at is not None:
            _log.info("registry.back", endpoint=self._client.endpoints.current)
            self._gaps.record(self._gap)
        self.live = True
        self.failure = None
        self._lost_at = None
        self._on_live()
        return call

    async def _open(self) -> Any:
        await self._check_life()
        if self._must_list:
            await self._list()
        endpoint = self._client.endpoints.current
        metadata = await self._client.metadata(endpoint)
        method: Any = self._client.channel(endpoint).stream_stream(
            WATCH,
            request_serializer=pb.WatchRequest.SerializeToString,
            response_deserializer=pb.WatchResponse.FromString,
        )
        call = method(metadata=(("hasleader", "true"), *metadata))
        create = pb.WatchCreateRequest(
            key=self._prefix,
            range_end=prefix_end(self._prefix),
            start_revision=self._view.revision + 1,
            fragment=True,
        )
        try:
            async with asyncio.timeout(self._settings.try_timeout):
                with _translated():
                    await call.write(pb.WatchRequest(create_request=create))
                    self._accept(await call.read())
        except TimeoutError as error:
            call.cancel()
            failure = EtcdError(grpc.StatusCode.DEADLINE_EXCEEDED, f"{endpoint} did not open the watch")
            self._client.failed(endpoint, failure)
            raise failure from error
        except EtcdError as error:
            call.cancel()
            if error.refusal:  # of a stale token the server says the same as of a missing right
                self._client.login.forget(metadata)
            else:
                self._client.endpoints.rotate(endpoint)
            raise
        return call

    async def _check_life(self) -> None:
        """Learn which life of etcd this is; begin one if it has none."""
        key = self._prefix + INCARNATION
        request = pb.TxnRequest(
            compare=[last_write_is(key, 0)], success=[put_op(key, uuid4().hex.encode())], failure=[range_op(key)]
        )
        answer = await self._client.once(TXN, request, pb.TxnResponse.FromString)
        if answer.succeeded:
            incarnation = request.success[0].request_put.value
        else:
            incarnation = answer.responses[0].response_range.kvs[0].value
        life = (answer.header.cluster_id, incarnation)
        before, now = self._life, time.monotonic()
        if before is None:
            self._life = life
        elif life != before or answer.header.revision < self._view.revision:
            _log.warning("registry.wiped", incarnation=incarnation.decode(errors="replace"))
            self._life = life
            self._must_list = True
            self._hold(wiped_hold(self._settings.ttl, self._settings.return_time))
        elif self._lost_at is not None and now - self._lost_at > 2 * self._settings.ttl / 3:
            self._hold(self._settings.return_time)
        self._gap = max(0, answer.header.revision - self._view.revision) if life == before else 0

    async def _list(self) -> None:
        answer = await self._client.range(self._prefix)
        cut = len(self._prefix)
        kvs = {kv.key[cut:]: Kv(kv.value, kv.lease, kv.mod_revision) for kv in answer.kvs}
        kvs.pop(INCARNATION, None)
        self._view.reset(kvs, answer.header.revision)
        self._must_list = False
        self._list_at = time.monotonic() + self._settings.relist_interval
        self._wake()

    # ------------------------------------------------------------------------------------------- following
    async def _follow(self, call: Any) -> None:
        events: list[pb.Event] = []
        silent = 0
        while True:
            read = asyncio.ensure_future(call.read())
            try:
                while not read.done():
                    await asyncio.wait({read}, timeout=self._settings.ping_interval)
                    if not read.done():
                        silent += 1
                        await self._ping(call, silent)
                with _translated():
                    answer = self._accept(read.result())
            finally:
                if not read.done():
                    read.cancel()
                    with contextlib.suppress(asyncio.CancelledError, grpc.aio.AioRpcError):
                        await read
            silent = 0
            events.extend(answer.events)
            if not answer.fragment:
                self._apply(events)
                events.clear()
            if time.monotonic() >= self._list_at:
                await self._list_again()

    async def _ping(self, call: Any, silent: int) -> None:
        if silent >= 2:
            self._client.endpoints.rotate(self._client.endpoints.current)
            raise EtcdError(grpc.StatusCode.DEADLINE_EXCEEDED, "the watch is silent")
        try:
            async with asyncio.timeout(self._settings.try_timeout):
                with _translated():
                    await call.write(pb.WatchRequest(progress_request=pb.WatchProgressRequest()))
        except TimeoutError as error:
            raise EtcdError(grpc.StatusCode.DEADLINE_EXCEEDED, "the watch takes no request") from error

    def _accept(self, answer: Any) -> pb.WatchResponse:
        """The answer, if the watch is still one."""
        if not isinstance(answer, pb.WatchResponse):
            raise EtcdError(grpc.StatusCode.UNAVAILABLE, "the watch has ended")
        if answer.compact_revision:
            self._must_list = True
            raise EtcdError(grpc.StatusCode.OUT_OF_RANGE, f"compacted up to {answer.compact_revision}")
        if answer.canceled:
            reason = answer.cancel_reason
            refused = "permission denied" in reason or "auth" in reason or "user name is empty" in reason
            code = grpc.StatusCode.PERMISSION_DENIED if refused else grpc.StatusCode.CANCELLED
            raise EtcdError(code, f"the watch was cancelled: {reason}")
        return answer

    def _apply(self, events: list[pb.Event]) -> None:
        cut = len(self._prefix)
        if any(event.type == _DELETE for event in events) and self._expiry_suspect():
            self._hold(self._settings.return_time)
        for event in events:
            kv = event.kv
            key = kv.key[cut:]
            if key == INCARNATION:
                if event.type == _DELETE or self._life is None or kv.value != self._life[1]:
                    raise EtcdError(grpc.StatusCode.ABORTED, "the registry began anew")
            elif event.type == _DELETE:
                self._view.delete(key, kv.mod_revision)
            else:
                self._view.put(key, Kv(kv.value, kv.lease, kv.mod_revision))
        if events:
            self._view.reached(events[-1].kv.mod_revision)
            self._wake()

    async def _list_again(self) -> None:
        """Against anything that a watch ever missed: the content as it is. Events up to it are then no news."""
        self._must_list = True
        await self._check_life()
        await self._list()

    # ------------------------------------------------------------------------------------------- state
    def _lost(self, why: Exception) -> None:
        if self.live:
            _log.warning("registry.lost", why=str(why), endpoint=self._client.endpoints.current)
            reason = why.code.name.lower() if isinstance(why, EtcdError) else "bug"
            self._reconnects.add(1, {names.REASON: reason})
        self.live = False
        self.failure = why
        if self._lost_at is None:
            self._lost_at = time.monotonic()

    def _hold(self, seconds: float) -> None:
        """What goes missing now is shown for a while: an outage ends leases that nobody chose to end."""
        loop = asyncio.get_running_loop()
        self._view.hold()
        until = loop.time() + seconds
        if until <= self._hold_until:
            return
        self._hold_until = until
        if self._release is not None:
            self._release.cancel()
        self._release = loop.call_at(until, self._view.release)

    def _wake(self) -> None:
        for revision, future in self._waiters:
            if revision <= self._view.revision and not future.done():
                future.set_result(None)


@contextlib.contextmanager
def _translated() -> Any:
    try:
        yield
    except grpc.aio.AioRpcError as error:
        raise EtcdError(error.code(), error.details() or "") from error
