"""Addresses, channels and unary calls: which orchestrator is asked, and what its errors become."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Final, TypeVar

import grpc
from tenacity import AsyncRetrying, retry_if_exception, stop_after_delay

from onexflow.config import DEFAULT_ADDRESS
from onexflow.core.address import split_address
from onexflow.core.errors import (
    Draining,
    InvalidArgument,
    InvalidConfiguration,
    NotSecured,
    PermissionDenied,
    ShardMoved,
    Unauthenticated,
    Unavailable,
)
from onexflow.rpc.channel import open_channel, pause
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

#: How gRPC itself says that a stream has broken, beside UNAVAILABLE: when that was in the middle of a write, for one.
_BROKEN: Final = frozenset({grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.CANCELLED})


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
        #: Those that were given, and stay; others are learnt from the orchestrators.
        self._given = addresses
        self._present = addresses[0]
        #: Whose stubs are given out instead of the present one's.
        self._asked = ""
        self._owners: dict[str, Channels] = {}
        #: With the version of the certificates that each was opened with.
        self._channels: dict[str, tuple[grpc.aio.Channel, int]] = {}
        #: Channels with certificates of before, whose calls may end.
        self._retired: dict[asyncio.Task[None], grpc.aio.Channel] = {}
        #: A stub has a callable for each of its methods: too much to make for each call.
        self._stubs: dict[tuple[str, object], Any] = {}

    @property
    def address(self) -> str:
        return self._asked or self._present

    def learn(self, addresses: Iterable[str]) -> None:
        """These orchestrators are there, beside those that were given. Where a token would travel in the clear, none is."""
        known = dict.fromkeys((*self._given, *filter(self._may_ask, addresses), self._present))
        self.addresses = tuple(known)

    def _may_ask(self, address: str) -> bool:
        try:
            self._security.check(address)
        except InvalidConfiguration:
            return False
        return True

    def at(self, address: str) -> Channels:
        """The channel to one orchestrator alone."""
        found = self._owners.get(address)
        if found is None:
            found = self._owners[address] = Channels((address,), forwarding=self.forwarding, security=self._security)
        return found

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
        if address == self._present:
            place = self.addresses.index(address)
            self._present = self.addresses[(place + 1) % len(self.addresses)]

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
        if error.code() in _BROKEN and not is_answer(error):
            return Unavailable(f"{self.address}: {error.details()}", {"code": error.code().name})
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

    async def unary(self, call: Callable[[float], Awaitable[Answer]], timeout: float, owner: str = "") -> Answer:
        """The answer to a unary call, `call(seconds)`; its errors are ours. `owner`: the address to ask first.

        A call that reached no orchestrator, or one that is not the one to ask, is repeated until `timeout` is over:
        reading twice is harmless, and what changes something carries a request_id.
        """
        clock = asyncio.get_running_loop().time
        deadline = clock() + timeout
        asked = ""
        attempts = AsyncRetrying(
            retry=retry_if_exception(lambda error: self.ask_again(error, asked)),
            wait=pause,
            stop=stop_after_delay(timeout),
            reraise=True,
        )
        try:
            async for attempt in attempts:
                with attempt:
                    self._asked, owner = owner, ""
                    asked = self.address
                    try:
                        answer = call(max(0.001, deadline - clock()))  # it takes its stub now
                    finally:
                        self._asked = ""
                    return await answer
        except grpc.aio.AioRpcError as error:
            raise self.error_of(error) from error
        raise AssertionError("unreachable: the last attempt's error is raised")

    def ask_again(self, error: BaseException, asked: str = "") -> bool:
        """Is this no answer to the call, but only to the question whom to ask? Then the next orchestrator is. `asked`: the
        address, when it need not be the present one."""
        # CANCELLED: by the other end, which has ended in the middle of the call. One that this end gives up raises
        # CancelledError.
        if self.forwarding or not isinstance(error, grpc.aio.AioRpcError):
            return False
        if error.code() not in _UNREACHED and not isinstance(self.error_of(error), Unavailable):
            return False
        if not is_answer(error) or isinstance(self.error_of(error), (Draining, ShardMoved)):
            self.failed(asked or self.address)
            return True
        return False

    async def close(self) -> None:
        for one in self._owners.values():
            await one.close()
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
