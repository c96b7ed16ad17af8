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

from onexflow.registry.etcd.url import EtcdSettings
from onexflow.registry.etcd.v1 import etcd_pb2 as pb

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
    ("grpc.max_receive_message_length", 16 << 20),
    ("grpc.enable_http_proxy", 0),
)

RANGE: Final = "/etcdserverpb.KV/Range"
TXN: Final = "/etcdserverpb.KV/Txn"
COMPACT: Final = "/etcdserverpb.KV/Compact"
WATCH: Final = "/etcdserverpb.Watch/Watch"
LEASE_GRANT: Final = "/etcdserverpb.Lease/LeaseGrant"
LEASE_REVOKE: Final = "/etcdserverpb.Lease/LeaseRevoke"
LEASE_KEEP_ALIVE: Final = "/etcdserverpb.Lease/LeaseKeepAlive"
STATUS: Final = "/etcdserverpb.Maintenance/Status"

#: Statuses after which another try may succeed. UNKNOWN and INTERNAL are what etcd and broken connections answer.
TRANSIENT: Final = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.ABORTED,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
    }
)


class Message(Protocol):
    """What is used of a generated message."""

    def SerializeToString(self) -> bytes: ...  # noqa: N802 - protobuf's name


_Answer = TypeVar("_Answer")


class EtcdError(Exception):
    """A call failed. Never leaves this package."""

    def __init__(self, code: grpc.StatusCode, detail: str) -> None:
        super().__init__(f"{code.name}: {detail}")
        self.code = code
        self.detail = detail

    @property
    def transient(self) -> bool:
        return self.code in TRANSIENT


class Endpoints:
    """Which endpoint is used now: one until it fails, then the next; the first is drawn."""

    def __init__(self, endpoints: Sequence[str]) -> None:
        self.all = random.sample(list(endpoints), len(endpoints))
        self._at = 0

    @property
    def current(self) -> str:
        return self.all[self._at]

    def rotate(self, failed: str) -> None:
        """Leave `failed`, unless somebody has already."""
        if failed == self.current:
            self._at = (self._at + 1) % len(self.all)


class EtcdClient:
    """The asynchronous half of the client. Make it, use it and close it on one event loop."""

    def __init__(self, settings: EtcdSettings) -> None:
        self.settings = settings
        self.endpoints = Endpoints(settings.endpoints)
        self._channels: dict[str, grpc.aio.Channel] = {}

    def channel(self, endpoint: str) -> grpc.aio.Channel:
        channel = self._channels.get(endpoint)
        if channel is None:
            channel = grpc.aio.insecure_channel(endpoint, options=CHANNEL_OPTIONS)
            self._channels[endpoint] = channel
        return channel

    async def close(self) -> None:
        for channel in self._channels.values():
            await channel.close()
        self._channels.clear()

    async def once(self, path: str, request: Message, answer: Callable[[bytes], _Answer]) -> _Answer:
        """One try, on the current endpoint, which is left if it does not answer. Raises EtcdError."""
        endpoint = self.endpoints.current
        method: Any = self.channel(endpoint).unary_unary(
            path, request_serializer=_serialize, response_deserializer=answer
        )
        try:
            result: _Answer = await method(request, timeout=self.settings.try_timeout)
        except grpc.aio.AioRpcError as error:
            failure = EtcdError(error.code(), error.details() or "")
            if failure.transient:
                self.endpoints.rotate(endpoint)
            raise failure from error
        return result

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
        """All keys under a prefix, linearizable."""
        request = pb.RangeRequest(key=prefix, range_end=prefix_end(prefix))
        return await self.call(RANGE, request, pb.RangeResponse.FromString)

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
