"""Where etcd is, and every number of the registry with its reason."""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import parse_qsl, urlsplit

import msgspec

from onexflow.core.errors import InvalidConfiguration
from onexflow.registry.etcd.access import Access
from onexflow.registry.view import RETURN_SECONDS

SCHEME: Final = "etcd3"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*\Z")


class EtcdSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Settings of the etcd registry. Durations in seconds."""

    endpoints: tuple[str, ...]
    cluster: str = "default"
    access: Access = Access()
    #: The lease of a process. Above etcd's own failover (2.4 s at worst, measured) plus a pause of ours.
    ttl: float = 5.0
    #: The lease is renewed only while the owner's loop has turned this recently.
    beat_limit: float = 2.0
    #: One try of a unary call, and all its tries.
    try_timeout: float = 1.0
    call_timeout: float = 5.0
    #: One try to log in: etcd hashes the password, which takes 85 ms of a free core (measured).
    login_timeout: float = 3.0
    #: How long `start` waits for an answer.
    start_timeout: float = 5.0
    #: A watch that is silent this long is asked for a sign of life; silent twice, it is opened anew elsewhere.
    ping_interval: float = 3.0
    #: The whole content is read again this often, against anything that a watch may ever miss.
    relist_interval: float = 60.0
    #: After an outage, what is missing is shown this long before it is believed: its owner may be registering.
    return_time: float = RETURN_SECONDS

    @property
    def prefix(self) -> str:
        return f"/onexflow/{self.cluster}/"


_NUMBERS: Final = {"ttl": "ttl", "timeout": "start_timeout"}
_TEXTS: Final = ("ca", "certificate", "key", "user")
_NO_SECRETS: Final = "A password does not belong in the URL: it is the setting registry.password."


def parse_etcd_url(url: str, *, cluster: str = "default", access: Access | None = None) -> EtcdSettings:
    """`etcd3://host:port[,host:port…][?ttl=5&timeout=5&ca=FILE&certificate=FILE&key=FILE&user=NAME]`.

    What the URL says of access comes before what `access` says. Raises InvalidConfiguration with what is wrong.
    """
    # Not urlsplit: a list of hosts is no host to it, and its patch releases differ in what they refuse.
    scheme, _, rest = url.partition("://")
    place, _, query = rest.partition("?")
    hosts, _, path = place.partition("/")
    if scheme != SCHEME:
        raise _bad(url, f"The scheme must be {SCHEME}://.")
    if "@" in hosts:
        raise _bad("etcd3://…", f"{_NO_SECRETS} A user may be given as ?user=NAME.")
    if path.strip("/"):
        raise _bad(url, "A path means nothing here; the cluster's name is a setting of its own.")
    if not _NAME.match(cluster):
        raise _bad(url, f"The cluster's name {cluster!r} may hold letters, digits, '.', '_' and '-' only.")
    endpoints = tuple(_endpoint(url, text) for text in hosts.split(","))
    numbers: dict[str, float] = {}
    texts: dict[str, str] = {}
    options = parse_qsl(query, keep_blank_values=True)
    if any("password" in name.lower() for name, _ in options):
        raise _bad(f"{SCHEME}://{place}", _NO_SECRETS)
    for name, text in options:
        if name in _NUMBERS:
            numbers[_NUMBERS[name]] = _seconds(url, name, text)
        elif name not in _TEXTS:
            raise _bad(url, f"Unknown option {name!r}; there are: {', '.join(sorted((*_NUMBERS, *_TEXTS)))}.")
        elif not text:
            raise _bad(url, f"The option {name} is empty.")
        else:
            texts[name] = text
    access = msgspec.structs.replace(access or Access(), **texts)
    return msgspec.structs.replace(EtcdSettings(endpoints=endpoints, cluster=cluster, access=access), **numbers)


def _seconds(url: str, name: str, text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0.1 <= number <= 3600:
        raise _bad(url, f"The option {name} must be a number of seconds between 0.1 and 3600, not {text!r}.")
    return number


def _endpoint(url: str, text: str) -> str:
    split = urlsplit("//" + text.strip())
    try:
        port = split.port
    except ValueError:
        port = None
    if not split.hostname or not port:
        raise _bad(url, f"{text!r} is not host:port.")
    return text.strip()


def _bad(url: str, why: str) -> InvalidConfiguration:
    return InvalidConfiguration(f"The registry URL {url} cannot be used. {why}", {"url": url})
