"""The examples of docs/extension/migration.md: what was moved answers as before."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.examples import example

ROOT = Path(__file__).resolve().parents[2]


def statuses(client: Any, method: str, path: str, count: int, **headers: str) -> list[int]:
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    return [client.open(path, method=method, headers=sent).status_code for _ in range(count)]


def flask_limiter(name: str) -> list[list[int]]:
    """What the service answers to several callers."""
    client = example(name).create_app().test_client()
    return [
        statuses(client, "GET", "/search", 7, X_User="ada"),
        statuses(client, "GET", "/search", 2, X_User="bob"),
        statuses(client, "POST", "/summaries", 4, X_User="ada"),
        statuses(client, "POST", "/summaries?pages=2", 2, X_User="bob"),
        statuses(client, "GET", "/healthz", 120),
        statuses(client, "GET", "/", 102),
    ]


def test_the_service_of_flask_limiter_answers_as_before() -> None:
    """Own limits, shared ones with costs, defaults and exemptions, for each caller."""
    before, after = flask_limiter("flask_limiter_before"), flask_limiter("flask_limiter_after")
    assert before == after
    assert before[0] == [200] * 5 + [429] * 2
    assert before[3] == [200, 429]
    assert before[5] == [200] * 100 + [429] * 2


@pytest.mark.skipif(
    os.environ.get("RATELIMIT_COMPAT") != "1",
    reason="RATELIMIT_COMPAT=1: needs slowapi and fastapi",
)
def test_the_service_of_slowapi_answers_as_before() -> None:
    """As long as nothing is denied, and then in each limit by itself."""
    testclient = pytest.importorskip("fastapi.testclient")
    old = testclient.TestClient(example("slowapi_before").app)
    new = example("slowapi_after").app.test_client()
    for method, path, count in (
        *(("GET", "/search", 7), ("POST", "/summaries", 5), ("GET", "/healthz", 20)),
    ):
        before = [old.request(method, path).status_code for _ in range(count)]
        assert before == statuses(new, method, path, count)


def test_the_chat_service_says_that_it_needs_redis(monkeypatch: pytest.MonkeyPatch) -> None:
    """In place of a KeyError."""
    monkeypatch.delenv("REDIS", raising=False)
    with pytest.raises(SystemExit, match=r"REDIS is not set\. Set it to the address of Redis"):
        example("chat")


@pytest.mark.parametrize("name", ["chat.py", "chat.toml"])
def test_readme_shows_a_part_of_the_chat_service(name: str) -> None:
    """As it is in the file that tests/e2e runs."""
    readme = (ROOT / "README.md").read_text()
    part = readme.partition(f"<!-- examples/{name} -->\n```")[2].partition("\n")[2]
    part = part.partition("```")[0]
    assert len(part.splitlines()) > 5
    assert part in (ROOT / "examples" / name).read_text()


def test_readmes_first_example_runs_in_a_clone(tmp_path: Path) -> None:
    """With the commands as README has them: without `--app`, Flask takes `wsgi.py` first."""
    readme = (ROOT / "README.md").read_text()
    example = readme.partition("```python\n")[2].partition("```")[0]
    (tmp_path / "app.py").write_text(example)
    (tmp_path / "wsgi.py").write_text("raise SystemExit('this is the gateway')\n")
    run, show = re.findall(r"`(flask [^`]+)`", " ".join(readme.split()))[:2]
    assert run == show.replace("ratelimit show", "run")
    done = subprocess.run(
        [sys.executable, "-m", *show.split()],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "30 per 1 minute" in done.stdout
