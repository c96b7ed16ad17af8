"""What the commands say, as text to be read: each file holds commands, their output, their complaints and exit codes.

`ONEXFLOW_REWRITE=1 pytest tests/transcripts/test_cli_transcripts.py` writes the files anew; then read the difference.
"""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import onexflow.client
from onexflow.cli import main
from support import fake_client

FILES = sorted((Path(__file__).parent / "cli").glob("*.txt"))


@pytest.fixture(autouse=True)
def surroundings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.setattr(onexflow.client, "connect", fake_client.connect)
    for name in ("ONEXFLOW_ADDRESS", "ONEXFLOW_NAMESPACE", "ONEXFLOW_DEBUG", "FORCE_COLOR", "CLICOLOR_FORCE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TZ", "UTC")
    monkeypatch.setenv("COLUMNS", "100")
    time.tzset()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "order.json").write_text('{"order_id": "ORD-1"}')
    (tmp_path / "broken.json").write_text('{\n  "order_id": ORD-1\n}')
    (tmp_path / "good.yaml").write_text("workflow_type: hello\ntasks:\n  - {name: greet, role: compute}\n")
    (tmp_path / "bad.yaml").write_text(
        "workflow_type: hello\ntasks:\n"
        "  - {name: greet, role: compute, depends_on: [greed]}\n"
        "  - {name: a, role: effect, depends_on: [b]}\n"
        "  - {name: b, role: effect, depends_on: [a]}\n"
    )
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_transcript(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said: list[str] = []
    for line in file.read_text().splitlines():
        if line.startswith("# "):
            said.append(line)
        if not line.startswith("$ onexflow "):
            continue
        code = main(shlex.split(line[2:])[1:])
        out, err = capsys.readouterr()
        said.append(line)
        said.extend(text.rstrip() for text in out.splitlines())
        said.extend(f"! {text.rstrip()}" for text in err.splitlines())
        said.append(f"= {code}\n")
    text = "\n".join(said)
    if os.environ.get("ONEXFLOW_REWRITE"):
        file.write_text(text)
    assert text == file.read_text()


def test_there_are_transcripts() -> None:
    assert len(FILES) >= 5
