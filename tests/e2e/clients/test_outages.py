"""Real clients while a provider refuses everything: what each outlives by its own retries, without
this server and with it. Opt-in like the matrix: RATELIMIT_CLIENT_MATRIX=1, or =write to put the
table into docs/clients.md."""

from __future__ import annotations

import datetime as dt
import json
import os
import re
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.chatapp import upstream_server
from tests.chatapp.upstream_server import Call, anthropic_error, openai_error, success
from tests.e2e.clients.client_matrix import CACHE, CLIENTS, SAID, Client, variables
from tests.e2e.gunicorn_master import gunicorn
from tests.e2e.money.billed_gateway import roomy_policy

pytestmark = [
    pytest.mark.sdk_matrix,
    pytest.mark.slow,
    pytest.mark.skipif(
        not os.environ.get("RATELIMIT_CLIENT_MATRIX"),
        reason="RATELIMIT_CLIENT_MATRIX=1 makes an environment for each client",
    ),
]

FILE = "tests/e2e/clients/test_outages.py"
PAGE = Path(__file__).resolve().parents[3] / "docs" / "clients.md"
TABLE = re.compile(r"(?<=<!-- outages -->\n).*(?=<!-- /outages -->)", re.DOTALL)
OUTCOMES = CACHE / "outages"
#: A client that takes longer is ended, and has not survived.
TIMEOUT_S = 150
BROKEN, OVERLOADED = "500", "503 or 529"
OUTAGES = [(kind, seconds) for seconds in (8, 40) for kind in (BROKEN, OVERLOADED)]
ERRORS = {
    (BROKEN, False): openai_error(500, code="server_error"),
    (BROKEN, True): anthropic_error(500, kind="api_error"),
    (OVERLOADED, False): openai_error(503, code="server_is_overloaded"),
    (OVERLOADED, True): anthropic_error(529, kind="overloaded_error"),
}
#: Those who ask for text.
TALKERS = [client for client in CLIENTS if "structured" not in client.ways[:1]]


@pytest.fixture(scope="module", autouse=True)
def page() -> Iterator[None]:
    """Write the table into the page at the end: outcomes of this run and of earlier ones."""
    OUTCOMES.mkdir(parents=True, exist_ok=True)
    yield
    if os.environ["RATELIMIT_CLIENT_MATRIX"] == "write":
        PAGE.write_text(TABLE.sub(lambda _: table(), PAGE.read_text()))


@pytest.mark.parametrize(("kind", "seconds"), OUTAGES)
@pytest.mark.parametrize("client", TALKERS, ids=lambda client: client.name)
def test_a_client_outlives_what_it_outlives_without_us(
    client: Client, kind: str, seconds: int, tmp_path: Path
) -> None:
    """Or more."""
    with ThreadPoolExecutor() as pool:
        running = [
            pool.submit(outlives, client, kind, seconds, tmp_path / way, through_us=through_us)
            for way, through_us in (("direct", False), ("here", True))
        ]
        direct, here = (each.result() for each in running)
    file_of(client, kind, seconds).write_text(json.dumps([direct, here]))
    assert here or not direct


def outlives(client: Client, kind: str, seconds: int, folder: Path, *, through_us: bool) -> bool:
    """Whether a run that begins with the outage gets its answer."""
    (folder / "home").mkdir(parents=True)
    error, lock = ERRORS[kind, client.is_anthropic], threading.Lock()
    began: list[float] = []

    def answer(call: Call) -> object:
        with lock:
            began.append(time.monotonic())
        is_over = time.monotonic() - began[0] >= seconds
        return success(call.path, call.body) if is_over else error

    with ExitStack() as stack:
        provider = stack.enter_context(upstream_server.running())
        provider.answer = answer  # type: ignore[method-assign, assignment]
        url = provider.url
        if through_us:
            master = stack.enter_context(
                gunicorn(
                    "wsgi:app",
                    state=folder / "state",
                    log=folder / "log",
                    RATELIMIT_POLICY_FILE=str(roomy_policy(folder / "policy.toml")),
                    OPENAI_API_KEY="sk-openai-test",
                    OPENAI_BASE_URL=f"{provider.url}/v1",
                    ANTHROPIC_API_KEY="sk-ant-test",
                    ANTHROPIC_BASE_URL=provider.url,
                    NO_PROXY="127.0.0.1",
                )
            )
            url = f"http://127.0.0.1:{master.port}"
        return SAID in (said(client, url, folder) or "")


def said(client: Client, url: str, folder: Path) -> str | None:
    """What the client has answered, if it has."""
    environment = client.environment()
    words = [*client.command(environment), url, "sk-any", client.model, client.ways[0], "ping"]
    try:
        done = subprocess.run(
            words,
            cwd=folder,
            env=variables(environment, folder / "home"),
            stdout=subprocess.PIPE,
            text=True,
            timeout=TIMEOUT_S,
            check=True,
        )
    except subprocess.TimeoutExpired:
        return None
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result["text"]


def file_of(client: Client, kind: str, seconds: int) -> Path:
    return OUTCOMES / f"{client.name} {kind} {seconds}.json".replace("/", "-")


def table() -> str:
    """The table of the page: the clients that were tried."""
    today = dt.datetime.now(dt.UTC).date()
    heads = [f"{kind}, {seconds} s" for kind, seconds in OUTAGES]
    lines = [
        f"Generated on {today} by `RATELIMIT_CLIENT_MATRIX=write python -m pytest {FILE}`.\n",
        f"| client | {' | '.join(heads)} |",
        "| --- " * (len(OUTAGES) + 1) + "|",
    ]
    for client in TALKERS:
        files = [file_of(client, kind, seconds) for kind, seconds in OUTAGES]
        if all(file.exists() for file in files):
            marks = (" / ".join("–✓"[each] for each in json.loads(f.read_text())) for f in files)
            lines.append(f"| {client.name} | {' | '.join(marks)} |")
    return "\n".join([*lines, ""])
