"""The class of a call is handed on to upstreams: in a field, a header, or as a service tier."""

import json
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
from flask import Flask
from hypothesis import given
from hypothesis import strategies as st

from chatapp import POLICY_FILE
from chatapp.accounts.store import Accounts
from chatapp.catalogue import CatalogueError
from chatapp.catalogue.providers_file import ClassTable
from chatapp.web.identities import CLASS_HEADER
from tests.chatapp.catalogue.test_changes import loaded
from tests.chatapp.cli.test_commands import run
from tests.chatapp.conftest import AppMaker, policy_file
from tests.chatapp.ledger.recording_ledger import RecordingLedger
from tests.chatapp.upstream_server import Answer, Call, UpstreamServer, openai_body
from tests.servers import eventually

AGENT, CLASS = "X-Claude-Code-Agent-Id", "X-Claude-Code-Request-Class"
SUBAGENT = {AGENT: "a7"}
HEAD = """\
version = 1
[upstreams.gpu]
protocol = "openai"
base_url = "{url}/v1"
models_of = "openai"
"""
VLLM = 'field = "priority"\nvalues = { interactive = 0, batch = 10, nightly = 20 }\n'
DYNAMO = 'header = "x-dynamo-request-priority"\nvalues = { interactive = 9, batch = 1 }\n'
OPENAI = 'field = "service_tier"\nvalues = { interactive = "default", batch = "flex" }\n'
MODEL = "gpt-5.4-mini"
BODY: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "ping"}]}


class Office:
    """An application in front of an upstream that reads classes; keys of two classes."""

    def __init__(self, app: Flask, accounts: Accounts, provider: UpstreamServer) -> None:
        self._client, self._provider = app.test_client(), provider
        self._keys = {
            name: accounts.create_key(name, plan="team", default_plan="team")
            for name in ("ada", "bot")
        }
        run(app, "keys", "set", self._keys["bot"].public_id, "--class", "batch")

    def sent(
        self,
        caller: str,
        headers: Mapping[str, str] = MappingProxyType({}),
        path: str = "/v1/chat/completions",
        **more: Any,
    ) -> Any:
        """What the upstream gets of a call."""
        self.post(caller, headers, path, **more)
        return self._provider.calls[-1]

    def post(
        self,
        caller: str,
        headers: Mapping[str, str],
        path: str = "/v1/chat/completions",
        **more: Any,
    ) -> None:
        body = {k: v for k, v in {**BODY, **more}.items() if v is not None}
        headers = {"x-api-key": self._keys[caller].text, **headers}
        answer = self._client.post(
            path, data=json.dumps(body), content_type="application/json", headers=headers
        )
        assert answer.status_code == 200, answer.text
        answer.get_data()


@pytest.fixture
def ledger() -> RecordingLedger:
    return RecordingLedger()


def office(
    make_app: AppMaker,
    accounts: Accounts,
    provider: UpstreamServer,
    folder: Path,
    classes: str,
    **config: Any,
) -> Office:
    file = folder / "upstreams.toml"
    file.write_text(
        HEAD.format(url=provider.url) + f"[upstreams.gpu.classes]\n{classes}" * bool(classes)
    )
    return Office(make_app(CHATAPP_PROVIDERS_FILE=str(file), **config), accounts, provider)


@pytest.mark.parametrize(
    ("caller", "headers", "own", "shown"),
    [
        ("ada", {}, None, 0),
        ("bot", {}, None, 10),
        ("ada", SUBAGENT, None, 20),
        ("ada", {CLASS: "main"}, None, 0),
        ("bot", {CLASS: "main"}, None, 10),
        ("bot", {CLASS: "interactive"}, None, 10),
        ("ada", {CLASS_HEADER: "lowest"}, None, 20),
        ("ada", {}, -5, 0),
        ("ada", {}, 15, 15),
        ("bot", {}, 3, 10),
        ("bot", {}, 10, 10),
        ("bot", {}, 99, 99),
        ("bot", {}, "high", 10),
        ("bot", {}, [1], 10),
    ],
)
def test_in_a_field(
    make_app: AppMaker,
    accounts: Accounts,
    provider: UpstreamServer,
    tmp_path: Path,
    caller: str,
    headers: dict[str, str],
    own: object,
    shown: int,
) -> None:
    """As vLLM reads it: the class of the key, or the last value for a subagent. A caller's own
    value only lowers. So it is at every address."""
    gpu = office(make_app, accounts, provider, tmp_path, VLLM)
    assert gpu.sent(caller, headers, priority=own).body["priority"] == shown
    if own is None:
        assert gpu.sent(caller, headers, stream=True).body["priority"] == shown
        assert (
            gpu.sent(caller, headers, "/chat", message="hi", messages=None).body["priority"]
            == shown
        )


class PriorityQueue:
    """A model server that runs one call at a time, of those in line the one with the lowest
    `priority`, else the first: as vLLM does. ``line`` has what waits, ``run`` what has run."""

    def __init__(self) -> None:
        self.line: list[tuple[int, int]] = []
        self.run: list[str] = []
        self.gate = threading.Event()
        self._turn = threading.Condition()

    def answer(self, call: Call) -> Answer:
        turn = (int(call.body.get("priority", 0)), len(self.line) + len(self.run))  # type: ignore[call-overload]
        with self._turn:
            self.line.append(turn)
            self._turn.wait_for(lambda: self.gate.is_set() and min(self.line) == turn)
            self.line.remove(turn)
            self.run.append(call.body["messages"][0]["content"])  # type: ignore[index]
            self._turn.notify_all()
        return Answer(200, openai_body())

    def open(self) -> None:
        with self._turn:
            self.gate.set()
            self._turn.notify_all()


@pytest.mark.parametrize(("classes", "place"), [(VLLM, 0), ("", 6)])
def test_a_server_with_a_queue_runs_the_person_before_their_subagents(
    make_app: AppMaker,
    accounts: Accounts,
    provider: UpstreamServer,
    tmp_path: Path,
    classes: str,
    place: int,
) -> None:
    """Whose calls came before. Without the table it is in the order of arrival."""
    queue = PriorityQueue()
    provider.answer = queue.answer  # type: ignore[method-assign, assignment]
    gpu = office(make_app, accounts, provider, tmp_path, classes)

    def say(who: str, headers: Mapping[str, str]) -> None:
        gpu.post("ada", headers, messages=[{"role": "user", "content": who}])

    with ThreadPoolExecutor(7) as pool:
        for number, (who, headers) in enumerate([("agent", SUBAGENT)] * 6 + [("person", {})], 1):
            pool.submit(say, who, headers)
            eventually(lambda number=number: len(queue.line) == number)  # type: ignore[misc]
        queue.open()
    assert queue.run.index("person") == place
    assert len(queue.run) == 7


def test_of_the_plan(
    make_app: AppMaker, accounts: Accounts, provider: UpstreamServer, tmp_path: Path
) -> None:
    """By its keyword."""
    text = POLICY_FILE.read_text().replace('title = "Team"', 'title = "Team"\nclass = "nightly"')
    policy = {"RATELIMIT_POLICY_FILE": policy_file(tmp_path, text)}
    gpu = office(make_app, accounts, provider, tmp_path, VLLM, **policy)
    assert gpu.sent("ada").body["priority"] == 20
    assert gpu.sent("bot").body["priority"] == 10


def test_in_a_header(
    make_app: AppMaker, accounts: Accounts, provider: UpstreamServer, tmp_path: Path
) -> None:
    """The body stays what it was, and a caller's own header is not forwarded."""
    gpu, name = office(make_app, accounts, provider, tmp_path, DYNAMO), "x-dynamo-request-priority"
    assert gpu.sent("ada", {name: "99"}).headers[name] == "9"
    call = gpu.sent("bot", {name: "99"})
    assert (call.headers[name], call.raw) == ("1", json.dumps(BODY).encode())
    assert gpu.sent("bot", {}, "/chat", message="hi", messages=None).headers[name] == "1"


def test_without_a_table_nothing_changes(
    make_app: AppMaker, accounts: Accounts, provider: UpstreamServer, tmp_path: Path
) -> None:
    """Bytes and headers."""
    gpu = office(make_app, accounts, provider, tmp_path, "")
    call = gpu.sent("bot", SUBAGENT, priority=-5)
    assert call.raw == json.dumps({**BODY, "priority": -5}).encode()
    assert not [name for name in call.headers if "priority" in name or "agent-id" in name]


def test_as_a_service_tier(
    make_app: AppMaker,
    accounts: Accounts,
    provider: UpstreamServer,
    tmp_path: Path,
    ledger: RecordingLedger,
) -> None:
    """At its price, and only for a model that has one; what the caller wrote only lowers."""
    gpu = office(make_app, accounts, provider, tmp_path, OPENAI, ledger=ledger)

    def tier(caller: str, **fields: Any) -> object:
        return gpu.sent(caller, **fields).body.get("service_tier")

    assert tier("ada") == tier("ada", service_tier="priority") == "default"
    assert tier("ada", service_tier="flex") == tier("bot", service_tier="priority") == "flex"
    assert tier("bot", model="gpt-5.6-luna") == "default"
    provider.script(
        Answer(200, {**openai_body(), "service_tier": "flex"}), Answer(200, openai_body())
    )
    assert (tier("bot"), tier("ada")) == ("flex", "default")
    *_, flex, usual = ledger.finished(len(provider.calls))
    assert 2 * flex.cost_micro_usd - usual.cost_micro_usd in (0, 1)


NUMBERS = st.lists(st.integers(-99, 99), min_size=2, max_size=5, unique=True)


@given(NUMBERS.map(sorted), st.booleans(), st.integers(0, 5), st.integers() | st.text() | st.none())
def test_a_value_never_raises(
    numbers: list[int], is_descending: bool, at: int, sent: object
) -> None:
    """Whatever the client sends, the value is that of the class or a lower one."""
    ordered = numbers[::-1] if is_descending else numbers
    table = ClassTable(field="priority", values={f"c{n}": value for n, value in enumerate(ordered)})
    shown, *above = table.values_for(f"c{at}", sent)
    ours = ordered[min(at, len(ordered) - 1)]
    assert isinstance(shown, int)
    assert shown <= ours if is_descending else shown >= ours
    assert shown in {ours, sent}
    assert {*above} <= {*ordered, None}


MISTAKES = [
    ("values = { a = 1, b = 2 }", "classes need a `field` or a `header`; write one of them"),
    (f'header = "x"\n{VLLM}', "classes need a `field` or a `header`; write one of them"),
    ('field = "model"\nvalues = { a = 1, b = 2 }', "field has another meaning; write for example"),
    ('field = "priority"\nvalues = { a = 1 }', "values has too few entries: 1; write at least 2"),
    (
        'field = "priority"\nvalues = { "a b" = 1, b = 2 }',
        "classes have a blank or odd name; write",
    ),
    ('header = "Authorization"\nvalues = { a = 1, b = 2 }', "contain 'Authorization'; name the"),
    ('header = "x"\nvalues = { a = "é", b = "b" }', "have a value of 'x' that is not printable"),
    ('header = "x y"\nvalues = { a = 1, b = 2 }', "header is not the name of a header"),
    ('feld = "priority"\n', "is unknown; allowed: field, header, values. Did you mean 'field'?"),
]


@pytest.mark.parametrize(("classes", "sentence"), MISTAKES)
def test_a_mistake(tmp_path: Path, classes: str, sentence: str) -> None:
    """With its line and what to write."""
    text = HEAD.format(url="https://x").removeprefix("version = 1\n")
    with pytest.raises(CatalogueError) as caught:
        loaded(tmp_path, f"{text}[upstreams.gpu.classes]\n{classes}")
    assert sentence in str(caught.value)
