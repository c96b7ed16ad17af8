"""Who calls, and may it? Asked once a call, when it begins: of a stream's messages none is looked at again.

A token (`authorization: Bearer …`) counts before a certificate. What is found is `core.identity.CALLER` for all that is
done for the call. Streams that are open when the policy changes are looked at anew, and end where their identity has changed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from hashlib import sha256
from typing import Any, Final

import grpc
import structlog

from onexflow.core.errors import PermissionDenied, Unauthenticated, Unavailable
from onexflow.core.identity import CALLER, Identity, Policy, passed_on
from onexflow.rpc.channel import PRINCIPAL, PRINCIPAL_ROLES
from onexflow.rpc.followed import Followed
from onexflow.rpc.rights import PACKAGE, RIGHTS
from onexflow.rpc.stream import Context, abort
from onexflow.spi.exceptions import SPIError

_log = structlog.get_logger("onexflow.security")

Handler = Any
Behavior = Callable[[Any, Any], Awaitable[Any]]

#: What gRPC calls the names in a certificate → what the policy calls them, in the order in which they count.
_NAMES: Final = (("peer_uri", "uri:"), ("peer_dns", "dns:"), ("x509_common_name", "cn:"))


class Guard(grpc.aio.ServerInterceptor):
    """Refuses calls of onexflow.v1 that the policy does not allow. Health and reflection are open to all who connect."""

    def __init__(self, policy: Followed[Policy]) -> None:
        self._policy = policy
        self._guarded: dict[str, tuple[Handler, Handler]] = {}
        #: The open streams: what ends one → its method, its call, and whose it is.
        self._streams: dict[asyncio.Timeout, tuple[str, Context, Identity]] = {}

    async def intercept_service(
        self, continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler]], details: grpc.HandlerCallDetails
    ) -> Handler:
        """The handler, behind the question."""
        method: str = details.method
        handler = await continuation(details)
        if handler is None or not method.startswith(PACKAGE):
            return handler
        known = self._guarded.get(method)
        if known is None or known[0] is not handler:
            known = self._guarded[method] = handler, self._behind(handler, method)
        return known[1]

    def refresh(self) -> bool:
        """Follow the policy's file. When it has changed, open streams end whose identity is not what it was."""
        if not self._policy.refresh():
            return False
        for scope, (method, context, admitted) in list(self._streams.items()):
            try:
                is_same = self.caller_of(method, context) == admitted
            except SPIError:
                is_same = False
            if not is_same:
                scope.reschedule(0.0)
        return True

    def caller_of(self, method: str, context: Context) -> Identity:
        """Whose call it is. Raises Unauthenticated, PermissionDenied."""
        metadata = _texts(context)
        caller = self._identify(metadata, context)
        principal = metadata.get(PRINCIPAL)
        if principal is not None:
            if not caller.has("member"):
                raise PermissionDenied(
                    f"{caller.name} is no orchestrator of this cluster, and may not say for whom it asks.",
                    {"principal": caller.name, "needed": ["member"], "method": method},
                )
            caller = passed_on(principal, metadata.get(PRINCIPAL_ROLES, "").split(","))
        needed = RIGHTS.get(method, ())
        if not any(caller.has(role) for role in needed):
            raise PermissionDenied(
                f"{caller.name} may not call {method.rpartition('/')[2]}: it needs the role {' or '.join(needed)}.",
                {"principal": caller.name, "roles": sorted(caller.roles), "needed": list(needed), "method": method},
            )
        return caller

    def _identify(self, metadata: Mapping[str, str], context: Context) -> Identity:
        said = metadata.get("authorization")
        if said is not None:
            scheme, _, token = said.partition(" ")
            if scheme.lower() != "bearer":
                raise Unauthenticated("Authorization is by `Bearer TOKEN`.", {"shown": "authorization"})
            found = self._policy.value.by_token(sha256(token.strip().encode()).digest())
            if found is None:
                raise Unauthenticated("No identity has this token, or no longer.", {"shown": "token"})
            return found
        names = _certificate_names(context)
        found = self._policy.value.by_certificate(names)
        if found is None:
            if names:
                raise Unauthenticated(
                    f"No identity has a certificate of {', '.join(names)}.", {"shown": "certificate", "names": names}
                )
            raise Unauthenticated("The call has no token, and its connection no certificate.", {"shown": "nothing"})
        return found

    async def _admit(self, method: str, context: Context) -> Identity:
        """Whose call it is, from now on `CALLER`. Who is refused is told so, and the call is over."""
        try:
            caller = self.caller_of(method, context)
        except SPIError as error:
            _log.warning("call.refused", method=method, peer=context.peer(), error=str(error))
            await abort(context, error)
            raise
        CALLER.set(caller)
        return caller

    def _behind(self, handler: Handler, method: str) -> Handler:
        if not (handler.request_streaming or handler.response_streaming):
            behavior: Behavior = handler.unary_unary

            async def unary(request: Any, context: Context) -> Any:
                await self._admit(method, context)
                return await behavior(request, context)

            return grpc.unary_unary_rpc_method_handler(unary, handler.request_deserializer, handler.response_serializer)
        streaming: Behavior = handler.stream_stream if handler.request_streaming else handler.unary_stream

        async def stream(request: Any, context: Context) -> None:
            caller = await self._admit(method, context)
            scope = asyncio.timeout(None)
            try:
                async with scope:
                    self._streams[scope] = method, context, caller
                    await streaming(request, context)
            except TimeoutError:
                if not scope.expired():
                    raise
                # Who has new credentials by now comes back with them; who has not is told so then.
                await abort(context, Unavailable("The access policy has changed: open another stream."))
            finally:
                self._streams.pop(scope, None)

        make = (
            grpc.stream_stream_rpc_method_handler if handler.request_streaming else grpc.unary_stream_rpc_method_handler
        )
        return make(stream, handler.request_deserializer, handler.response_serializer)


def _texts(context: Context) -> dict[str, str]:
    metadata: Any = context.invocation_metadata() or ()
    return {name: value for name, value in metadata if isinstance(value, str)}


def _certificate_names(context: Context) -> list[str]:
    shown = context.auth_context() or {}
    return [prefix + value.decode(errors="replace") for name, prefix in _NAMES for value in shown.get(name, ())]
