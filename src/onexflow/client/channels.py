"""Addresses, channels and unary calls: which orchestrator is asked, and what its errors become."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Final, TypeVar

import grpc
from tenacity import AsyncRetrying, retry_if_exception, stop_after_delay, wait_random_exponential

from onexflow.config import DEFAULT_ADDRESS
from onexflow.core.address import split_address
from onexflow.core.errors import (
    Draining,
    InvalidArgument,
    NotSecured,
    PermissionDenied,
    ShardMoved,
    Unauthenticated,
    Unavailable,
)
from onexflow.rpc.channel import open_channel
from onexflow.rpc.status import DETAILS, from_rpc_error
from onexflow.rpc.tls import ClientSecurity
from onexflow.spi.exceptions import SPIError
from onexflow.v1 import (
    admin_pb2_grpc,
    events_pb2_grpc,
    nodes_pb2_grpc,
    persistence_pb2_grpc,
    queue_pb2_grpc,
    workflow_pb2_grpc,
)

Answer = TypeVar("Answer")
Stub = TypeVar("Stub")
#: Seconds that calls have to end on a connection with certificates that were replaced.
RETIRED_WITHIN: Final = 30.0
#: Codes of calls that may have reached nobody.
_UNREACHED: Final = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED})


def parse_addresses(addresses: str | Iterable[str] | None) -> tuple[str, ...]:
    """`host:port`, several parted by commas, or a list; default: ONEXFLOW_ADDRESS, else 127.0.0.1:7411."""
    given = addresses or os.environ.get("ONEXFLOW_ADDRESS") or DEFAULT_ADDRESS
    names = [part.strip() for part in (given.split(",") if isinstance(given, str) else given)]
    for name in names:
        if split_address(name) is None:
            raise InvalidArgument(
                f"address {name!r}: host:port is needed, for example {DEFAULT_ADDRESS}", field="address"
            )
    return tuple(dict.fromkeys(names))


class Channels:
    """One channel an orchestrator, opened when first used. The present one is used until it fails, then the next."""

    def __init__(
        self, addresses: tuple[str, ...], *, forwarding: bool = False, security: ClientSecurity | None = None
    ) -> None:
        """`forwarding`: of an orchestrator, for calls of others. Whoever is asked is the one to ask, or says who is.
        Raises InvalidConfiguration where a token would travel in the clear."""
        self.addresses = addresses
        self.forwarding = forwarding
        self._security = security or ClientSecurity()
        for address in addresses:
            self._security.check(address)
        self._present = 0
        #: With the version of the certificates that each was opened with.
        self._channels: dict[str, tuple[grpc.aio.Channel, int]] = {}
        #: Channels with certificates of before, whose calls may end.
        self._retired: dict[asyncio.Task[None], grpc.aio.Channel] = {}
        #: A stub has a callable for each of its methods: too much to make for each call.
        self._stubs: dict[tuple[str, object], Any] = {}

    @property
    def address(self) -> str:
        return self.addresses[self._present]

    @property
    def workflows(self) -> workflow_pb2_grpc.WorkflowServiceAsyncStub:
        return self._stub(workflow_pb2_grpc.WorkflowServiceStub)

    @property
    def admin(self) -> admin_pb2_grpc.AdminServiceAsyncStub:
        return self._stub(admin_pb2_grpc.AdminServiceStub)

    @property
    def queues(self) -> queue_pb2_grpc.WorkQueueServiceAsyncStub:
        return self._stub(queue_pb2_grpc.WorkQueueServiceStub)

    @property
    def nodes(self) -> nodes_pb2_grpc.NodeRegistryServiceAsyncStub:
        return self._stub(nodes_pb2_grpc.NodeRegistryServiceStub)

    @property
    def events(self) -> events_pb2_grpc.EventBusServiceAsyncStub:
        return self._stub(events_pb2_grpc.EventBusServiceStub)

    @property
    def persistence(self) -> persistence_pb2_grpc.PersistenceServiceAsyncStub:
        return self._stub(persistence_pb2_grpc.PersistenceServiceStub)

    def _stub(self, kind: Callable[[grpc.aio.Channel], Stub]) -> Stub:
        place = (self.address, kind)
        if place not in self._stubs:
            self._stubs[place] = kind(self._channel())
        stub: Stub = self._stubs[place]
        return stub

    def _channel(self) -> grpc.aio.Channel:
        address = self.address
        if address not in self._channels:
            channel = open_channel(address, forwarding=self.forwarding, security=self._security)
            self._channels[address] = channel, self._security.version()
        return self._channels[address][0]

    def failed(self, address: str) -> None:
        """That orchestrator did not answer: go on with the next one."""
        self.follow_certificates()
        if address == self.address:
            self._present = (self._present + 1) % len(self.addresses)

    def follow_certificates(self) -> None:
        """If they were replaced, connect anew from now on; what is under way on the old connections may end."""
        now = self._security.version()
        for address, (channel, version) in list(self._channels.items()):
            if version != now:
                del self._channels[address]
                self._stubs = {place: stub for place, stub in self._stubs.items() if place[0] != address}
                closing = asyncio.get_running_loop().create_task(channel.close(RETIRED_WITHIN))
                self._retired[closing] = channel
                closing.add_done_callback(lambda task: self._retired.pop(task, None))

    def error_of(self, error: grpc.aio.AioRpcError) -> SPIError:
        found = from_rpc_error(error)
        if self.forwarding and isinstance(found, Unauthenticated):  # not the caller's fault
            hint = "Give the orchestrators a token, or certificates, of an identity with the role member."
            return PermissionDenied(
                f"this orchestrator is not known at {self.address}, and can pass nothing on: {found}",
                {**found.context, "address": self.address, "hint": hint},
            )
        return found

    def unavailable(self, cause: BaseException | None) -> Unavailable:
        where = ", ".join(self.addresses)
        context = {"addresses": list(self.addresses), "cause": str(cause)}
        if isinstance(cause, NotSecured):
            return NotSecured(f"no secure connection to {where}: {cause}", {**cause.context, **context})
        return Unavailable(f"no orchestrator answers at {where}: {cause}", context)

    async def unary(self, call: Callable[[float], Awaitable[Answer]], timeout: float) -> Answer:
        """The answer to a unary call, `call(seconds)`; its errors are ours.

        A call that reached no orchestrator, or one that is not the one to ask, is repeated until `timeout` is over:
        reading twice is harmless, and what changes something carries a request_id.
        """
        clock = asyncio.get_running_loop().time
        deadline = clock() + timeout
        attempts = AsyncRetrying(
            retry=retry_if_exception(self.ask_again),
            wait=wait_random_exponential(multiplier=0.05, max=1.0),
            stop=stop_after_delay(timeout),
            reraise=True,
        )
        try:
            async for attempt in attempts:
                with attempt:
                    return await call(max(0.001, deadline - clock()))
        except grpc.aio.AioRpcError as error:
            raise self.error_of(error) from error
        raise AssertionError("unreachable: the last attempt's error is raised")

    def ask_again(self, error: BaseException) -> bool:
        """Is this no answer to the call, but only to the question whom to ask? Then the next orchestrator is."""
        # CANCELLED: by the other end, which has ended in the middle of the call. One that this end gives up raises
        # CancelledError.
        if self.forwarding or not isinstance(error, grpc.aio.AioRpcError) or error.code() not in _UNREACHED:
            return False
        if not is_answer(error) or isinstance(self.error_of(error), (Draining, ShardMoved)):
            self.failed(self.address)
            return True
        return False

    async def close(self) -> None:
        retired = dict(self._retired)
        for task in retired:
            task.cancel()
        for channel in (*retired.values(), *(channel for channel, _ in self._channels.values())):
            await channel.close()
        await asyncio.gather(*retired, return_exceptions=True)
        self._channels.clear()
        self._stubs.clear()


def is_answer(error: grpc.aio.AioRpcError) -> bool:
    """Did an orchestrator say this (then it has details), or the channel?"""
    return any(key == DETAILS for key, _ in error.trailing_metadata() or ())
