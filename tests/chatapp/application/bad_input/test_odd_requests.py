"""Generated requests through the whole application: no 500 and no hang. Some of them in every run;
CHATAPP_FUZZ_REQUESTS=50000 sends that many."""

import io
import os
import time
from collections import Counter
from typing import Any
from urllib.parse import unquote_to_bytes

import pytest
from flask import Flask

from chatapp.accounts.store import Accounts
from tests.chatapp.application.bad_input.odd_requests import OddRequest, OddRequests
from tests.chatapp.conftest import AppMaker
from tests.chatapp.upstream_server import UpstreamServer

REQUESTS = int(os.environ.get("CHATAPP_FUZZ_REQUESTS") or 1_000)
#: Some of them more than a client may send at once.
CALLS_OF_A_CLIENT = 30
#: No request waits for anything but a provider that answers at once.
BOUND_S = 10.0


def environ_of(asked: OddRequest, address: str) -> dict[str, Any]:
    """As gunicorn passes it: a body that ends at its announced length."""
    length = asked.declared if (asked.declared or "").isdecimal() else None
    body = asked.body[: int(length or 0)]
    environ: dict[str, Any] = {
        "REQUEST_METHOD": asked.method,
        "SCRIPT_NAME": "",
        "PATH_INFO": unquoted(asked.path),
        "QUERY_STRING": asked.query,
        "RAW_URI": asked.path,
        "SERVER_NAME": "127.0.0.1",
        "SERVER_PORT": "8000",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "REMOTE_ADDR": address,
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": "http",
        "wsgi.input": io.BytesIO(body),
        "wsgi.errors": io.StringIO(),
        "wsgi.multithread": True,
        "wsgi.multiprocess": True,
        "wsgi.run_once": False,
    }
    if asked.declared is not None:
        environ["CONTENT_LENGTH"] = asked.declared
    for name, value in asked.headers:
        key = name.upper().replace("-", "_")
        key = key if key == "CONTENT_TYPE" else f"HTTP_{key}"
        environ[key] = f"{environ[key]},{value}" if key in environ else value
    return environ


def unquoted(path: str) -> str:
    return unquote_to_bytes(path.encode("latin-1")).decode("latin-1")


def answer(app: Flask, environ: dict[str, Any]) -> int:
    """The status; everything is read to its end, and closed."""
    shown: list[str] = []

    def start_response(status: str, headers: list[tuple[str, str]], *_: object) -> Any:
        shown.append(status)
        for name, value in headers:
            (name + value).encode("latin-1")
            assert "\n" not in value
            assert "\r" not in value
        return lambda _: None

    body = app(environ, start_response)
    try:
        for _ in body:
            pass
    finally:
        getattr(body, "close", lambda: None)()
    return int(shown[-1].split()[0])


@pytest.mark.parametrize("with_keys", [False, True])
def test_no_request_makes_a_500_or_hangs(
    make_app: AppMaker, provider: UpstreamServer, uri: str, accounts: Accounts, with_keys: bool
) -> None:
    """Half of them without accounts, half with keys, from many addresses."""
    keys = [
        accounts.create_key(f"user-{n}", plan=None, default_plan="starter").text
        for n in range(200 * with_keys)
    ]
    app = make_app(
        RATELIMIT_STORAGE_URI=uri,
        CHATAPP_TRUSTED_HOPS=1,
        CHATAPP_PROVIDER_TIMEOUT_S=5,
        CHATAPP_PROVIDER_ATTEMPTS=1,
    )
    requests = OddRequests(seed=7 + with_keys, keys=keys)
    statuses: Counter[int] = Counter()
    wrong: list[tuple[object, OddRequest]] = []
    for number in range(REQUESTS // 2):
        asked = requests.next()
        client = number // CALLS_OF_A_CLIENT
        address = f"10.{client >> 16 & 255}.{client >> 8 & 255}.{client & 255}"
        began = time.monotonic()
        try:
            status = answer(app, environ_of(asked, address))
        except Exception as error:  # noqa: BLE001 - the server would make a 500 of it
            wrong.append((error, asked))
            continue
        statuses[status] += 1
        if status == 500 or time.monotonic() - began > BOUND_S:
            wrong.append((status, asked))
    print(f"\n{sum(statuses.values())} requests: {sorted(statuses.items())}")  # noqa: T201
    assert not wrong, wrong[:3]
    assert statuses[200] > REQUESTS // 50
