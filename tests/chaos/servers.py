"""The servers under a chaos cluster: PostgreSQL that namespaces reach, and one whose disk can be filled."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from onexflow.storage.postgres.embedded import EmbeddedPostgres

from .network import HERE, NETWORK


class ClusterPostgres(EmbeddedPostgres):
    """`bridged`: reached from the namespaces on the bridge, too. `disk`: a folder for all but the log of writes (WAL):
    without room for that PostgreSQL ends, and is right to do so."""

    def __init__(self, *, bridged: bool = False, disk: Path | None = None, **settings: str) -> None:
        super().__init__(**settings)
        self._bridged = bridged
        self._disk = disk
        if bridged:
            self.listen = f"127.0.0.1,{HERE}"

    def _make_data(self, data: Path) -> None:
        if self._disk is None:
            super()._make_data(data)
        else:
            if self._uid:
                os.chown(self._disk, self._uid, self._gid)
            place, wal = self._disk / "data", data.with_name("wal")
            super()._make_data(place)
            data.with_name("password").unlink(missing_ok=True)
            subprocess.run(["cp", "-a", place / "pg_wal", wal], check=True)
            shutil.rmtree(place / "pg_wal")
            (place / "pg_wal").symlink_to(wal)
            data.symlink_to(place)
        if self._bridged:
            with (data / "pg_hba.conf").open("a") as rules:
                rules.write(f"host all all {NETWORK} scram-sha-256\n")


class SmallDisk:
    """A file system of its own in memory, that can be filled. Needs root."""

    def __init__(self, mebibytes: int = 96) -> None:
        self._size = mebibytes
        self.folder = Path(tempfile.mkdtemp(prefix="onexflow-disk-"))
        self._mounted = False

    async def mount(self) -> str:
        """Returns why that is not possible here, else nothing."""
        if os.geteuid() != 0:
            return "mounting needs root"
        command = ["mount", "-t", "tmpfs", "-o", f"size={self._size}m,mode=755", "onexchaos", str(self.folder)]
        done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, check=False)
        self._mounted = done.returncode == 0
        return "" if self._mounted else f"no mounting here: {done.stderr.strip()}"

    def fill(self) -> None:
        """Leave no room."""
        with (self.folder / "ballast").open("ab", buffering=0) as ballast:
            for size in (1 << 20, 1 << 12, 512):
                try:
                    while True:
                        ballast.write(b"\0" * size)
                except OSError:
                    continue

    def empty(self) -> None:
        """Give the room back."""
        (self.folder / "ballast").unlink(missing_ok=True)

    async def unmount(self) -> None:
        """Idempotent."""
        if self._mounted:
            await asyncio.to_thread(subprocess.run, ["umount", "-l", str(self.folder)], check=False)
            self._mounted = False
        self.folder.rmdir()
