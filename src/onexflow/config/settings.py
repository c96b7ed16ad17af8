"""Every setting of the binaries, with its default and what it is for. One frozen tree a process.

How values come in (defaults < TOML < environment < flags) is `onexflow.config.sources`.
"""

from __future__ import annotations

from typing import Final, Literal

import msgspec

from onexflow.core.address import is_every, is_loopback, split_address, without_password
from onexflow.core.definition import Role
from onexflow.core.secret import Secret

DEFAULT_ADDRESS: Final = "127.0.0.1:7411"
MIB: Final = 1024 * 1024
#: Of one worker.
MOST_PROCESSES: Final = 256

LogLevel = Literal["debug", "info", "warning", "error"]
LogFormat = Literal["auto", "pretty", "json"]


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """Base of all settings. The strings after `#:` are the reference (docs/configuration.md)."""

    def problems(self) -> list[tuple[str, str]]:
        """(setting, what is wrong with it) of values that have the right type and make no sense."""
        return []


class StoreSettings(Settings, frozen=True, kw_only=True):
    #: `sqlite:PATH` (one orchestrator, durable), `postgresql://user@host:port/database?schema=onexflow` (many; several
    #: hosts parted by commas are the members of one replicated server) or `memory:` (nothing survives).
    url: str = "sqlite:./onexflow.db"
    #: Password for PostgreSQL, if it is not in the URL, in PGPASSWORD or in a password file. In the environment a file
    #: may hold it: `ONEXFLOW_STORE__PASSWORD_FILE`. There is no flag.
    password: Secret = Secret("")
    #: Number of shards of a new store, 0: 8, on PostgreSQL 64. An existing store keeps its own.
    shards: int = 0

    def problems(self) -> list[tuple[str, str]]:
        found = []
        scheme, _, path = self.url.partition(":")
        if scheme in ("postgresql", "postgres"):
            if not path.startswith("//"):
                found.append(("url", "postgresql: needs a server, for example postgresql://user@host:5432/database"))
        elif scheme not in ("sqlite", "memory"):
            shown = without_password(self.url)
            found.append(("url", f"{shown!r} is neither sqlite:PATH nor postgresql://… nor memory:"))
        elif scheme == "sqlite" and not path:
            found.append(("url", "sqlite: needs a path, for example sqlite:./onexflow.db"))
        if not 0 <= self.shards <= 4096:
            found.append(("shards", f"{self.shards} is not within 0 and 4096"))
        return found


class RegistrySettings(Settings, frozen=True, kw_only=True):
    #: `etcd3://host:port,host:port` or `memory:` (this process alone).
    url: str = "memory:"
    #: Seconds after which a silent process's membership ends; renewed every third of it.
    lease_ttl: float = 5.0
    #: File with the authorities (PEM) by which etcd's certificate is checked. Given, all connections to etcd are TLS;
    #: without it none is. It is read again when it is replaced, as the next two.
    ca: str = ""
    #: File with the certificate (PEM, with its chain) that is shown to etcd, if it demands one.
    certificate: str = ""
    #: File with the certificate's key (PEM, without a password).
    key: str = ""
    #: User of etcd (docs/etcd.md has the rights that it needs); empty: none.
    user: str = ""
    #: The user's password. In the environment a file may hold it: `ONEXFLOW_REGISTRY__PASSWORD_FILE`. There is no flag.
    password: Secret = Secret("")

    def problems(self) -> list[tuple[str, str]]:
        found = []
        if not self.url.startswith(("etcd3://", "memory:")):
            found.append(("url", f"{without_password(self.url)!r} is neither etcd3://host:port,… nor memory:"))
        if not 1 <= self.lease_ttl <= 600:
            found.append(("lease_ttl", f"{self.lease_ttl} is not within 1 and 600 seconds"))
        return found


class LimitSettings(Settings, frozen=True, kw_only=True):
    #: Bytes of a run's input. Below 2 MiB, which no payload of a message may pass.
    payload: int = 2 * MIB

    def problems(self) -> list[tuple[str, str]]:
        if not 1024 <= self.payload <= 2 * MIB:
            return [("payload", f"{self.payload} is not within 1024 and {2 * MIB} bytes (2 MiB)")]
        return []


class LogSettings(Settings, frozen=True, kw_only=True):
    #: debug, info, warning or error.
    level: LogLevel = "info"
    #: pretty, json, or auto: pretty on a terminal, else json.
    format: LogFormat = "auto"


class Tls(Settings, frozen=True, kw_only=True):
    """TLS of a client or a worker. Its files are read again when they are replaced, for the next connection."""

    #: File with the authorities (PEM) by which the orchestrators' certificates are checked. Given, all connections are
    #: TLS; without it none is.
    ca: str = ""
    #: File with the certificate (PEM, with its chain) that is shown to orchestrators that demand one.
    certificate: str = ""
    #: File with the certificate's key (PEM, without a password).
    key: str = ""
    #: Name in the orchestrators' certificates, if it is not the host of their addresses.
    server_name: str = ""

    def problems(self) -> list[tuple[str, str]]:
        found = _pair_problems(self.certificate, self.key)
        if self.certificate and not self.ca:
            found.append(("certificate", "without tls.ca there is no TLS, and no certificate is shown"))
        if self.server_name and not self.ca:
            found.append(("server_name", "without tls.ca there is no TLS, and no name is checked"))
        return found


class ServerTls(Settings, frozen=True, kw_only=True):
    """TLS of an orchestrator. Its files are read again when they are replaced, for the next connection."""

    #: File with the certificate (PEM, with its chain) of the port. Given, all connections are TLS. It is also what this
    #: orchestrator shows to the others.
    certificate: str = ""
    #: File with the certificate's key (PEM, without a password).
    key: str = ""
    #: File with the authorities (PEM) of clients and workers. Given, each must show a certificate that these have signed.
    client_ca: str = ""
    #: File with the authorities (PEM) by which the other orchestrators' certificates are checked; empty: `client_ca`.
    ca: str = ""
    #: Name in the other orchestrators' certificates, if it is not the host of their addresses.
    server_name: str = ""

    def problems(self) -> list[tuple[str, str]]:
        found = _pair_problems(self.certificate, self.key)
        if self.client_ca and not self.certificate:
            found.append(("client_ca", "without tls.certificate there is no TLS, and no client shows a certificate"))
        return found


class ClientSettings(Settings, frozen=True, kw_only=True):
    """`onexflow.connect`, `onexflow.onex` and the command line."""

    tls: Tls = Tls()
    #: Token that is shown to the orchestrators. There is no flag.
    token: Secret = Secret("")
    #: File with the token, read again when it is replaced.
    token_file: str = ""

    def problems(self) -> list[tuple[str, str]]:
        return _token_problems(self.token, self.token_file)


class OrchestratorSettings(Settings, frozen=True, kw_only=True):
    """`onex-orchestrator`."""

    #: host:port to serve gRPC on; port 0 takes any free one.
    listen: str = DEFAULT_ADDRESS
    #: host:port that others are told to use; empty: the one that is listened on.
    advertise: str = ""
    #: host:port of the liveness port, by which the others prove that this process has died; empty: any free port of the
    #: host that is listened on. Where that is every address there is none then, and a death shows when the lease ends.
    liveness: str = ""
    #: Listen beyond this machine without encryption. What is said can then be read and changed on its way, tokens
    #: included; without an `access_policy` anybody who reaches the port may do anything.
    insecure: bool = False
    #: File that says who is known and may do what (docs/security.md), read again when it changes; empty: everybody who
    #: connects may do anything.
    access_policy: str = ""
    #: Token by which the other orchestrators know this one as a member. There is no flag.
    token: Secret = Secret("")
    #: File with that token, read again when it is replaced.
    token_file: str = ""
    #: Name in the cluster; empty: orchestrator-HOST.
    node_id: str = ""
    #: Name of the cluster: the part of etcd's key space that is used.
    cluster: str = "local"
    #: Seconds that a stop (SIGTERM) leaves to calls under way, once the streams of clients and workers are closed.
    drain_timeout: float = 5.0
    #: Send computes and reducers to workers before what they were scheduled by is on disk (docs/guarantees.md): a chain
    #: of them then waits for no commit between its steps. Off, every task waits for its commit, as effects always do.
    speculation: bool = True
    #: Offer gRPC reflection (tools such as grpcurl). For development.
    reflection: bool = False
    tls: ServerTls = ServerTls()
    store: StoreSettings = StoreSettings()
    registry: RegistrySettings = RegistrySettings()
    limits: LimitSettings = LimitSettings()
    log: LogSettings = LogSettings()

    def problems(self) -> list[tuple[str, str]]:
        found = [*_address_problems("listen", self.listen), *_positive("drain_timeout", self.drain_timeout)]
        found += _token_problems(self.token, self.token_file)
        if self.advertise:
            found += _told_problems("advertise", self.advertise)
        elif is_every(self.listen) and self.registry.url.startswith("etcd3:"):
            found.append(("advertise", f"others cannot be sent to {self.listen}: say which host:port they are to use"))
        if self.liveness:
            found += _told_problems("liveness", self.liveness)
        if not found and not (self.insecure or self.tls.certificate or is_loopback(self.listen)):
            exposed = f"{self.listen} can be reached from other machines, and there is no TLS"
            ways = "give it a certificate (tls.certificate), or say `insecure = true` (--insecure) if that is meant"
            found.append(("listen", f"{exposed}: {ways}"))
        return found


class SlotSettings(Settings, frozen=True, kw_only=True):
    #: Effects that run at once.
    effect: int = 32
    #: Computes that run at once, each in a process of its own if it is sync; 0: one a CPU.
    compute: int = 0
    #: Reducers that run at once.
    reducer: int = 4
    #: Orchestrations that run at once. One that waits for its calls costs little, and keeps its slot.
    orchestrator: int = 1000

    def problems(self) -> list[tuple[str, str]]:
        return [
            (role, f"{getattr(self, role)} is not within 0 and 10000")
            for role in self.__struct_fields__
            if not 0 <= getattr(self, role) <= 10000
        ]


class WorkerSettings(Settings, frozen=True, kw_only=True):
    """`onex-worker`."""

    #: Modules whose `Worker` objects hold the handlers: `package.module` or `package.module:name`.
    modules: tuple[str, ...] = ()
    #: Addresses of orchestrators; empty: those in the registry, or 127.0.0.1:7411 when that is `memory:`.
    orchestrators: tuple[str, ...] = ()
    #: Serve only handlers of these roles; empty: all.
    roles: tuple[Role, ...] = ()
    #: Worker processes under one parent, for handlers that keep more than one CPU busy; 0: one a CPU. Of several each is a
    #: node of its own, NAME-1, NAME-2 …, with all slots (but one a CPU among them all where `slots.compute` is 0).
    processes: int = 1
    #: Name in the cluster; empty: worker-HOST-PID.
    worker_id: str = ""
    #: host:port of the liveness port, by which others prove that this process has died; port 0 takes any free one. An
    #: address of this machine alone (127.0.0.1) proves nothing to an orchestrator that others can reach. Of several
    #: `processes` the first has this port, the others have the next ones.
    liveness: str = "127.0.0.1:0"
    #: Name of the cluster, as the orchestrators have it.
    cluster: str = "local"
    #: Seconds that a stop (SIGTERM) waits for running tasks; what still runs is then handed back.
    drain_timeout: float = 30.0
    #: Token that is shown to the orchestrators. There is no flag.
    token: Secret = Secret("")
    #: File with the token, read again when it is replaced.
    token_file: str = ""
    tls: Tls = Tls()
    slots: SlotSettings = SlotSettings()
    registry: RegistrySettings = RegistrySettings()
    log: LogSettings = LogSettings()

    def problems(self) -> list[tuple[str, str]]:
        found = [*_told_problems("liveness", self.liveness), *_positive("drain_timeout", self.drain_timeout)]
        found += _token_problems(self.token, self.token_file)
        for address in self.orchestrators:
            found += _address_problems("orchestrators", address)
        if not 0 <= self.processes <= MOST_PROCESSES:
            found.append(("processes", f"{self.processes} is not within 0 and {MOST_PROCESSES}"))
        elif (port := (split_address(self.liveness) or ("", 0))[1]) + self.processes > 65536:
            found.append(("processes", f"there are no {self.processes} ports from {port} on (liveness)"))
        if not self.modules:
            found.append(("modules", "no module is named: give one, for example `onex-worker my_handlers`"))
        return found

    def endpoints(self) -> tuple[str, ...]:
        """The orchestrators to go to, empty when the registry is to be asked."""
        return self.orchestrators or (() if self.registry.url.startswith("etcd3:") else (DEFAULT_ADDRESS,))


def _address_problems(setting: str, address: str) -> list[tuple[str, str]]:
    return [] if split_address(address) else [(setting, f"{address!r} is not host:port")]


def _told_problems(setting: str, address: str) -> list[tuple[str, str]]:
    """Of an address that others are told to go to."""
    if is_every(address):
        return [(setting, f"{address} stands for every address of this machine: say the one that others are to use")]
    return _address_problems(setting, address)


def _positive(setting: str, value: float) -> list[tuple[str, str]]:
    return [] if value >= 0 else [(setting, f"{value} is below 0")]


def _pair_problems(certificate: str, key: str) -> list[tuple[str, str]]:
    if bool(certificate) == bool(key):
        return []
    return (
        [("key", "the certificate needs its key")]
        if certificate
        else [("certificate", "the key needs its certificate")]
    )


def _token_problems(token: Secret, token_file: str) -> list[tuple[str, str]]:
    return [("token_file", "a token is given as well: one of the two is enough")] if token and token_file else []
