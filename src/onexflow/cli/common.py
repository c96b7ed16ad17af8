"""What every command that talks to a cluster shares: its options, its client, and how a run is named."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING, Annotated, Final, Literal

from cyclopts import Group, Parameter

from onexflow.cli.output import Output
from onexflow.core.errors import InvalidArgument, NotSecured, Unavailable, UnknownRun, UnknownWorkflowType

if TYPE_CHECKING:
    from onexflow.client import Client, RunHandle


#: Heading of what the settings `tls` and `token_file` of the binaries are here.
SECURITY: Final = Group.create_ordered("Security")


@Parameter(name="*")
@dataclass(frozen=True)
class Common:
    """Options of every command that talks to a cluster."""

    address: Annotated[str, Parameter(name=["--address", "-a"], env_var="ONEXFLOW_ADDRESS")] = "127.0.0.1:7411"
    "host:port of an orchestrator; several parted by commas."

    namespace: Annotated[str, Parameter(name=["--namespace", "-n"], env_var="ONEXFLOW_NAMESPACE")] = "default"
    "Namespace of runs and definitions."

    output: Annotated[Literal["table", "json"], Parameter(name=["--output", "-o"])] = "table"
    "For people (table) or for programs (json)."

    connect_timeout: float = 3.0
    "Seconds in which an orchestrator must answer."

    tls_ca: Annotated[str, Parameter(env_var="ONEXFLOW_TLS__CA", group=SECURITY, show_default=False)] = ""
    "File with the authorities of the orchestrators' certificates; turns TLS on."

    tls_certificate: Annotated[
        str, Parameter(env_var="ONEXFLOW_TLS__CERTIFICATE", group=SECURITY, show_default=False)
    ] = ""
    "File with the certificate to show."

    tls_key: Annotated[str, Parameter(env_var="ONEXFLOW_TLS__KEY", group=SECURITY, show_default=False)] = ""
    "File with its key."

    tls_server_name: Annotated[
        str, Parameter(env_var="ONEXFLOW_TLS__SERVER_NAME", group=SECURITY, show_default=False)
    ] = ""
    "Name in the orchestrators' certificates, if not the host of --address."

    token_file: Annotated[str, Parameter(env_var="ONEXFLOW_TOKEN_FILE", group=SECURITY, show_default=False)] = ""
    "File with the token to show; ONEXFLOW_TOKEN may hold the token itself."

    @property
    def out(self) -> Output:
        return Output(self.output)


@asynccontextmanager
async def connected(common: Common) -> AsyncIterator[Client]:
    """A connected client, closed at the end."""
    from onexflow.client import connect
    from onexflow.config import Tls

    tls = Tls(
        ca=common.tls_ca,
        certificate=common.tls_certificate,
        key=common.tls_key,
        server_name=common.tls_server_name,
    )
    try:
        client = await connect(
            common.address,
            namespace=common.namespace,
            timeout=common.connect_timeout,
            client_id="onexflow",
            tls=tls,
            token_file=common.token_file or None,
        )
    except NotSecured:
        raise
    except Unavailable as error:
        hint = "Is one running there? `onexflow dev` starts a cluster on this machine; --address names another."
        raise Unavailable(str(error), {**error.context, "hint": hint}) from error
    async with client:
        yield client


async def find_run(client: Client, name: str) -> RunHandle:
    """The run that a person names: `TYPE/ID`, or `ID` alone, which is looked for among all runs."""
    workflow_type, _, instance_id = name.strip().rpartition("/")
    if not instance_id:
        raise InvalidArgument(f"run {name!r}: TYPE/ID or ID is needed", field="run")
    if workflow_type:
        return client.get(workflow_type, instance_id)
    wanted = client.get("any", instance_id).instance_id
    async for run in client.list():
        if run.key.instance_id == wanted:
            return client.get(run.key.workflow_type, wanted)
    raise UnknownRun(f"no run has the id {name}", {"instance_id": name})


async def with_nearest(client: Client, error: UnknownWorkflowType, workflow_type: str) -> UnknownWorkflowType:
    """The error, with the registered names that are most like the one given."""
    known = sorted({info.workflow_type for info in await client.definitions()})
    near = get_close_matches(workflow_type, known, n=3)
    if near:
        hint = f"Did you mean {' or '.join(near)}?"
    elif known:
        hint = f"Registered: {', '.join(known[:10])}{' …' if len(known) > 10 else ''}."
    else:
        hint = "Nothing is registered yet: `onexflow definition register FILE`."
    return UnknownWorkflowType(str(error), {**error.context, "hint": hint})
