"""Our objects against the published `omnibase_spi`, which needs Python 3.12, in an environment of its own.

The environment is made once (about a minute) and kept with pytest's cache. ONEXFLOW_TEST_PYTHON names the Python to use;
otherwise it is looked for on PATH and among pyenv's.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).parents[2]
LOCK: Final = ROOT / "requirements" / "runtime.lock"
PUBLISHED: Final = "omnibase_spi==0.23.8"
OLDEST: Final = (3, 12)
NEWEST: Final = (3, 14)

#: Those whose members are the specification's.
SPECIFIED = (
    "workflow_orchestration.ProtocolWorkflowEventBus",
    "workflow_orchestration.ProtocolWorkflowEventMessage",
    "workflow_orchestration.ProtocolWorkflowEventHandler",
    "workflow_orchestration.ProtocolLiteralWorkflowStateProjection",
    "workflow_orchestration.ProtocolWorkflowEventCoordinator",
    "onex.ProtocolOnexEffectNodeLegacy",
    "onex.ProtocolOnexComputeNodeLegacy",
    "onex.ProtocolOnexReducerNodeLegacy",
    "onex.ProtocolOnexOrchestratorNodeLegacy",
)
#: Others that ours have the members of, too: the bases for nodes, what the buses and registries stand on, values.
BESIDE = (
    "nodes.ProtocolEffectNode", "nodes.ProtocolComputeNode", "nodes.ProtocolReducerNode",
    "nodes.ProtocolOrchestratorNode", "node.ProtocolNodeRegistry", "event_bus.ProtocolEventBusBase",
    "types.ProtocolWorkflowEvent", "types.ProtocolResult",
)  # fmt: skip


def _version(python: str) -> tuple[int, int]:
    """Of the interpreter there; (0, 0): none that runs."""
    ask = [python, "-c", "import sys, venv, ensurepip; print(*sys.version_info[:2])"]
    try:
        said = subprocess.run(ask, capture_output=True, text=True, check=True, timeout=20).stdout.split()
    except (OSError, subprocess.SubprocessError):
        return (0, 0)
    return (int(said[0]), int(said[1]))


def _python() -> str:
    names = [f"python3.{minor}" for minor in range(OLDEST[1], NEWEST[1] + 1)]
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    found = [os.environ.get("ONEXFLOW_TEST_PYTHON", ""), sys.executable, *(shutil.which(name) or "" for name in names)]
    with suppress(OSError):  # it may be another user's
        found += [str(path) for name in names for path in sorted(pyenv.glob(f"*/bin/{name}"))]
    for python in found:
        if python and OLDEST <= _version(python) <= NEWEST:
            return python
    pytest.skip("omnibase_spi needs Python 3.12 or newer, and there is none here (ONEXFLOW_TEST_PYTHON may name one)")


@pytest.fixture
def environment(request: pytest.FixtureRequest) -> Path:
    """The Python of an environment that has the published package and what onexflow needs."""
    python = _python()
    made_of = sha256(f"{PUBLISHED} {python} {_version(python)}".encode() + LOCK.read_bytes()).hexdigest()[:12]
    home = Path(request.config.cache.mkdir("published-spi")) / made_of
    inside = home / "bin" / "python"
    if not (home / "complete").exists():
        subprocess.run([python, "-m", "venv", "--clear", str(home)], check=True, timeout=120, capture_output=True)
        pip = [str(inside), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--retries", "1"]
        installed = subprocess.run([*pip, PUBLISHED], capture_output=True, text=True, timeout=300, check=False)
        if installed.returncode:
            word = (installed.stderr.strip().splitlines() or ["no word why"])[-1]
            pytest.skip(f"{PUBLISHED} cannot be installed here: {word}")
        subprocess.run([*pip, "--requirement", str(LOCK)], capture_output=True, timeout=300, check=True)
        (home / "complete").touch()
    return inside


@pytest.mark.timeout(700)  # the environment has to be made
def test_the_published_protocols_hold(environment: Path) -> None:
    """isinstance, and the same parameters, defaults and async-ness: all that tests/support/published_spi.py looks at."""
    done = subprocess.run(
        [str(environment), "-m", "support.published_spi"],
        cwd=ROOT / "tests",
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found == {name: {"is": True, "differ": []} for name in [*SPECIFIED, *BESIDE]}
