"""Where the orchestrators of a cluster serve, and which of them owns which shard, as far as this one knows."""

from __future__ import annotations

from collections.abc import Sequence

from onexflow.engine.kernel import Kernel
from onexflow.engine.readiness import Readiness
from onexflow.ports.client_link import ShardMap
from onexflow.ports.registry import NodeRecord, Registry


class Whereabouts:
    """As one orchestrator knows them."""

    def __init__(self, kernel: Kernel, registry: Registry, readiness: Readiness, orchestrator_id: str) -> None:
        self._kernel = kernel
        self._registry = registry
        self._readiness = readiness
        self._id = orchestrator_id
        #: What the registry is told of this orchestrator; None before its start.
        self.record: NodeRecord | None = None

    @property
    def shard_count(self) -> int:
        """Of the store."""
        return self._kernel.store.shards

    def other_addresses(self) -> Sequence[str]:
        """Of the other orchestrators that are there."""
        others = (one for one in self._registry.members("orchestrator") if one.node_id != self._id)
        return [one.address for one in others if one.address]

    def address_of(self, owner: str) -> str:
        """Of an orchestrator that is there; else ""."""
        return next((one.address for one in self._registry.members("orchestrator") if one.node_id == owner), "")

    def owner_address(self, number: int) -> str:
        """Where a shard's owner serves, as far as is known now."""
        if number not in self._kernel.shards:
            return self._kernel.claims.locate(number)[1]
        return self.record.address if self.record is not None else ""

    def shard_map(self) -> ShardMap:
        """For clients that ask the owners themselves."""
        if not self._kernel.is_shared:
            return ShardMap()
        own = self.record.address if self.record is not None else ""
        owners = {number: self.owner_address(number) for number in range(self.shard_count)}
        addresses = (*([own] if own and not self._readiness.is_draining else []), *self.other_addresses())
        return ShardMap(addresses, self.shard_count, {number: at for number, at in owners.items() if at})
