"""The cluster file: the shipped one is right, and mistakes are named."""

from __future__ import annotations

from pathlib import Path

import pytest

from onexflow.config import load_cluster, parse_cluster
from onexflow.core.errors import InvalidConfiguration

SHIPPED = Path(__file__).parents[3] / "cluster" / "local.toml"


def test_the_shipped_file_has_etcd_an_orchestrator_and_a_worker_of_each_role() -> None:
    cluster = load_cluster(SHIPPED)
    assert cluster.etcd is not None
    assert cluster.etcd.embedded
    assert cluster.orchestrator.listen == "127.0.0.1:7411"
    assert [worker.roles for worker in cluster.worker] == [("effect",), ("compute",), ("reducer",)]


def test_an_empty_file_is_an_orchestrator_alone() -> None:
    cluster = parse_cluster("")
    assert cluster.etcd is None
    assert cluster.worker == ()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name = ", "here is no TOML"),
        ("workers = []", "here: Object contains unknown field workers"),
        ("[[worker]]\nid = 'w'\nmodules = ['m']\nroles = ['poet']", "Invalid enum value 'poet' - at $.worker[0].roles"),
        ("[[worker]]\nid = 'w'\nmodules = []", "worker 'w' names no module"),
        ("[[worker]]\nid = 'w'\nmodules = ['m']\ncount = 0", "worker 'w' has count 0"),
        ("[[worker]]\nid = 'w'\nmodules = ['m']\n" * 2, "the id 'w' is given twice"),
        ("[etcd]\nembedded = true\nendpoints = ['a:1']", "not both"),
    ],
)
def test_a_mistake_is_named(text: str, message: str) -> None:
    with pytest.raises(InvalidConfiguration, match=r"here") as caught:
        parse_cluster(text, "here")
    assert message in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidConfiguration, match="cannot read"):
        load_cluster(tmp_path / "gone.toml")
