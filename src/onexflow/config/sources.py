"""Where settings come from: defaults < TOML file < environment < flags, and which one each value came from.

Environment names are `ONEXFLOW_` and the setting's path in upper case, `__` between levels: `ONEXFLOW_STORE__URL`.
A secret may be given as a file: `ONEXFLOW_…_FILE`. Lists are parted by commas.
"""

from __future__ import annotations

import difflib
import inspect
import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar, get_origin

import msgspec

from onexflow.config.bridge import BridgeSettings
from onexflow.config.settings import ClientSettings, OrchestratorSettings, Settings, WorkerSettings
from onexflow.core.address import without_password
from onexflow.core.errors import InvalidConfiguration
from onexflow.core.secret import Secret

PREFIX = "ONEXFLOW_"
DEFAULT = "default"

S = TypeVar("S", bound=Settings)


class Loaded(NamedTuple, Generic[S]):
    """Settings, and the origin of every value that is not a default: path → `file …`, `environment …`, `flag …`."""

    settings: S
    origins: dict[str, str]

    def rows(self) -> Iterator[tuple[str, str, str]]:
        """(setting, value as shown, origin) of every setting; secrets stay hidden."""
        for path in paths(type(self.settings)):
            value: Any = self.settings
            for name in path.split("."):
                value = getattr(value, name)
            shown = ", ".join(value) if isinstance(value, tuple) else str(value)
            if path.endswith("url"):
                shown = without_password(shown)
            yield path, shown, self.origins.get(path, DEFAULT)


def load(
    tree: type[S],
    *,
    file: Path | None = None,
    environment: Mapping[str, str] | None = None,
    flags: Mapping[str, Any] | None = None,
) -> Loaded[S]:
    """Settings of class `tree` from all sources. `flags` maps paths (`store.url`) to values, None = not given.

    Raises InvalidConfiguration, naming the setting and where it came from: unknown names (with the nearest known one),
    values of the wrong type, values that make no sense, a file that cannot be read.
    """
    known = paths(tree)
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}

    def put(path: str, value: Any, origin: str) -> None:
        values[path] = _converted(path, value, known[path], origin)
        origins[path] = origin

    if file is not None:
        for path, value in _from_file(file, known):
            put(path, value, f"file {file}")
    for path, value, name in _from_environment(environment or {}, known):
        put(path, value, f"environment {name}")
    for path, value in (flags or {}).items():
        if value is not None:
            prefix = "--no-" if known[path] is bool and value == "false" else "--"
            put(path, value, f"flag {prefix}{path.replace('.', '-').replace('_', '-')}")

    settings = _build(tree, values)
    for path, problem in _problems(settings):
        raise _invalid(path, problem, origins.get(path, DEFAULT))
    return Loaded(settings, origins)


def paths(tree: type[Settings], prefix: str = "") -> dict[str, Any]:
    """Every setting below `tree` by its dotted path, with its type, in the order of declaration."""
    found: dict[str, Any] = {}
    for field in msgspec.structs.fields(tree):
        path = prefix + field.name
        if isinstance(field.type, type) and issubclass(field.type, Settings):
            found.update(paths(field.type, f"{path}."))
        else:
            found[path] = field.type
    return found


def meanings(tree: type[Settings], prefix: str = "") -> dict[str, str]:
    """What each setting below `tree` is for: the `#:` comment above it."""
    found: dict[str, str] = {}
    pending: list[str] = []
    for line in inspect.getsource(tree).splitlines():
        text = line.strip()
        if text.startswith("#:"):
            pending.append(text.removeprefix("#:").strip())
        elif match := re.match(r"(\w+): ", text):
            found[prefix + match[1]] = " ".join(pending)
            pending = []
    for field in msgspec.structs.fields(tree):
        if isinstance(field.type, type) and issubclass(field.type, Settings):
            found.update(meanings(field.type, f"{prefix}{field.name}."))
    return {path: meaning for path, meaning in found.items() if prefix or path in paths(tree)}


def _from_file(file: Path, known: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    try:
        content = tomllib.loads(file.read_text())
    except OSError as error:
        raise InvalidConfiguration(f"cannot read {file}: {error.strerror}", {"file": str(file)}) from error
    except ValueError as error:  # also what is no UTF-8
        raise InvalidConfiguration(f"{file} is no TOML: {error}", {"file": str(file)}) from error
    yield from _leaves(content, "", known, f"file {file}")


def _leaves(table: Mapping[str, Any], prefix: str, known: Mapping[str, Any], origin: str) -> Iterator[tuple[str, Any]]:
    for name, value in table.items():
        path = prefix + name
        if path in known:
            yield path, value
        elif isinstance(value, dict) and any(one.startswith(f"{path}.") for one in known):
            yield from _leaves(value, f"{path}.", known, origin)
        else:
            raise _unknown(path, known, origin)


def _from_environment(environment: Mapping[str, str], known: Mapping[str, Any]) -> Iterator[tuple[str, Any, str]]:
    trees = (OrchestratorSettings, WorkerSettings, BridgeSettings, ClientSettings)
    everywhere = {path: kind for tree in trees for path, kind in paths(tree).items()} | {**known}
    for name, value in sorted(environment.items()):
        if not name.startswith(PREFIX):
            continue
        path = name.removeprefix(PREFIX).lower().replace("__", ".")
        plain = path.removesuffix("_file")
        if path in known:
            yield path, value, name
        elif path != plain and known.get(plain) is Secret:
            yield plain, _secret_from_file(plain, value, name), name
        elif path in everywhere or (path != plain and everywhere.get(plain) is Secret):
            continue  # meant for another binary that shares this environment
        elif "." in path or difflib.get_close_matches(path, everywhere, 1, 0.8):
            raise _unknown(path, everywhere, f"environment {name}")
        # Else it is not ours: examples, tests and users' handlers have variables of their own under this prefix.


def _secret_from_file(path: str, file: str, name: str) -> str:
    try:
        return Path(file).read_text().rstrip("\n")
    except OSError as error:
        raise _invalid(path, f"cannot read {file}: {error.strerror}", f"environment {name}") from error


def _converted(path: str, value: Any, wanted: Any, origin: str) -> Any:
    if wanted is Secret:
        if isinstance(value, str):
            return Secret(value)
        raise _invalid(path, "expected text", origin)
    from_text = not origin.startswith("file ")
    if from_text and get_origin(wanted) is tuple and isinstance(value, str):
        value = [part.strip() for part in value.split(",") if part.strip()]
    if from_text and wanted is bool and isinstance(value, str):
        value = {"yes": "true", "on": "true", "no": "false", "off": "false"}.get(value.lower(), value)
    try:
        return msgspec.convert(value, wanted, strict=not from_text)
    except msgspec.ValidationError as error:
        raise _invalid(path, f"{str(error).replace('`', '')}: {value!r}", origin) from error


def _build(tree: type[S], values: Mapping[str, Any], prefix: str = "") -> S:
    arguments: dict[str, Any] = {}
    for field in msgspec.structs.fields(tree):
        path = prefix + field.name
        if isinstance(field.type, type) and issubclass(field.type, Settings):
            arguments[field.name] = _build(field.type, values, f"{path}.")
        elif path in values:
            arguments[field.name] = values[path]
    return tree(**arguments)


def _problems(settings: Settings, prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, problem in settings.problems():
        yield prefix + name, problem
    for name in settings.__struct_fields__:
        value = getattr(settings, name)
        if isinstance(value, Settings):
            yield from _problems(value, f"{prefix}{name}.")


def _invalid(path: str, problem: str, origin: str) -> InvalidConfiguration:
    return InvalidConfiguration(f"{path} ({origin}): {problem}", {"setting": path, "origin": origin})


def _unknown(path: str, known: Mapping[str, Any], origin: str) -> InvalidConfiguration:
    near = difflib.get_close_matches(path, known, 1, 0.5)
    hint = f", did you mean {near[0]!r}?" if near else ""
    return InvalidConfiguration(f"{path} ({origin}): no such setting{hint}", {"setting": path, "origin": origin})
