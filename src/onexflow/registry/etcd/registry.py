"""`ports.registry.Registry` on etcd: the watch feeds the view, the plan says what is missing, transactions write it."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import Coroutine
from itertools import groupby
from typing import Any

import grpc
import structlog

from onexflow.core.errors import RegistryUnavailable
from onexflow.ports.registry import NodeRecord, RegistryHealth
from onexflow.registry import keys
from onexflow.registry.base import BaseRegistry, Write
from onexflow.registry.etcd.access import EtcdError, explain
from onexflow.registry.etcd.client import EtcdClient, delete_op, last_write_is, put_op, range_op
from onexflow.registry.etcd.lease import LeaseKeeper
from onexflow.registry.etcd.url import EtcdSettings
from onexflow.registry.etcd.v1 import etcd_pb2 as pb
from onexflow.registry.etcd.watch import Watcher
from onexflow.telemetry import metrics, names

_log = structlog.get_logger("onexflow.registry")

#: etcd refuses a transaction of more than 128 operations.
_BATCH = 100
#: How long a caller waits for its own write to be seen before it goes on: it is remembered anyway.
_SETTLE = 2.0


class EtcdRegistry(BaseRegistry):
    """One process's membership in etcd. Start, use and close it on one event loop."""

    def __init__(self, settings: EtcdSettings) -> None:
        super().__init__()
        self._settings = settings
        self._prefix = settings.prefix.encode()
        self._client = EtcdClient(settings)
        self._watcher = Watcher(
            self._client,
            self.view,
            on_live=self._live,
            on_failure=self._not_live,
            expiry_suspect=self._expiry_suspect,
        )
        self._keeper = LeaseKeeper(settings, self._leased_on_thread, self._unleased_on_thread)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._lease = 0
        self._lease_failure: Exception | None = None
        #: etcd lets us read, and not write.
        self._refusal: EtcdError | None = None
        self._dirty = asyncio.Event()
        self._settled: set[asyncio.Future[None]] = set()
        self._to_revoke: set[int] = set()
        #: The view is there and the lease is; or etcd has said no to who we are.
        self._ready = asyncio.Event()
        self._refused = False
        self._closed = False

    # ------------------------------------------------------------------------------------------- life
    async def start(self) -> None:
        if self._loop is not None or self._closed:
            return
        self._loop = asyncio.get_running_loop()
        self._keeper.start()
        metrics.observe(names.REGISTRY_LEASE, self._lease_left)
        self._spawn(self._watcher.run())
        try:
            async with asyncio.timeout(self._settings.start_timeout):
                await self._ready.wait()
        except TimeoutError as error:
            unavailable = self._unavailable()
            await self._end()
            raise unavailable from error
        except asyncio.CancelledError:
            await self._end()
            raise
        if self._refused:
            unavailable = self._unavailable()
            await self._end()
            raise unavailable
        self._spawn(self._write())

    def _unavailable(self) -> RegistryUnavailable:
        """Why the start came to nothing: in words where they are known, else what each endpoint did."""
        settings = self._settings
        places = ", ".join(settings.endpoints)
        whys = {**self._keeper.failures, **self._client.endpoints.failures}
        whys = {endpoint: whys[endpoint] for endpoint in settings.endpoints if endpoint in whys}
        told = [error for error in (*whys.values(), self._lease_failure, self._watcher.failure) if error is not None]
        told.sort(key=lambda error: not (isinstance(error, EtcdError) and error.refusal))
        said = "; ".join(f"{endpoint}: {error}" for endpoint, error in whys.items()) or "no answer"
        context: dict[str, Any] = {"endpoints": list(settings.endpoints), "error": said}
        known = [words for error in told if (words := explain(error, settings.access, settings.prefix))]
        if known:
            cause, context["hint"] = known[0]
            return RegistryUnavailable(f"{cause} ({said})", context)
        within = f"within {settings.start_timeout:g} s"
        return RegistryUnavailable(f"etcd does not answer at {places} {within} ({said}).", context)

    async def close(self) -> None:
        started = self._loop is not None and not self._closed
        await self._end(revoke=started)

    async def crash(self) -> None:
        """Be gone as a killed process is: nothing is revoked, the lease runs out (for tests)."""
        await self._end()

    async def _end(self, *, revoke: bool = False) -> None:
        if self._closed:
            return
        self._closed = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()
        self._resolve()
        await asyncio.to_thread(self._keeper.stop)
        lease = self._keeper.lease
        if revoke and lease:
            try:
                await self._client.revoke(lease, total=self._settings.try_timeout)
            except EtcdError as error:  # it ends by itself
                _log.info("revocation.failed", error=str(error))
        await self._client.close()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        self._tasks.append(asyncio.get_running_loop().create_task(work))

    # ------------------------------------------------------------------------------------------- the port
    async def revoke(self, record: NodeRecord) -> None:
        held = self.view.actual.get(keys.node_key(record.kind, record.node_id))
        found = keys.load_node(held.value) if held is not None else None
        if held is None or found is None or found.incarnation != record.incarnation or found.kind == "guest":
            return  # a guest's lease is that of an orchestrator
        self.view.drop_lease(held.lease)
        self._to_revoke.add(held.lease)
        await self._settle()

    def beat(self) -> None:
        self._keeper.beat()

    def health(self) -> RegistryHealth:
        where = ",".join(self._settings.endpoints)
        if self._loop is None or self._closed:
            return RegistryHealth(connected=False, kind="etcd", detail=f"{where}: not started")
        late = time.monotonic() - self._keeper.answered_at > self._keeper.gap
        if self._watcher.live and not late and self._refusal is None:
            return RegistryHealth(connected=True, kind="etcd", detail=where)
        failure = self._watcher.failure or self._refusal or self._lease_failure
        words = failure and explain(failure, self._settings.access, self._settings.prefix)
        why = f"{words[0]} {words[1]}" if words else failure or "the lease is not renewed"
        return RegistryHealth(connected=False, kind="etcd", detail=f"{where}: {why}")

    # ------------------------------------------------------------------------------------------- from the keeper
    def _leased_on_thread(self, lease: int) -> None:
        self._on_loop(self._leased, lease)

    def _unleased_on_thread(self, why: Exception) -> None:
        self._on_loop(self._unleased, why)

    def _on_loop(self, callback: Any, value: int | Exception) -> None:
        if self._loop is not None and not self._closed:
            with contextlib.suppress(RuntimeError):  # the loop has ended before us
                self._loop.call_soon_threadsafe(callback, value)

    def _leased(self, lease: int) -> None:
        self._lease = lease
        self._lease_failure = None
        self.suspect_all()
        self._touched()

    def _unleased(self, why: Exception) -> None:
        self._lease_failure = why
        self._not_live(why)

    def _not_live(self, why: Exception) -> None:
        if isinstance(why, EtcdError) and why.refusal:
            self._refused = True
            self._ready.set()

    def _live(self) -> None:
        self.suspect_all()
        self._touched()

    def _lease_left(self) -> list[tuple[float, metrics.Attributes]]:
        since = self._keeper.held_since
        if self._closed or not math.isfinite(since):
            return []
        return [(since + self._settings.ttl - time.monotonic(), {})]

    def _expiry_suspect(self) -> bool:
        """Whether leases may have ended because etcd was away, ours being proof that it did not renew."""
        now = time.monotonic()
        away = now - self._keeper.answered_at > self._keeper.gap
        return away or now - self._keeper.gap_ended_at < self._settings.return_time

    # ------------------------------------------------------------------------------------------- writing
    def _touched(self) -> None:
        if self._watcher.live and self._lease:
            self._ready.set()
        self._dirty.set()

    async def _settle(self) -> None:
        if not self._watcher.live or self._closed or not self._tasks:
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._settled.add(future)
        self._dirty.set()
        try:
            async with asyncio.timeout(_SETTLE):
                await future
        except TimeoutError:  # remembered: written as soon as etcd answers
            pass
        finally:
            self._settled.discard(future)

    def _resolve(self) -> None:
        for future in self._settled:
            if not future.done():
                future.set_result(None)

    async def _write(self) -> None:
        """Write what is missing, for ever; ends by cancellation only."""
        while True:
            await self._dirty.wait()
            self._dirty.clear()
            if not self._watcher.live or not self._lease:
                continue  # both say so when they are back
            waiting = tuple(self._settled)
            try:
                await self._revoke_all()
                if not await self._write_missing():
                    self._refusal = None
                    for future in waiting:
                        if not future.done():
                            future.set_result(None)
                    continue
            except EtcdError as error:
                if error.code is grpc.StatusCode.NOT_FOUND:  # "requested lease not found"
                    self._keeper.check()
                if (error.refusal or error.is_full) and self._refusal is None:
                    self._refusal = error
                    _log.warning("registry.refused", why=str(error))
                await asyncio.sleep(0.1)
            self._dirty.set()

    async def _revoke_all(self) -> None:
        while self._to_revoke:
            lease = next(iter(self._to_revoke))
            await self._client.revoke(lease)
            self._to_revoke.discard(lease)

    async def _write_missing(self) -> bool:
        """One round. Returns whether there was anything to write."""
        plan = sorted(self.plan(self._lease), key=lambda write: write.lease)
        failed: EtcdError | None = None
        for _, group in groupby(plan, key=lambda write: write.lease):
            writes = list(group)
            for at in range(0, len(writes), _BATCH):
                try:
                    await self._transact(writes[at : at + _BATCH])
                except (
                    EtcdError
                ) as error:  # another node's lease may be gone: that must not keep ours from being written
                    failed = error
        if failed is not None:
            raise failed
        return bool(plan)

    async def _transact(self, writes: list[Write]) -> None:
        """Do all of them, if nobody wrote any of the keys since the plan; then wait until the view has what is there."""
        request = pb.TxnRequest()
        for write in writes:
            key = self._prefix + write.key
            request.compare.append(last_write_is(key, write.after))
            request.success.append(delete_op(key) if write.value is None else put_op(key, write.value, write.lease))
            request.failure.append(range_op(key))
        answer = await self._client.txn(request)
        if answer.succeeded:
            seen = answer.header.revision
        else:
            seen = max((kv.mod_revision for op in answer.responses for kv in op.response_range.kvs), default=0)
        if not await self._watcher.reach(seen, self._settings.try_timeout) or not answer.succeeded:
            await asyncio.sleep(0.02)  # a deletion that the watch has still to tell
