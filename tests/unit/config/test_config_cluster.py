"""The cluster file: the shipped one is right, and mistakes are named."""

from __future__ import annotations

from pathlib import Path

import pytest

from onexflow.config import load_cluster, parse_cluster
from onexflow.core.errors import InvalidConfiguration

FOLDER = Path(__file__).parents[3] / "cluster"
SHIPPED = FOLDER / "local.toml"


def test_the_shipped_file_has_etcd_an_orchestrator_and_a_worker_of_each_role() -> None:
    cluster = load_cluster(SHIPPED)
    assert cluster.etcd is not None
    assert cluster.etcd.embedded
    assert [one.listen for one in cluster.orchestrator] == ["127.0.0.1:7411"]
    assert cluster.store_url == ""
    assert [worker.roles for worker in cluster.worker] == [("effect",), ("compute",), ("reducer",)]


def test_the_shipped_file_of_three_has_three_of_each_over_a_postgresql_of_their_own() -> None:
    cluster = load_cluster(FOLDER / "local-three.toml")
    assert cluster.private_postgres
    assert len({one.listen for one in cluster.orchestrator}) == 3
    assert [(worker.count, worker.roles) for worker in cluster.worker] == [(3, ())]


def test_one_orchestrator_is_a_table_and_its_store_that_of_the_cluster() -> None:
    cluster = parse_cluster("[orchestrator]\nid = 'o'\nstore = 'memory:'")
    assert [one.id for one in cluster.orchestrator] == ["o"]
    assert cluster.store_url == "memory:"
    assert not cluster.private_postgres


def test_several_may_share_a_postgresql_of_ones_own() -> None:
    two = "[etcd]\nendpoints = ['e:2379']\n" + "".join(
        f"[[orchestrator]]\nid = 'o{port}'\nlisten = '127.0.0.1:{port}'\n" for port in (1, 2)
    )
    assert parse_cluster(f"store = 'postgresql://u@db/x'\n{two}").store_url == "postgresql://u@db/x"
    with pytest.raises(InvalidConfiguration, match="2 orchestrators need a store that they can share"):
        parse_cluster(two)


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
        ("orchestrator = []", "there is no orchestrator"),
        ("[[orchestrator]]\nid = 'a'\n[[orchestrator]]\nid = 'b'", "127.0.0.1:7411 is listened on twice"),
        ("[[orchestrator]]\n[[orchestrator]]\nlisten = 'h:1'", "the id 'orchestrator-1' is given twice"),
        ("[orchestrator]\nlisten = 'h'", "listen 'h' is not host:port"),
        ("store = 'postgres'\n[orchestrator]\nstore = 'memory:'", "all orchestrators have one store"),
        (
            "store = 'postgres'\n[[orchestrator]]\n[[orchestrator]]\nid = 'b'\nlisten = 'h:1'",
            "2 orchestrators need an etcd to see each other",
        ),
        ("store = 'mysql'", "'mysql' is neither sqlite:PATH nor postgresql://"),
    ],
)
def test_a_mistake_is_named(text: str, message: str) -> None:
    with pytest.raises(InvalidConfiguration, match=r"here") as caught:
        parse_cluster(text, "here")
    assert message in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidConfiguration, match="cannot read"):
        load_cluster(tmp_path / "gone.toml")
