"""A cluster of real processes under load: three orchestrators and three workers over PostgreSQL and three etcd members.

How they are joined (`Wiring`): `direct` over loopback; `namespaces`, each process in a network of its own on a bridge,
so that one can be cut off; `relays`, each behind TCP relays, which can hold, delay and cut.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from benchmarks.bench.processes import free_port
from onexflow.audit import audit
from onexflow.client import Client, connect
from onexflow.registry.etcd.embedded import EmbeddedEtcdCluster
from onexflow.storage.postgres import PostgresStore
from onexflow.testing.faults.relay import Relay

from .network import HERE, Namespace, has_bridge, tied
from .servers import ClusterPostgres

Wiring = Literal["direct", "namespaces", "relays"]
DEADLINE = 60.0
CLUSTER = "chaos"
#: Seconds of a membership: the default of the programs.
LEASE_TTL = 5.0
_SERVES = re.compile(r"^onex-(?:orchestrator|worker) \S+ serves ", re.MULTILINE)


async def until(condition: Callable[[], bool], what: str, seconds: float = DEADLINE) -> None:
    """Wait for a condition, with a deadline that says what was waited for."""
    give_up = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > give_up:
            raise TimeoutError(f"waited {seconds:g} s for {what}")
        await asyncio.sleep(0.01)


class Node:
    """A process that goes by one name through its lives."""

    def __init__(self, name: str, kind: Literal["orchestrator", "worker"], number: int, folder: Path) -> None:
        self.name = name
        self.kind = kind
        self.number = number
        self.log = folder / f"{name}.log"
        #: Where it listens, and where others are told to go. Orchestrators only.
        self.listen = self.address = ""
        self.module = f"onexflow.app.{kind}"
        self.process: asyncio.subprocess.Process | None = None
        self.namespace: Namespace | None = None
        self.relays: list[Relay] = []
        self._log_from = 0

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    @property
    def lives(self) -> bool:
        return self.process is not None and self.process.returncode is None

    def mark(self) -> None:
        """What it logs from now on is what `logged` looks at."""
        self._log_from = self.log.stat().st_size if self.log.exists() else 0

    def since_mark(self) -> str:
        with self.log.open("rb") as stream:
            stream.seek(self._log_from)
            return stream.read().decode(errors="replace")

    def logged(self, event: str) -> int:
        """How many lines of that kind it has written since the mark."""
        return self.since_mark().count(f'"{event}"')

    def serves(self) -> bool:
        if not self.lives:
            raise RuntimeError(
                f"{self.name} ended with {self.process and self.process.returncode}: {self.since_mark()[-2000:]}"
            )
        return bool(_SERVES.search(self.since_mark()))

    def signal(self, number: signal.Signals) -> int:
        """Returns the time, UTC ns."""
        assert self.process is not None
        self.process.send_signal(number)
        return time.time_ns()


class ChaosCluster:
    """Starts all of it when entered; at the end audits what is in the store, or shows the logs of a failure."""

    def __init__(
        self,
        wiring: Wiring = "direct",
        *,
        orchestrators: int = 3,
        workers: int = 3,
        slots: int = 32,
        seconds: float = 0.02,
        disk: Path | None = None,
    ) -> None:
        self.wiring: Wiring = "relays" if wiring == "namespaces" and not has_bridge() else wiring
        self._temporary = tempfile.TemporaryDirectory(prefix="onexflow-chaos-", ignore_cleanup_errors=True)
        self.folder = Path(self._temporary.name)
        self.seconds = seconds
        self.slots = slots
        self.etcd = EmbeddedEtcdCluster()
        self.postgres = ClusterPostgres(bridged=self.wiring == "namespaces", disk=disk)
        self.orchestrators = {
            f"o{number}": Node(f"o{number}", "orchestrator", number, self.folder)
            for number in range(1, orchestrators + 1)
        }
        self.workers = {
            f"w{number}": Node(f"w{number}", "worker", number, self.folder) for number in range(1, workers + 1)
        }
        #: When processes were killed, by pid, UTC ns: what they ran ended then.
        self.killed: dict[int, int] = {}
        self._shared_relays: list[Relay] = []
        self._etcd_url = ""

    @property
    def nodes(self) -> list[Node]:
        return [*self.orchestrators.values(), *self.workers.values()]

    # ---- life

    async def __aenter__(self) -> Self:
        try:
            await self.etcd.start()
            await self.postgres.start()
            await self._wire()
            await asyncio.gather(*(self.start(node) for node in self.orchestrators.values()))
            await asyncio.gather(*(self.start(node) for node in self.workers.values()))
            await self.owned_by(set(self.orchestrators))
        except BaseException as error:
            await self.__aexit__(type(error), error, None)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            print(self.logs(), file=sys.stderr)
        for node in self.nodes:
            if node.process is not None and node.lives:
                node.signal(signal.SIGKILL)
                await node.process.wait()
        try:
            if error is None:
                await self.audit()
        finally:
            for node in self.nodes:
                for relay in node.relays:
                    await relay.close()
                if node.namespace is not None:
                    await node.namespace.close()
            for relay in self._shared_relays:
                await relay.close()
            await self.etcd.stop()
            await self.postgres.stop()
            self._temporary.cleanup()

    def logs(self) -> str:
        """The end of every process's log, for a failure's report; all of them are kept."""
        kept = Path(tempfile.mkdtemp(prefix="onexflow-chaos-logs-"))
        parts = []
        for node in self.nodes:
            if node.log.exists():
                text = node.log.read_text(errors="replace")
                (kept / node.log.name).write_text(text)
                parts.append(f"--- {node.name}\n{text[-1500:]}")
        (kept / "postgres.log").write_text(self.postgres.log())
        for index, member in enumerate(self.etcd.members, start=1):
            (kept / f"etcd{index}.log").write_text(member.log())
        return "\n".join([*parts, f"--- all logs are in {kept}"])

    async def audit(self) -> None:
        """Whatever was done to it: the log that is left tells one consistent story."""
        async with self.store() as store:
            report = await audit(store)
        assert report.is_consistent, "\n".join(map(str, report.findings[:20]))
        assert report.runs

    # ---- the network

    async def _wire(self) -> None:
        self._etcd_url = self.etcd.url
        for node in self.nodes:
            if self.wiring == "namespaces":
                node.namespace = Namespace((10 if node.kind == "orchestrator" else 20) + node.number)
                await node.namespace.open()
            if node.kind == "orchestrator":
                host = node.namespace.address if node.namespace else "127.0.0.1"
                node.listen = node.address = f"{host}:{free_port()}"
                if self.wiring == "relays":
                    node.address = await self._relayed(node, node.listen)
        if self.wiring == "namespaces":
            for endpoint in self.etcd.endpoints:
                relay = Relay(endpoint, host=HERE)
                await relay.listen()
                self._shared_relays.append(relay)
            self._etcd_url = f"etcd3://{','.join(relay.address for relay in self._shared_relays)}"

    async def _relayed(self, node: Node, target: str) -> str:
        relay = Relay(target)
        await relay.listen()
        node.relays.append(relay)
        return relay.address

    async def isolate(self, node: Node) -> int:
        """Cut it off from all others, silently. Returns the time, UTC ns."""
        if node.namespace is not None:
            await node.namespace.pull()
        else:
            assert node.relays, "it is not behind relays"
            for relay in node.relays:
                relay.hold()
        return time.time_ns()

    async def rejoin(self, node: Node) -> int:
        """End that."""
        if node.namespace is not None:
            await node.namespace.plug()
        for relay in node.relays:
            relay.resume()
        return time.time_ns()

    # ---- processes

    async def start(self, node: Node) -> None:
        """(Re)start a process under its name; returns when it serves."""
        await self.launch(node)
        await until(node.serves, f"{node.name} to serve")

    async def launch(self, node: Node) -> None:
        """The same without waiting."""
        registry = self._etcd_url
        if self.wiring == "relays":
            if not any(relay.target in self.etcd.endpoints for relay in node.relays):
                for endpoint in self.etcd.endpoints:
                    await self._relayed(node, endpoint)
            places = (relay.address for relay in node.relays if relay.target in self.etcd.endpoints)
            registry = f"etcd3://{','.join(places)}"
        flags = [f"--registry-url={registry}", f"--cluster={CLUSTER}"]
        if node.kind == "orchestrator":
            flags += [
                f"--listen={node.listen}", f"--advertise={node.address}", f"--node-id={node.name}",
                f"--store-url={await self._store_url(node)}", *(["--insecure"] if node.namespace else []),
            ]  # fmt: skip
        else:
            host = node.namespace.address if node.namespace else "127.0.0.1"
            addresses = ",".join(one.address for one in self.orchestrators.values())
            flags += [
                "chaos.cluster_handlers", f"--worker-id={node.name}", f"--orchestrators={addresses}",
                f"--liveness={host}:0", f"--slots-effect={self.slots}", f"--slots-compute={self.slots}",
            ]  # fmt: skip
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("ONEXFLOW_", "OTEL_"))},
            "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), *sys.path]),
            "PYTHONUNBUFFERED": "1",
            "ONEXFLOW_CHAOS_FOLDER": str(self.folder),
            "ONEXFLOW_CHAOS_SECONDS": str(self.seconds),
        }
        node.mark()
        command = tied([sys.executable, "-m", node.module, *flags], node.namespace.holder if node.namespace else 0)
        with node.log.open("ab") as log:
            node.process = await asyncio.create_subprocess_exec(*command, env=environment, stdout=log, stderr=log)

    async def _store_url(self, node: Node) -> str:
        place = f"127.0.0.1:{self.postgres.port}"
        through = place
        if self.wiring == "namespaces":
            through = f"{HERE}:{self.postgres.port}"
        elif self.wiring == "relays":
            known = next((relay for relay in node.relays if relay.target == place), None)
            through = known.address if known else await self._relayed(node, place)
        return self.postgres.url.replace(place, through)

    async def kill(self, node: Node) -> int:
        """`kill -9`; returns the time, UTC ns, when it is gone."""
        at = node.signal(signal.SIGKILL)
        self.killed[node.pid] = at
        assert node.process is not None
        await node.process.wait()
        return at

    async def end(self, node: Node) -> None:
        """SIGTERM, and an orderly end."""
        node.signal(signal.SIGTERM)
        assert node.process is not None
        async with asyncio.timeout(DEADLINE):
            assert await node.process.wait() == 0, f"{node.name} ended with {node.process.returncode}"

    # ---- seen from outside

    async def client(self, first: str = "", *, direct: bool = False) -> Client:
        """A client that knows all orchestrators, and begins with this one; past the relays when `direct`."""
        nodes = sorted(self.orchestrators.values(), key=lambda node: node.name != first)
        return await connect([node.listen if direct else node.address for node in nodes], timeout=DEADLINE)

    def store(self) -> OpenStore:
        return OpenStore(self.postgres.url)

    async def owned_by(self, names: set[str], seconds: float = DEADLINE) -> None:
        """Return when these have all shards, and each has some."""
        async with self.store() as store, asyncio.timeout(seconds):
            while {owner for _, _, owner in await store.owners()} != names:
                await asyncio.sleep(0.05)


class OpenStore:
    """The cluster's store, read beside its owners."""

    def __init__(self, url: str) -> None:
        self._store = PostgresStore(url)

    async def __aenter__(self) -> PostgresStore:
        await self._store.open()
        return self._store

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._store.close()
