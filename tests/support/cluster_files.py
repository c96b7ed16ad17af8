"""What the files in cluster/ say: which programs they start, with which flags and variables, and how these are judged."""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple
from unittest import mock

import yaml

from onexflow.app import launch, orchestrator, worker
from onexflow.config import OrchestratorSettings, Secret, Settings, WorkerSettings, paths
from onexflow.config.settings import ClientSettings
from onexflow.core.errors import InvalidConfiguration
from support.kustomize import LOADER, Built, Object, containers

#: Program → its settings, and the flag-less argument that it takes.
PROGRAMS: Final[dict[str, tuple[type[Settings], str, str]]] = {
    "onex-orchestrator": (OrchestratorSettings, orchestrator.SUMMARY, ""),
    "onex-worker": (WorkerSettings, worker.SUMMARY, "modules"),
}
#: Variables that are read elsewhere than in the settings; a test sees to it that they are.
OTHER_VARIABLES: Final = frozenset({"ONEXFLOW_ADDRESS", "ONEXFLOW_NAMESPACE", "ONEXFLOW_CONFIG", "ONEXFLOW_DEBUG"})
#: What compose itself puts in, from the environment of whoever calls it.
COMPOSE_VARIABLES: Final = frozenset({"ONEXFLOW_IMAGE"})
VARIABLE: Final = re.compile(r"\bONEXFLOW_[A-Z0-9_]*[A-Z0-9]\b")


class Start(NamedTuple):
    """One program that a file starts."""

    where: str
    program: str
    arguments: list[str]
    environment: dict[str, str]
    #: Seconds that it is given to stop; 0: not said.
    stop_within: float = 0.0


def variables() -> set[str]:
    """Every variable that means something to the programs."""
    known = set(OTHER_VARIABLES)
    for tree in (OrchestratorSettings, WorkerSettings, ClientSettings):
        for path, kind in paths(tree).items():
            name = f"ONEXFLOW_{path.upper().replace('.', '__')}"
            known.add(name)
            if kind is Secret:
                known.add(f"{name}_FILE")
    return known


def settings_of(start: Start, secrets: Path) -> Settings:
    """The settings that the program would start with. Raises InvalidConfiguration, also for a flag that it does not
    know. Secrets that are files of another machine are read from `secrets`."""
    tree, summary, positional = PROGRAMS[start.program]
    environment = {
        name: str(secrets) if name.endswith("_FILE") and name != "ONEXFLOW_TOKEN_FILE" else value
        for name, value in start.environment.items()
    }
    complaints = io.StringIO()
    with mock.patch.dict(os.environ, environment, clear=True), contextlib.redirect_stderr(complaints):
        try:
            settings = launch._settings(start.program, summary, tree, start.arguments, positional)
        except SystemExit:
            raise InvalidConfiguration(complaints.getvalue().strip().splitlines()[-1]) from None
    assert settings is not None
    return settings


def problems_of(starts: Iterable[Start], secrets: Path) -> Iterator[str]:
    """Starts that would not: flags and variables that nobody knows, values that make no sense; and stops that are cut
    short."""
    known = variables()
    for start in starts:
        for name in start.environment:
            if name.startswith("ONEXFLOW_") and name not in known:
                yield f"{start.where}: nobody reads {name}"
        try:
            settings = settings_of(start, secrets)
        except InvalidConfiguration as error:
            yield f"{start.where}: {error}"
            continue
        # An orchestrator hands its shards over first, and closes its streams; a worker says goodbye.
        needs: Any = settings
        if start.stop_within and start.stop_within < needs.drain_timeout + 20:
            yield f"{start.where}: stops within {start.stop_within:g} s, drains for {needs.drain_timeout:g} s"


def variables_in(files: Iterable[Path]) -> Iterator[str]:
    """Variables that texts name and nobody reads."""
    known = variables() | COMPOSE_VARIABLES
    for file in files:
        for name in sorted(set(VARIABLE.findall(file.read_text()))):
            if name not in known:
                yield f"{file.name}: nobody reads {name}"


# ---- systemd


def unit(file: Path) -> list[tuple[str, str, str]]:
    """(section, key, value) of each line of a unit."""
    found = []
    section = ""
    for number, line in enumerate(file.read_text().splitlines(), 1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        if match := re.fullmatch(r"\[(\w+)\]", text):
            section = match[1]
        elif match := re.fullmatch(r"([A-Za-z]+)=(.*)", text):
            found.append((section, match[1], match[2]))
        else:
            raise ValueError(f"{file.name}:{number}: {text}")
    return found


def environment_file(file: Path) -> dict[str, str]:
    lines = [line for line in file.read_text().splitlines() if line.strip() and not line.startswith("#")]
    return {name: value for name, _, value in (line.partition("=") for line in lines)}


def systemd_starts(folder: Path) -> Iterator[Start]:
    for file in sorted(folder.glob("*.service")):
        lines = [(key, value) for section, key, value in unit(file) if section == "Service"]
        environment: dict[str, str] = {}
        for key, value in lines:
            said = value.replace("%i", "default").replace("%l", "host").replace("%d", "/run/credentials/unit")
            if key == "EnvironmentFile":
                environment |= environment_file(folder / Path(said).name)
            elif key == "Environment":
                name, _, text = said.partition("=")
                environment[name] = text
        last = dict(lines)
        program, *arguments = shlex.split(last["ExecStart"])
        yield Start(file.name, Path(program).name, arguments, environment, float(last["TimeoutStopSec"]))


# ---- compose


def compose(folder: Path, *names: str) -> Object:
    """The files, each over the one before."""
    merged: Object = {}
    for name in names:
        _over(merged, yaml.load((folder / name).read_text(), LOADER))
    return merged


def _over(below: Object, above: Mapping[str, Any]) -> None:
    for key, value in above.items():
        if isinstance(value, dict) and isinstance(below.get(key), dict):
            _over(below[key], value)
        elif isinstance(value, list) and key == "volumes" and key in below:
            below[key] = [*below[key], *value]
        else:
            below[key] = value


def compose_starts(content: Object, where: str) -> Iterator[Start]:
    for name, service in content["services"].items():
        command = list(service.get("command", []))
        if command[:2] == ["sh", "-c"]:
            command = shlex.split(command[2].replace("$$(hostname)", "host").removeprefix("exec "))
        if command and command[0] in PROGRAMS:
            environment = {key: _default(str(value)) for key, value in service.get("environment", {}).items()}
            grace = float(str(service.get("stop_grace_period", "0")).removesuffix("s"))
            yield Start(f"{where} {name}", command[0], command[1:], environment, grace)


def _default(text: str) -> str:
    """`${NAME:-text}` as it is when NAME is not set."""
    return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text)


# ---- Kubernetes


def kubernetes_starts(built: Built, where: str) -> Iterator[Start]:
    for found in built.of("StatefulSet", "Deployment"):
        pod = found["spec"]["template"]["spec"]
        for container in containers(found):
            command = container.get("command", [])
            if not command or command[0] not in PROGRAMS:
                continue
            environment: dict[str, str] = {}
            for source in container.get("envFrom", []):
                environment |= built.config_maps.get(source["configMapRef"]["name"], {})
            own = {entry["name"]: str(entry.get("value", "10.0.0.1")) for entry in container.get("env", [])}
            environment |= own
            arguments = [_filled(one, own) for one in command[1:]]
            grace = float(pod.get("terminationGracePeriodSeconds", 30))
            yield Start(f"{where} {found['metadata']['name']}", command[0], arguments, environment, grace)


def _filled(text: str, values: Mapping[str, str]) -> str:
    """`$(NAME)` replaced by what the container's own environment says."""
    return re.sub(r"\$\((\w+)\)", lambda match: values[match[1]], text)
