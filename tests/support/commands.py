"""Commands that texts name: do they exist, with these flags?"""

from __future__ import annotations

import argparse
import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Final

from onexflow.app import launch
from onexflow.cli.main import COMMANDS, application
from support.cluster_files import PROGRAMS

ROOT: Final = Path(__file__).parents[2]
_NAMES: Final = ("onexflow", *PROGRAMS)
_FENCE: Final = re.compile(r"^```\w*\n(.*?)^```", re.MULTILINE | re.DOTALL)
_INLINE: Final = re.compile(r"`([^`\n]+)`")
#: A command anywhere in a line: behind a prompt, a folder, or another program that runs it.
#: Not the user, group, namespace, folder or pod of that name.
_COMMAND: Final = re.compile(
    rf"(?:^|[\s;&|(/])(?<!-[gnu]\s)(?<!deploy/)(?<!etc/)(?P<command>(?:{'|'.join(_NAMES)})(?:\s.*|$))"
)


def commands_in(page: str) -> Iterator[list[str]]:
    """Every command of ours in the code of a page (Markdown), as words."""
    blocks = _FENCE.findall(page)
    lines = [line for block in blocks for line in re.sub(r"\\\n\s*", " ", block).splitlines()]
    lines += _INLINE.findall(_FENCE.sub("", page))
    for line in lines:
        if line.lstrip().startswith("#"):
            continue
        if match := _COMMAND.search(line):
            yield _words(match["command"])


def problems_in(page: str) -> Iterator[str]:
    """Commands and flags that there are not."""
    for words in commands_in(page):
        program, *arguments = words
        shown = " ".join(words)
        flags = [word.partition("=")[0] for word in arguments if re.match(r"--?[a-z]", word)]
        if program == "onexflow":
            yield from (f"{shown}: {problem}" for problem in _command_problems(arguments, flags))
        else:
            yield from (f"{shown}: no flag {flag}" for flag in flags if flag not in _flags_of(program))
    for script in re.findall(r"\bscripts/([a-z-]+)", page):
        if not (ROOT / "scripts" / script).is_file():
            yield f"scripts/{script}: there is no such script"


def _words(command: str) -> list[str]:
    command = re.split(r"\s(?:#|\||&&|>)\s", f"{command} ", maxsplit=1)[0]
    try:
        return shlex.split(command)
    except ValueError:
        return command.split()


@cache
def _flags_of(program: str) -> frozenset[str]:
    tree, summary, positional = PROGRAMS[program]
    parser: argparse.ArgumentParser = launch._parser(program, summary, tree, positional, with_help=False)
    return frozenset(flag for action in parser._actions for flag in action.option_strings)


def _command_problems(arguments: list[str], flags: list[str]) -> Iterator[str]:
    names = {name for name, _, _ in COMMANDS}
    if not arguments or arguments[0].startswith("-") or arguments[0].isupper():
        return
    if arguments[0] not in names:
        yield f"no command {arguments[0]}"
        return
    chain, apps, rest = application().parse_commands(arguments)
    command = apps[-1]
    if command.default_command is None:
        if rest and not rest[0].startswith("-") and not rest[0].isupper() and rest[0] != "…":
            yield f"no command {' '.join((*chain, rest[0]))}"
        return
    known = {"--help", "-h"}
    for argument in command.assemble_argument_collection():
        known.update(argument.names)
    yield from (f"no flag {flag}" for flag in flags if flag not in known)
