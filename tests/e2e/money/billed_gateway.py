"""The application between its callers and a provider with its own bill: what provider, limits and
ledger say a caller owes."""

import json
import re
import socket
import sqlite3
import time
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from decimal import Decimal
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import anthropic
import openai
import pytest
from flask import Flask

from chatapp import POLICY_FILE, create_app
from chatapp.services import services_of
from tests.chatapp.end_of_process import end_of_process
from tests.e2e.money.billing_provider import BilledCall, BillingProvider
from tests.gunicorn_master import Master, gunicorn
from tests.served import QuietHandler, serving
from tests.servers import eventually

MICRO = 1_000_000
#: More than any test spends: the rest of it is exactly what a caller was not charged.
MONTH_USD = 1_000_000
DOLLARS_OF_ALL_TIME = "usd-month"
#: What is charged of received output is exact here; prompts are estimated.
WITHIN = Decimal("0.02")


@dataclass(frozen=True, slots=True)
class Account:
    """What one caller was billed by the provider and charged here, in micro-dollars. ``one_call``
    is the highest possible cost of the output of one of the calls."""

    billed: Decimal
    charged: int
    ledger: int
    one_call: Decimal

    def __str__(self) -> str:
        return (
            f"billed {self.billed / MICRO:.4f}, charged {self.charged / MICRO:.4f}, "
            f"ledger {self.ledger / MICRO:.4f} USD (one call at most {self.one_call / MICRO:.4f})"
        )

    @property
    def is_paid(self) -> bool:
        """Within 2 % of the bill, or under it by less than one call's capped output."""
        return self.charged >= min(self.billed * (1 - WITHIN), self.billed - self.one_call)

    @property
    def is_not_overcharged(self) -> bool:
        """Within 2 % of the bill, and rounding."""
        return self.charged <= self.billed * (1 + WITHIN) + 10


@dataclass
class Gateway:
    """A running application; a caller gets a key when first named."""

    url: str
    provider: BillingProvider
    database: Path
    #: Makes keys; the served application itself, or one on the same database.
    app: Flask
    #: Of the deployed application.
    master: Master | None = None
    _keys: dict[str, str] = field(default_factory=dict)
    _clients: dict[tuple[object, ...], Any] = field(default_factory=dict)

    def key(self, caller: str, plan: str = "team") -> str:
        if caller not in self._keys:
            self._keys[caller] = make_key(self.app, caller, plan)
        return self._keys[caller]

    def openai(self, caller: str, *, max_retries: int = 0) -> openai.OpenAI:
        """OpenAI's SDK with the caller's key."""
        return self._client(openai.OpenAI, f"{self.url}/v1", caller, max_retries)

    def anthropic(self, caller: str, *, max_retries: int = 0) -> anthropic.Anthropic:
        """Anthropic's SDK with the caller's key."""
        return self._client(anthropic.Anthropic, self.url, caller, max_retries)

    def _client(self, sdk: Any, url: str, caller: str, max_retries: int) -> Any:
        asked = (sdk, caller, max_retries)
        if asked not in self._clients:
            key = self.key(caller)
            self._clients[asked] = sdk(base_url=url, api_key=key, max_retries=max_retries)
        return self._clients[asked]

    def close(self) -> None:
        for client in self._clients.values():
            client.close()

    def post(self, caller: str, path: str, body: object) -> tuple[int, dict[str, str], Any]:
        """Status, headers in lower case and body of a plain request."""
        with closing(self.begin(caller, path, body)) as connection:
            response = connection.getresponse()
            raw = response.read()
        headers = {name.lower(): value for name, value in response.getheaders()}
        is_json = "json" in headers.get("content-type", "")
        return response.status, headers, json.loads(raw) if is_json else raw

    def begin(self, caller: str, path: str, body: object) -> HTTPConnection:
        """The connection of a request that has been sent."""
        connection = HTTPConnection(urlsplit(self.url).netloc, timeout=60)
        connection.request("POST", path, json.dumps(body), self._headers(caller))
        return connection

    def leave(self, connection: HTTPConnection) -> None:
        """Disconnect, whatever may still come."""
        if connection.sock is not None:
            connection.sock.shutdown(socket.SHUT_RDWR)
        connection.close()

    def limits(self, caller: str) -> dict[str, dict[str, Any]]:
        """The caller's limits by name, as in GET /usage."""
        with closing(HTTPConnection(urlsplit(self.url).netloc, timeout=60)) as connection:
            connection.request("GET", "/usage", headers=self._headers(caller))
            response = connection.getresponse()
            body = json.loads(response.read())
        assert response.status == 200, body
        return {limit["name"]: limit for limit in body["limits"]}

    def left(self, caller: str) -> dict[str, float]:
        """What the caller has left of each limit."""
        return {name: limit["remaining"] for name, limit in self.limits(caller).items()}

    def rows(self, caller: str) -> Sequence[sqlite3.Row]:
        """The caller's calls in the ledger, the oldest first."""
        with closing(sqlite3.connect(self.database)) as connection:
            connection.row_factory = sqlite3.Row
            query = 'SELECT * FROM calls WHERE "user" = ? ORDER BY started_at'
            return connection.execute(query, [f"user:{caller}"]).fetchall()

    def is_idle(self, caller: str) -> bool:
        """Whether the caller has no call in flight, by the limits."""
        slots = self.limits(caller)["at-once"]
        return bool(slots["remaining"] == slots["limit"])

    def settle(self, caller: str) -> None:
        """Wait until all of the caller's calls are over and in the ledger."""
        reached = {call.scenario.id for call in self.provider.calls(caller=caller)}
        before: list[object] = []

        def is_settled() -> bool:
            rows = self.rows(caller)
            if len(rows) < len(reached) or any(row["status"] == "unfinished" for row in rows):
                return False
            if not self.is_idle(caller):
                return False
            # The ledger is written in batches: a call's row may come after its answer.
            before.append([tuple(row) for row in rows])
            time.sleep(0.1)
            return before[-1] == [tuple(row) for row in self.rows(caller)]

        eventually(is_settled)

    def desk(self, storage_uri: str, **config: object) -> Flask:
        """An application for commands, on the same database, limits and storage."""
        return create_app(
            {
                "CHATAPP_DATABASE_URL": f"sqlite:///{self.database}",
                "RATELIMIT_POLICY_FILE": str(self.database.with_name("policy.toml")),
                "RATELIMIT_STORAGE_URI": storage_uri,
                **config,
            }
        )

    def restore(self, storage_uri: str, **config: object) -> None:
        """Charge the limits what the ledger has, as an operator does."""
        words = ["chat", "ledger", "restore", "--apply"]
        done = self.desk(storage_uri, **config).test_cli_runner().invoke(args=words)
        assert done.exit_code == 0, done.output

    def account(self, caller: str) -> Account:
        """Provider, limits and ledger of this caller, after its calls."""
        self.settle(caller)
        calls = self.provider.calls(caller=caller)
        left_usd = self.left(caller)[DOLLARS_OF_ALL_TIME]
        return Account(
            billed=self.provider.billed_micro_usd(caller=caller),
            charged=MONTH_USD * MICRO - round(left_usd * MICRO),
            ledger=sum(row["cost_micro_usd"] for row in self.rows(caller)),
            one_call=max(map(self.provider.capped_micro_usd, calls), default=Decimal(0)),
        )

    def reached(self, call_id: str, *, sent: bool = False) -> BilledCall:
        """The provider's call of this id, once it has begun (and everything was sent)."""

        def found() -> list[BilledCall]:
            return [call for call in self.provider.calls(id=call_id) if call.sent or not sent]

        eventually(found)
        return found()[0]

    def _headers(self, caller: str) -> dict[str, str]:
        authorization = f"Bearer {self.key(caller)}"
        return {"Content-Type": "application/json", "Authorization": authorization}


def make_key(app: Flask, caller: str, plan: str) -> str:
    """A new API key, as an operator makes it."""
    words = ["chat", "keys", "create", "--user", caller, "--plan", plan]
    made = app.test_cli_runner().invoke(args=words)
    assert made.exit_code == 0, made.output
    # An idle connection here would keep SQLite's journal, which a stopped gunicorn has deleted.
    services_of(app).database.close()
    return made.stdout.strip()


def roomy_policy(path: Path, *, keep: Sequence[str] = (), **instead: str) -> Path:
    """The packaged policy with high rates and an endless month. ``keep`` names limits that stay as
    they are, ``instead`` replaces the strings of limits."""
    policy = tomllib.loads(Path(POLICY_FILE).read_text("utf-8"))
    instead = {DOLLARS_OF_ALL_TIME: f"{MONTH_USD} usd/month", **instead}
    for limit in _limits_in(policy):
        name = limit.get("name", "").replace("-", "_")
        if instead_of := instead.get(name) or instead.get(limit.get("name", "")):
            limit["limit"] = instead_of
        elif limit.get("name") in keep:
            continue
        elif re.fullmatch(r"\d+\s*(/|per).*", limit["limit"]):
            limit["limit"] = re.sub(r"^\d+", str(10**9), limit["limit"])
            if "burst" in limit:
                limit["burst"] = 10**9
        elif "flight" in limit["limit"]:
            limit["limit"] = "1000 in flight"
    path.write_text("".join(f"{name} = {_toml(value)}\n" for name, value in policy.items()))
    return path


def _limits_in(value: object) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        if isinstance(value.get("limit"), str):
            yield value
        for each in value.values():
            yield from _limits_in(each)
    elif isinstance(value, list):
        for each in value:
            yield from _limits_in(each)


def _toml(value: object) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(k)} = {_toml(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return json.dumps(value)


class _Handler(QuietHandler):
    """Closes every response. Werkzeug's handler reads on after an answer, and if the client has
    disconnected, that raises before the response is closed, as on no other server."""

    def setup(self) -> None:
        super().setup()
        self.rfile = _Forgiving(self.rfile)  # type: ignore[assignment]


class _Forgiving:
    """A connection whose end is not an error."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def read(self, *size: int) -> bytes:
        with suppress(ConnectionError):
            return self._file.read(*size)  # type: ignore[no-any-return]
        return b""


@contextmanager
def threaded(provider: BillingProvider, database: Path, **config: object) -> Iterator[Gateway]:
    """The application in this process, behind a real server with threads."""
    own: dict[str, object] = {
        "CHATAPP_DATABASE_URL": f"sqlite:///{database}",
        "RATELIMIT_STORAGE_URI": "memory://",
        "CHATAPP_PROVIDER_TIMEOUT_S": 20,
    }
    config = {**own, **config}
    with end_of_process():
        # An application that starts without keys remembers for a while that it needs none.
        make_key(create_app(config), "operator", "team")
        app = create_app(config)
        with (
            serving(app, _Handler) as url,
            closing(Gateway(url, provider, database, app)) as gateway,
        ):
            yield gateway


@contextmanager
def deployed(
    provider: BillingProvider, folder: Path, *, workers: int, **environment: str
) -> Iterator[Gateway]:
    """The application under gunicorn with its embedded storage; accounts are on."""
    database = folder / "calls.db"
    settings = {
        "DATABASE_URL": f"sqlite:///{database}",
        "RATELIMIT_POLICY_FILE": str(roomy_policy(folder / "policy.toml")),
        **provider.variables,
        **environment,
    }
    desk = create_app(
        {"CHATAPP_DATABASE_URL": settings["DATABASE_URL"], "RATELIMIT_STORAGE_URI": "memory://"}
    )
    make_key(desk, "operator", "team")
    with gunicorn("wsgi:app", folder, workers=workers, **settings) as master:
        url = f"http://127.0.0.1:{master.port}"
        with closing(Gateway(url, provider, database, desk, master)) as gateway:
            yield gateway


def write_table(config: pytest.Config, title: str, lines: Sequence[tuple[str, Account]]) -> None:
    """Print billed and charged amounts in the report of the test run."""
    text = f"\n{title:<72} {'billed':>10} {'charged':>10} {'ledger':>10} USD\n"
    for name, account in lines:
        figures = (account.billed, account.charged, account.ledger)
        text += f"{name:<72} " + " ".join(f"{each / MICRO:>10.4f}" for each in figures) + "\n"
    terminal: Any = config.pluginmanager.get_plugin("terminalreporter")
    capture: Any = config.pluginmanager.get_plugin("capturemanager")
    with capture.global_and_fixture_disabled():
        terminal.write(text)
