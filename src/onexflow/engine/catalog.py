"""The definitions that this orchestrator knows, compiled. A run keeps the definition it was started with, by hash."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from onexflow.codec.definitions import dump_definition, load_definition
from onexflow.core.compiler import compile_graph
from onexflow.core.definition import WorkflowDefinition
from onexflow.core.errors import DefinitionConflict, StoreUnusable, UnknownWorkflowType
from onexflow.core.graph import Graph
from onexflow.ports.client_link import DefinitionInfo
from onexflow.ports.event_store import DefinitionRecord, EventStore


class Catalog:
    """Registered definitions by (namespace, type, version) and by hash."""

    def __init__(self, store: EventStore, now: Callable[[], int]) -> None:
        self._store = store
        self._now = now
        self._records: dict[tuple[str, str], dict[int, DefinitionRecord]] = {}
        self._graphs: dict[str, Graph] = {}
        self._loading = asyncio.Lock()
        #: The load that has not begun, for all who ask for one meanwhile.
        self._next: asyncio.Task[None] | None = None

    async def load(self) -> None:
        """Read what is stored: by earlier processes, or by other orchestrators."""
        for record in await self._store.load_definitions():
            self._keep(record)

    async def refresh(self) -> None:
        """Know all that was stored when this was called. Many who ask at once, as a takeover's shards do, wait for the
        same load: for one that begins after all of them have asked. Raises as `load`, each of them."""
        if self._next is None:
            self._next = asyncio.get_running_loop().create_task(self._load_next(), name="catalog-refresh")
            self._next.add_done_callback(_seen)
        await asyncio.shield(self._next)

    async def _load_next(self) -> None:
        async with self._loading:
            self._next = None
            await self.load()

    def _keep(self, record: DefinitionRecord) -> None:
        self._records.setdefault((record.namespace, record.workflow_type), {})[record.version] = record

    async def register(self, namespace: str, data: bytes) -> DefinitionInfo:
        """Validate and store. Durable when it returns."""
        definition = load_definition(data, "json")
        graph = compile_graph(definition)
        record = DefinitionRecord(
            namespace,
            definition.workflow_type,
            definition.version,
            graph.hash,
            dump_definition(definition),
            self._now(),
        )
        known = self._records.get((namespace, definition.workflow_type), {}).get(definition.version)
        stored = known or await self._store.save_definition(record)
        if stored.hash != graph.hash:
            raise DefinitionConflict(
                f"{definition.workflow_type} version {definition.version} is registered with other content",
                {"workflow_type": definition.workflow_type, "version": definition.version,
                 "current_state": "registered", "required_state": "unregistered"},
            )  # fmt: skip
        self._keep(stored)
        self._graphs[graph.hash] = graph
        return _info(stored, graph.definition, created=known is None and stored.registered_at == record.registered_at)

    def record(self, namespace: str, workflow_type: str, version: int = 0) -> DefinitionRecord:
        """The stored definition; version 0 is the newest. Raises UnknownWorkflowType."""
        versions = self._records.get((namespace, workflow_type))
        record = versions.get(version or max(versions)) if versions else None
        if record is None:
            what = f"{workflow_type} version {version}" if version else workflow_type
            known = sorted(name for space, name in self._records if space == namespace)
            raise UnknownWorkflowType(
                f"no workflow type {what} is registered in namespace {namespace}",
                {"workflow_type": workflow_type, "version": version, "namespace": namespace, "known": known[:20]},
            )
        return record

    async def find(self, namespace: str, workflow_type: str, version: int, *, shared: bool) -> DefinitionRecord:
        """As `record`. `shared`: it may have been registered through another orchestrator."""
        try:
            return self.record(namespace, workflow_type, version)
        except UnknownWorkflowType:
            if not shared:
                raise
        await self.load()
        return self.record(namespace, workflow_type, version)

    def graph(self, record: DefinitionRecord) -> Graph:
        """The compiled definition."""
        graph = self._graphs.get(record.hash)
        if graph is None:
            graph = self._graphs[record.hash] = compile_graph(load_definition(record.data, "json"))
        return graph

    def graph_of_run(self, namespace: str, workflow_type: str, version: int, digest: str) -> Graph:
        """The graph that a stored run was started with."""
        graph = self._graphs.get(digest) or self.graph(self.record(namespace, workflow_type, version))
        if graph.hash != digest:
            raise StoreUnusable(
                f"the store lacks the definition {digest[:12]} of {workflow_type} version {version}",
                {"workflow_type": workflow_type, "version": version},
            )
        return graph

    def info(self, record: DefinitionRecord) -> DefinitionInfo:
        return _info(record, self.graph(record).definition, created=False)

    def list(self, namespace: str) -> Sequence[DefinitionInfo]:
        """All versions of all types of a namespace, by name and version."""
        records = [
            record
            for (space, _), versions in self._records.items()
            if space == namespace
            for record in versions.values()
        ]
        return [self.info(record) for record in sorted(records, key=lambda r: (r.workflow_type, r.version))]


def _seen(task: asyncio.Task[None]) -> None:
    if not task.cancelled():
        task.exception()  # who asked may have given up


def _info(record: DefinitionRecord, definition: WorkflowDefinition, *, created: bool) -> DefinitionInfo:
    return DefinitionInfo(
        namespace=record.namespace,
        workflow_type=record.workflow_type,
        version=record.version,
        hash=record.hash,
        tasks=len(definition.tasks),
        registered_at=record.registered_at,
        created=created,
    )
