"""From settings and arguments to what a client shows and checks by (`rpc.tls.ClientSecurity`)."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from onexflow.config import PREFIX, ClientSettings, OrchestratorSettings, Secret, Tls, WorkerSettings, load, paths
from onexflow.rpc.tls import ClientSecurity


def client_security(
    tls: Tls | None = None,
    token: str | None = None,
    token_file: str | Path | None = None,
    environment: Mapping[str, str] = os.environ,
) -> ClientSecurity:
    """What is given; of what is not, what the environment says (docs/configuration.md). A token that is given, however,
    replaces all that is said of one there. Raises InvalidConfiguration naming the setting and where it came from."""
    names = {f"{PREFIX}{path.upper().replace('.', '__')}" for path in paths(ClientSettings)}
    flags: dict[str, Any] = {}
    if tls is not None:
        names = {name for name in names if not name.startswith(f"{PREFIX}TLS__")}
        flags = {f"tls.{name}": value for name in tls.__struct_fields__ if (value := getattr(tls, name))}
    if token is not None or token_file is not None:
        names -= {f"{PREFIX}TOKEN", f"{PREFIX}TOKEN_FILE"}
        flags |= {"token": token or "", "token_file": str(token_file or "")}
    own = {name: value for name, value in environment.items() if name in names}
    return security_of(load(ClientSettings, environment=own, flags=flags).settings)


def security_of(settings: ClientSettings | WorkerSettings | OrchestratorSettings) -> ClientSecurity:
    """Of a program's settings. Raises InvalidConfiguration when a file is not what it should be."""
    tls, token = settings.tls, settings.token
    assert isinstance(token, Secret)
    return ClientSecurity(
        ca=tls.ca,
        certificate=tls.certificate if tls.ca else "",
        key=tls.key if tls.ca else "",
        server_name=tls.server_name,
        token=token.reveal(),
        token_file=settings.token_file,
    )
