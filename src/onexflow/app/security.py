"""Security of an orchestrator's port, from its settings; and a word at the start of what is on."""

from __future__ import annotations

from pathlib import Path

import structlog

from onexflow.config import OrchestratorSettings, load_policy
from onexflow.core.address import is_loopback
from onexflow.core.errors import InvalidConfiguration
from onexflow.core.identity import Policy
from onexflow.rpc.followed import Followed
from onexflow.rpc.tls import ClientSecurity, ServerTls

_log = structlog.get_logger("onexflow.security")


def port_tls(settings: OrchestratorSettings) -> ServerTls | None:
    """The certificate of the port; None: it is not encrypted. Raises InvalidConfiguration."""
    tls = settings.tls
    return ServerTls(tls.certificate, tls.key, tls.client_ca) if tls.certificate else None


def access_policy(settings: OrchestratorSettings) -> Followed[Policy] | None:
    """Who may do what; None: everybody may do anything. Raises InvalidConfiguration."""
    if not settings.access_policy:
        return None
    file = Path(settings.access_policy)
    return Followed("access policy", [file], lambda: load_policy(file))


def peer_security(settings: OrchestratorSettings, *, shared: bool) -> ClientSecurity:
    """What this orchestrator shows to the others, and checks them by. Raises InvalidConfiguration."""
    tls = settings.tls
    ca = (tls.ca or tls.client_ca) if tls.certificate else ""
    if shared and tls.certificate and not ca:
        problem = "tls.ca: the store is shared, and the other orchestrators' certificates cannot be checked without it"
        raise InvalidConfiguration(problem, {"setting": "tls.ca"})
    return ClientSecurity(
        ca=ca,
        certificate=tls.certificate if ca else "",
        key=tls.key if ca else "",
        server_name=tls.server_name,
        token=settings.token.reveal(),
        token_file=settings.token_file,
    )


def tell(settings: OrchestratorSettings, policy: Followed[Policy] | None, address: str, *, shared: bool) -> None:
    """Log what is on, and what is missing where others can reach the port."""
    tls = settings.tls
    _log.info(
        "port.opened",
        address=address,
        tls=bool(tls.certificate),
        client_certificates="required" if tls.client_ca else "not asked for",
        access_policy=settings.access_policy or "none: everybody who connects may do anything",
        identities=len(policy.value.identities) if policy is not None else 0,
    )
    if not is_loopback(settings.listen):
        if not tls.certificate:
            _log.warning("port.unencrypted", listen=settings.listen, why="insecure is set, and there is no certificate")
        if policy is None and not tls.client_ca:
            _log.warning(
                "port.unguarded", listen=settings.listen, why="neither an access policy nor client certificates"
            )
    if policy is not None and shared and not (settings.token or settings.token_file or tls.client_ca):
        _log.warning("member.unknown", hint="the others refuse what this orchestrator passes on: give it a token, or client certificates (tls.client_ca)")  # fmt: skip
