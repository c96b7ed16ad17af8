"""Calls to etcd: one channel an endpoint, sticky until it fails, every call with a deadline of its own.

Only requests that are harmless when done twice go through `call`, which repeats them on another endpoint: reads,
revocations, and transactions whose comparisons fail the second time (every write of ours compares the key's last
revision). What an answer that never came did, the next look shows.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol, TypeVar

import grpc
import grpc.aio
from tenacity import AsyncRetrying, retry_if_exception, stop_after_delay, wait_random_exponential

from onexflow.registry.etcd.access import AUTHENTICATE, EtcdError, Login, Metadata
from onexflow.registry.etcd.url import EtcdSettings
from onexflow.registry.etcd.v1 import etcd_pb2 as pb
from onexflow.telemetry import metrics, names

#: `grpc.keepalive_timeout_ms` does nothing in grpcio up to 1.85; the ping timeout decides (60 s unless set). etcd
#: answers pings that come oftener than every 5 s with GOAWAY. The connect timeout is the minimum reconnect backoff.
CHANNEL_OPTIONS: Final[tuple[tuple[str, int], ...]] = (
    ("grpc.keepalive_time_ms", 6000),
    ("grpc.http2.ping_timeout_ms", 2000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1000),
    ("grpc.max_reconnect_backoff_ms", 500),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.max_receive_message_length", 64 << 20),
    ("grpc.enable_http_proxy", 0),
)

#: Keys an answer. A value of ours is some hundred bytes; the largest that etcd takes is 1.5 MiB.
_PAGE: Final = 500

RANGE: Final = "/etcdserverpb.KV/Range"
TXN: Final = "/etcdserverpb.KV/Txn"
COMPACT: Final = "/etcdserverpb.KV/Compact"
WATCH: Final = "/etcdserverpb.Watch/Watch"
LEASE_GRANT: Final = "/etcdserverpb.Lease/LeaseGrant"
LEASE_REVOKE: Final = "/etcdserverpb.Lease/LeaseRevoke"
LEASE_KEEP_ALIVE: Final = "/etcdserverpb.Lease/LeaseKeepAlive"
STATUS: Final = "/etcdserverpb.Maintenance/Status"


class Message(Protocol):
    """What is used of a generated message."""

    def SerializeToString(self) -> bytes: ...  # noqa: N802 - protobuf's name


_Answer = TypeVar("_Answer")


class Endpoints:
    """Which endpoint is used now: one until it fails, then the next; the first is drawn."""

    def __init__(self, endpoints: Sequence[str]) -> None:
        self.all = random.sample(list(endpoints), len(endpoints))
        self._at = 0
        #: What each endpoint failed with last; those that answered last are not in it.
        self.failures: dict[str, EtcdError] = {}

    @property
    def current(self) -> str:
        return self.all[self._at]

    def answered(self, endpoint: str) -> None:
        self.failures.pop(endpoint, None)

    def failed(self, endpoint: str, error: EtcdError) -> None:
        """Remember why, and leave the endpoint if another one may do better."""
        self.failures[endpoint] = error
        if error.transient:
            self.rotate(endpoint)

    def rotate(self, failed: str) -> None:
        """Leave `failed`, unless somebody has already."""
        if failed == self.current:
            self._at = (self._at + 1) % len(self.all)


class EtcdClient:
    """The asynchronous half of the client. Make it, use it and close it on one event loop."""

    def __init__(self, settings: EtcdSettings) -> None:
        self.settings = settings
        self.endpoints = Endpoints(settings.endpoints)
        self.login = Login(settings.access)
        self._logging_in = asyncio.Lock()
        self._ambiguous = metrics.counter(names.REGISTRY_AMBIGUOUS)
        self._channels: dict[str, grpc.aio.Channel] = {}
        #: The state of the TLS files when each channel was made.
        self._stamps: dict[str, tuple[int, ...]] = {}
        self._replaced: list[grpc.aio.Channel] = []

    def channel(self, endpoint: str) -> grpc.aio.Channel:
        """The channel to an endpoint. Raises EtcdError when the files of TLS cannot be read."""
        channel = self._channels.get(endpoint)
        if channel is None:
            self._stamps[endpoint] = self.settings.access.stamp()
            try:
                credentials = self.settings.access.credentials()
            except OSError as error:
                raise EtcdError(
                    grpc.StatusCode.UNAVAILABLE, f"cannot read {error.filename}: {error.strerror}"
                ) from error
            if credentials is None:
                channel = grpc.aio.insecure_channel(endpoint, options=CHANNEL_OPTIONS)
            else:
                channel = grpc.aio.secure_channel(endpoint, credentials, options=CHANNEL_OPTIONS)
            self._channels[endpoint] = channel
        return channel

    async def close(self) -> None:
        for channel in (*self._channels.values(), *self._replaced):
            await channel.close()
        self._channels.clear()
        self._replaced.clear()

    async def once(self, path: str, request: Message, answer: Callable[[bytes], _Answer]) -> _Answer:
        """One try, on the current endpoint, which is left if it does not answer; two, when etcd no longer knew our
        token. Raises EtcdError."""
        endpoint = self.endpoints.current
        metadata = await self.metadata(endpoint)
        try:
            return await self._ask(endpoint, path, request, answer, metadata)
        except EtcdError as error:
            if not error.unknown_token or not self.login.forget(metadata):
                raise
        return await self._ask(endpoint, path, request, answer, await self.metadata(endpoint))

    async def metadata(self, endpoint: str) -> Metadata:
        """What to show with a call: our token, after logging in if there is none. Raises EtcdError."""
        if self.login.due:
            async with self._logging_in:
                if self.login.due:
                    request = self.login.request()
                    try:
                        answer = await self._ask(
                            endpoint, AUTHENTICATE, request, pb.AuthenticateResponse.FromString, ()
                        )
                    except EtcdError as error:
                        self.login.failed(error)
                    else:
                        self.login.succeeded(answer)
        return self.login.metadata

    async def _ask(
        self, endpoint: str, path: str, request: Message, answer: Callable[[bytes], _Answer], metadata: Metadata
    ) -> _Answer:
        try:
            method: Any = self.channel(endpoint).unary_unary(
                path, request_serializer=_serialize, response_deserializer=answer
            )
            timeout = self.settings.login_timeout if path == AUTHENTICATE else self.settings.try_timeout
            result: _Answer = await method(request, timeout=timeout, metadata=metadata)
        except grpc.aio.AioRpcError as error:
            # Its frames hold the call, and that the connection, of a closed channel, too, for as long as anybody has the error.
            error.__traceback__ = None
            failure = EtcdError(error.code(), error.details() or "")
            if path == TXN and failure.transient:
                self._ambiguous.add(1)
            self.failed(endpoint, failure)
            raise failure from error
        except EtcdError as error:
            self.failed(endpoint, error)
            raise
        self.endpoints.answered(endpoint)
        return result

    def failed(self, endpoint: str, error: EtcdError) -> None:
        """The endpoint did not do what it was asked. If the files of TLS were replaced since, they serve the next try."""
        self.endpoints.failed(endpoint, error)
        if error.transient and self._stamps.get(endpoint) != self.settings.access.stamp():
            channel = self._channels.pop(endpoint, None)
            if channel is not None:  # not closed: that would cancel who still waits for something on it
                self._replaced.append(channel)

    async def call(
        self, path: str, request: Message, answer: Callable[[bytes], _Answer], *, total: float | None = None
    ) -> _Answer:
        """Tries until an endpoint answers. The request must be harmless when done twice. Raises EtcdError."""
        retrying = AsyncRetrying(
            retry=retry_if_exception(lambda error: isinstance(error, EtcdError) and error.transient),
            wait=wait_random_exponential(multiplier=0.05, max=0.5),
            stop=stop_after_delay(self.settings.call_timeout if total is None else total),
            sleep=asyncio.sleep,
            reraise=True,
        )
        return await retrying(self.once, path, request, answer)

    async def range(self, prefix: bytes) -> pb.RangeResponse:
        """All keys under a prefix as they were at one revision (the header's), linearizable; in pages, as an answer may
        not be larger than a message. Raises EtcdError, also when that revision is compacted meanwhile."""
        request = pb.RangeRequest(key=prefix, range_end=prefix_end(prefix), limit=_PAGE)
        whole = page = await self.call(RANGE, request, pb.RangeResponse.FromString)
        while page.more:
            request.key = page.kvs[-1].key + b"\0"
            request.revision = whole.header.revision
            page = await self.call(RANGE, request, pb.RangeResponse.FromString)
            whole.kvs.extend(page.kvs)
        return whole

    async def txn(self, request: pb.TxnRequest) -> pb.TxnResponse:
        """A transaction whose comparisons make a second try harmless."""
        return await self.call(TXN, request, pb.TxnResponse.FromString)

    async def revoke(self, lease: int, *, total: float | None = None) -> None:
        """End a lease; it may be gone already."""
        try:
            await self.call(
                LEASE_REVOKE, pb.LeaseRevokeRequest(id=lease), pb.LeaseRevokeResponse.FromString, total=total
            )
        except EtcdError as error:
            if error.code is not grpc.StatusCode.NOT_FOUND:
                raise

    async def status(self) -> pb.StatusResponse:
        return await self.call(STATUS, pb.StatusRequest(), pb.StatusResponse.FromString)

    async def compact(self, revision: int) -> None:
        """Make etcd forget what was before `revision` (tests and operators)."""
        await self.once(COMPACT, pb.CompactionRequest(revision=revision), pb.CompactionResponse.FromString)


def prefix_end(prefix: bytes) -> bytes:
    """The end of the range of all keys that start with `prefix`."""
    return prefix[:-1] + bytes([prefix[-1] + 1])


def put_op(key: bytes, value: bytes, lease: int = 0) -> pb.RequestOp:
    return pb.RequestOp(request_put=pb.PutRequest(key=key, value=value, lease=lease))


def range_op(key: bytes) -> pb.RequestOp:
    return pb.RequestOp(request_range=pb.RangeRequest(key=key))


def delete_op(key: bytes) -> pb.RequestOp:
    return pb.RequestOp(request_delete_range=pb.DeleteRangeRequest(key=key))


def last_write_is(key: bytes, revision: int) -> pb.Compare:
    """Holds while the key's last write is this one; 0: while there is no such key."""
    return pb.Compare(result=0, target=2, key=key, mod_revision=revision)


def _serialize(message: Message) -> bytes:
    return message.SerializeToString()
