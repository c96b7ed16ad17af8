"""Input that means harm, or might as well: it hurts its own run at most."""

from __future__ import annotations

from typing import Any

import pytest

from onexflow.core.errors import RunFailed
from onexflow.spi.exceptions import SPIError
from onexflow.testing import Cluster, virtual_time
from support.engine_kit import Script, ready, single


@pytest.mark.parametrize("context", [{"amount": 10**30}, {"amounts": [{"low": -(2**70)}]}])
def test_an_error_context_that_the_log_cannot_hold_fails_its_run_alone(context: dict[str, Any]) -> None:
    @virtual_time
    async def scenario() -> None:
        script = Script()
        script.errors["charge"] = [SPIError("no such account", context)]
        async with Cluster() as cluster:
            await ready(cluster, script, single("effect", "charge"))
            with pytest.raises(RunFailed, match="no such account"):
                await cluster.run("single", 1)
            assert cluster.fatal is None
            assert await cluster.run("single", 2) == 2

    scenario()
