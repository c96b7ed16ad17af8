"""The demo as people run it: real processes, a real kill, a report that says that everything held."""

from __future__ import annotations

import asyncio
import re
import sys
from pathlib import Path

import pytest

CLUSTER = Path(__file__).parents[2] / "cluster" / "local.toml"


@pytest.mark.chaos
@pytest.mark.slow
@pytest.mark.timeout(90)
async def test_the_demo_holds_its_promises(tmp_path: Path) -> None:
    data = tmp_path / "data"
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "onexflow.examples.demo", "--cluster", str(CLUSTER), "--data", str(data), "--orders", "60",
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    output, _ = await process.communicate()
    text = output.decode()
    assert process.returncode == 0, text
    assert "FAILED" not in text
    assert text.count("  ok  ") == 5
    interrupted = re.search(r"each of the (\d+) interrupted effects", text)
    assert interrupted is not None
    assert int(interrupted[1]) > 0, text
    assert not (data / "processes.json").exists(), "everything was stopped"


async def test_a_missing_cluster_file_is_said(tmp_path: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "onexflow.examples.demo", "--cluster", str(tmp_path / "none.toml"),
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, cwd=tmp_path,
    )  # fmt: skip
    _, error = await process.communicate()
    assert process.returncode == 2
    assert error.decode().startswith("error: ")
