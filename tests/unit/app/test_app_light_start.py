"""A server starts without what only terminals need, and leaves it to handlers that want it."""

from __future__ import annotations

import subprocess
import sys

CODE = """
import sys
from onexflow.app import launch
launch._start_light()
import onexflow.app.serve_orchestrator, onexflow.app.serve_worker
print("rich" in sys.modules, "structlog" in sys.modules)
import rich.console
import structlog
structlog.dev.ConsoleRenderer()(None, "error", {"event": "it.failed", "exc_info": ValueError("why")})
print(rich.console.Console.__name__)
"""


def test_rich_is_not_loaded_and_can_be() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True, timeout=25)
    assert done.stdout.split() == ["False", "True", "Console"]
