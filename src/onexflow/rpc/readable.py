"""Requests that cannot be read are told as what they are.

Of bytes that are no message of the method's type gRPC says UNKNOWN, with the name of a class of Python: the caller would look
for a fault of ours. (Streams read their messages themselves, and end with a ProtocolViolation: `rpc.stream`.)
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final

import grpc
from google.protobuf.message import DecodeError

from onexflow.core.errors import InvalidArgument
from onexflow.rpc.stream import Context, abort

Handler = Any
Behavior = Callable[[Any, Any], Awaitable[Any]]

_MAKERS: Final = {
    False: ("unary_unary", grpc.unary_unary_rpc_method_handler),
    True: ("unary_stream", grpc.unary_stream_rpc_method_handler),
}


class Readable:
    """What the generated `add_…_to_server` see as the server: it adds their handlers, with a word for what cannot be read."""

    def __init__(self, server: grpc.aio.Server) -> None:
        self._server = server

    def add_generic_rpc_handlers(self, handlers: Sequence[grpc.GenericRpcHandler]) -> None:
        """Nothing: what grpcio-tools 1.85 and later generate hands the same handlers over by name, too."""

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, Handler]) -> None:
        checked = {name: _checked(handler) for name, handler in handlers.items()}
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, checked),))


class _Unreadable:
    """In a request's place: why there is none."""

    def __init__(self, why: str) -> None:
        self.why = why


def _checked(handler: Handler) -> Handler:
    if handler.request_streaming:
        return handler
    kind, make = _MAKERS[handler.response_streaming]
    behavior: Behavior = getattr(handler, kind)
    read: Callable[[bytes], Any] = handler.request_deserializer

    def read_or_not(data: bytes) -> Any:
        try:
            return read(data)
        except DecodeError as error:
            return _Unreadable(str(error))

    async def answer(request: Any, context: Context) -> Any:
        if isinstance(request, _Unreadable):
            error = InvalidArgument(f"The request cannot be read: {request.why}", field="request")
            await abort(context, error)
            raise error
        return await behavior(request, context)

    return make(answer, read_or_not, handler.response_serializer)
