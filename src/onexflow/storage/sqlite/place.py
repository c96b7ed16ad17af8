"""Where a store lies: its directory, its files' modes, and the lock file that keeps a second process out.

The lock is a file of its own (`flock`, so it ends with the process, however that ends): holding it proves that the
predecessor is dead. SQLite's own exclusive mode would shut out audit and backup.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path
from typing import Final

from onexflow.core.errors import StoreLocked, StoreUnusable

_NETWORK: Final = frozenset({
    "afs", "beegfs", "ceph", "cifs", "fuse.ceph", "fuse.glusterfs", "fuse.s3fs", "fuse.sshfs", "glusterfs", "gpfs",
    "lustre", "ncpfs", "nfs", "nfs4", "orangefs", "smb3", "smbfs",
})  # fmt: skip


def prepare(path: Path) -> None:
    """Make the directory (its parent must exist) and the file, readable by nobody else. Raises StoreUnusable."""
    directory = path.parent
    try:
        directory.mkdir(mode=0o700, exist_ok=True)
    except FileNotFoundError as error:
        raise StoreUnusable(f"The store {path} cannot be made: {directory.parent} does not exist.") from error
    except OSError as error:
        raise StoreUnusable(f"The store {path} cannot be made: {error.strerror}: {directory}.") from error
    kind = file_system(directory)
    if kind in _NETWORK:
        raise StoreUnusable(
            f"The store {path} lies on a network file system ({kind}), where locks and fsync cannot be relied on. "
            "Use a local disk."
        )
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    except OSError as error:
        raise StoreUnusable(f"The store {path} cannot be opened: {error.strerror}.") from error


def file_system(directory: Path, mounts: str = "/proc/mounts") -> str:
    """Type of the file system that holds `directory`; "" where that cannot be told."""
    try:
        lines = Path(mounts).read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return ""
    target = str(directory.resolve())
    best, kind = "", ""
    for line in lines:
        _, point, found, *_ = line.split(" ")
        point = point.encode(errors="surrogateescape").decode("unicode_escape", errors="replace")
        inside = point in {"/", target} or target.startswith(point + "/")
        if inside and len(point) >= len(best):
            best, kind = point, found
    return kind


class LockFile:
    """`<store>.lock`: held for the life of the store, holds the pid of its owner."""

    def __init__(self, store: Path) -> None:
        self._store = store
        self._path = store.with_name(store.name + ".lock")
        self._fd = -1

    def acquire(self) -> None:
        """Raises StoreLocked when another process, or another store of this one, has it."""
        try:
            fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StoreUnusable(f"The lock {self._path} cannot be opened: {error.strerror}.") from error
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.pread(fd, 32, 0).decode(errors="replace").strip() or "unknown"
            os.close(fd)
            raise StoreLocked(
                f"The store {self._store} is in use by process {holder}.", {"store": str(self._store), "pid": holder}
            ) from error
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        self._fd = fd

    def release(self) -> None:
        if self._fd >= 0:
            with contextlib.suppress(OSError):
                os.ftruncate(self._fd, 0)
            os.close(self._fd)  # the lock goes with it; the file stays, since removing it would race with a waiter
            self._fd = -1
