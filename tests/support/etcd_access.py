"""An etcd that does not let everybody in: certificates from two authorities, users made as docs/etcd.md says."""

from __future__ import annotations

import re
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

import pytest
import trustme

from etcd_support import NO_ETCD
from onexflow.core.secret import Secret
from onexflow.registry.etcd.access import Access
from onexflow.registry.etcd.embedded import EmbeddedEtcdCluster, find_etcd

ROOT_PASSWORD = "r00t-of-all"
PASSWORD = "hunter2-hunter2"
AS_ROOT = f"root:{ROOT_PASSWORD}"
DOCS = Path(__file__).parents[2] / "docs" / "etcd.md"


class Papers(NamedTuple):
    """Files of two authorities that know nothing of each other."""

    ca: str
    server: tuple[str, str]  #: certificate and key, for 127.0.0.1
    client: tuple[str, str]
    stranger_ca: str
    stranger: tuple[str, str]
    elsewhere: tuple[str, str]  #: ours, for another host


def make_papers(folder: Path) -> Papers:
    def pair(authority: trustme.CA, name: str, host: str) -> tuple[str, str]:
        issued = authority.issue_cert(host, common_name=name)
        files = str(folder / f"{name}.pem"), str(folder / f"{name}.key")
        issued.cert_chain_pems[0].write_to_path(files[0])
        issued.private_key_pem.write_to_path(files[1])
        return files

    ours, strangers = trustme.CA(), trustme.CA()
    ours.cert_pem.write_to_path(str(folder / "ca.pem"))
    strangers.cert_pem.write_to_path(str(folder / "stranger-ca.pem"))
    return Papers(
        str(folder / "ca.pem"),
        pair(ours, "server", "127.0.0.1"),
        pair(ours, "client", "client.example"),
        str(folder / "stranger-ca.pem"),
        pair(strangers, "stranger", "127.0.0.1"),
        pair(ours, "elsewhere", "etcd.example"),
    )


def tls_flags(pair: tuple[str, str], trusted: str = "") -> list[str]:
    demand = ["--client-cert-auth", "--trusted-ca-file", trusted] if trusted else []
    return ["--cert-file", pair[0], "--key-file", pair[1], *demand]


@asynccontextmanager
async def running(
    members: int = 1, *, flags: list[str] | None = None, access: Access | None = None
) -> AsyncIterator[EmbeddedEtcdCluster]:
    if find_etcd() is None:
        pytest.skip(NO_ETCD)
    # Hashing a password takes etcd a tenth of a second, and more where much else is going on.
    cluster = EmbeddedEtcdCluster(members, flags=("--bcrypt-cost", "4", *(flags or ())), access=access)
    try:
        await cluster.start()
        yield cluster
    finally:
        await cluster.stop()


def etcdctl(cluster: EmbeddedEtcdCluster, *arguments: str, user: str = "", ca: str = "") -> str:
    """What an operator types."""
    binary = cluster.binary.with_name("etcdctl")
    if not binary.exists():
        pytest.skip("there is no etcdctl beside etcd")
    scheme = "https" if ca else "http"
    command = [
        str(binary),
        f"--endpoints={','.join(f'{scheme}://{endpoint}' for endpoint in cluster.endpoints)}",
        *([f"--user={user}"] if user else []),
        *([f"--cacert={ca}"] if ca else []),
        *arguments,
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False, env={"ETCDCTL_API": "3"})
    assert done.returncode == 0, done.stderr
    return done.stdout


def enable_auth(cluster: EmbeddedEtcdCluster, prefix: str, *, ca: str = "") -> None:
    """Word for word as docs/etcd.md says; only that the passwords are not asked for."""
    commands = re.findall(
        r"(?m)^etcdctl (.*)$", DOCS.read_text().partition("## Users and rights")[2].partition("## ")[0]
    )
    assert commands[-1] == "auth enable"
    for command in commands:
        words = command.replace("/onexflow/production/", prefix).split()
        if words[:2] == ["user", "add"]:
            words[2] += f":{ROOT_PASSWORD if words[2] == 'root' else PASSWORD}"
        etcdctl(cluster, *words, ca=ca)


#: The user that docs/etcd.md makes.
LOGIN = Access(user="onexflow", password=Secret(PASSWORD))
