"""The files in cluster/: every flag and variable is one that the programs know, and what they name is there.

Each judgement is tried on a mutation, too: it must be told.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import pytest
import yaml

from onexflow.app import exits
from onexflow.config import OrchestratorSettings, load_cluster, load_policy
from onexflow.core.address import split_address
from support import commands
from support.cluster_files import (
    OTHER_VARIABLES,
    compose,
    compose_starts,
    environment_file,
    kubernetes_starts,
    problems_of,
    settings_of,
    systemd_starts,
    unit,
    variables_in,
)
from support.kustomize import Built, Object, build, containers

ROOT: Final = Path(__file__).parents[2]
FOLDER: Final = ROOT / "cluster"
OVERLAYS: Final = ("dev", "production")
#: What production/kustomization.yaml says is made beforehand.
GIVEN_SECRETS: Final = frozenset({"onex-orchestrator-tls", "onex-worker-tls", "onexflow-store", "onexflow-etcd"})
_TEXTS: Final = {"", ".md", ".toml", ".yaml", ".service", ".env", ".sysusers", ".dockerignore"}


# ---- what is judged


def problems(folder: Path, secrets: Path) -> list[str]:
    """Everything that is wrong with the files in `folder`."""
    files = [file for file in sorted(folder.rglob("*")) if file.is_file() and file.name != ".gitignore"]
    return [
        *(f"{file.name}: what is that?" for file in files if file.suffix not in _TEXTS),
        *variables_in(files),
        *(problem for file in files if file.suffix == ".md" for problem in commands.problems_in(file.read_text())),
        *problems_of(systemd_starts(folder / "systemd"), secrets),
        *systemd_problems(folder / "systemd"),
        *compose_problems(folder / "compose", secrets),
        *dockerfile_problems(folder / "compose"),
        *(problem for name in OVERLAYS for problem in kubernetes_problems(folder / "kubernetes" / "overlays" / name, secrets)),
        *policy_problems(folder),
    ]  # fmt: skip


def systemd_problems(folder: Path) -> Iterator[str]:
    codes = {str(value) for name, value in vars(exits).items() if name.isupper()}
    readme = (folder / "README.md").read_text()
    for file in folder.glob("*.service"):
        lines = unit(file)
        credentials = {value.partition(":")[0] for _, key, value in lines if key == "LoadCredential"}
        used = {found for _, _, value in lines for found in re.findall(r"%d/([\w-]+)", value)}
        for one in sorted(credentials ^ used):
            yield f"{file.name}: credential {one} is not both loaded and used"
        for _, key, value in lines:
            if key == "RestartPreventExitStatus":
                yield from (f"{file.name}: no exit code {one}" for one in value.split() if one not in codes)
            if key == "LoadCredential" and value.partition(":")[2] not in readme:
                yield f"{file.name}: README does not say how {value.partition(':')[2]} comes to be"
            if key == "EnvironmentFile" and not (folder / Path(value.replace("%i", "default")).name).is_file():
                yield f"{file.name}: {value} has no example"
            if key == "ExecStart" and not value.startswith("/opt/onexflow/bin/"):
                yield f"{file.name}: {value} is not where README puts it"
        given = {key: value for _, key, value in lines}
        for key, wanted in (
            ("Restart", "always"),
            ("NoNewPrivileges", "yes"),
            ("ProtectSystem", "strict"),
            ("User", "onexflow"),
        ):
            if given.get(key) != wanted:
                yield f"{file.name}: {key} is not {wanted}"
        if file.name not in readme:
            yield f"{file.name}: README does not install it"


def compose_problems(folder: Path, secrets: Path) -> Iterator[str]:
    plain = compose(folder, "compose.yaml")
    secured = compose(folder, "compose.yaml", "compose.tls.yaml")
    for content, where in ((plain, "compose"), (secured, "compose.tls")):
        starts = list(compose_starts(content, where))
        yield from problems_of(starts, secrets)
        services = content["services"]
        declared = {"secrets": set(content["secrets"]), "volumes": set(content["volumes"]), "depends_on": set(services)}
        for name, service in services.items():
            for key, known in declared.items():
                for one in service.get(key, ()):
                    named = one.partition(":")[0]
                    if named not in known and not named.startswith("."):
                        yield f"{where} {name}: {key} {named} is not declared"
            yield from _compose_service_problems(f"{where} {name}", service, services, folder)
    connections = int(re.findall(r"max_connections=(\d+)", str(plain["services"]["postgres"]["command"]))[0])
    orchestrators = sum(name.startswith("orchestrator-") for name in plain["services"])
    if connections < orchestrators * 6 + 10:
        yield f"compose: {connections} connections are too few for {orchestrators} orchestrators"


def _compose_service_problems(where: str, service: Object, services: Object, folder: Path) -> Iterator[str]:
    image = service["image"]
    if "/" in image or not (image.startswith("${") or image == "postgres:18"):
        yield f"{where}: {image} names a registry, or who knows what"
    environment = {key: str(value) for key, value in service.get("environment", {}).items()}
    for value in environment.values():
        for host in _hosts(value):
            if host not in services:
                yield f"{where}: {host} in {value} is no service"
    if (
        "build" in service
        and not (folder / service["build"]["context"] / service["build"]["dockerfile"]).resolve().is_file()
    ):
        yield f"{where}: {service['build']['dockerfile']} is not there"
    members = environment.get("ETCD_INITIAL_CLUSTER", "")
    if members and environment["ETCD_NAME"] not in {member.partition("=")[0] for member in members.split(",")}:
        yield f"{where}: {environment['ETCD_NAME']} is no member of {members}"
    listened = re.findall(r"--listen=[\w-]+:(\d+)", " ".join(service.get("command", [])))
    for port in service.get("ports", []):
        host, _, inside = port.rpartition(":")
        if inside not in listened or not host.startswith("127.0.0.1:"):
            yield f"{where}: port {port} is not served, or to everybody"


def _hosts(value: str) -> list[str]:
    """The hosts that a setting names."""
    if "://" in value:
        places = [part.rpartition("=")[2] for part in value.split(",")]
        hosts = [urlsplit(place if "://" in place else f"x://{place}").hostname or "" for place in places]
    else:
        found = [split_address(part) for part in value.split(",")]
        hosts = [one[0] for one in found if one is not None]
    return [host for host in hosts if host and host != "0.0.0.0"]


def dockerfile_problems(folder: Path) -> Iterator[str]:
    text = (folder / "Dockerfile").read_text()
    lines = [line.strip() for line in re.sub(r"\\\n(?:\s*#.*\n)*", " ", text).splitlines()]
    instructions = [line.partition(" ")[::2] for line in lines if line and not line.startswith("#")]
    known = {"ARG", "FROM", "WORKDIR", "COPY", "RUN", "ENV", "USER", "EXPOSE", "STOPSIGNAL", "CMD"}
    yield from (f"Dockerfile: {name}?" for name, _ in instructions if name not in known)
    stages = [value.partition(" AS ")[2] for name, value in instructions if name == "FROM"]
    if len(stages) < 2 or any("/" in value for name, value in instructions if name == "FROM"):
        yield "Dockerfile: it has one stage, or takes an image of a registry by name"
    if [value for name, value in instructions if name == "USER"][-1:] != ["10001:10001"]:
        yield "Dockerfile: it does not end as the user of the Kubernetes files"
    allowed = [
        line[1:] for line in (folder / "Dockerfile.dockerignore").read_text().splitlines() if line.startswith("!")
    ]
    for name, value in instructions:
        *sources, _ = value.split()
        if name == "COPY" and sources[0].startswith("--from="):
            if sources[0].partition("=")[2] not in stages:
                yield f"Dockerfile: there is no stage {sources[0]}"
        elif name == "COPY":
            yield from (f"Dockerfile: {one} is not there" for one in sources if not (ROOT / one).exists())
            yield from (f"Dockerfile: {one} is ignored" for one in sources if one not in allowed)
    command = [value for name, value in instructions if name == "CMD"][-1].strip('[]"')
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    if command not in scripts:
        yield f"Dockerfile: there is no program {command}"
    lock = (ROOT / "requirements/runtime.lock").read_text()
    for package in re.findall(r"uninstall --yes ([\w -]+?)(?:\s*$|\s{2})", text, re.MULTILINE)[0].split():
        if f"\n{package}==" not in lock:
            yield f"Dockerfile: {package} is not installed"


def kubernetes_problems(folder: Path, secrets: Path) -> Iterator[str]:
    built = build(folder)
    yield from built.problems
    yield from problems_of(kubernetes_starts(built, folder.name), secrets)
    labels = [found["spec"]["template"]["metadata"]["labels"] for found in built.of("StatefulSet", "Deployment")]
    ports = {
        port["name"]: port["containerPort"]
        for found in built.of("StatefulSet", "Deployment")
        for container in containers(found)
        for port in container.get("ports", [])
    }
    for where, selector in _selectors(built):
        if not any(selector.items() <= given.items() for given in labels):
            yield f"{folder.name} {where}: selects nothing: {selector}"
    for found in built.of("Service"):
        for port in found["spec"]["ports"]:
            if port.get("targetPort", port["name"]) not in ports:
                yield f"{folder.name} service {found['metadata']['name']}: no port {port.get('targetPort', port['name'])}"
    for found in built.of("NetworkPolicy"):
        for rule in found["spec"]["ingress"]:
            yield from (
                f"{folder.name} {found['metadata']['name']}: nobody serves port {port['port']}"
                for port in rule["ports"]
                if port["port"] not in ports.values()
            )
    for found in built.of("StatefulSet", "Deployment"):
        yield from (
            f"{folder.name} {found['metadata']['name']}: {problem}" for problem in _workload_problems(built, found)
        )


def _selectors(built: Built) -> Iterator[tuple[str, dict[str, str]]]:
    for found in built.objects:
        spec = found.get("spec", {})
        where = f"{found['kind']} {found['metadata']['name']}"
        for selector in (spec.get("selector"), spec.get("podSelector")):
            if selector:
                yield where, selector.get("matchLabels", selector)
        for rule in spec.get("ingress", []):
            yield from ((where, peer["podSelector"]["matchLabels"]) for peer in rule["from"])
        for spread in spec.get("template", {}).get("spec", {}).get("topologySpreadConstraints", []):
            yield where, spread["labelSelector"]["matchLabels"]


def _workload_problems(built: Built, found: Object) -> Iterator[str]:
    pod = found["spec"]["template"]["spec"]
    service = found["spec"].get("serviceName")
    if service and (built.named("Service", service) or {"spec": {}})["spec"].get("clusterIP") != "None":
        yield f"serviceName {service} is no headless service"
    if (account := pod.get("serviceAccountName")) and built.named("ServiceAccount", account) is None:
        yield f"there is no service account {account}"
    if not pod["securityContext"].get("runAsNonRoot"):
        yield "it may run as root"
    known_secrets = {*built.secrets, *GIVEN_SECRETS}
    for volume in pod["volumes"]:
        if "secret" in volume and volume["secret"]["secretName"] not in known_secrets:
            yield f"there is no secret {volume['secret']['secretName']}"
        if "configMap" in volume and volume["configMap"]["name"] not in built.config_maps:
            yield f"there is no config map {volume['configMap']['name']}"
    for container in pod["containers"]:
        mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
        if set(mounts.values()) != {volume["name"] for volume in pod["volumes"]}:
            yield f"volumes and mounts differ: {mounts}"
        ours = {port["name"]: port["containerPort"] for port in container["ports"]}
        for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
            probe = container.get(kind, {})
            asked = next((probe[how]["port"] for how in ("grpc", "tcpSocket") if how in probe), None)
            if sum(how in probe for how in ("grpc", "tcpSocket", "exec")) != 1 and probe:
                yield f"{kind} asks in more ways than one, or in none"
            if asked is not None and asked not in (*ours, *ours.values()):
                yield f"{kind} asks at {asked}, which is not served"
        if container["securityContext"].get("allowPrivilegeEscalation") is not False:
            yield "it may get more rights"
        for source in container.get("envFrom", []):
            if source["configMapRef"]["name"] not in built.config_maps:
                yield f"there is no config map {source['configMapRef']['name']}"
        for flag in container.get("command", []):
            listened = re.fullmatch(r"--(listen|liveness|advertise)=(.*):(\d+)", flag)
            if listened and int(listened[3]) not in ours.values():
                yield f"{flag} is not among its ports"
            if listened and listened[1] == "advertise" and not listened[2].endswith(f".{service}"):
                yield f"{flag} is not by the name that {service} gives"
        yield from _path_problems(container, built, mounts)


def _path_problems(container: Object, built: Built, mounts: dict[str, str]) -> Iterator[str]:
    """Files that variables name, and no volume brings."""
    values = [str(entry.get("value", "")) for entry in container.get("env", [])]
    for source in container.get("envFrom", []):
        values += built.config_maps.get(source["configMapRef"]["name"], {}).values()
    is_worker = container["name"] == "worker"
    for value in values:
        for path in re.findall(r"(?:^|=)(/(?:run|etc)/[^&]+)", value):
            if str(Path(path).parent) not in mounts and not (is_worker and "/store/" in path):
                yield f"{path} is in no volume"


def policy_problems(folder: Path) -> Iterator[str]:
    """The policy knows the certificates that the script makes, and no others; there is one text of it."""
    policy = folder / "tls/policy.toml"
    if policy.read_text() != (folder / "kubernetes/overlays/production/policy.toml").read_text():
        yield "the two policies differ"
    load_policy(policy)
    names = [name for entry in tomllib.loads(policy.read_text())["identity"] for name in entry["certificates"]]
    kinds = {name.rpartition("/")[2] for name in names}
    made = (folder / "tls/make-certificates").read_text()
    written = set(re.findall(r"spiffe://onexflow/(\w+)", made)) | {"worker", "client", "operator"}
    if set(kinds) != written:
        yield f"the policy knows {sorted(kinds)}, certificates are made of {sorted(written)}"


# ---- the tests


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    file = tmp_path / "a-secret"
    file.write_text("one\n")
    return file


def test_the_files_start_programs_that_would_start_and_name_what_there_is(secret: Path) -> None:
    assert problems(FOLDER, secret) == []


@pytest.mark.parametrize(
    ("file", "old", "new", "words"),
    [
        ("systemd/orchestrator.env", "ONEXFLOW_ADVERTISE", "ONEXFLOW_ADVERTIZE", "nobody reads ONEXFLOW_ADVERTIZE"),
        ("systemd/orchestrator.env", "ONEXFLOW_DRAIN_TIMEOUT=5", "ONEXFLOW_DRAIN_TIMEOUT=25", "drains for 25 s"),
        ("systemd/orchestrator.env", "ONEXFLOW_STORE__URL=postgresql", "ONEXFLOW_STORE__URL=mysql", "store.url"),
        ("systemd/orchestrator.env", "ONEXFLOW_LISTEN=0.0.0.0:7411", "ONEXFLOW_LISTEN=7411", "is not host:port"),
        ("systemd/onex-orchestrator.service", "bin/onex-orchestrator", "bin/onex-orchestrator --shards=3", "--shards"),
        ("systemd/onex-orchestrator.service", "%d/etcd-password", "%d/etcd", "credential etcd "),
        ("systemd/onex-orchestrator.service", "ExitStatus=2 15", "ExitStatus=2 99", "no exit code 99"),
        ("systemd/onex-worker@.service", "NoNewPrivileges=yes", "NoNewPrivileges=no", "NoNewPrivileges is not yes"),
        ("systemd/README.md", "onex-worker@.service /etc", "/etc", "README does not install it"),
        ("compose/compose.yaml", "--liveness=orchestrator-1", "--lifeness=orchestrator-1", "--lifeness"),
        ("compose/compose.yaml", "stop_grace_period: 60s # more", "stop_grace_period: 20s # more", "stops within 20 s"),
        ("compose/compose.yaml", "etcd3://etcd-1:2379", "etcd3://etcd-4:2379", "etcd-4 in etcd3://"),
        ("compose/compose.yaml", "max_connections=60", "max_connections=20", "20 connections are too few"),
        ("compose/compose.yaml", "image: postgres:18", "image: somewhere.example/postgres:18", "names a registry"),
        ("compose/compose.yaml", "127.0.0.1:7411:7411", "7411:7411", "is not served, or to everybody"),
        ("compose/compose.yaml", "secrets: [store-password]", "secrets: [password]", "secrets password is not declared"),
        ("compose/compose.tls.yaml", "ONEXFLOW_TLS__CLIENT_CA", "ONEXFLOW_TLS__CLIENTCA", "ONEXFLOW_TLS__CLIENTCA"),
        ("compose/compose.tls.yaml", 'ONEXFLOW_INSECURE: "false"', 'ONEXFLOW_INSECURE: "perhaps"', "insecure"),
        ("compose/Dockerfile", "USER 10001:10001\n", "", "does not end as the user"),
        ("compose/Dockerfile", "COPY src src", "COPY source src", "source is not there"),
        ("compose/Dockerfile.dockerignore", "!src\n", "", "src is ignored"),
        ("compose/Dockerfile", 'CMD ["onex-orchestrator"]', 'CMD ["onex"]', "there is no program onex"),
        ("kubernetes/base/orchestrator.yaml", "--node-id=", "--name=", "unrecognized arguments: --name"),
        ("kubernetes/base/orchestrator.yaml", "targetPort: grpc", "targetPort: rpc", "no port rpc"),
        ("kubernetes/base/orchestrator.yaml", "clusterIP: None", "clusterIP: x", "is no headless service"),
        ("kubernetes/base/orchestrator.yaml", "grpc: {port: 7411}", "grpc: {port: 7410}", "asks at 7410"),
        ("kubernetes/base/orchestrator.yaml", ").onex-orchestrator:", ").orchestrator:", "is not by the name"),
        ("kubernetes/base/orchestrator.yaml", "PeriodSeconds: 30", "PeriodSeconds: 10", "stops within 10 s"),
        ("kubernetes/base/kustomization.yaml", "- worker.yaml", "- workers.yaml", "resource workers.yaml is not there"),
        ("kubernetes/base/kustomization.yaml", "ONEXFLOW_CLUSTER", "ONEXFLOW_CLUSTERS", "ONEXFLOW_CLUSTERS"),
        ("kubernetes/base/network.yaml", "port: 7412", "port: 7413", "nobody serves port 7413"),
        ("kubernetes/base/disruption.yaml", "name: onex-worker\n", "name: onex-workers\n", "selects nothing"),
        ("kubernetes/base/worker.yaml", "runAsNonRoot: true", "runAsNonRoot: false", "it may run as root"),
        ("kubernetes/base/service-account.yaml", "name: onexflow", "name: other", "no service account onexflow"),
        ("kubernetes/overlays/production/kustomization.yaml", "/etcd/ca.crt", "/etcd3/ca.crt", "is in no volume"),
        ("kubernetes/overlays/production/kustomization.yaml", "behavior: merge", "behavior: replace", "made twice"),
        ("kubernetes/overlays/production/kustomization.yaml", "- name: onexflow-handlers", "- name: mine", "image mine"),
        ("kubernetes/overlays/production/orchestrator.yaml", "name: onexflow-policy", "name: policy", "no config map policy"),
        ("kubernetes/overlays/production/orchestrator.yaml", "            grpc: null\n", "", "in more ways than one"),
        ("kubernetes/overlays/production/worker.yaml", "secretName: onexflow-etcd", "secretName: etcd", "no secret etcd"),
        ("kubernetes/README.md", "onexflow node list", "onexflow node lst", "no command node lst"),
        ("tls/README.md", "--tls-client-ca", "--tls-clients", "no flag --tls-clients"),
        ("tls/policy.toml", "onexflow/worker", "onexflow/workers", "the policy knows"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_told(tmp_path: Path, secret: Path, file: str, old: str, new: str, words: str) -> None:
    folder = tmp_path / "cluster"
    shutil.copytree(FOLDER, folder)
    text = (folder / file).read_text()
    assert old in text
    (folder / file).write_text(text.replace(old, new))
    assert [problem for problem in problems(folder, secret) if words in problem]


def test_the_other_variables_are_read_somewhere() -> None:
    code = "".join(file.read_text() for file in (ROOT / "src/onexflow").rglob("*.py"))
    assert {name for name in OTHER_VARIABLES if f'"{name}"' not in code} == set()


def test_production_is_secured_everywhere() -> None:
    """No file for the real thing listens in the clear, but compose without its second file, which says so."""
    starts = [
        *systemd_starts(FOLDER / "systemd"),
        *compose_starts(compose(FOLDER / "compose", "compose.yaml", "compose.tls.yaml"), "compose.tls"),
        *kubernetes_starts(build(FOLDER / "kubernetes/overlays/production"), "production"),
    ]
    assert len(starts) == 8
    for start in starts:
        settings: Any = settings_of(start, Path(__file__))
        assert settings.tls.certificate, start.where
        if isinstance(settings, OrchestratorSettings):
            assert settings.tls.client_ca, start.where
            assert settings.access_policy, start.where
            assert not settings.insecure, start.where


def test_the_cluster_files_of_one_machine_are_right() -> None:
    assert {file.name: load_cluster(file).name for file in FOLDER.glob("*.toml")} == {
        "local.toml": "local",
        "local-three.toml": "local-three",
    }


def test_environment_files_are_lines_of_names_and_values() -> None:
    for file in (FOLDER / "systemd").glob("*.env"):
        assert all(re.fullmatch(r"[A-Z_]+", name) for name in environment_file(file)), file


def test_scripts_are_bash_that_can_be_read() -> None:
    script = FOLDER / "tls/make-certificates"
    assert script.stat().st_mode & 0o111
    subprocess.run(["bash", "-n", str(script)], check=True)


def test_yaml_has_no_key_twice() -> None:
    for file in FOLDER.rglob("*.yaml"):
        list(yaml.load_all(file.read_text(), _Strict))


class _Strict(yaml.SafeLoader):
    """Refuses what others take silently: the same key twice."""


def _mapping(loader: yaml.SafeLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    keys = [key.value for key, _ in node.value if key.value != "<<"]
    twice = {key for key in keys if keys.count(key) > 1}
    assert not twice, f"{node.start_mark}: {twice}"
    loader.flatten_mapping(node)
    return {loader.construct_object(key): loader.construct_object(value, deep=True) for key, value in node.value}


_Strict.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)
