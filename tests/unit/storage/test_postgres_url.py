"""Where a PostgreSQL store is, in words."""

from __future__ import annotations

import pytest

from onexflow.core.address import without_password
from onexflow.core.errors import InvalidConfiguration
from onexflow.storage.postgres.url import parse_postgres_url


def test_our_options_are_taken_and_the_others_go_on() -> None:
    found = parse_postgres_url("postgresql://me:p%40ss@db:5433/flow?schema=one_2&connect_timeout=1.5&sslmode=require")
    assert found.dsn == "postgresql://me:p%40ss@db:5433/flow?sslmode=require"
    assert (found.schema, found.connect_timeout) == ("one_2", 1.5)
    assert found.shown == "postgresql://me:***@db:5433/flow?schema=one_2&connect_timeout=1.5&sslmode=require"
    assert "p%40ss" not in repr(found)


def test_the_least_and_several_hosts() -> None:
    assert parse_postgres_url("postgres://db").schema == "onexflow"
    assert parse_postgres_url("postgresql://a:1,b:2/x").dsn == "postgresql://a:1,b:2/x"
    assert parse_postgres_url("postgresql:///x?host=/run/pg").dsn == "postgresql:///x?host=%2Frun%2Fpg"


def test_a_password_of_its_own_counts_before_that_of_the_url() -> None:
    for url in ("postgresql://me:old@db/x", "postgresql://me@db/x?password=old", "postgresql://me@db/x"):
        assert parse_postgres_url(url, "n&w").dsn == "postgresql://me@db/x?password=n%26w"


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("mysql://me:hunter2@db/x", "The scheme must be postgresql://."),
        ("postgresql://me:hunter2@db/x?scheme=a", "Unknown option 'scheme'"),
        ("postgresql://me:hunter2@db/x?schema=Big", "A schema's name"),
        ("postgresql://me:hunter2@db/x?schema=pg_x", "A schema's name"),
        ("postgresql://me:hunter2@db/x?schema=a%3Bdrop", "A schema's name"),
        ("postgresql://me:hunter2@db/x?connect_timeout=0", "connect_timeout must be"),
        ("postgresql://me:hunter2@db/x?connect_timeout=soon", "connect_timeout must be"),
        ("postgresql://me:hunter2@db/x?schema", "It is not a URL."),
        ("postgresql://me:hunt#er2@db/x", "A # in a user or password"),
    ],
)
def test_what_is_wrong_is_said_without_the_password(url: str, problem: str) -> None:
    with pytest.raises(InvalidConfiguration) as raised:
        parse_postgres_url(url)
    assert problem in str(raised.value)
    assert "hunter2" not in f"{raised.value}{raised.value.context}"
    assert "er2" not in f"{raised.value}"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("sqlite:./a.db", "sqlite:./a.db"),
        ("memory:", "memory:"),
        ("postgresql://db/x", "postgresql://db/x"),
        ("postgresql://me@db/x", "postgresql://me@db/x"),
        ("postgresql://me:a:b@c@db/x", "postgresql://me:***@db/x"),
        ("postgresql://me:a/b@db/x?password=c&x=1", "postgresql://me:***@db/x?password=***&x=1"),
        ("postgresql://me:a#b@db/x", "postgresql://me:***@db/x"),
    ],
)
def test_a_url_is_shown_without_its_password(url: str, shown: str) -> None:
    assert without_password(url) == shown
