"""Every method that we serve, from the files that say so."""

from __future__ import annotations

from typing import Final

from google.protobuf.descriptor import MethodDescriptor

from onexflow.v1 import admin_pb2, events_pb2, nodes_pb2, persistence_pb2, queue_pb2, worker_pb2, workflow_pb2

FILES: Final = (workflow_pb2, worker_pb2, admin_pb2, queue_pb2, events_pb2, nodes_pb2, persistence_pb2)
#: By path, as calls name them.
METHODS: Final[dict[str, MethodDescriptor]] = {
    f"/{service.full_name}/{method.name}": method
    for file in FILES
    for service in file.DESCRIPTOR.services_by_name.values()
    for method in service.methods
}
