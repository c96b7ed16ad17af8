"""Values that are made of files, and made again when the files change: certificates, tokens, the access policy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

from onexflow.core.errors import InvalidConfiguration
from onexflow.telemetry.late import LateLogger

T = TypeVar("T")
_Stamp = tuple[tuple[int, int, int] | None, ...]

_log = LateLogger("onexflow.security")


class Followed(Generic[T]):
    """What `make` makes of `files`. `value` is always the newest that could be made."""

    def __init__(self, name: str, files: Sequence[Path], make: Callable[[], T]) -> None:
        """Raises InvalidConfiguration when it cannot be made at first. `name` is for the log."""
        self._name = name
        self._files = tuple(files)
        self._make = make
        self._stamp = self._look()
        self.value = make()
        #: Counts the values.
        self.version = 0

    def refresh(self) -> bool:
        """Look at the files; make the value again if one has changed. True when there is a new one.

        What cannot be made is told once, in the log, and leaves the value as it is. Files that are replaced one after
        the other may not fit for a moment: they are looked at again when the next has changed.
        """
        stamp = self._look()
        if stamp == self._stamp:
            return False
        self._stamp = stamp
        try:
            self.value = self._make()
        except InvalidConfiguration as error:
            _log.warning("files.refused", what=self._name, error=str(error), kept="those of before")
            return False
        self.version += 1
        _log.info("files.reloaded", what=self._name, files=[str(file) for file in self._files])
        return True

    def _look(self) -> _Stamp:
        return tuple(_stamp(file) for file in self._files)


def _stamp(file: Path) -> tuple[int, int, int] | None:
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
