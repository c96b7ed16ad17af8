"""Network namespaces on a bridge: a process can be cut off as a pulled cable does it, silently and in both directions.

The bridge is in the network namespace of this process, which `leave_network` makes a private one. A namespace lives as
long as the process that holds it open, so nothing is left behind, whatever happens. Needs root and `ip`.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import subprocess
import sys
from typing import Final

_NEW_NETWORK: Final = 0x40000000  # CLONE_NEWNET
BRIDGE: Final = "onexchaos"
NETWORK: Final = "10.77.0.0/24"
HERE: Final = "10.77.0.1"
_HOLD: Final = f"""
import ctypes, sys
if ctypes.CDLL(None, use_errno=True).unshare({_NEW_NETWORK}):
    sys.exit("no namespace")
print("ready", flush=True)
sys.stdin.read()
"""
#: Runs a program in the network of another process (0: in this one's), killed when its parent dies.
_TIED: Final = f"""
import ctypes, os, signal, sys
parent, holder = int(sys.argv[1]), int(sys.argv[2])
libc = ctypes.CDLL(None, use_errno=True)
if holder and libc.setns(os.open(f"/proc/{{holder}}/ns/net", os.O_RDONLY), {_NEW_NETWORK}):
    sys.exit("no way into the namespace")
if sys.platform == "linux" and parent:
    libc.prctl(1, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit("the parent is gone")
os.execvp(sys.argv[3], sys.argv[3:])
"""


def tied(command: list[str], holder: int = 0) -> list[str]:
    """The command, to run in the network of `holder`, and to be killed when this thread ends."""
    return [sys.executable, "-I", "-S", "-c", _TIED, str(os.getpid()), str(holder), *command]


def leave_network() -> str:
    """Give this process a network of its own, with nothing in it but loopback. Call it before there are threads.

    Returns why that is not possible here, else nothing."""
    if os.geteuid() != 0:
        return "namespaces need root"
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_NEW_NETWORK):
        return f"no network namespaces here: {os.strerror(ctypes.get_errno())}"
    try:
        _run("ip", "link", "set", "lo", "up")
        _run("ip", "link", "add", BRIDGE, "type", "bridge")
        _run("ip", "addr", "add", f"{HERE}/24", "dev", BRIDGE)
        _run("ip", "link", "set", BRIDGE, "up")
    except (OSError, subprocess.CalledProcessError) as error:
        return f"no bridge here: {getattr(error, 'stderr', '') or error}"
    return ""


def has_bridge() -> bool:
    """Is this process in a network that `leave_network` made?"""
    return os.path.exists(f"/sys/class/net/{BRIDGE}") or BRIDGE in _links()  # noqa: PTH110 - /sys may show another network


def _links() -> str:
    try:
        return subprocess.run(["ip", "link"], capture_output=True, text=True, check=False).stdout
    except OSError:
        return ""


class Namespace:
    """A network with one cable, to the bridge. `number` gives its address."""

    def __init__(self, number: int) -> None:
        self.address = f"10.77.0.{number}"
        self._cable = f"onexc{number}"
        self._holder: subprocess.Popen[str] | None = None

    @property
    def holder(self) -> int:
        assert self._holder is not None
        return self._holder.pid

    async def open(self) -> None:
        await asyncio.to_thread(self._open)

    def _open(self) -> None:
        self._holder = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _HOLD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._holder.stdout is not None
        assert self._holder.stdout.readline().strip() == "ready"
        _run("ip", "link", "add", self._cable, "type", "veth", "peer", "name", "eth0", "netns", str(self.holder))
        _run("ip", "link", "set", self._cable, "master", BRIDGE, "up")
        for arguments in (
            ("addr", "add", f"{self.address}/24", "dev", "eth0"),
            ("link", "set", "eth0", "up"),
            ("link", "set", "lo", "up"),
        ):
            _run(*tied(["ip", *arguments], self.holder))

    async def pull(self) -> None:
        """Take the cable off the bridge: nothing passes, nobody is told."""
        await asyncio.to_thread(_run, "ip", "link", "set", self._cable, "nomaster")

    async def plug(self) -> None:
        """Put it back."""
        await asyncio.to_thread(_run, "ip", "link", "set", self._cable, "master", BRIDGE)

    async def close(self) -> None:
        """Idempotent."""
        if self._holder is not None:
            self._holder.kill()
            await asyncio.to_thread(self._holder.communicate)
            await asyncio.to_thread(
                subprocess.run, ["ip", "link", "del", self._cable], capture_output=True, check=False
            )
            self._holder = None


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True)
