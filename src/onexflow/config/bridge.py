"""The settings of `onex-bridge`."""

from __future__ import annotations

from typing import Final, Literal
from urllib.parse import urlsplit

from onexflow.config.settings import DEFAULT_ADDRESS, ClientSettings, LogSettings, Settings, Tls
from onexflow.core.address import split_address
from onexflow.core.secret import Secret

_SCHEMES: Final = ("nats", "tls")


class EventSettings(Settings, frozen=True, kw_only=True):
    #: Namespaces whose events are published; each is named.
    namespaces: tuple[str, ...] = ("default",)
    #: Only events of these topics (of a run: its workflow type); empty: all.
    topics: tuple[str, ...] = ()
    #: Only events of these types, for example `workflow.completed`; empty: all.
    types: tuple[str, ...] = ()
    #: The consumer group that remembers how far the bridge is. It keeps the topics and types that it began with.
    group: str = "nats"
    #: Where a group begins that is new: `earliest` or `latest`.
    start: Literal["earliest", "latest"] = "earliest"
    #: Events of a namespace that are read and not acknowledged by NATS, at the most.
    window: int = 1000

    def problems(self) -> list[tuple[str, str]]:
        found = []
        if not self.namespaces:
            found.append(("namespaces", "no namespace is named"))
        if len(set(self.namespaces)) != len(self.namespaces):
            found.append(("namespaces", "a namespace is named twice"))
        if not self.group:
            found.append(("group", "the group needs a name"))
        if not 1 <= self.window <= 10_000:
            found.append(("window", f"{self.window} is not within 1 and 10000"))
        return found


class NatsSettings(Settings, frozen=True, kw_only=True):
    #: `nats://host:port` or `tls://host:port`; the members of a NATS cluster parted by commas.
    url: str = "nats://127.0.0.1:4222"
    #: The JetStream stream that takes `onexflow.CLUSTER.>`.
    stream: str = "onexflow"
    #: Make the stream when there is none: on disk, without limits.
    create_stream: bool = False
    #: User name, if the server asks for one.
    user: str = ""
    #: The user's password. In the environment a file may hold it: `ONEXFLOW_NATS__PASSWORD_FILE`. There is no flag.
    password: Secret = Secret("")
    #: Token, if the server asks for one; as the password from the environment or the TOML file.
    token: Secret = Secret("")
    #: File with the certificates that the server's is checked with; empty: the system's.
    ca: str = ""
    #: Files with a certificate of the bridge's own and its key, if the server asks for one.
    certificate: str = ""
    #: See `nats.certificate`.
    key: str = ""

    def servers(self) -> tuple[str, ...]:
        return tuple(part.strip() for part in self.url.split(",") if part.strip())

    def problems(self) -> list[tuple[str, str]]:
        found = []
        servers = self.servers()
        if not servers:
            found.append(("url", "no server is named"))
        if "@" in self.url:  # where it would be shown
            found.append(("url", "holds a name or a secret: say nats.user and nats.password, or nats.token"))
        else:
            problem = "is not nats://host:port or tls://host:port"
            found += [("url", f"{server!r} {problem}") for server in servers if not _is_server(server)]
        if not self.stream or any(sign in self.stream for sign in ". *>/\\") or not self.stream.isprintable():
            found.append(("stream", f"{self.stream!r} is no name of a stream"))
        if bool(self.certificate) != bool(self.key):
            found.append(("certificate", "nats.certificate and nats.key belong together"))
        return found


class BridgeSettings(Settings, frozen=True, kw_only=True):
    """`onex-bridge`."""

    #: Addresses of orchestrators; one that answers is enough.
    orchestrators: tuple[str, ...] = (DEFAULT_ADDRESS,)
    #: Name of the cluster: the second token of all subjects.
    cluster: str = "local"
    #: Token that is shown to the orchestrators. There is no flag.
    token: Secret = Secret("")
    #: File with the token, read again when it is replaced.
    token_file: str = ""
    tls: Tls = Tls()
    events: EventSettings = EventSettings()
    nats: NatsSettings = NatsSettings()
    log: LogSettings = LogSettings()

    def problems(self) -> list[tuple[str, str]]:
        found = [("orchestrators", f"{one!r} is not host:port") for one in self.orchestrators if not split_address(one)]
        if not self.orchestrators:
            found.append(("orchestrators", "no orchestrator is named"))
        if not self.cluster:
            found.append(("cluster", "the cluster needs a name"))
        found += ClientSettings(token=self.token, token_file=self.token_file).problems()
        return found


def _is_server(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in _SCHEMES and bool(parts.hostname) and parts.port != 0 and not parts.path
    except ValueError:
        return False
