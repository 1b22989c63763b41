"""What a code host runs: the workflows of .github, which no one can run here.

RATELIMIT_PACKAGE=1 installs the linters in a new environment.
"""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.environment import environment

ROOT = Path(__file__).resolve().parents[2]
GITHUB = ROOT / ".github"
WORKFLOWS = {
    file.stem: yaml.safe_load(file.read_text()) for file in sorted(GITHUB.glob("workflows/*.yml"))
}
LINTERS = ("check-jsonschema==0.39.0", "zizmor==1.32.0")


def steps() -> list[Any]:
    jobs = [job for flow in WORKFLOWS.values() for job in flow["jobs"].values()]
    return [step for job in jobs for step in job["steps"]]


def test_actions_are_pinned_by_their_commits() -> None:
    """A tag can be moved; a comment names it."""
    lines = [
        line
        for file in GITHUB.glob("workflows/*.yml")
        for line in file.read_text().splitlines()
        if "uses:" in line
    ]
    assert lines
    pinned = re.compile(r"uses: [\w-]+/[\w-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+$")
    assert [line for line in lines if not pinned.search(line)] == []


def test_workflows_have_few_rights() -> None:
    """They read. Only jobs that sign and publish have more, and none has a password."""
    allowed = {("release", name) for name in ("sign", "publish", "image")}
    for name, flow in WORKFLOWS.items():
        assert flow["permissions"] == {"contents": "read"}
        more = {(name, job) for job, each in flow["jobs"].items() if "permissions" in each}
        assert more <= allowed
    assert "secrets." not in "".join(file.read_text() for file in GITHUB.glob("workflows/*"))
    checkouts = [step for step in steps() if step.get("uses", "").startswith("actions/checkout")]
    assert {step["with"]["persist-credentials"] for step in checkouts} == {False}


def test_they_run_what_a_contributor_runs() -> None:
    """README's test command and `.ci/run`, on the image's Python and on each that is supported."""
    readme = (ROOT / "README.md").read_text()
    command = re.findall(r"<!-- test command -->\n```sh\n(.*?)\n```", readme, re.DOTALL)[0]
    runs = "\n".join(step["run"] for step in steps() if "run" in step)
    for part in command.replace("python3 -m venv", "python -m venv").split(" &&\n"):
        assert part in runs
    assert ".ci/run" in runs
    pythons = WORKFLOWS["test"]["jobs"]["change"]["strategy"]["matrix"]["python"]
    base = re.findall(r"^FROM (\S+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)[0]
    assert base.removeprefix("python:").startswith(pythons[-1])
    jobs = WORKFLOWS["test"]["jobs"].values()
    assert {job["container"]["image"] for job in jobs if "container" in job} == {base}


@pytest.mark.slow
@pytest.mark.skipif(
    os.environ.get("RATELIMIT_PACKAGE") != "1",
    reason="RATELIMIT_PACKAGE=1 installs the linters in a new environment",
)
def test_linters_find_nothing(tmp_path: Path) -> None:
    """By the published schemas of workflows, Dependabot and issue forms, and zizmor's rules."""
    tools = environment(tmp_path, *LINTERS)
    schema = [tools / "check-jsonschema", "--builtin-schema"]
    files = sorted(GITHUB.glob("workflows/*.yml"))
    for words in (
        [*schema, "vendor.github-workflows", *files],
        [*schema, "vendor.dependabot", GITHUB / "dependabot.yml"],
        [*schema, "vendor.github-issue-forms", *sorted(GITHUB.glob("ISSUE_TEMPLATE/*.yml"))],
        [tools / "zizmor", "--offline", "--quiet", GITHUB],
    ):
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
