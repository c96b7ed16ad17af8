"""The README's example runs as it stands there."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

from support.grpc_cluster import grpc_cluster

README = Path(__file__).parents[2] / "README.md"


@pytest.fixture
def hello(tmp_path: Path) -> ModuleType:
    found = re.search(r"<!-- example.*?```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert found is not None
    path = tmp_path / "hello.py"
    path.write_text(found[1])
    spec = importlib.util.spec_from_file_location("hello", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


async def test_the_example(
    hello: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async with grpc_cluster(hello.worker) as client:
        monkeypatch.setenv("ONEXFLOW_ADDRESS", client._channels.address)
        await hello.main()
    assert "Hello, Ada!" in capsys.readouterr().out.splitlines()
