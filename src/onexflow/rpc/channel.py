"""Channel and server options of gRPC, in one place.

`grpc.http2.ping_timeout_ms` is what bounds the wait for a ping's answer; `grpc.keepalive_timeout_ms` alone has no effect
in grpcio up to 1.85 (65 s instead of 7 s). A dead connection is found after 10 + 5 s at the most.
"""

from __future__ import annotations

import functools
from typing import Any, Final, cast

import grpc

from onexflow.codec.wire.common import MAX_MESSAGE

#: Metadata of a call that an orchestrator passes on to another one.
FORWARDED_MARK: Final = "onexflow-forwarded"

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
    ("grpc.min_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_http_proxy", 0),
)

_SERVER: Final = (
    *_COMMON,
    ("grpc.so_reuseport", 0),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 1_000),
    ("grpc.http2.max_ping_strikes", 0),
)


def client_options() -> list[tuple[str, Any]]:
    """Options of every channel that we open."""
    return list(_CLIENT)


def server_options() -> list[tuple[str, Any]]:
    """Options of the orchestrator's server."""
    return list(_SERVER)


class _Forwarding:
    """A channel whose calls are marked as passed on. No interceptors: those of grpc.aio take a cancellation while a
    stream connects for its end, so that who is cancelled goes on."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._channel = channel

    async def close(self) -> None:
        await self._channel.close()

    def __getattr__(self, kind: str) -> Any:
        """unary_unary and the like."""
        make = getattr(self._channel, kind)

        def made(*arguments: Any, **options: Any) -> Any:
            return functools.partial(make(*arguments, **options), metadata=((FORWARDED_MARK, "1"),))

        return made


def open_channel(
    address: str, *, ping: tuple[float, float] | None = None, forwarding: bool = False
) -> grpc.aio.Channel:
    """A channel to host:port. It connects when it is first used; close it.

    `ping`: seconds of silence before a ping and those for its answer, where the general 10 + 5 are too slow.
    `forwarding`: what is sent is passed on for others, and is not to be passed on again.
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
    channel = grpc.aio.insecure_channel(address, options=options)
    return cast("grpc.aio.Channel", _Forwarding(channel)) if forwarding else channel
