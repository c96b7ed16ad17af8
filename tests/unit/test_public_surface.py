"""The public surface: a list that only grows on purpose, cheap to import."""

from __future__ import annotations

import subprocess
import sys

import pytest

import onexflow


def test_all_is_sorted_small_and_resolves() -> None:
    names = list(onexflow.__all__)
    assert names == sorted(names)
    assert len(names) <= 40
    assert len(set(names)) == len(names)
    for name in names:
        assert getattr(onexflow, name) is not None
    assert set(names) <= set(dir(onexflow))


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no_such_name"):
        onexflow.no_such_name  # noqa: B018 - the look-up is what is tested


def test_import_loads_nothing_heavy() -> None:
    probe = (
        "import sys, onexflow\n"
        "print(sorted({name.split('.')[0] for name in sys.modules} & "
        "{'grpc', 'google', 'msgspec', 'opentelemetry', 'rich', 'cyclopts', 'asyncio'}))"
    )
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True, timeout=20)
    assert done.stdout.strip() == "[]"


def test_defining_and_serving_needs_no_grpc() -> None:
    probe = (
        "import sys, onexflow\n"
        "from onexflow.examples import greet, order_processing, flight_delays\n"
        "for example in (greet, order_processing, flight_delays): example.definition()\n"
        "print('grpc' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True, timeout=20)
    assert done.stdout.strip() == "False"
