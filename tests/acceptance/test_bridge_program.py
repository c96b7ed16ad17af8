"""`onex-bridge` as a user starts it: it publishes, stops in good order, and says clearly why it cannot start."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

import onexflow
from nats_support import NatsServer
from onexflow.examples import greet
from support.programs import finished, serving
from support.security_kit import Authority, identity

pytestmark = pytest.mark.slow

BRIDGE = ("python", "-m", "onexflow.app.bridge")


@pytest.fixture
def orchestrator(tmp_path: Path) -> Iterator[str]:
    with serving("onex-orchestrator", "--listen=127.0.0.1:0", "--store-url=memory:", cwd=tmp_path) as (_, line):
        yield line.rpartition(" on ")[2]


async def test_it_publishes_goes_on_and_stops_in_good_order(orchestrator: str, tmp_path: Path) -> None:
    async with NatsServer() as server, await onexflow.connect(orchestrator) as client:
        await client.register(greet.definition())
        flags = [
            f"--orchestrators={orchestrator}",
            f"--nats-url={server.url}",
            "--nats-create-stream",
            "--cluster=here",
        ]
        key = None
        for expected in (3, 6):
            with serving(*BRIDGE, *flags, cwd=tmp_path) as (bridge, line):
                assert line == f"onex-bridge publishes onexflow.here.> to onexflow at {server.url}"
                key = (await client.start("greet", {"name": "Ada"})).key
                await arrived(server, expected)
                bridge.send_signal(signal.SIGTERM)
                assert await asyncio.to_thread(bridge.wait, 15) == 0
        found = await server.stored()
        assert found[-1].subject == "onexflow.here.default.greet.task.scheduled"
        assert key is not None
        assert msgspec.json.decode(found[-1].data)["instance_id"] == str(key.instance_id)


async def arrived(server: NatsServer, count: int) -> None:
    """Return when the stream has so many messages."""
    async with asyncio.timeout(20), server.connected() as client:
        while (await client.jetstream().stream_info("onexflow")).state.messages < count:
            await asyncio.sleep(0.02)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--nats-url=http://x:1"], 2, "nats.url (flag --nats-url): 'http://x:1' is not nats://host:port"),
        (["--nats-url=nats://me:hunter2@x:1"], 2, "say nats.user and nats.password, or nats.token"),
        (["--nats-url=nats://hunter2@x:1"], 2, "say nats.user and nats.password, or nats.token"),
        (["--nats-stream=a.b"], 2, "'a.b' is no name of a stream"),
        (["--nats-certificate=c.pem"], 2, "nats.certificate and nats.key belong together"),
        (["--nats-ca=gone.pem"], 2, "gone.pem"),
        (["--events-window=0"], 2, "0 is not within 1 and 10000"),
        (["--events-start=now"], 2, "events.start"),
        (["--events-namespaces=a,a"], 2, "a namespace is named twice"),
        (["--orchestrators=nowhere"], 2, "'nowhere' is not host:port"),
        (["--orchestrators=127.0.0.1:9"], 4, "127.0.0.1:9"),
    ],
)
def test_what_cannot_start_says_why(tmp_path: Path, arguments: list[str], code: int, words: str) -> None:
    done = finished(*BRIDGE, *arguments, cwd=tmp_path)
    assert words in done.stderr
    assert done.returncode == code
    assert "hunter2" not in done.stderr
    assert "Traceback" not in done.stderr


async def test_it_shows_the_orchestrators_who_it_is(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    its = authority.issue("127.0.0.1", file="orchestrator")
    (tmp_path / "policy.toml").write_text(identity("nats", "client"))
    (tmp_path / "token").write_text("token-of-nats\n")
    port = [f"--tls-certificate={its.certificate}", f"--tls-key={its.key}", "--access-policy=policy.toml"]
    flags = ["--listen=127.0.0.1:0", "--store-url=memory:", *port]
    with serving("onex-orchestrator", *flags, cwd=tmp_path) as (_, line):
        to = [f"--orchestrators={line.rpartition(' on ')[2]}", f"--tls-ca={authority.file}"]
        async with NatsServer() as server:
            nats = [f"--nats-url={server.url}", "--nats-create-stream"]
            with serving(*BRIDGE, *to, *nats, "--token-file=token", cwd=tmp_path) as (_, said):
                assert said.startswith("onex-bridge publishes")
            done = await asyncio.to_thread(finished, *BRIDGE, *to, *nats, cwd=tmp_path)
    assert done.returncode != 0
    assert "OXF-1502" in done.stderr


async def test_without_a_stream_it_says_how_to_get_one(orchestrator: str, tmp_path: Path) -> None:
    async with NatsServer() as server:
        done = await asyncio.to_thread(
            finished, *BRIDGE, f"--orchestrators={orchestrator}", f"--nats-url={server.url}", cwd=tmp_path
        )
    assert done.returncode == 17
    assert "error: NATS has no stream 'onexflow' [OXF-5009]" in done.stderr
    assert "--nats-create-stream" in done.stderr
    flags = (f"--orchestrators={orchestrator}", f"--nats-url={server.url}")
    done = await asyncio.to_thread(finished, *BRIDGE, *flags, cwd=tmp_path)
    assert done.returncode == 4
    assert f"error: NATS at {server.url} cannot be reached" in done.stderr


def test_without_the_library_it_names_the_extra(tmp_path: Path) -> None:
    program = (
        "import sys, importlib.util as u; find = u.find_spec;"
        "u.find_spec = lambda name, *rest: None if name == 'nats' else find(name, *rest);"
        "from onexflow.app.bridge import main; sys.exit(main([]))"
    )
    done = finished(Path(sys.executable).name, "-c", program, cwd=tmp_path)
    assert done.returncode == 17
    assert "hint: Install it: pip install 'onexflow[nats]'." in done.stderr


def test_passwords_come_from_the_environment_or_a_file_and_are_not_shown(tmp_path: Path) -> None:
    (tmp_path / "password").write_text("hunter2\n")
    done = finished(
        *BRIDGE, "--show-config", cwd=tmp_path,
        ONEXFLOW_NATS__PASSWORD_FILE=str(tmp_path / "password"), ONEXFLOW_NATS__TOKEN="hunter3",
    )  # fmt: skip
    assert done.returncode == 0
    assert "nats.password" in done.stdout
    assert "hunter" not in done.stdout


async def test_the_consumer_of_the_documents_hears_of_a_run(orchestrator: str, tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs/nats.md").read_text()
    program = page.partition("```python\n")[2].partition("```")[0]
    async with NatsServer() as server, await onexflow.connect(orchestrator) as client:
        assert "nats://127.0.0.1:4222" in program
        (tmp_path / "follow.py").write_text(program.replace("nats://127.0.0.1:4222", server.url))
        await client.register(greet.definition())
        run = await client.start("greet", {"name": "Ada"})
        flags = [f"--orchestrators={orchestrator}", f"--nats-url={server.url}", "--nats-create-stream"]
        with (
            serving(*BRIDGE, *flags, cwd=tmp_path),
            serving("onex-worker", "onexflow.examples.greet", f"--orchestrators={orchestrator}", cwd=tmp_path),
        ):
            assert await run.result(timeout=20) is not None
            with serving("python", "follow.py", cwd=tmp_path) as (_, line):
                assert line.startswith(f"greet {run.key.instance_id} ")
