"""Each scenario of a loaded cluster, short and with little load, as a test. The figures come from `scripts/chaos cluster`.

Bounds here are wide: these tests run on machines that do other things. What must hold however slow the machine is (nothing
lost, nothing twice, the audit) the scenarios assert themselves.
"""

from __future__ import annotations

import os

import pytest

from etcd_support import NO_ETCD
from onexflow.registry.etcd.embedded import find_etcd
from onexflow.storage.postgres.embedded import find_postgres
from postgres_support import NO_POSTGRES

from . import catalog
from .figures import Figures
from .stage import Options

pytestmark = [
    pytest.mark.chaos,
    pytest.mark.slow,
    pytest.mark.timeout(150),
    pytest.mark.skipif(find_etcd() is None, reason=NO_ETCD),
    pytest.mark.skipif(find_postgres() is None, reason=NO_POSTGRES),
]
IS_LONG = os.environ.get("ONEXFLOW_TEST_PROFILE") == "long"
SHORT = Options(rounds=1, rate=20.0, quick=True)
#: Run by each ./scripts/test, and these more by `--long`; all of them, with their figures, by `scripts/chaos cluster`.
ALWAYS = (
    "kill-one-of-three",
    "freeze-orchestrator-unfenced",
    "kill-worker-of-three",
    "lose-etcd-quorum",
    "kill-postgres",
)
LONG = ("kill-etcd-leader", "cut-worker-streams")
NEVER_MORE = ("effects run twice", "events appended by the old owner", "effects authorised by the old owner",
              "effects not to be run again, begun again", "effects begun twice at the same time", "lost",
              "plain calls refused without RetryInfo")  # fmt: skip


def check(figures: Figures) -> None:
    for figure in NEVER_MORE:
        assert not any(figures.samples.get(figure, ())), figure


@pytest.mark.parametrize("name", ALWAYS)
async def test_a_loaded_cluster_keeps_its_promises(name: str) -> None:
    figures = await catalog.CLUSTER[name](SHORT)
    check(figures)
    if name == "freeze-orchestrator-unfenced":
        assert figures.samples["appends refused"][0] > 0


@pytest.mark.skipif(not IS_LONG, reason="runs with ./scripts/test --long")
@pytest.mark.parametrize("name", LONG)
async def test_a_loaded_cluster_keeps_its_other_promises(name: str) -> None:
    check(await catalog.CLUSTER[name](SHORT))
