"""Documents and code say the same."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import onexflow
from chaos.catalog import SCENARIOS
from onexflow.core.errors import BY_CODE
from onexflow.core.explanations import EXPLANATIONS
from onexflow.testing.conformance.event_store import EventStoreSuite

ROOT = Path(__file__).parents[2]
#: All pages of ours; the specification in docs/spec is a quotation, with links to pages that are not here.
PAGES = [page for page in (*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")) if page.parent.name != "spec"]


def test_the_generated_pages_are_fresh() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts/lib/gen_docs.py"), "--check"],
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert done.returncode == 0, done.stderr


def test_every_error_code_is_explained_and_no_other() -> None:
    assert set(EXPLANATIONS) == set(BY_CODE)
    headings = re.findall(r"^## (OXF-\d{4})$", (ROOT / "docs/errors.md").read_text(), re.MULTILINE)
    assert headings == sorted(BY_CODE)


def test_every_error_class_has_a_code_of_its_own_and_a_first_line() -> None:
    assert len({cls.__name__ for cls in BY_CODE.values()}) == len(BY_CODE)
    for code, cls in BY_CODE.items():
        assert re.fullmatch(r"OXF-[1-59]\d{3}", code)
        assert cls.code == code
        assert str(cls()) == (cls.__doc__ or "").splitlines()[0]


def test_the_tree_in_the_errors_docstring_names_every_class_and_code() -> None:
    tree = sys.modules["onexflow.core.errors"].__doc__ or ""
    for code, cls in BY_CODE.items():
        assert re.search(rf"\b{cls.__name__}\b\s+{code}", tree), f"{cls.__name__} {code}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_between_documents_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!\w+:|#)([^)#]+)(?:#[^)]*)?\)", page.read_text()):
        assert (page.parent / target).exists(), target


def test_each_row_of_the_degradation_table_names_a_test_that_there_is() -> None:
    table = (ROOT / "docs/guarantees.md").read_text().partition("## When something is away")[2].partition("\n## ")[0]
    rows = [line for line in table.splitlines() if line.startswith("| ")][1:]
    assert len(rows) >= 7
    for row in rows:
        file, _, name = row.rstrip(" |").rpartition("| ")[2].strip("`").partition("::")
        assert re.search(rf"^(async )?def {name}\(", (ROOT / "tests" / file).read_text(), re.MULTILINE), row


def test_each_trouble_of_other_engines_names_tests_that_there_are() -> None:
    rows = re.findall(r"^\| ([PR]\d+) \|.*$", page := (ROOT / "docs/peer-bugs.md").read_text(), re.MULTILINE)
    expected = [f"P{number}" for number in (*range(19, 27), 30, 33, 34, 35)]
    assert rows == [*expected, *(f"R{number}" for number in range(1, 17) if number != 13)]
    for line in page.splitlines():
        named = re.findall(r"`([\w/]+\.py)::(\w+)`", line)
        assert named or not re.match(r"\| [PR]\d", line), line
        for file, name in named:
            text = (ROOT / "tests" / file).read_text()
            assert re.search(rf"^(async )?def {name}\(", text, re.MULTILINE), f"{file}::{name}"


def test_scenarios_that_are_measured_are_in_the_catalog_of_scripts_chaos() -> None:
    table = (ROOT / "docs/peer-bugs.md").read_text().partition("\n## Scenarios\n")[2].partition("\n## ")[0]
    rows = {row[0]: re.findall("`([^`]+)`", row[3]) for row in cells_of(table) if row[0].startswith("R")}
    named = [name for names in rows.values() for name in names]
    assert [name for name in named if name not in SCENARIOS] == []
    assert [row for row in ("R1", "R2", "R4", "R5", "R6", "R8", "R9", "R12") if not rows[row]] == []


def test_tests_that_are_named_for_a_known_bug_are_there() -> None:
    page = (ROOT / "docs/mutants.md").read_text()
    named = [name for row in cells_of(page) for name in re.findall(r"`(test_\w+)`", row[-1])]
    assert named
    assert [name for name in named if not hasattr(EventStoreSuite, name)] == []
    assert [file for file in re.findall(r"`(tests/[\w/]+\.py)`", page) if not (ROOT / file).exists()] == []


def cells_of(text: str) -> list[list[str]]:
    """The cells of each row of the tables in a text."""
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]


def test_the_version_is_said_once() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert onexflow.__version__ == project["version"]


def test_the_specification_is_mirrored_under_a_frozen_list_of_names() -> None:
    import onexflow.spi as spi

    assert sorted(name for name in dir(spi) if name.startswith(("Literal", "Protocol"))) == [
        name for name in spi.__all__ if name.startswith(("Literal", "Protocol"))
    ]
    assert len(spi.__all__) == 62
