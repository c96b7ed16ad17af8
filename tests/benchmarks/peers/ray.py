"""Ray: two worker processes on this machine, all in memory."""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import Any

from .peer import Wait

# Read when it is imported.
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # it would tell its makers
os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))  # else it writes one into the user's home
os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # no cluster of machines: it listens on loopback alone
import ray

_OBJECTS_BYTES = 100_000_000


@ray.remote
def noop(payload: dict[str, Any], before: object = None) -> dict[str, bool]:
    return {"ok": True}


@ray.remote
def count(*results: dict[str, bool]) -> int:
    return len(results)


def _wait_for(task: object) -> Wait:
    return lambda: ray.get(task)


class _Ray:
    def prepare(self, folder: Path, url: str) -> str:
        ray.init(
            address="local", num_cpus=2, include_dashboard=False, object_store_memory=_OBJECTS_BYTES,
            log_to_driver=False, _temp_dir=str(folder),
        )  # fmt: skip
        return f"Ray {ray.__version__}"

    def single(self, payload: dict[str, Any]) -> Wait:
        return _wait_for(noop.remote(payload))

    def chain(self, payload: dict[str, Any], length: int) -> Wait:
        task = None
        for _ in range(length):
            task = noop.remote(payload, task)
        return _wait_for(task)

    def fan(self, items: list[dict[str, Any]]) -> Wait:
        return _wait_for(count.remote(*(noop.remote(item) for item in items)))

    def stop(self) -> None:
        ray.shutdown()


peer = _Ray
