"""Where a PostgreSQL store is, and how to say that without its password."""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import parse_qsl, urlencode, urlsplit

import msgspec

from onexflow.core.address import without_password
from onexflow.core.errors import InvalidConfiguration

SCHEMES: Final = ("postgresql", "postgres")
_SCHEMA: Final = re.compile(r"(?!pg_)[a-z_][a-z0-9_]{0,62}\Z")
#: What goes on to the driver, as libpq means it.
_PASSED: Final = frozenset({
    "host", "port", "user", "password", "dbname", "passfile", "sslmode", "sslrootcert", "sslcert", "sslkey", "sslcrl",
    "sslpassword",
})  # fmt: skip


class PostgresSettings(msgspec.Struct, frozen=True, kw_only=True):
    """`shown` is the URL as it may be logged; `dsn` has the password and goes to the driver alone."""

    dsn: str
    shown: str
    schema: str = "onexflow"
    #: Seconds within which one server must answer a new connection.
    connect_timeout: float = 3.0

    def __repr__(self) -> str:
        return f"PostgresSettings({self.shown!r})"


def parse_postgres_url(url: str, password: str = "") -> PostgresSettings:
    """`postgresql://user:password@host:port[,host:port…]/database[?schema=onexflow&connect_timeout=3&sslmode=…]`.

    Several hosts are the members of one replicated server: the one that takes writes is used. `password` counts before
    the URL's; without one, PGPASSWORD and the password file are looked at. Raises InvalidConfiguration with what is
    wrong, without the password.
    """
    try:
        split = urlsplit(url)
        options = parse_qsl(split.query, keep_blank_values=True, strict_parsing=bool(split.query))
    except ValueError:
        raise _bad("postgresql://…", "It is not a URL.") from None
    shown = without_password(url)
    if split.scheme not in SCHEMES:
        raise _bad(shown, "The scheme must be postgresql://.")
    if split.fragment:
        raise _bad(shown, "A # in a user or password is written %23.")
    passed: list[tuple[str, str]] = []
    schema, connect_timeout = "onexflow", 3.0
    for name, text in options:
        if name == "schema":
            schema = _schema(shown, text)
        elif name == "connect_timeout":
            connect_timeout = _seconds(shown, text)
        elif name in _PASSED:
            passed.append((name, text))
        else:
            known = ", ".join(sorted(_PASSED | {"schema", "connect_timeout"}))
            raise _bad(shown, f"Unknown option {name!r}; there are: {known}.")
    if password:
        passed = [(name, text) for name, text in passed if name != "password"] + [("password", password)]
        user, at, hosts = split.netloc.rpartition("@")
        split = split._replace(netloc=user.partition(":")[0] + at + hosts)
    dsn = f"postgresql://{split.netloc}{split.path}{'?' if passed else ''}{urlencode(passed)}"
    return PostgresSettings(dsn=dsn, shown=shown, schema=schema, connect_timeout=connect_timeout)


def _schema(shown: str, text: str) -> str:
    if not _SCHEMA.match(text):
        raise _bad(shown, "A schema's name has lower case letters, digits and _, 63 at most, and no pg_ in front.")
    return text


def _seconds(shown: str, text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0.1 <= number <= 60:
        raise _bad(shown, f"connect_timeout must be a number of seconds between 0.1 and 60, not {text!r}.")
    return number


def _bad(shown: str, why: str) -> InvalidConfiguration:
    return InvalidConfiguration(f"The store URL {shown} cannot be used. {why}", {"url": shown})
