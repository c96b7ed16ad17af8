"""The program around the commands: what it imports, where it writes, how it ends."""

from __future__ import annotations

import subprocess
import sys

import pytest

import onexflow.client
from onexflow.cli import main
from onexflow.cli.output import short, span
from onexflow.codec.plain import rfc3339
from onexflow.core.errors import InternalError
from support import fake_client


def run(*arguments: str, code: str = "") -> subprocess.CompletedProcess[str]:
    program = code or "import sys; from onexflow.cli import main; sys.exit(main())"
    return subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=False, timeout=20
    )


def test_the_overview_imports_nothing_heavy() -> None:
    code = (
        "import sys; from onexflow.cli import main; main(['--help'])\n"
        "print(sorted({name.split('.')[0] for name in sys.modules} & {'grpc', 'msgspec', 'rich', 'cyclopts', 'asyncio'}))"
    )
    assert run(code=code).stdout.splitlines()[-1] == "[]"


def test_help_of_a_command_imports_no_grpc() -> None:
    code = (
        "import sys; from onexflow.cli import main; main(['run', 'start', '--help'])\n"
        "print(sorted({name.split('.')[0] for name in sys.modules} & {'grpc', 'google', 'opentelemetry'}))"
    )
    assert run(code=code).stdout.splitlines()[-1] == "[]"


def test_a_reader_that_went_away_is_no_error() -> None:
    command = f"{sys.executable} -c 'import sys; from onexflow.cli import main; sys.exit(main())' explain all | true"
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command}"], capture_output=True, text=True, check=False, timeout=20
    )
    assert done.stderr == ""
    assert done.returncode == 0


def test_no_colour_and_no_progress_where_nobody_looks() -> None:
    done = run("explain", "all")
    assert "\x1b" not in done.stdout


def test_nothing_answers() -> None:
    done = run("run", "list", "--address", "127.0.0.1:1", "--connect-timeout", "0.2")
    assert done.returncode == 4
    assert done.stdout == ""
    first, second = done.stderr.splitlines()
    assert first.startswith("error: no orchestrator answers at 127.0.0.1:1")
    assert first.endswith("[OXF-1101]")
    assert "onexflow dev" in second


def test_a_bug_is_one_line_and_asks_for_the_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("oh")

    monkeypatch.setattr(onexflow.client, "connect", broken)
    monkeypatch.delenv("ONEXFLOW_DEBUG", raising=False)
    assert main(["run", "list"]) == 1
    assert capsys.readouterr().err.splitlines() == [
        f"error: ZeroDivisionError: oh [{InternalError.code}]",
        "hint: This is a bug of onexflow; ONEXFLOW_DEBUG=1 shows the traceback.",
    ]


def test_interrupting_is_quiet(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    async def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(onexflow.client, "connect", interrupted)
    assert main(["run", "list"]) == 130
    assert capsys.readouterr().err == ""


def test_input_from_standard_input(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    import io

    monkeypatch.setattr(onexflow.client, "connect", fake_client.connect)
    monkeypatch.setattr("sys.stdin", io.StringIO('{"order_id": 1}'))
    assert main(["run", "start", "order-processing", "--input", "@-"]) == 0
    assert capsys.readouterr().out.startswith("order-processing/")


@pytest.mark.parametrize("code", ["OXF-4003", "oxf-4003", "4003"])
def test_explain(code: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", code]) == 0
    out = capsys.readouterr().out
    assert out.startswith("OXF-4003 WorkerLost")
    assert "*" not in out


def test_explain_without_the_page(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("onexflow.cli.explain._page", lambda _: "")
    assert main(["explain", "OXF-1102"]) == 0
    out = capsys.readouterr().out
    assert "The store did not confirm the write." in out
    assert "Trying again may help" in out


def test_times_and_lengths() -> None:
    assert rfc3339(0) is None
    assert rfc3339(1_700_049_600_123_456_789) == "2023-11-15T12:00:00.123456Z"
    second = 1_000_000_000
    spans = [span(second, second + int(seconds * second)) for seconds in (0.25, 1.5, 125, 7260)]
    assert spans == ["250 ms", "1.5 s", "2 min 05 s", "2 h 01 min"]
    assert span(0, 5) == ""
    assert short({"a": "x" * 200}, 20) == '{"a": "xxxxxxxxxxxx…'
