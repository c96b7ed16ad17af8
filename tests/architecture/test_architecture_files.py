"""Rules that hold for files: sizes, words that must not be there, what hides an error."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "onexflow"
HARD_LIMIT = 700
FUNCTION_LIMIT = 80


def tracked(*patterns: str) -> list[Path]:
    """The files of the repository; without git, those of the folders that matter."""
    done = subprocess.run(["git", "ls-files", *patterns], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode == 0 and done.stdout:
        return [ROOT / line for line in done.stdout.splitlines() if (ROOT / line).is_file()]
    folders = ("src", "tests", "scripts", "docs", "proto", "cluster")
    return [file for folder in folders for file in (ROOT / folder).rglob("*") if file.is_file()]


def written() -> list[Path]:
    """Python that people write: not what is generated."""
    return [file for file in tracked("*.py") if file.suffix == ".py" and "_pb2" not in file.name]


def test_no_file_is_longer_than_the_hard_limit() -> None:
    long = {str(f.relative_to(ROOT)): n for f in written() if (n := len(f.read_text().splitlines())) > HARD_LIMIT}
    assert long == {}


def test_no_function_is_longer_than_two_screens() -> None:
    long = {}
    for file in written():
        if not file.is_relative_to(PACKAGE):
            continue
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                size = (node.end_lineno or 0) - node.lineno + 1
                if size > FUNCTION_LIMIT:
                    long[f"{file.relative_to(ROOT)}:{node.lineno} {node.name}"] = size
    assert long == {}


#: Spelt in parts, so that this file does not hold what it forbids.
FORBIDDEN = {
    "a path of somebody's machine": r"(?<![\w./-])/(?:wor" + r"k|roo" + r"t|home/\w+)/",
    "a place to download packages from": r"py" + r"pi\.org|files\.python" + r"hosted|debian" + r"\.org|npm" + r"js\.",
    "an unfinished thing": r"\bTO" + r"DO\b|\bFIX" + r"ME\b|\bXX" + r"X\b",
    "a private key": r"BEGIN [A-Z ]*PRIV" + r"ATE KEY",
}


@pytest.mark.parametrize("what", FORBIDDEN)
def test_no_file_holds(what: str) -> None:
    pattern = re.compile(FORBIDDEN[what])
    found = []
    for file in tracked():
        if file.suffix in (".xz", ".png", ".lock", ".svg") or file.name == "LICENSE":
            continue
        for number, line in enumerate(file.read_text(errors="replace").splitlines(), 1):
            if pattern.search(line):
                found.append(f"{file.relative_to(ROOT)}:{number}: {line.strip()[:80]}")
    assert found == []


def test_the_locks_name_no_place_to_download_from() -> None:
    for lock in (ROOT / "requirements").glob("*.lock"):
        text = lock.read_text()
        assert "://" not in text
        assert re.search(r"^-", text, re.MULTILINE) is None
        pins = re.findall(r"^[\w.-]+==", text, re.MULTILINE)
        assert len(pins) > (5 if lock.name.startswith("peer-") else 20)
        assert text.count("--hash=sha256:") >= len(pins)


def test_every_excuse_has_its_reason_beside_it() -> None:
    bare = []
    for file in written():
        for number, line in enumerate(file.read_text().splitlines(), 1):
            if re.search(r"# (noqa(: ?[A-Z0-9, ]+)?|type: ignore(\[[\w, -]+\])?)\s*$", line):
                bare.append(f"{file.relative_to(ROOT)}:{number}: {line.strip()[:90]}")
    assert bare == []


def test_log_lines_are_named_noun_verb() -> None:
    call = re.compile(r"\b_?log\.(?:debug|info|warning|error|exception|critical)\(\s*(.[^,)]*)")
    events = [(file.name, name) for file in written() if file.is_relative_to(PACKAGE)
              for name in call.findall(file.read_text())]  # fmt: skip
    assert len(events) > 30
    assert [event for event in events if not re.fullmatch(r'"[a-z]+\.[a-z_]+"', event[1])] == []


def test_every_script_says_what_it_does() -> None:
    for script in (ROOT / "scripts").iterdir():
        if script.is_file():
            first, second, *_ = script.read_text().splitlines()
            assert first.startswith("#!"), script
            assert second.startswith("# "), script
            assert script.stat().st_mode & 0o111, f"{script} cannot be run"


@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make here")
def test_make_help_lists_every_script_and_nothing_else() -> None:
    done = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True)
    listed = [line.split()[0] for line in done.stdout.splitlines()[1:]]
    assert listed == sorted(script.name for script in (ROOT / "scripts").iterdir() if script.is_file())
    assert done.stderr == ""


def test_no_test_sleeps() -> None:
    """A test waits for a condition with a deadline; a sleep is a step of such a wait, or has its reason beside it.

    In virtual time (`onexflow.testing`) asyncio.sleep takes none.
    """
    found = []
    for file in written():
        if file.is_relative_to(ROOT / "tests") and file.name.startswith("test_"):
            text = file.read_text()
            clock = "time" if re.search(r"testing\.(clock|cluster)|engine_kit", text) else "(?:time|asyncio)"
            for number, line in enumerate(text.splitlines(), 1):
                slept = re.search(rf"\b{clock}\.sleep\(([^)]*)\)(.*)", line)
                if slept and "  # " not in slept[2] and not re.fullmatch(r"0|0\.0[0-5]\d*", slept[1]):
                    found.append(f"{file.relative_to(ROOT)}:{number}")
    assert found == []


def test_the_oldest_entries_leave_an_ordered_dict() -> None:
    """`del d[next(iter(d))]` of a plain dict looks past all that was deleted before: 3 µs with 6,000 entries, 34 with 50,000.
    `OrderedDict.popitem(last=False)` does not."""
    idiom = re.compile(r"(\[|pop\(|= )next\(iter\((self|state)\b")
    few = {"bridge/publisher.py", "engine/events/joined.py", "registry/etcd/registry.py"}  # entries, at any time
    found = {
        str(f.relative_to(PACKAGE)) for f in written() if f.is_relative_to(PACKAGE) and idiom.search(f.read_text())
    }
    assert found == few


def test_the_test_script_runs_every_folder_with_tests() -> None:
    script = (ROOT / "scripts" / "test").read_text()
    groups = re.findall(r"^step .*tests/(.*)$", script, re.MULTILINE)
    named = {name for group in groups for name in re.findall(r"\w+", group)}
    folders = {path.relative_to(ROOT / "tests").parts[0] for path in (ROOT / "tests").rglob("test_*.py")}
    assert named == folders
