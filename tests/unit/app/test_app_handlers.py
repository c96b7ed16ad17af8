"""From module names to one Worker."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest

from onexflow.app.handlers import check_serves, load_workers
from onexflow.core.errors import InvalidConfiguration, ModuleNotImportable, RoleNotSupported

COUNT = iter(range(1000))


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(tmp_path))

    def write(text: str) -> str:
        name = f"handlers_{next(COUNT)}"
        (tmp_path / f"{name}.py").write_text("from onexflow import Worker\n" + textwrap.dedent(text))
        return name

    return write


def test_several_modules_are_served_as_one_with_all_that_was_said_of_each(module) -> None:
    one = module(
        """
        worker = Worker("one")
        @worker.effect("charge", idempotent=True)
        async def charge(contract): ...
        @worker.reducer("merge")
        def merge(contract): ...
        """
    )
    two = module(
        """
        class Transform:
            node_id, node_type = "transform-1", "compute"
            async def execute_compute(self, contract): ...
        worker = Worker("two")
        worker.add_node(Transform())
        @worker.effect
        async def mail(contract): ...
        """
    )
    worker = load_workers([one, two], "all")
    assert [(h.role, h.name, h.idempotent) for h in worker.handlers] == [
        ("effect", "charge", True),
        ("reducer", "merge", True),
        ("compute", "transform-1", True),
        ("effect", "mail", False),
    ]
    assert worker.handlers[2].node is not None


def test_a_worker_can_be_named_and_is_served_as_it_is(module) -> None:
    name = module("first = Worker('first')\nsecond = Worker('second')\n")
    assert load_workers([f"{name}:second"], "x").name == "second"


def test_one_worker_under_two_names_is_one(module) -> None:
    name = module("worker = Worker('w')\nalias = worker\n@worker.compute\nasync def f(c): ...\n")
    assert load_workers([name], "x").name == "w"


def test_the_same_handler_in_two_modules_is_refused(module) -> None:
    text = "worker = Worker('w')\n@worker.compute('same')\nasync def f(c): ...\n"
    with pytest.raises(InvalidConfiguration, match="already has compute 'same'"):
        load_workers([module(text), module(text)], "all")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("import json\n", "holds no Worker"),
        ("1 / 0\n", r"ZeroDivisionError: division by zero \(.*:2\)"),
        ("def broken(:\n", r"SyntaxError: .*handlers_\d+\.py:2"),
    ],
)
def test_what_is_wrong_with_a_module_is_said(module, text: str, message: str) -> None:
    with pytest.raises(ModuleNotImportable, match=message):
        load_workers([module(text)], "x")


def test_the_hint_fits_what_is_wrong(module) -> None:
    cases = [
        ("no_such_module_at_all", ""),
        (module("import no_such_dependency\n"), "what it imports is missing"),
        (module("1 / 0\n"), "mend it there"),
        (module("main = Worker('w')\n") + ":worker", "It has: main."),
    ]
    for place, hint in cases:
        with pytest.raises(ModuleNotImportable) as caught:
            load_workers([place], "x")
        assert hint in caught.value.context.get("hint", ""), place
        assert bool(hint) == ("hint" in caught.value.context), place  # without one, that of the class: PYTHONPATH


def test_an_error_of_ours_keeps_its_own_words(module) -> None:
    name = module(
        """
        class Boss:
            node_id, node_type = "boss", "orchestrator"
            def execute_orchestration(self, contract): ...
        worker = Worker("w")
        worker.add_node(Boss())
        """
    )
    with pytest.raises(RoleNotSupported, match="boss"):
        load_workers([name], "x")


def test_a_worker_with_nothing_to_do_is_refused(module) -> None:
    worker = load_workers([module("worker = Worker('w')\n@worker.compute\nasync def f(c): ...\n")], "x")
    check_serves(worker, ())
    check_serves(worker, ("compute",))
    with pytest.raises(InvalidConfiguration, match="no handler of role effect"):
        check_serves(worker, ("effect",))
