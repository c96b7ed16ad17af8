"""One etcd process on loopback: its ports, its data, its life. `embedded.py` makes clusters of them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from onexflow.core.errors import RegistryUnavailable
from onexflow.registry.etcd.client import EtcdClient, EtcdError
from onexflow.registry.etcd.url import EtcdSettings

#: Runs a program that dies with its parent. A launcher and no code between fork and exec: gRPC's threads are running.
_TIED: Final = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG; kept over exec
if os.getppid() != int(sys.argv[1]):
    sys.exit("the parent is gone")
os.execv(sys.argv[2], sys.argv[2:])
"""
_VERSION = re.compile(r"etcd Version: (\d+)\.(\d+)\.(\d+)")
#: How long a member has to end by itself.
_GRACE: Final = 3.0


def etcd_version(binary: Path) -> tuple[int, int, int] | None:
    """What `etcd --version` says; None when it says nothing that is understood."""
    try:
        answer = subprocess.run([binary, "--version"], capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    found = _VERSION.search(answer.stdout)
    return (int(found[1]), int(found[2]), int(found[3])) if found else None


class EtcdMember:
    """One process, started with the ports and the folder it was given last."""

    def __init__(self, binary: Path, name: str) -> None:
        self.name = name
        self.port = 0
        self.peer_port = 0
        self._binary = binary
        self._folder: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def endpoint(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def peer_url(self) -> str:
        return f"http://127.0.0.1:{self.peer_port}"

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process is not None else None

    @property
    def running(self) -> bool:
        """Whether the process is there; a frozen one is."""
        return self._process is not None and self._process.poll() is None

    async def spawn(self, folder: Path, flags: Sequence[str]) -> None:
        """Start the process: its data is in `folder`, or will be. It need not answer yet."""
        command = await asyncio.to_thread(self._command, folder, flags)
        self._folder = folder
        folder.parent.mkdir(exist_ok=True)
        with self._log_file(folder).open("wb") as log:
            self._process = subprocess.Popen(  # noqa: ASYNC220 - it forks at once
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )

    async def answers(self, settings: EtcdSettings, timeout: float) -> str:
        """Wait until it answers, which takes a quorum. Returns why it does not, else nothing."""
        client = EtcdClient(settings)
        why = "no answer"
        try:
            async with asyncio.timeout(timeout):
                while self.running:
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
        ended = self._process.poll() if self._process is not None else None
        return why if ended is None else f"it ended with {ended}: {self.log()[-1000:]}"

    async def kill(self) -> None:
        """SIGKILL, and wait for the end. No-op when it does not run."""
        if self._process is not None:
            self.signal(signal.SIGKILL)
            await asyncio.to_thread(self._process.wait)

    async def end(self) -> None:
        """SIGTERM, and SIGKILL when that does not help. No-op when it does not run."""
        if self._process is not None and self.running:
            self.signal(signal.SIGCONT)
            self.signal(signal.SIGTERM)
            try:
                await asyncio.to_thread(self._process.wait, _GRACE)
            except subprocess.TimeoutExpired:
                await self.kill()
        self._process = None

    def signal(self, number: signal.Signals) -> None:
        if self._process is not None and self.running:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)

    def log(self) -> str:
        """What it has written in this life."""
        if self._folder is None:
            return ""
        with contextlib.suppress(FileNotFoundError):
            return self._log_file(self._folder).read_text(errors="replace")
        return ""

    async def forget(self) -> None:
        """Remove its data."""
        if self._folder is not None:
            await asyncio.to_thread(shutil.rmtree, self._folder, ignore_errors=True)

    @staticmethod
    def _log_file(folder: Path) -> Path:
        return folder.with_suffix(".log")

    def _command(self, folder: Path, flags: Sequence[str]) -> list[str]:
        client = f"http://{self.endpoint}"
        command = [
            *(str(self._binary), "--name", self.name, "--data-dir", str(folder)),
            *("--listen-client-urls", client, "--advertise-client-urls", client),
            *("--listen-peer-urls", self.peer_url, "--initial-advertise-peer-urls", self.peer_url),
            *("--logger", "zap", "--log-level", "warn"),
            *flags,
        ]
        version = etcd_version(self._binary)
        if version is not None and version >= (3, 5, 0):
            command.append("--unsafe-no-fsync")
        tied = [sys.executable, "-I", "-S", "-c", _TIED, str(os.getpid())] if sys.platform == "linux" else []
        return [*tied, *command]


def free_ports(count: int) -> list[int]:
    """Ports below those that the system gives to outgoing connections.

    Of these one could be taken while etcd is down, and a client that tries again and again could even connect to itself.
    """
    found: list[int] = []
    for port in random.sample(range(20000, 32000), 200):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            found.append(port)
            if len(found) == count:
                return found
    raise RegistryUnavailable("There are no free ports for the embedded etcd.")
