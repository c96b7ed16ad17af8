"""As much of kustomize as our folders use: resources, strategic merge patches, generators, in plain dictionaries."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

import yaml

Object = dict[str, Any]
#: A safe one, the quick one where there is one.
LOADER: Final = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
#: By which field the items of a list are told apart when two are merged.
_KEYS: Final = {
    "containers": "name", "env": "name", "volumes": "name", "volumeMounts": "mountPath", "ports": "containerPort",
}  # fmt: skip
_KNOWN: Final = {
    "apiVersion", "kind", "namespace", "labels", "resources", "images", "replicas", "patches", "configMapGenerator",
    "secretGenerator",
}  # fmt: skip


class Built(NamedTuple):
    objects: list[Object]
    #: Name → what is in it, of what the generators make.
    config_maps: dict[str, dict[str, str]]
    secrets: dict[str, dict[str, str]]
    #: What could not be done.
    problems: list[str]

    def of(self, *kinds: str) -> Iterator[Object]:
        return (found for found in self.objects if found["kind"] in kinds)

    def named(self, kind: str, name: str) -> Object | None:
        return next((found for found in self.of(kind) if found["metadata"]["name"] == name), None)


def build(folder: Path) -> Built:
    """What `kubectl kustomize FOLDER` would give."""
    content = yaml.load((folder / "kustomization.yaml").read_text(), LOADER)
    built = Built([], {}, {}, [f"{folder.name}: kustomization: {key}?" for key in content if key not in _KNOWN])
    for name in content.get("resources", []):
        place = folder / name
        if place.is_dir():
            below = build(place)
            built.objects.extend(below.objects)
            built.problems.extend(below.problems)
            built.config_maps.update(below.config_maps)
            built.secrets.update(below.secrets)
        elif place.is_file():
            built.objects.extend(yaml.load_all(place.read_text(), LOADER))
        else:
            built.problems.append(f"{folder.name}: resource {name} is not there")
    for patch in content.get("patches", []):
        _patch(built, folder / patch["path"])
    for key, known in (("configMapGenerator", built.config_maps), ("secretGenerator", built.secrets)):
        for generator in content.get(key, []):
            _generate(built, folder, known, generator)
    names = {found["metadata"]["name"] for found in built.of("StatefulSet", "Deployment")}
    for entry in content.get("replicas", []):
        if entry["name"] not in names:
            built.problems.append(f"{folder.name}: replicas of {entry['name']}?")
    used = {container["image"] for found in built.objects for container in containers(found)}
    for entry in content.get("images", []):
        if entry["name"] not in used:
            built.problems.append(f"{folder.name}: image {entry['name']}?")
    return built


def containers(found: Object) -> list[Object]:
    spec = found.get("spec", {}).get("template", {}).get("spec", {})
    return list(spec.get("containers", []))


def _patch(built: Built, file: Path) -> None:
    if not file.is_file():
        built.problems.append(f"patch {file.name} is not there")
        return
    patch = yaml.load(file.read_text(), LOADER)
    target = built.named(patch["kind"], patch["metadata"]["name"])
    if target is None:
        built.problems.append(f"patch {file.name}: there is no {patch['kind']} {patch['metadata']['name']}")
    else:
        _merge(target, patch)


def _merge(target: Object, patch: Object) -> None:
    for key, value in patch.items():
        if value is None:
            target.pop(key, None)
        elif isinstance(value, dict) and isinstance(target.get(key), dict):
            _merge(target[key], value)
        elif isinstance(value, list) and key in _KEYS and isinstance(target.get(key), list):
            _merge_lists(target[key], value, _KEYS[key])
        else:
            target[key] = value


def _merge_lists(target: list[Object], patch: list[Object], by: str) -> None:
    for item in patch:
        same = next((one for one in target if one.get(by) == item.get(by)), None)
        if same is None:
            target.append(item)
        else:
            _merge(same, item)


def _generate(built: Built, folder: Path, known: dict[str, dict[str, str]], generator: Object) -> None:
    name = generator["name"]
    if (generator.get("behavior") == "merge") != (name in known):
        built.problems.append(f"{folder.name}: {name} is merged with nothing, or made twice")
    values = dict(literal.split("=", 1) for literal in generator.get("literals", []))
    for file in generator.get("files", []):
        if (folder / file).is_file():
            values[file] = (folder / file).read_text()
        else:
            built.problems.append(f"{folder.name}: {name}: {file} is not there")
    known.setdefault(name, {}).update(values)
