"""Channel and server options of gRPC, in one place.

`grpc.http2.ping_timeout_ms` is what bounds the wait for a ping's answer; `grpc.keepalive_timeout_ms` alone has no effect
in grpcio up to 1.85 (65 s instead of 7 s). A dead connection is found after 10 + 5 s at the most.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any, Final, Self, cast

import grpc
from tenacity import RetryCallState

from onexflow.codec.wire.common import MAX_MESSAGE
from onexflow.core.identity import ON_BEHALF
from onexflow.rpc.tls import ClientSecurity

Metadata = tuple[tuple[str, str], ...]

#: Metadata of a call that an orchestrator passes on to another one; whose call it is, and the roles of that caller.
FORWARDED_MARK: Final = "onexflow-forwarded"
PRINCIPAL: Final = "onexflow-principal"
PRINCIPAL_ROLES: Final = "onexflow-principal-roles"

_PING_EVERY_MS: Final = 10_000
_PING_TIMEOUT_MS: Final = 5_000

_COMMON: Final = (
    ("grpc.max_receive_message_length", MAX_MESSAGE),
    ("grpc.max_send_message_length", MAX_MESSAGE),
    ("grpc.max_metadata_size", 32 << 10),
    ("grpc.absolute_max_metadata_size", 64 << 10),
    ("grpc.keepalive_time_ms", _PING_EVERY_MS),
    ("grpc.keepalive_timeout_ms", _PING_TIMEOUT_MS),
    ("grpc.http2.ping_timeout_ms", _PING_TIMEOUT_MS),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
)

_CLIENT: Final = (
    *_COMMON,
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 200),
    ("grpc.min_reconnect_backoff_ms", 1_000),  # what a connection may take to come up
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_http_proxy", 0),
)

_SERVER: Final = (
    *_COMMON,
    ("grpc.so_reuseport", 0),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 1_000),
    ("grpc.http2.max_ping_strikes", 0),
)

#: Seconds between attempts to connect: at most this share of the time for which nobody has answered, within these bounds.
_PAUSE_SHARE: Final = 0.1
_PAUSES: Final = (0.05, 1.0)


def pause(state: RetryCallState) -> float:
    """Seconds until the next attempt to connect (a `wait` of tenacity).

    Who is away for a second, as a process that is started again, is found within a tenth of one; who stays away is asked
    once a second.
    """
    shortest, longest = _PAUSES
    return random.uniform(0.0, min(max(_PAUSE_SHARE * (state.seconds_since_start or 0.0), shortest), longest))


def client_options() -> list[tuple[str, Any]]:
    """Options of every channel that we open."""
    return list(_CLIENT)


def server_options() -> list[tuple[str, Any]]:
    """Options of the orchestrator's server."""
    return list(_SERVER)


class _Saying:
    """A channel whose calls carry metadata. No interceptors: those of grpc.aio take a cancellation while a stream
    connects for its end, so that who is cancelled goes on."""

    def __init__(self, channel: grpc.aio.Channel, metadata: Callable[[], Metadata]) -> None:
        self._channel = channel
        self._metadata = metadata

    async def close(self, grace: float | None = None) -> None:
        await self._channel.close(grace)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def __getattr__(self, kind: str) -> Any:
        """unary_unary and the like."""
        make = getattr(self._channel, kind)

        def made(*arguments: Any, **options: Any) -> Any:
            call = make(*arguments, **options)
            return lambda *given, **named: call(*given, **named, metadata=self._metadata())

        return made


def open_channel(
    address: str,
    *,
    ping: tuple[float, float] | None = None,
    forwarding: bool = False,
    security: ClientSecurity | None = None,
) -> grpc.aio.Channel:
    """A channel to host:port. It connects when it is first used; close it.

    `ping`: seconds of silence before a ping and those for its answer, where the general 10 + 5 are too slow.
    `forwarding`: what is sent is passed on for others, and is not to be passed on again.
    `security`: TLS and token; None: neither. Raises InvalidConfiguration where a token would travel in the clear.
    """
    options = client_options()
    if ping is not None:
        every, within = (round(1000 * seconds) for seconds in ping)
        quick = {
            "grpc.keepalive_time_ms": every,
            "grpc.keepalive_timeout_ms": within,
            "grpc.http2.ping_timeout_ms": within,
        }
        options = [(name, quick.get(name, value)) for name, value in options]
    security = security or ClientSecurity()
    channel = security.open(address, options)
    if not (forwarding or security.has_token):
        return channel

    def metadata() -> Metadata:
        return (*security.metadata(), *(on_behalf() if forwarding else ()))

    return cast("grpc.aio.Channel", _Saying(channel, metadata))


def on_behalf() -> Metadata:
    """What an orchestrator says with a call that it passes on: that it does, and for whom."""
    caller = ON_BEHALF.get()
    if caller is None or not caller.name:
        return ((FORWARDED_MARK, "1"),)
    return (
        (FORWARDED_MARK, "1"),
        (PRINCIPAL, caller.name),
        (PRINCIPAL_ROLES, ",".join(sorted(caller.roles))),
    )
