"""What every command that talks to a cluster shares: its options, its client, and how a run is named."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from onexflow.cli.output import Output
from onexflow.core.errors import InvalidArgument, Unavailable, UnknownRun, UnknownWorkflowType

if TYPE_CHECKING:
    from onexflow.client import Client, RunHandle


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

    @property
    def out(self) -> Output:
        return Output(self.output)


@asynccontextmanager
async def connected(common: Common) -> AsyncIterator[Client]:
    """A connected client, closed at the end."""
    from onexflow.client import connect

    try:
        client = await connect(
            common.address, namespace=common.namespace, timeout=common.connect_timeout, client_id="onexflow"
        )
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
