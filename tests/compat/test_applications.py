"""Applications of others, with one import changed: the same answers to each request.

Opt-in, for it makes an environment per application and needs a package index: set
RATELIMIT_APPLICATIONS=1, and ``-k NAME`` for one. ``applications.py`` has what each is asked. What
two runs with Flask-Limiter answer alike must be answered alike with the swapped import, except
for what docs/extension/differences.md lists. Where an application ships tests that touch limits,
each has the same outcome both ways.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.servers import standalone

ROOT = Path(__file__).resolve().parents[2]
PLAYS = ROOT / "tests" / "compat" / "applications.py"


class Row(NamedTuple):
    """An application, what to install beside it, and its tests: files of the wheel or the sdist."""

    needs: tuple[str, ...]
    #: What is played of ``applications.py``, if not the function with the row's name.
    plays: tuple[str, ...] = ()
    #: Installed without what it requires, which the row has in versions for Flask 3.
    alone: tuple[str, ...] = ()
    tests: tuple[str, ...] = ()
    sdist: str = ""
    interpreter: str = sys.executable
    #: Whether it reaches a limit: Lemur's extension is never initialised.
    refuses: bool = True
    #: Headers that differ on purpose.
    different: frozenset[str] = frozenset()


ROWS = {
    "calibreweb": Row(("calibreweb==0.6.*",)),
    "fittrackee": Row(("fittrackee==1.*",)),
    "flask_appbuilder": Row(
        ("flask-appbuilder==5.*", "hiro"),
        tests=("tests/security/test_rate_limiter.py",),
        sdist="flask-appbuilder==5.*",
    ),
    "flaskbb": Row(("flaskbb==2.*",), interpreter="python3.13"),
    "ihatemoney": Row(
        ("ihatemoney==7.*", "pytest-flask"),
        tests=("--pyargs", "ihatemoney.tests", "-k", "throttler or admin_authentication"),
    ),
    # In a moving window all is free again later than its oldest call leaves.
    "invenio_app": Row(("invenio-app==3.*",), different=frozenset({"x-ratelimit-reset"})),
    # Its python-ldap needs the headers of libldap and libsasl.
    "lemur": Row(("lemur==1.*", "setuptools<81"), refuses=False),
    "libretranslate": Row(
        (
            *("apscheduler", "beautifulsoup4", "expiringdict", "flask-babel>=4", "flask-swagger"),
            *("flask-swagger-ui", "langdetect", "lxml", "polib", "prometheus-client", "pymupdf"),
            *("pysrt", "requests", "waitress"),
        ),
        alone=("libretranslate==1.9.*", "argos-translate-files"),
    ),
    "documentation": Row(
        ("flask",), plays=("examples", "recipes", "blueprints"), sdist="flask-limiter==4.*"
    ),
    "patterns": Row(("flask-restful",), plays=("redash", "simplelogin", "ai_horde", "token_place")),
}
#: Sent beside what Flask-Limiter sends.
ADDED = {
    *("access-control-expose-headers", "cache-control", "ratelimit", "ratelimit-policy"),
    *("retry-after-ms", "x-should-retry"),
}
#: They tell the limit nearest to exhaustion, not the one of the shortest period.
OF_ONE_LIMIT = {"x-ratelimit-limit", "x-ratelimit-remaining", "x-ratelimit-reset"}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        os.environ.get("RATELIMIT_APPLICATIONS") != "1",
        reason="RATELIMIT_APPLICATIONS=1 makes an environment for each application",
    ),
]


@pytest.mark.parametrize("name", ROWS)
def test_an_application_answers_as_before(name: str, tmp_path: Path) -> None:
    """Statuses, headers and bodies of each request, up to the limits and over them."""
    row, started = ROWS[name], str(int(time.time()))
    python = _environment(row, tmp_path)
    sdist = _unpacked(row, tmp_path)

    def play(run: str) -> list[dict[str, Any]]:
        with standalone() as server:
            done = _run(
                [python, PLAYS, run.removesuffix(" again"), *(row.plays or (name,))],
                tmp_path / run,
                STARTED=started,
                SDIST=str(sdist),
                REDIS_URL=server.uri,
                PYTHONPYCACHEPREFIX=str(tmp_path / "cache"),
            )
        answers = re.search("^ANSWERS (.*)$", done.stdout, re.MULTILINE)
        assert answers is not None, done.stdout[-2000:] + done.stderr[-4000:]
        return list(json.loads(answers[1]))

    stock, again, swapped = play("stock"), play("stock again"), play("swapped")
    assert any(answer["refusals"] for answer in stock) == row.refuses
    found = [
        f"{number}. {before['asked']}, {before['status']}: {difference}"
        for number, (before, noise, after) in enumerate(zip(stock, again, swapped, strict=True), 1)
        for difference in _differences(before, noise, after, row.different)
    ]
    assert not found, "\n".join([f"{len(found)} differences in {len(stock)} requests", *found])
    if row.tests:
        outcomes = [_outcomes(python, row, sdist, tmp_path / run) for run in ("stock", "swapped")]
        assert outcomes[0] == outcomes[1]
        assert "PASSED" in outcomes[0].values()


def _environment(row: Row, folder: Path) -> Path:
    """The interpreter of a new environment with the application and what the library needs."""
    if shutil.which(row.interpreter) is None:
        pytest.skip(f"needs {row.interpreter}")
    subprocess.run([row.interpreter, "-m", "venv", folder / "venv"], check=True)
    python = folder / "venv" / "bin" / "python"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    if row.alone:
        _pip(python, "install", "--quiet", "--no-deps", *row.alone)
    _pip(python, "install", "--quiet", "pytest", *project["dependencies"], *row.needs)
    return python


def _unpacked(row: Row, folder: Path) -> Path:
    """The source distribution of the row, if it has one; its files are used as they are."""
    if not row.sdist:
        return folder
    target = folder / "sdist"
    _pip(
        Path(sys.executable),
        *("download", "--quiet", "--no-deps", "--no-binary", row.sdist.split("=")[0]),
        *("--dest", str(target), row.sdist),
    )
    [archive] = target.glob("*.tar.gz")
    with tarfile.open(archive) as content:
        content.extractall(target, filter="data")
    return target / archive.name.removesuffix(".tar.gz")


def _outcomes(python: Path, row: Row, sdist: Path, folder: Path) -> dict[str, str]:
    """Each of the application's own tests, and how it ended."""
    plugins = ("-p", "swapped") if folder.name == "swapped" else ()
    (folder / "swapped.py").write_text(
        "import flask_limiter, ratelimit_ext\nflask_limiter.Limiter = ratelimit_ext.Limiter\n"
    )
    done = _run(
        [python, "-m", "pytest", "-q", "-rA", "-p", "no:cacheprovider", *plugins, *row.tests],
        sdist if row.sdist else folder,
        PYTHONPATH=f"{ROOT}:{folder}",
    )
    outcomes = re.findall(r"^(PASSED|FAILED|ERROR) (\S+)", done.stdout, re.MULTILINE)
    assert outcomes, done.stdout[-4000:] + done.stderr[-2000:]
    return {test: outcome for outcome, test in outcomes}


def _differences(
    before: Any, noise: Any, after: Any, ignored: frozenset[str] = frozenset()
) -> Iterator[str]:
    """What an answer has otherwise than two of Flask-Limiter's, where these are alike."""
    for name in ("refusals", "status"):
        if before[name] != after[name]:
            yield f"{name}: {before[name]} became {after[name]}"
            return
    old, repeated, new = (_headers(answer) for answer in (before, noise, after))
    refused, several = before["status"] == 429, ', "' in new.get("ratelimit-policy", "")
    for name in sorted((old.keys() | new.keys()) - ignored):
        have, now = old.get(name), new.get(name)
        if (
            have == now
            or (name == "content-type" and _is_default_refusal(before, after))
            or have != repeated.get(name)
            or (have is None and name in ADDED)
            or (name in OF_ONE_LIMIT and several)
            or (name == "access-control-expose-headers" and f"{now}".startswith(f"{have}, "))
            or (name == "retry-after" and _is_documented(have, now, refused=refused))
        ):
            continue
        yield f"{name}: {have} became {now}"
    if _is_default_refusal(before, after):
        return
    pieces = [re.split(r"[\n<>,]", answer["body"]) for answer in (before, noise, after)]
    if len(pieces[0]) != len(pieces[2]):
        yield f"body: {after['body'][:300]}"
        return
    for have, again, now in zip(*pieces, strict=False):
        if have == again and have != now:
            yield f"body: {have} became {now}"


def _is_default_refusal(before: Any, after: Any) -> bool:
    """Whether both answer 429 on their own: a page with the limit, and the same with the wait."""
    page = re.search(r"<p>(.*)</p>\s*$", before["body"])
    if not page or before["status"] != 429 or "<title>429 Too Many Requests" not in before["body"]:
        return False
    if before["accepts"].startswith("text/html"):
        said = re.search(r"<p>(.*)</p>\s*$", after["body"])
        return bool(said) and said[1].startswith((page[1], f"Rate limit exceeded: {page[1]}. Try"))
    return bool(json.loads(after["body"])["error"].startswith(f"Rate limit exceeded: {page[1]}."))


def _headers(answer: Any) -> dict[str, str]:
    """Headers by name in lower case, without those that the body decides."""
    ignored = {"content-length", "date"}
    return {key.lower(): value for key, value in answer["headers"] if key.lower() not in ignored}


def _is_documented(have: str | None, now: str | None, *, refused: bool) -> bool:
    """Retry-After stands on each refusal and on nothing else; Flask-Limiter adds a second."""
    if not refused:
        return now is None
    return now is not None and (have is None or int(have) - int(now) in {0, 1})


def _run(
    command: list[str | Path], folder: Path, **environment: str
) -> subprocess.CompletedProcess[str]:
    folder.mkdir(exist_ok=True)
    return subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )


def _pip(python: Path, *arguments: str) -> None:
    """Run pip; its last words are the failure."""
    command = [python, "-m", "pip", "--disable-pip-version-check", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
