"""The Dockerfile, compose.yaml and the files of docs/operate/recipes.md agree with the application:
with its settings, its paths, and the time that a stop takes. tests/e2e/operators/test_recipes.py
runs them."""

from __future__ import annotations

import getpass
import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from chatapp import create_app
from chatapp.settings import Settings
from tests.docs.test_monitoring import KNOWN
from tests.environment import environment

ROOT = Path(__file__).resolve().parents[2]
RECIPES = ROOT / "docs" / "operate" / "recipes"
COMPOSE = yaml.safe_load((ROOT / "compose.yaml").read_text())
MANIFESTS = ROOT / "examples" / "kubernetes"
BASE, PRODUCTION = MANIFESTS / "base", MANIFESTS / "production"
KUBERNETES = {
    each["kind"]: each for file in BASE.iterdir() for each in yaml.safe_load_all(file.read_text())
}
POD = KUBERNETES["Deployment"]["spec"]["template"]["spec"]
[CONTAINER] = POD["containers"]
VARIABLES = {each["name"]: each["value"] for each in CONTAINER["env"]}
UNIT = (RECIPES / "chatapp.service").read_text()
NGINX = (RECIPES / "nginx.conf").read_text()
SIGN_ON = (RECIPES / "nginx-sign-on.conf").read_text()
#: What a stop takes, beyond gunicorn's own limit.
MARGIN_S = 10


def documented() -> set[str]:
    """The variables of docs/operate/settings.md."""
    rows = re.findall(
        r"^\| (`.*?) \|", (ROOT / "docs" / "operate" / "settings.md").read_text(), re.MULTILINE
    )
    return {name for row in rows for name in re.findall(r"`([A-Z_]+)`", row)}


@pytest.fixture(scope="module")
def stop_s() -> int:
    """How long a stop waits for calls."""
    seconds = runpy.run_path(str(ROOT / "gunicorn.conf.py"))["graceful_timeout"]
    assert isinstance(seconds, int)
    return seconds


def dockerfile(instruction: str) -> list[str]:
    """The arguments of each instruction of this name."""
    text = (ROOT / "Dockerfile").read_text().replace("\\\n", " ")
    return re.findall(rf"^{instruction} (.+)$", text, re.MULTILINE)


@pytest.mark.parametrize(
    "names",
    [
        set(re.findall(r"([A-Z_]+)=", " ".join(dockerfile("ENV")))),
        set(COMPOSE["services"]["chatapp"]["environment"]),
        set(VARIABLES),
        *(
            set(re.findall(r"\b(?:CHATAPP|RATELIMIT|FORWARDED|WEB|GUNICORN)_[A-Z_]+\b", each))
            for each in (NGINX, SIGN_ON)
        ),
    ],
    ids=["Dockerfile", "compose", "kubernetes", "nginx", "sign-on"],
)
def test_variables_are_settings(names: set[str]) -> None:
    """Each is in docs/operate/settings.md."""
    assert names
    assert names <= documented()


def test_a_supervisor_waits_for_calls(stop_s: int) -> None:
    """Each gives a stop gunicorn's time and a margin; nginx waits longer than a call is silent."""
    grace_s = {
        "compose": int(COMPOSE["services"]["chatapp"]["stop_grace_period"].removesuffix("s")),
        "kubernetes": POD["terminationGracePeriodSeconds"]
        - CONTAINER["lifecycle"]["preStop"]["sleep"]["seconds"],
        "systemd": int(*re.findall(r"^TimeoutStopSec=(\d+)$", UNIT, re.MULTILINE)),
    }
    assert grace_s == dict.fromkeys(grace_s, stop_s + MARGIN_S)
    provider_s = Settings().provider_timeout_s
    assert int(*re.findall(r"proxy_read_timeout (\d+)s;", NGINX)) > provider_s


def test_every_proxy_removes_the_header_of_sign_on() -> None:
    """Wherever it leads to chatapp, but where it has signed the operator on itself."""
    header = "X-Auth-Request-Email"
    for location in NGINX.split("location ")[1:] + SIGN_ON.split("location ")[1:]:
        if "proxy_pass http://chatapp" in location:
            [value] = re.findall(rf"proxy_set_header {header} (\S+);", location)
            assert value == ('""' if "auth_request /oauth2/auth;" not in location else "$email")
    route = yaml.safe_load((PRODUCTION / "route.yaml").read_text())
    for rule in route["spec"]["rules"]:
        removed = [each["requestHeaderModifier"]["remove"] for each in rule["filters"]]
        assert removed == [[header]]
        [backend] = rule["backendRefs"]
        service = KUBERNETES["Service"]
        assert backend["name"] == service["metadata"]["name"]
        assert backend["port"] in {each["port"] for each in service["spec"]["ports"]}


def test_compose_keeps_redis_to_itself() -> None:
    """Redis drops no key, keeps its data, is reached by chatapp alone, and is waited for."""
    chatapp, redis = COMPOSE["services"]["chatapp"], COMPOSE["services"]["redis"]
    assert "--appendonly yes" in redis["command"]
    assert "--maxmemory-policy noeviction" in redis["command"]
    assert "ports" not in redis
    assert redis["networks"] == ["storage"]
    assert COMPOSE["networks"]["storage"]["internal"]
    assert chatapp["depends_on"] == {"redis": {"condition": "service_healthy"}}
    assert redis["healthcheck"]
    assert all(port.startswith("127.0.0.1:") for port in chatapp["ports"])
    assert re.fullmatch(r"redis:\d+\.\d+-\w+", redis["image"])


def test_the_image_copies_what_its_context_has() -> None:
    """.dockerignore lets through what the Dockerfile copies, and nothing else. Modes are stated:
    the user of the image can read the files, whatever the umask of the checkout."""
    copies = [line.split() for line in dockerfile("COPY")]
    assert {mode for mode, *_ in copies} <= {"--chmod=644", "--chmod=755"}
    copied = {name for _, *names, _ in copies for name in names}
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    assert "*" in lines
    assert {line.removeprefix("!") for line in lines if line.startswith("!")} == copied
    assert all((ROOT / name).exists() for name in copied)


def test_the_pods_share_the_limits(tmp_path: Path) -> None:
    """All pods' workers are counted, probes ask paths that exist, the first command runs, and
    Kubernetes sets no variable that looks like a setting."""
    spec, scale = KUBERNETES["Deployment"]["spec"], KUBERNETES["HorizontalPodAutoscaler"]["spec"]
    assert "replicas" not in spec  # the autoscaler decides
    assert scale["minReplicas"] == 2
    pods = scale["maxReplicas"] + spec["strategy"]["rollingUpdate"]["maxSurge"]
    workers = pods * int(VARIABLES["WEB_CONCURRENCY"])
    assert int(VARIABLES["RATELIMIT_WORKERS"]) == workers
    database = f"sqlite:///{tmp_path / 'chatapp.db'}"
    app = create_app({"RATELIMIT_STORAGE_URI": "memory://", "CHATAPP_DATABASE_URL": database})
    paths = {rule.rule for rule in app.url_map.iter_rules()}
    probes = [CONTAINER[f"{kind}Probe"]["httpGet"] for kind in ("startup", "liveness", "readiness")]
    assert {probe["path"] for probe in probes} <= paths
    [first] = POD["initContainers"]
    flask, *arguments = first["command"]
    assert [flask, *arguments[:2]] == ["flask", "--app", "wsgi"]
    assert app.test_cli_runner().invoke(args=arguments[2:]).exit_code == 0
    [port] = CONTAINER["ports"]
    assert {probe["port"] for probe in probes} == {port["name"]}
    assert f"PORT={port['containerPort']}" in dockerfile("ENV")[0].split()
    assert POD["enableServiceLinks"] is False
    [user] = dockerfile("USER")
    assert user == f"{POD['securityContext']['runAsUser']}:{POD['securityContext']['runAsGroup']}"


def kustomization(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((folder / "kustomization.yaml").read_text())
    return found


def test_the_overlay_has_all_that_the_base_refers_to() -> None:
    """Each file is a resource, the image and the Secret are named as in the base, and the pods are
    scaled by a figure that chatapp has, and that Prometheus may read."""
    listed = {*kustomization(BASE)["resources"]}
    assert listed == {each.name for each in BASE.iterdir()} - {"kustomization.yaml"}
    overlay = kustomization(PRODUCTION)
    assert {each for each in overlay["resources"] if "/" not in each} <= {
        each.name for each in PRODUCTION.iterdir()
    }
    images = {each["image"] for each in (*POD["initContainers"], *POD["containers"])}
    assert [each["name"] for each in overlay["images"]] == [*images]
    secrets = {
        each["secretRef"]["name"]
        for container in (*POD["initContainers"], *POD["containers"])
        for each in container["envFrom"]
    }
    [generated] = overlay["secretGenerator"]
    assert secrets == {generated["name"]}
    [env] = generated["envs"]
    names = re.findall(r"^([A-Z_]+)=", (PRODUCTION / env).read_text(), re.MULTILINE)
    assert {*names} <= documented()
    monitor = yaml.safe_load((PRODUCTION / "pod-monitor.yaml").read_text())["spec"]
    [endpoint] = monitor["podMetricsEndpoints"]
    assert endpoint["authorization"]["credentials"]["name"] in secrets
    assert endpoint["authorization"]["credentials"]["key"] in names
    assert endpoint["port"] in {each["name"] for each in CONTAINER["ports"]}
    [metric] = KUBERNETES["HorizontalPodAutoscaler"]["spec"]["metrics"]
    name = metric["pods"]["metric"]["name"]
    assert name in KNOWN
    adapter = yaml.safe_load((PRODUCTION / "prometheus-adapter.yaml").read_text())
    [rule] = adapter["rules"]["custom"]
    assert rule["seriesQuery"].startswith(f"{name}{{")


def test_every_part_is_of_one_application() -> None:
    """Service, autoscaler, budget of disruptions and monitor choose the pods of the Deployment."""
    labels = KUBERNETES["Deployment"]["spec"]["template"]["metadata"]["labels"]
    monitor = yaml.safe_load((PRODUCTION / "pod-monitor.yaml").read_text())["spec"]["selector"]
    [spread] = POD["topologySpreadConstraints"]
    assert [
        KUBERNETES["Service"]["spec"]["selector"],
        *(
            each["matchLabels"]
            for each in (
                KUBERNETES["Deployment"]["spec"]["selector"],
                KUBERNETES["PodDisruptionBudget"]["spec"]["selector"],
                spread["labelSelector"],
                monitor,
            )
        ),
    ] == [labels] * 5
    target = KUBERNETES["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]
    assert target["name"] == KUBERNETES["Deployment"]["metadata"]["name"]


KUSTOMIZE = next(
    (
        words
        for words in (["kustomize", "build"], ["kubectl", "kustomize"])
        if shutil.which(words[0])
    ),
    None,
)


@pytest.mark.skipif(KUSTOMIZE is None, reason="there is no kustomize, and no kubectl")
def test_the_overlay_renders() -> None:
    """With its image, its Secret and its namespace in every part, and only what needs no right."""
    assert KUSTOMIZE is not None
    parts = {each["kind"]: each for each in yaml.safe_load_all(run(*KUSTOMIZE, str(PRODUCTION)))}
    assert parts.keys() == {*KUBERNETES, "Namespace", "Secret", "HTTPRoute", "PodMonitor"} - {
        "Kustomization"
    }
    assert {
        kind for kind, each in parts.items() if each["metadata"].get("namespace") == "chatapp"
    } == parts.keys() - {"Namespace"}
    pod = parts["Deployment"]["spec"]["template"]["spec"]
    [image] = kustomization(PRODUCTION)["images"]
    for each in (*pod["initContainers"], *pod["containers"]):
        assert each["image"] == f"{image['newName']}:{image['newTag']}"
        assert each["securityContext"]["readOnlyRootFilesystem"] is True
        assert each["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert pod["securityContext"]["runAsNonRoot"] is True


@pytest.mark.slow
@pytest.mark.skipif(
    os.environ.get("RATELIMIT_PACKAGE") != "1",
    reason="RATELIMIT_PACKAGE=1 installs the schemas of Kubernetes in a new environment",
)
def test_kubernetes_accepts_the_manifests(tmp_path: Path) -> None:
    """By its published schemas, of the oldest version that the recipe names and of a late one."""
    tools = environment(tmp_path, "kubernetes-validate==1.37.0")
    files = [BASE / name for name in kustomization(BASE)["resources"]]
    if KUSTOMIZE is not None:
        files = [tmp_path / "rendered.yaml"]
        files[0].write_text(run(*KUSTOMIZE, str(PRODUCTION)))
    [oldest] = re.findall(r"Kubernetes (1\.\d+) or newer", (BASE / "deployment.yaml").read_text())
    for version in (oldest, "1.37"):
        words = ["-k", version, "--strict", *map(str, files)]
        said = run(tools / "kubernetes-validate", *words)
        passed = {*re.findall(r"passed for resource (\w+)/", said)}
        assert passed >= {kind.lower() for kind in KUBERNETES if kind != "Kustomization"}


@pytest.mark.skipif(not shutil.which("docker-compose"), reason="there is no docker-compose")
def test_compose_accepts_the_file() -> None:
    """By its own check of the format."""
    run("docker-compose", "--file", str(ROOT / "compose.yaml"), "config", "--quiet")


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="there is no systemd")
def test_systemd_accepts_the_unit(tmp_path: Path) -> None:
    """Every directive is known, and its value is valid."""
    here = UNIT.replace("/opt/chatapp/.venv/bin/gunicorn", sys.executable)
    here = here.replace("/opt/chatapp", str(tmp_path))
    unit = tmp_path / "chatapp.service"
    unit.write_text(re.sub(r"^User=.*$", f"User={getpass.getuser()}", here, flags=re.MULTILINE))
    assert run("systemd-analyze", "verify", "--man=no", str(unit)) == ""


def run(*command: Any) -> str:
    """What a successful command says."""
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr
