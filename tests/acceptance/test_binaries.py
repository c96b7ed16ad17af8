"""The two programs as a user starts them: they serve, stop in good order, and say clearly why they cannot start."""

from __future__ import annotations

import signal
import socket
import textwrap
from pathlib import Path

import pytest

import onexflow
from support.programs import assert_store_is_consistent, finished, serving

pytestmark = pytest.mark.slow

HANDLERS = """
    import onexflow

    worker = onexflow.Worker("mine")


    @worker.compute
    async def double(contract):
        return contract.number * 2


    def definition():
        flow = onexflow.workflow("doubling")
        flow.compute("double")
        return flow.build()
"""


@pytest.fixture
def handlers(tmp_path: Path) -> Path:
    (tmp_path / "mine.py").write_text(textwrap.dedent(HANDLERS))
    return tmp_path


async def test_a_run_goes_through_both_programs_and_they_stop_in_good_order(handlers: Path) -> None:
    with serving("onex-orchestrator", "--listen=127.0.0.1:0", "--node-id=o1", cwd=handlers) as (orchestrator, line):
        said, _, address = line.rpartition(" on ")
        assert said == "onex-orchestrator o1 serves"
        with serving("onex-worker", "mine", f"--orchestrators={address}", cwd=handlers) as (worker, ready):
            assert ready.endswith(" serves compute")
            definition = onexflow.workflow("doubling")
            definition.compute("double")
            async with await onexflow.connect(address) as client:
                await client.register(definition.build())
                assert await client.run("doubling", input={"number": 21}) == 42
            worker.send_signal(signal.SIGTERM)
            assert worker.wait(15) == 0
        orchestrator.send_signal(signal.SIGTERM)
        assert orchestrator.wait(15) == 0
    assert (handlers / "onexflow.db").stat().st_mode & 0o077 == 0


def test_a_second_orchestrator_on_the_same_store_is_refused_with_the_others_process(tmp_path: Path) -> None:
    with serving("onex-orchestrator", "--listen=127.0.0.1:0", cwd=tmp_path) as (first, _):
        second = finished("onex-orchestrator", "--listen=127.0.0.1:0", cwd=tmp_path)
    assert second.returncode == 12
    assert f"in use by process {first.pid}" in second.stderr
    assert "hint: " in second.stderr
    assert "Traceback" not in second.stderr


def test_a_store_is_free_as_soon_as_its_process_was_killed(tmp_path: Path) -> None:
    with serving("onex-orchestrator", "--listen=127.0.0.1:0", cwd=tmp_path) as (first, _):
        first.kill()
        first.wait(10)
        with serving("onex-orchestrator", "--listen=127.0.0.1:0", cwd=tmp_path) as (_, line):
            assert "serves on" in line
    assert_store_is_consistent(tmp_path)


def test_a_second_signal_means_now(tmp_path: Path) -> None:
    with serving("onex-orchestrator", "--listen=127.0.0.1:0", cwd=tmp_path) as (process, _):
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGINT)
        assert process.wait(10) in (0, 128 + signal.SIGINT, 128 + signal.SIGTERM)


def busy() -> socket.socket:
    taken = socket.socket()
    taken.bind(("127.0.0.1", 0))
    taken.listen()
    return taken


def test_a_busy_port_is_said(tmp_path: Path) -> None:
    with busy() as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        done = finished("onex-orchestrator", f"--listen={address}", "--store-url=memory:", cwd=tmp_path)
    assert done.returncode == 10
    assert f"error: {address} is in use. [OXF-5004]" in done.stderr


@pytest.mark.parametrize(
    ("program", "arguments", "code", "words"),
    [
        ("onex-orchestrator", ["--registry-url=etcd3://127.0.0.1:9?timeout=0.5"], 11, "etcd does not answer"),
        ("onex-orchestrator", ["--listen=0.0.0.0:0"], 2, "can be reached from other machines"),
        ("onex-orchestrator", ["--store-shards=none"], 2, "store.shards (flag --store-shards): Expected int"),
        ("onex-orchestrator", ["--lisen=127.0.0.1:0"], 2, "unrecognized arguments: --lisen"),
        ("onex-orchestrator", ["--config=gone.toml"], 2, "cannot read gone.toml"),
        ("onex-orchestrator", ["--store-url=sqlite:no/such/folder/x.db"], 16, "OXF-5002"),
        ("onex-worker", [], 2, "no module is named"),
        ("onex-worker", ["no_such_module"], 14, "there is no module 'no_such_module'"),
        ("onex-worker", ["json"], 14, "json holds no Worker"),
        ("onex-worker", ["broken"], 14, "cannot import broken: ZeroDivisionError"),
        ("onex-worker", ["unready"], 14, "there is no module 'some_missing_library'"),
        ("onex-worker", ["mine:other"], 14, "mine has no Worker named 'other'"),
        ("onex-worker", ["mine", "--roles=effect"], 2, "no handler of role effect"),
    ],
)
def test_what_cannot_start_says_why_with_its_own_exit_code(
    handlers: Path, program: str, arguments: list[str], code: int, words: str
) -> None:
    (handlers / "broken.py").write_text("1 / 0\n")
    (handlers / "unready.py").write_text("import some_missing_library\n")
    done = finished(program, *arguments, cwd=handlers)
    assert words in done.stderr
    assert done.returncode == code
    assert "Traceback" not in done.stderr


def test_a_file_that_is_no_store_is_refused_and_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "notes.txt"
    file.write_text("not a database\n" * 100)
    done = finished("onex-orchestrator", "--listen=127.0.0.1:0", f"--store-url=sqlite:{file}", cwd=tmp_path)
    assert done.returncode == 16
    assert file.read_text() == "not a database\n" * 100


def test_the_settings_are_shown_with_their_origin(tmp_path: Path) -> None:
    (tmp_path / "o.toml").write_text('[store]\nurl = "sqlite:a.db"\n')
    done = finished(
        "onex-orchestrator",
        "--config=o.toml",
        "--show-config",
        "--drain-timeout=3",
        "--no-speculation",
        cwd=tmp_path,
        ONEXFLOW_NODE_ID="o9",
    )
    assert done.returncode == 0
    shown = {line.split()[0]: " ".join(line.split()[1:]) for line in done.stdout.splitlines()}
    assert shown["store.url"] == "sqlite:a.db (file o.toml)"
    assert shown["node_id"] == "o9 (environment ONEXFLOW_NODE_ID)"
    assert shown["drain_timeout"] == "3.0 (flag --drain-timeout)"
    assert shown["speculation"] == "False (flag --no-speculation)"
    assert shown["listen"] == "127.0.0.1:7411 (default)"


@pytest.mark.parametrize("program", ["onex-orchestrator", "onex-worker"])
def test_help_explains_every_flag_and_the_version_is_known(program: str, tmp_path: Path) -> None:
    helped = finished(program, "--help", cwd=tmp_path)
    assert helped.returncode == 0
    assert "--registry-lease-ttl" in helped.stdout
    assert "etcd3://host:port" in helped.stdout
    assert finished(program, "--version", cwd=tmp_path).stdout == f"{program} {onexflow.__version__}\n"
