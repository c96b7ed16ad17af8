"""What a start says before anything runs: wrong Python, errors, bugs."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from onexflow.app import exits, launch
from onexflow.config import OrchestratorSettings
from onexflow.core import errors
from onexflow.spi.exceptions import HandlerInitializationError, SPIError


def run(serve: Callable[[OrchestratorSettings], Coroutine[Any, Any, int]], *arguments: str) -> int:
    return launch.run("onex-test", "A test.", lambda: OrchestratorSettings, lambda: serve, list(arguments))


def failing(error: BaseException) -> Callable[[OrchestratorSettings], Coroutine[Any, Any, int]]:
    async def serve(_settings: OrchestratorSettings) -> int:
        raise error

    return serve


def test_the_settings_reach_the_program_and_its_code_comes_back() -> None:
    seen = []

    async def serve(settings: OrchestratorSettings) -> int:
        seen.append(settings.store.url)
        return 7

    assert run(serve, "--store-url", "memory:") == 7
    assert seen == ["memory:"]


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (errors.StoreLocked("held by 5"), 12, ["error: held by 5 [OXF-5001]", "hint: One orchestrator at a time"]),
        (errors.PortBusy(), 10, ["error: The address is in use. [OXF-5004]"]),
        (errors.InvalidDefinition("a cycle"), 13, ["OXF-1002"]),
        (errors.StoreUnusable("x", {"hint": "Do this."}), 16, ["hint: Do this."]),
        (HandlerInitializationError("node n1 failed"), 1, ["error: node n1 failed"]),
        (ValueError("odd"), 1, ["error: ValueError: odd [OXF-9001]", "ONEXFLOW_DEBUG=1"]),
        (ExceptionGroup("", [errors.UnknownRun("no r")]), 3, ["error: no r [OXF-2002]"]),
    ],
)
def test_an_error_becomes_two_lines_and_a_code(
    capsys: pytest.CaptureFixture[str], error: Exception, code: int, words: list[str]
) -> None:
    assert run(failing(error)) == code
    said = capsys.readouterr()
    assert said.out == ""
    for word in words:
        assert word in said.err
    assert "Traceback" not in said.err


def test_the_traceback_is_there_for_who_asks(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ONEXFLOW_DEBUG", "1")
    run(failing(ValueError("odd")))
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize("program", ["orchestrator", "worker"])
def test_an_old_python_gets_a_sentence(program: str) -> None:
    code = f"import sys; sys.version_info = (3, 10, 2, 'final', 0); from onexflow.app.{program} import main; sys.exit(main([]))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=20)
    assert done.returncode == exits.WRONG_PYTHON
    assert "needs Python 3.11 or newer, and this is 3.10.2 [OXF-5007]" in done.stderr
    assert "Traceback" not in done.stderr


def test_every_start_up_error_has_an_exit_code_of_its_own() -> None:
    codes = {cls.__name__: exits.of(cls()) for cls in errors.BY_CODE.values() if cls.code.startswith("OXF-5")}
    assert codes.pop("RoleNotSupported") == exits.FAILED  # a bug in the module, found while it is imported
    assert codes == {
        "StoreLocked": 12, "StoreUnusable": 16, "RegistryUnavailable": 11, "PortBusy": 10,
        "ModuleNotImportable": 14, "InvalidConfiguration": 2, "UnsupportedPython": 15,
        "NatsUnusable": 17,
    }  # fmt: skip
    assert exits.of(SPIError()) == exits.FAILED
