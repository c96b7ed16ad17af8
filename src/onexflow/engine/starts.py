"""What a start is about: the graph of its definition, and the key and the hash that make a repeated start the same one."""

from __future__ import annotations

from hashlib import blake2b

from onexflow.core.definition import MAX_SECONDS
from onexflow.core.errors import InvalidArgument
from onexflow.core.graph import Graph
from onexflow.core.ids import RunKey, instance_of_request
from onexflow.engine.catalog import Catalog
from onexflow.engine.recovery import RecentRuns
from onexflow.ports.client_link import StartRequest
from onexflow.ports.clock import IdSource


def graph_for(catalog: Catalog, request: StartRequest, payload_limit: int) -> Graph:
    """The graph to start. Raises InvalidArgument, UnknownWorkflowType."""
    if len(request.input.data) > payload_limit:
        raise InvalidArgument(
            f"the input has {len(request.input.data):,} bytes, the limit is {payload_limit:,}", field="input"
        )
    for field, seconds in (("delay", request.delay), ("timeout", request.timeout)):
        if not 0 <= seconds <= MAX_SECONDS:
            raise InvalidArgument(
                f"{field} must be between 0 and {MAX_SECONDS:,.0f} seconds, not {seconds}", field=field
            )
    return catalog.graph(catalog.record(request.namespace, request.workflow_type, request.version))


def key_of(request: StartRequest, ids: IdSource, now: int) -> tuple[RunKey, bytes]:
    """The run's key, and the hash of what is started. Raises InvalidArgument for an id of the future."""
    instance = request.instance_id
    if instance is None:
        instance = instance_of_request(request.request_id) if request.request_id else ids.uuid()
    if RecentRuns.is_premature(instance, now):
        field = "request_id" if request.instance_id is None else "instance_id"
        raise InvalidArgument(f"{field} is a UUIDv7 of the future: is the clock of the client right?", field=field)
    digest = blake2b(request.input.data, digest_size=16)
    digest.update(f"\0{request.input.encoding}\0{request.correlation_id}\0{request.version}".encode())
    return RunKey(request.namespace, request.workflow_type, instance), digest.digest()
