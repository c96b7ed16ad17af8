"""The layer contracts of pyproject.toml hold, and they notice a breach."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_the_layer_contracts_hold() -> None:
    done = subprocess.run(
        [str(Path(sys.executable).with_name("lint-imports")), "--no-logo", "--no-cache"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert done.returncode == 0, done.stdout + done.stderr


#: Loaded in a fresh interpreter, it must not bring any of these along: who calls must not pay for who serves.
LIGHT = {
    "onexflow": ("grpc", "cyclopts", "rich", "sqlite3"),
    "onexflow.core.decide": ("grpc", "sqlite3", "opentelemetry", "asyncio"),
    "onexflow.spi": ("msgspec", "grpc", "asyncio"),
    "onexflow.config": ("grpc", "asyncio"),
    "onexflow.client.client": (
        "onexflow.engine.protocols",
        "onexflow.spi.types",
        "yaml",
        "sqlite3",
        "structlog",
        "rich",
    ),
    "onexflow.app.serve_orchestrator": (
        "onexflow.engine.protocols",
        "onexflow.client.client",
        "onexflow.spi.types",
        "yaml",
    ),
    "onexflow.app.serve_worker": ("onexflow.engine", "onexflow.client.client", "onexflow.spi.types", "yaml"),
}


@pytest.mark.parametrize("module", LIGHT)
def test_a_light_module_loads_no_heavy_one(module: str) -> None:
    code = f"import sys; import {module}; print(*sorted(set({LIGHT[module]!r}) & sys.modules.keys()))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT, timeout=30
    )
    assert done.stdout.split() == []
