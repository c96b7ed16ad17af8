"""A registry for one process: the registries that share a hub see each other.

Used where there is no etcd, and in tests: leases end on the Clock port, nothing is random, and a registry can be cut
off, and the hub wiped, as etcd would be. Everything happens on one event loop.
"""

from __future__ import annotations

import asyncio
import contextlib

from onexflow.core.errors import RegistryUnavailable
from onexflow.ports.clock import Clock
from onexflow.ports.registry import NodeRecord, RegistryHealth
from onexflow.registry import keys
from onexflow.registry.base import BaseRegistry
from onexflow.registry.view import Kv, wiped_hold


class _LeaseGone(Exception):
    """The lease has ended."""


class MemoryRegistryHub:
    """What etcd is to the others: keys, leases, and who must hear of a change."""

    def __init__(self, clock: Clock, *, ttl: float = 5.0, beat_limit: float = 2.0) -> None:
        self.clock = clock
        self.ttl = ttl
        self.beat_limit = beat_limit
        self.keys: dict[bytes, Kv] = {}
        self.revision = 1
        #: Counts the times it came back empty.
        self.life = 1
        self._leases: dict[int, float] = {}
        self._lease_id = 0
        self._watchers: dict[MemoryRegistry, None] = {}

    def cut(self, registry: MemoryRegistry) -> None:
        """The registry is away for this process: its lease runs out unless it is healed in time."""
        registry.cut_off = True
        self._watchers.pop(registry, None)

    def heal(self, registry: MemoryRegistry) -> None:
        """The registry is back for this process."""
        registry.cut_off = False
        registry.reattach()

    def wipe(self) -> None:
        """Come back empty: no key, no lease."""
        watchers = list(self._watchers)
        self._watchers.clear()
        self.life += 1
        self.keys.clear()
        self._leases.clear()
        for registry in watchers:
            registry.reattach()

    # ------------------------------------------------------------------------------------------- for the registries
    def attach(self, registry: MemoryRegistry) -> None:
        self._watchers[registry] = None

    def detach(self, registry: MemoryRegistry) -> None:
        self._watchers.pop(registry, None)

    def grant(self) -> int:
        self._lease_id += 1
        self._leases[self._lease_id] = self.clock.monotonic() + self.ttl
        return self._lease_id

    def renew(self, lease: int) -> bool:
        self.expire()
        if lease not in self._leases:
            return False
        self._leases[lease] = self.clock.monotonic() + self.ttl
        return True

    def revoke(self, lease: int) -> None:
        if self._leases.pop(lease, None) is None:
            return
        for key in [key for key, kv in self.keys.items() if kv.lease == lease]:
            self.delete(key)

    def put(self, key: bytes, value: bytes, lease: int) -> None:
        if lease not in self._leases:
            raise _LeaseGone
        self.revision += 1
        kv = self.keys[key] = Kv(value, lease, self.revision)
        for registry in tuple(self._watchers):
            registry.view.put(key, kv)

    def delete(self, key: bytes) -> None:
        if self.keys.pop(key, None) is None:
            return
        self.revision += 1
        for registry in tuple(self._watchers):
            registry.view.delete(key, self.revision)

    def expire(self) -> None:
        """End the leases whose time is over."""
        now = self.clock.monotonic()
        for lease in [lease for lease, end in self._leases.items() if end <= now]:
            self.revoke(lease)

    def next_end(self) -> float:
        """When the first lease ends, if nobody renews it."""
        return min(self._leases.values(), default=self.clock.monotonic() + self.ttl)


class MemoryRegistry(BaseRegistry):
    """`ports.registry.Registry` over a hub."""

    def __init__(self, hub: MemoryRegistryHub) -> None:
        super().__init__()
        self.cut_off = False
        self._hub = hub
        self._lease = 0
        self._beat = hub.clock.monotonic()
        self._keeper: asyncio.Task[None] | None = None
        self._settling = False
        self._to_revoke: set[int] = set()
        self._life = 0
        self._seen_at = 0.0
        self._hold_until = 0.0

    async def start(self) -> None:
        if self._keeper is not None:
            return
        if self.cut_off:
            raise RegistryUnavailable("The in-memory registry is cut off.")
        self.beat()
        self._seen_at = self._hub.clock.monotonic()
        self.reattach()
        self._keeper = asyncio.get_running_loop().create_task(self._keep())

    async def close(self) -> None:
        await self.crash()
        if self._lease and not self.cut_off:
            self._hub.revoke(self._lease)
        self._lease = 0

    async def crash(self) -> None:
        """Be gone as a killed process is: nothing is revoked, the lease runs out (for tests)."""
        self._hub.detach(self)
        if self._keeper is not None:
            self._keeper.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._keeper
            self._keeper = None

    async def revoke(self, record: NodeRecord) -> None:
        held = self.view.actual.get(keys.node_key(record.kind, record.node_id))
        found = keys.load_node(held.value) if held is not None else None
        if held is None or found is None or found.incarnation != record.incarnation or found.kind == "guest":
            return  # a guest's lease is that of an orchestrator
        self.view.drop_lease(held.lease)
        if self.cut_off:
            self._to_revoke.add(held.lease)
        else:
            self._hub.revoke(held.lease)

    def beat(self) -> None:
        self._beat = self._hub.clock.monotonic()

    def health(self) -> RegistryHealth:
        if self._keeper is None:
            return RegistryHealth(connected=False, kind="memory", detail="not started")
        return RegistryHealth(connected=not self.cut_off, kind="memory", detail="cut off" if self.cut_off else "")

    def reattach(self) -> None:
        """Load the hub's content and follow it. What is missing after an outage is held, as its owner may come back."""
        now = self._hub.clock.monotonic()
        if self._life and (self._life != self._hub.life or now - self._seen_at > 2 * self._hub.ttl / 3):
            self._hold_until = now + wiped_hold(self._hub.ttl)
            self.view.hold()
        self._life = self._hub.life
        self._seen_at = now
        self._hub.expire()
        while self._to_revoke:
            self._hub.revoke(self._to_revoke.pop())
        self._hub.attach(self)
        if not self._hub.renew(self._lease):
            self._lease = self._hub.grant()
        self.view.reset(dict(self._hub.keys), self._hub.revision)
        self.suspect_all()
        self._settle_now()

    async def _settle(self) -> None:
        self._settle_now()

    def _settle_now(self) -> None:
        self._settling = False
        if self.cut_off or not self._lease:
            return
        for write in self.plan(self._lease):
            try:
                if write.value is None:
                    self._hub.delete(write.key)
                else:
                    self._hub.put(write.key, write.value, write.lease)
            except _LeaseGone:  # the next renewal notices; another node's lease: nothing to mirror any more
                continue

    def _touched(self) -> None:
        if not self._settling:
            self._settling = True
            asyncio.get_running_loop().call_soon(self._settle_now)

    async def _keep(self) -> None:
        hub = self._hub
        renew_at = hub.clock.monotonic() + hub.ttl / 3
        while True:
            wake = min(renew_at, hub.next_end())
            if self.view.held and not self.cut_off:
                wake = min(wake, self._hold_until)
            await hub.clock.sleep(max(wake - hub.clock.monotonic(), 0.001))
            now = hub.clock.monotonic()
            hub.expire()
            if self.cut_off:
                renew_at = now + hub.ttl / 3
                continue
            self._seen_at = now
            if self.view.held and now >= self._hold_until:
                self.view.release()
            if now >= renew_at:
                renew_at = now + hub.ttl / 3
                if now - self._beat <= hub.beat_limit and not hub.renew(self._lease):
                    self._lease = hub.grant()
                    self.suspect_all()
                    self._settle_now()
