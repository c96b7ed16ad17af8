"""Channel and server options of gRPC, in one place.

`grpc.http2.ping_timeout_ms` is what bounds the wait for a ping's answer; `grpc.keepalive_timeout_ms` alone has no effect
in grpcio up to 1.85 (65 s instead of 7 s). A dead connection is found after 10 + 5 s at the most.
"""

from __future__ import annotations

from typing import Any, Final

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


async def _marked(continuation: Any, details: Any, request: Any) -> Any:
    """The call, marked as one that is passed on."""
    metadata = grpc.aio.Metadata(*(details.metadata or ()), (FORWARDED_MARK, "1"))
    return await continuation(details._replace(metadata=metadata), request)


# A channel takes an interceptor for the first kind of call only that it is made for.
class _UnaryUnary(grpc.aio.UnaryUnaryClientInterceptor):
    async def intercept_unary_unary(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        return await _marked(continuation, client_call_details, request)


class _UnaryStream(grpc.aio.UnaryStreamClientInterceptor):
    async def intercept_unary_stream(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        return await _marked(continuation, client_call_details, request)


class _StreamStream(grpc.aio.StreamStreamClientInterceptor):
    async def intercept_stream_stream(self, continuation: Any, client_call_details: Any, request_iterator: Any) -> Any:
        return await _marked(continuation, client_call_details, request_iterator)


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
    interceptors = [_UnaryUnary(), _UnaryStream(), _StreamStream()] if forwarding else None
    return grpc.aio.insecure_channel(address, options=options, interceptors=interceptors)
