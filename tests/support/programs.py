"""The programs as processes of their own, for tests that start them as a user does."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

BIN = Path(sys.executable).parent


def environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith(("ONEXFLOW_", "OTEL_"))}


def finished(program: str, *arguments: str, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """A start that ends by itself."""
    return subprocess.run(
        [str(BIN / program), *arguments],
        cwd=cwd,
        env={**environment(), **variables},
        capture_output=True,
        text=True,
        check=False,
        timeout=20,
    )


@contextmanager
def serving(program: str, *arguments: str, cwd: Path, **variables: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A running program and its first line, which says that it serves."""
    with (cwd / f"{program}.err").open("w") as err:
        process = subprocess.Popen(
            [str(BIN / program), *arguments],
            cwd=cwd,
            env={**environment(), **variables},
            stdout=subprocess.PIPE,
            stderr=err,
            text=True,
        )
    try:
        assert process.stdout is not None
        line = process.stdout.readline().strip()
        assert line, (cwd / f"{program}.err").read_text()
        yield process, line
    finally:
        process.kill()
        process.wait(10)
        assert process.stdout is not None
        process.stdout.close()
