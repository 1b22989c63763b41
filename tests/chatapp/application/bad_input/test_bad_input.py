"""Invalid and unusual input at all endpoints: 4xx in the endpoint's format, and only what was
used is charged."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from werkzeug.test import TestResponse

from chatapp import catalogue
from chatapp.accounts.api_key import PresentedKey, new_key
from chatapp.accounts.store import Accounts
from chatapp.catalogue.usage import Usage
from tests.chatapp.conftest import AppMaker
from tests.chatapp.ledger.recording_ledger import RecordingLedger
from tests.chatapp.upstream_server import (
    ANTHROPIC_PATH,
    COUNT_PATH,
    EMBEDDINGS_PATH,
    OPENAI_PATH,
    RESPONSES_PATH,
    UpstreamServer,
    anthropic_error,
    openai_error,
)
from tests.chatapp.web.test_identities import left

CHAT_PATH = "/chat"
PATHS = (CHAT_PATH, OPENAI_PATH, ANTHROPIC_PATH)
EDGE = {"ip", "key"}
#: An address that only counts tokens charges a limit of its own, whatever it answers.
OF_COUNTS = {"count-tokens"}
ABSENT = object()
SQL = "'; DROP TABLE calls; --"
HEADER = "x\r\nSet-Cookie: a=b"
THREE_MB = "a" * 3_000_000
EMBEDDER = "text-embedding-3-small"


def said(text: str) -> list[dict[str, object]]:
    return [{"role": "user", "content": text}]


BODIES: dict[str, dict[str, object]] = {
    CHAT_PATH: {"model": "gpt-5.4-mini", "message": "ping"},
    OPENAI_PATH: {"model": "gpt-5.4-mini", "messages": said("ping")},
    ANTHROPIC_PATH: {"model": "claude-haiku-4-5", "messages": said("ping"), "max_tokens": 100},
    COUNT_PATH: {"model": "claude-haiku-4-5", "messages": said("ping")},
    RESPONSES_PATH: {"model": "gpt-5.4-mini", "input": "ping"},
    EMBEDDINGS_PATH: {"model": EMBEDDER, "input": "ping"},
}
# What the provider bills for its "pong".
OPENAI_BILL = Usage(12, 5, cached_input_tokens=8, reasoning_tokens=2)
ANTHROPIC_BILL = Usage(23, 5, cached_input_tokens=8, cache_write_tokens=3)
BILLS = {
    path: bill._replace(tiers=())  # what was asked and sent names no tier
    for path, bill in {
        CHAT_PATH: OPENAI_BILL,
        OPENAI_PATH: OPENAI_BILL,
        ANTHROPIC_PATH: ANTHROPIC_BILL,
    }.items()
}


class Asker:
    """Alice, on the plan starter, as Bob is, in front of a provider that answers."""

    def __init__(self, make_app: AppMaker, accounts: Accounts) -> None:
        self.accounts = accounts
        self.key = self.new_key("alice")
        self.bobs_key = self.new_key("bob")
        self.ledger = RecordingLedger()
        self._client = make_app(ledger=self.ledger).test_client()

    def new_key(self, user: str, *, expires_at: datetime | None = None) -> PresentedKey:
        """A key of that user, on the plan starter."""
        return self.accounts.create_key(
            user, plan=None, default_plan="starter", expires_at=expires_at
        )

    def ask(
        self, path: str, fields: Mapping[str, object] = {}, *, query: str = "", **environ: str
    ) -> TestResponse:
        """A valid body except for these fields; its answer is read to the end. The environment is a
        server's version of headers that the test client would not send."""
        body = {**BODIES[path], **fields}
        with self._client.post(
            path + query,
            json={name: value for name, value in body.items() if value is not ABSENT},
            environ_overrides={"HTTP_X_API_KEY": self.key.text, **environ},
        ) as response:
            response.get_data()
        return response

    def left(self, key: PresentedKey | None = None) -> dict[str, float]:
        """The rest of each of the owner's limits, without those of the edge, which count this
        request, too."""
        environ = {"HTTP_X_API_KEY": (key or self.key).text, "REMOTE_ADDR": "203.0.113.1"}
        limits = self._client.get("/usage", environ_overrides=environ).json["limits"]
        return {limit["name"]: limit["remaining"] for limit in limits if limit["name"] not in EDGE}


@pytest.fixture
def asker(make_app: AppMaker, provider: UpstreamServer, accounts: Accounts) -> Asker:
    return Asker(make_app, accounts)


#: The type of an error, by its status, in either protocol; and those that only Anthropic has.
KINDS = {401: "authentication_error", 403: "permission_error"}
ANTHROPIC_KINDS = {**KINDS, 404: "not_found_error", 413: "request_too_large"}


def code_of(path: str, response: TestResponse) -> str:
    """The error's code; the error has the endpoint's format and a sentence."""
    body: Any = response.json
    if path == CHAT_PATH:
        assert set(body) == {"error", "code"}
        sentence, code = body["error"], body["code"]
    elif path in {ANTHROPIC_PATH, COUNT_PATH}:
        assert body["type"] == "error"
        assert body["request_id"] == response.headers["request-id"]
        sentence, code = body["error"]["message"], body["error"]["details"]["error_code"]
        assert body["error"] == {
            "type": ANTHROPIC_KINDS.get(response.status_code, "invalid_request_error"),
            "message": sentence,
            "details": {"error_code": code},
        }
    else:
        assert set(body) == {"error"}
        sentence, code = body["error"]["message"], body["error"]["code"]
        assert body["error"] == {
            "type": KINDS.get(response.status_code, "invalid_request_error"),
            "message": sentence,
            "param": body["error"]["param"],
            "code": code,
        }
    assert sentence.endswith((".", "characters."))
    assert len(sentence) < 1000
    return code


@dataclass(frozen=True)
class Refused:
    """A request that is refused: its endpoint, its mistake, and the expected error."""

    path: str
    name: str
    fields: Mapping[str, object]
    status: int
    code: str
    query: str = ""
    environ: Mapping[str, str] = field(default_factory=dict)


def item(**fields: object) -> dict[str, object]:
    return {"input": [fields]}


NOT_STORED = (404, "item_not_found")
TOO_LARGE = (413, "body_too_large")
NEW_NAME = (400, "invalid_max_completion_tokens")
BETAS = "HTTP_ANTHROPIC_BETA"
#: The mistake's name, the fields, the error, and how it is sent.
IN_BOTH_PROTOCOLS: list[tuple[Any, ...]] = [
    ("34 MB", {"messages": said("a" * 34_000_000)}, *TOO_LARGE),
    ("34 MB elsewhere", {"x": "a" * 34_000_000}, *TOO_LARGE),
    ("no model", {"model": ABSENT}, 400, "invalid_model"),
    ("model null", {"model": None}, 400, "invalid_model"),
    ("a model of a wrong type", {"model": 5}, 400, "invalid_model"),
    ("a list for a model", {"model": ["x"]}, 400, "invalid_model"),
    ("a model of 10 kB", {"model": "m" * 10_000}, 400, "invalid_model"),
    ("a header for a model", {"model": HEADER}, 400, "invalid_model"),
    ("SQL for a model", {"model": SQL}, 404, "model_not_found"),
    ("an unknown model", {"model": "llama"}, 404, "model_not_found"),
    ("no messages", {"messages": []}, 400, "invalid_messages"),
    ("SQL for messages", {"messages": SQL}, 400, "invalid_messages"),
    ("a message of a wrong type", {"messages": ["hi"]}, 400, "invalid_messages"),
    ("SQL for stream", {"stream": SQL}, 400, "invalid_stream"),
    ("1 for stream", {"stream": 1}, 400, "invalid_stream"),
    ("true for stream, as a text", {"stream": "true"}, 400, "invalid_stream"),
    ("SQL for max_tokens", {"max_tokens": SQL}, 400, "invalid_max_tokens"),
    ("max_tokens as a text", {"max_tokens": "10"}, 400, "invalid_max_tokens"),
    ("max_tokens true", {"max_tokens": True}, 400, "invalid_max_tokens"),
    ("half a max_tokens", {"max_tokens": 1.5}, 400, "invalid_max_tokens"),
    ("max_tokens 0", {"max_tokens": 0}, 400, "invalid_max_tokens"),
    ("max_tokens negative", {"max_tokens": -1}, 400, "invalid_max_tokens"),
    ("max_tokens huge", {"max_tokens": 10**40}, 400, "invalid_max_tokens"),
    ("max_tokens of 400 digits", {"max_tokens": 10**400}, 400, "invalid_max_tokens"),
]
REFUSED: dict[str, list[tuple[Any, ...]]] = {
    CHAT_PATH: [
        ("3 MB", {"message": THREE_MB}, 413, "message_too_long"),
        ("a header for a model", {"model": HEADER}, 422, "invalid_model"),
        ("what it does not know", {"n": 100}, 422, "unknown_field"),
        ("SQL for a model", {"model": SQL}, 422, "unknown_model"),
        ("a header for a user", {"user_id": HEADER}, 422, "invalid_user_id"),
        ("SQL for stream", {"stream": SQL}, 422, "invalid_stream"),
    ],
    OPENAI_PATH: [
        *IN_BOTH_PROTOCOLS,
        ("3 MB", {"messages": said(THREE_MB)}, 400, "request_too_large"),
        ("the other provider's model", {"model": "claude-haiku-4-5"}, 404, "model_not_found"),
        ("the new name negative", {"max_completion_tokens": -1}, *NEW_NAME),
        ("the new name huge", {"max_completion_tokens": 10**40}, *NEW_NAME),
        ("a hundred choices", {"n": 100}, 400, "invalid_n"),
        ("half a choice", {"n": 0.5}, 400, "invalid_n"),
        ("SQL for n", {"n": SQL}, 400, "invalid_n"),
        ("a header in a header", {}, 400, "invalid_header", "", {"HTTP_OPENAI_BETA": HEADER}),
    ],
    ANTHROPIC_PATH: [
        *IN_BOTH_PROTOCOLS,
        ("the other provider's model", {"model": "gpt-4o"}, 404, "model_not_found"),
        ("no max_tokens", {"max_tokens": ABSENT}, 400, "invalid_max_tokens"),
        ("max_tokens null", {"max_tokens": None}, 400, "invalid_max_tokens"),
        ("a thread", {"thread": {"type": "create"}}, 400, "thread_unsupported_request"),
        ("a header in a header", {}, 400, "invalid_header", "", {BETAS: HEADER}),
        ("é in a header", {}, 400, "invalid_header", "", {BETAS: "é"}),
        ("a header of 5 kB", {}, 400, "invalid_header", "", {BETAS: "x" * 5000}),
        ("a header in the query", {}, 400, "invalid_header", "?beta=x%0d%0aSet-Cookie:%20a=b"),
        ("a query that is not UTF-8", {}, 400, "invalid_query", "", {"QUERY_STRING": "beta=\xe9"}),
    ],
    COUNT_PATH: [
        ("no messages", {"messages": []}, 400, "invalid_messages"),
        ("a model of a wrong type", {"model": 1}, 400, "invalid_model"),
        ("an unknown model", {"model": "llama"}, 404, "model_not_found"),
        ("the other provider's model", {"model": "gpt-4o"}, 404, "model_not_found"),
    ],
    RESPONSES_PATH: [
        ("model null", {"model": None}, 400, "invalid_model"),
        ("an unknown model", {"model": "llama"}, 404, "model_not_found"),
        ("the other provider's model", {"model": "claude-haiku-4-5"}, 404, "model_not_found"),
        ("a model for embeddings", {"model": EMBEDDER}, 404, "model_not_found"),
        ("input of a wrong type", {"input": 5}, 400, "invalid_input"),
        ("too many items", {"input": [{}] * 10_001}, 400, "invalid_input"),
        ("true for stream, as a text", {"stream": "true"}, 400, "invalid_stream"),
        ("max_output_tokens 0", {"max_output_tokens": 0}, 400, "invalid_max_output_tokens"),
        ("background", {"background": True}, 400, "invalid_background"),
        ("background of a wrong type", {"background": {}}, 400, "invalid_background"),
        (
            "a tool in the conversation",
            item(type="additional_tools", tools=[{"type": "code_interpreter"}]),
            *(400, "unpriced_field"),
        ),
        (
            "another user's response",
            {"previous_response_id": "resp_1"},
            *(404, "previous_response_not_found"),
        ),
        ("another user's item", item(type="item_reference", id="msg_1"), *NOT_STORED),
        ("an item without a type", item(id="msg_1"), *NOT_STORED),
        ("an id that is no text", item(type="item_reference", id="\ud800"), *NOT_STORED),
    ],
    EMBEDDINGS_PATH: [
        ("input of a wrong type", {"input": 5}, 400, "invalid_input"),
        ("input null", {"input": None}, 400, "invalid_input"),
        ("too many tokens", {"input": [[1] * 8_000] * 60}, 400, "invalid_json"),
        ("a model of completions", {"model": "gpt-5.4-mini"}, 404, "model_not_found"),
        ("the offline model", {"model": "offline"}, 404, "model_not_found"),
        ("a stream", {"stream": True}, 400, "invalid_stream"),
    ],
}
OPUS, LUNA = "claude-opus-5", "gpt-5.6-luna"
CACHED_LONG = {
    "role": "user",
    "content": [{"text": "ping", "prompt_cache_breakpoint": {"mode": "explicit", "ttl": "12h"}}],
}
ADVISOR = {"type": "tool_definition", "definition": {"type": "advisor_20260301"}}
ADDITION = {"type": "tool_addition", "tool": ADVISOR}
ADDED = {"role": "user", "content": [ADDITION]}
COMPACTED = {"type": "compaction", "tool_changes": [ADDITION]}
COMPACTION = {"role": "assistant", "content": [COMPACTED]}
#: Requests whose last field has no price here.
WITHOUT_PRICE: dict[str, list[dict[str, object]]] = {
    ANTHROPIC_PATH: [
        {"speed": "fast"},
        {"model": "claude-99", "speed": "fast"},
        {"model": OPUS, "inference_geo": "mars"},
        {"model": OPUS, "fallbacks": [{"model": "x"}]},
        {"model": OPUS, "container": "c1"},
        {"model": OPUS, "tools": [{"type": "code_execution_20260521"}]},
        {"model": OPUS, "tools": [{"type": "advisor_20260301"}]},
        {"model": OPUS, "messages": [ADDED]},
        {"model": OPUS, "messages": [COMPACTION]},
        {"model": OPUS, "billing_policy": {"bill_to": "user_profile"}},
    ],
    OPENAI_PATH: [
        {"model": "gpt-5-nano", "service_tier": "priority"},
        {"model": "gpt-99", "service_tier": "fast"},
        {"model": LUNA, "service_tier": 3},
        {"model": LUNA, "prompt_cache_options": {"ttl": "12h"}},
        {"model": LUNA, "prompt_cache_options": {"ttl": []}},
        {"model": LUNA, "messages": [CACHED_LONG]},
        {"model": LUNA, "web_search_options": {}},
        {"model": LUNA, "tools": [{"type": "google_search"}]},
        {"model": LUNA, "modalities": ["text", "audio"]},
        {"model": LUNA, "modalities": ["image"]},
    ],
    RESPONSES_PATH: [
        {"conversation": "conv_1"},
        {"prompt": {"id": "pmpt_1"}},
        {"service_tier": "ultrafast"},
        {"tools": [{"type": "image_generation"}]},
        {"model": LUNA, "input": [CACHED_LONG]},
        {"model": LUNA, "reasoning": {"mode": ["pro"]}},
    ],
    EMBEDDINGS_PATH: [{"service_tier": "priority"}],
}
REFUSALS = [Refused(path, *row) for path, rows in REFUSED.items() for row in rows]
REFUSALS += [
    Refused(path, f"no price: {fields}", fields, 400, "unpriced_field")
    for path, bodies in WITHOUT_PRICE.items()
    for fields in bodies
]


@pytest.mark.parametrize("case", REFUSALS, ids=lambda case: f"{case.name}, {case.path}")
def test_a_refused_request_costs_nothing(
    asker: Asker, provider: UpstreamServer, case: Refused
) -> None:
    """The provider is not called, the ledger has no row, and only the address is charged."""
    before = asker.left()
    response = asker.ask(case.path, case.fields, query=case.query, **case.environ)
    assert response.status_code == case.status, response.text
    assert code_of(case.path, response) == case.code
    if case.name.startswith("no price"):
        assert [*case.fields][-1] in response.text
    assert "Set-Cookie" not in response.headers
    # Only the limit that a prompt exceeds has seen the request.
    assert left(response).keys() <= EDGE | OF_COUNTS or case.code == "request_too_large"
    assert provider.calls == []
    assert asker.ledger.begun == []
    assert asker.left() == before
    # The model's own limit is in no /usage: this call is the first that it has counted.
    called = ANTHROPIC_PATH if case.path == COUNT_PATH else case.path
    assert left(asker.ask(called))["model"] == 2999


@pytest.mark.parametrize("path", [OPENAI_PATH, ANTHROPIC_PATH, RESPONSES_PATH])
@pytest.mark.parametrize(
    ("model", "remedy"), [(" ", "is blank; send a name."), ("x" * 101, "send a shorter one.")]
)
def test_a_required_model_is_not_left_out(asker: Asker, path: str, model: str, remedy: str) -> None:
    """The sentence does not advise it."""
    response = asker.ask(path, {"model": model})
    assert code_of(path, response) == "invalid_model"
    assert remedy in response.text


ODD = (1, -1, 10**40, 1.5, "", "vs_1", "a\x00b", "x" * 5000, None, True, {}, {"a": 1}, [None], [[]])
#: A key without the right to files may name none of these, in whatever form.
OF_ALL_CLIENTS = {"the stores of a tool", "the stores of a later tool", "the file of a document"}
#: Where a body may name what a provider keeps for all clients of this server.
NAMED: dict[str, tuple[str, Callable[[object], dict[str, object]]]] = {
    "the stores of a tool": (
        RESPONSES_PATH,
        lambda odd: {"tools": [{"type": "file_search", "vector_store_ids": odd}]},
    ),
    "the stores of a later tool": (
        RESPONSES_PATH,
        lambda odd: {
            "input": [
                {
                    "type": "additional_tools",
                    "tools": [{"type": "file_search", "vector_store_ids": odd}],
                }
            ]
        },
    ),
    "the tools": (RESPONSES_PATH, lambda odd: {"tools": odd}),
    "the content of a document": (
        ANTHROPIC_PATH,
        lambda odd: {"messages": document({"type": "content", "content": odd})},
    ),
    "the file of a document": (
        ANTHROPIC_PATH,
        lambda odd: {"messages": document({"type": "file", "file_id": odd})},
    ),
    "a document's source": (ANTHROPIC_PATH, lambda odd: {"messages": document(odd)}),
    "tags": (
        OPENAI_PATH,
        lambda odd: dict.fromkeys(("user", "metadata", "safety_identifier"), odd),
    ),
}


def document(source: object) -> list[dict[str, object]]:
    return [{"role": "user", "content": [{"type": "document", "source": source}]}]


@pytest.mark.parametrize("name", NAMED)
def test_an_odd_name_is_a_sentence_or_the_providers_to_judge(
    asker: Asker, provider: UpstreamServer, name: str
) -> None:
    """An error has the endpoint's format, and what is refused costs nothing."""
    path, fields = NAMED[name]
    for number, odd in enumerate(ODD):
        asker.key = asker.new_key(f"user-{number}")  # a few calls a minute are allowed
        before, calls = asker.left(), len(provider.calls)
        response = asker.ask(path, fields(odd))
        if response.status_code == 200:
            assert not (odd and name in OF_ALL_CLIENTS), odd
            assert len(provider.calls) == calls + 1
            continue
        assert response.status_code in {400, 403, 413}, (odd, response.text)
        assert code_of(path, response)
        assert len(provider.calls) == calls
        assert asker.left() == before, odd


IMAGE = "iVBORw0KGgo="
ANSWERED: dict[str, tuple[str, dict[str, object]]] = {
    "Bob's name at /chat": (CHAT_PATH, {"user_id": "bob"}),
    "SQL for /chat's user": (CHAT_PATH, {"user_id": SQL}),
    "SQL in /chat's message": (CHAT_PATH, {"message": SQL}),
    "a header in /chat's message": (CHAT_PATH, {"message": HEADER}),
    "tools and an image, OpenAI": (
        OPENAI_PATH,
        {
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {"type": "text", "text": "what is this?"},
                        {
                            "type": "image_url",
                            "image_url": {"url": f"data:image/png;base64,{IMAGE}"},
                        },
                    ],
                }
            ],
            "tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}],
            "nobody_knows_this": {"a": [1, None]},
        },
    ),
    "tools and an image, Anthropic": (
        ANTHROPIC_PATH,
        {
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {"type": "text", "text": "what is this?"},
                        {
                            "type": "image",
                            "source": {"type": "base64", "media_type": "image/png", "data": IMAGE},
                        },
                    ],
                }
            ],
            "tools": [{"name": "f", "input_schema": {"type": "object"}}],
            "nobody_knows_this": {"a": [1, None]},
        },
    ),
    "a long answer allowed, OpenAI": (OPENAI_PATH, {"max_tokens": 1_000_000}),
    "a long answer allowed, Anthropic": (ANTHROPIC_PATH, {"max_tokens": 1_000_000}),
    "a hundred choices, which Anthropic has not": (ANTHROPIC_PATH, {"n": 100}),
    "Bob's name, OpenAI": (OPENAI_PATH, {"user": "bob"}),
    "Bob's name, Anthropic": (ANTHROPIC_PATH, {"metadata": {"user_id": "bob"}}),
    "SQL and headers, OpenAI": (OPENAI_PATH, {"messages": said(SQL + HEADER), "user": SQL}),
    "SQL and headers, Anthropic": (
        ANTHROPIC_PATH,
        {"messages": said(SQL + HEADER), "metadata": {"user_id": HEADER}, "system": SQL},
    ),
}


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("name", ANSWERED)
def test_an_unusual_request_costs_what_it_used(
    asker: Asker, provider: UpstreamServer, name: str, stream: bool
) -> None:
    """The provider gets it unchanged. Its bill is charged to the micro-dollar, once, to the key's
    owner, whichever user the body names."""
    path, fields = ANSWERED[name]
    before, bobs = asker.left(), asker.left(asker.bobs_key)
    response = asker.ask(path, {**fields, "stream": stream})
    assert response.status_code == 200, response.text
    assert "Set-Cookie" not in response.headers

    [call] = provider.calls
    if path == CHAT_PATH:
        asked = {**BODIES[path], **fields}
        assert call.body["messages"] == said(str(asked["message"]))
        assert not {"n", "tools", "user", "user_id"} & set(call.body)
    else:
        ours = {"stream_options": {"include_usage": True}} if path == OPENAI_PATH and stream else {}
        assert call.body == {**BODIES[path], **fields, "stream": stream, **ours}

    [ended] = asker.ledger.finished()
    assert (ended.user, ended.usage) == ("user:alice", BILLS[path])
    cost = catalogue.load().price(str(BODIES[path]["model"]), BILLS[path])
    after = asker.left()
    for limit in ("usd-hour", "usd-day", "usd-month"):
        assert round((before[limit] - after[limit]) * 1e6) == cost > 0
    assert (
        before["tokens"] - after["tokens"] <= BILLS[path].input_tokens + BILLS[path].output_tokens
    )
    assert (after["plan"], after["at-once"]) == (before["plan"] - 1, before["at-once"])
    assert asker.left(asker.bobs_key) == bobs


@pytest.mark.parametrize(("path", "choices"), [(OPENAI_PATH, 3), (ANTHROPIC_PATH, 1)])
def test_only_openai_has_choices(asker: Asker, path: str, choices: int) -> None:
    """An `n` of three is estimated as three answers. In Anthropic's API `n` has no effect, and
    costs nothing."""
    long = {"max_tokens": 1_000_000}
    assert asker.ask(path, long).status_code == 200
    assert asker.ask(path, {**long, "n": 3}).status_code == 200
    one, odd = asker.ledger.begun
    assert odd.estimated_output_tokens == choices * one.estimated_output_tokens > 0
    assert (odd.cost_micro_usd > one.cost_micro_usd) is (choices > 1)


@pytest.mark.parametrize("n", [0, -5, True, 10**40, 1.5, SQL])
def test_any_n_is_one_answer_to_anthropic(asker: Asker, n: object) -> None:
    """It is forwarded, and Anthropic may reject it."""
    assert asker.ask(ANTHROPIC_PATH, {"n": n, "max_tokens": 1_000_000}).status_code == 200
    assert asker.ask(ANTHROPIC_PATH, {"max_tokens": 1_000_000}).status_code == 200
    odd, one = asker.ledger.begun
    assert odd.estimated_output_tokens == one.estimated_output_tokens


def test_a_body_without_max_tokens_is_unchanged(asker: Asker, provider: UpstreamServer) -> None:
    """OpenAI's own default applies."""
    assert asker.ask(OPENAI_PATH).status_code == 200
    assert provider.calls[0].body == BODIES[OPENAI_PATH]


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("path", PATHS)
def test_a_call_that_the_provider_rejects_is_counted(
    asker: Asker, provider: UpstreamServer, path: str, stream: bool
) -> None:
    """Such as a prompt that is too long for the model: nothing is generated and billed, but a
    thousand of them would use up the provider's quota for all users."""
    before = asker.left()
    provider.script(
        anthropic_error(400, kind="invalid_request_error")
        if path == ANTHROPIC_PATH
        else openai_error(400, code="context_length_exceeded")
    )
    response = asker.ask(path, {"stream": stream})
    assert 400 <= response.status_code < 600
    assert len(provider.calls) == 1
    after = asker.left()
    # The pace and the minute's tokens fill up by themselves.
    for limit in ("at-once", "usd-hour", "usd-day", "usd-month"):
        assert after[limit] == before[limit], limit
    assert after["plan"] == before["plan"] - 1
    assert [call.cost_micro_usd for call in asker.ledger.finished()] == [0]


def expired(asker: Asker) -> str:
    return asker.new_key("alice", expires_at=datetime.now(UTC) - timedelta(seconds=1)).text


def revoked(asker: Asker) -> str:
    key = asker.new_key("alice")
    asker.accounts.revoke(key.public_id)
    return key.text


BAD_KEYS: dict[str, Callable[[Asker], str]] = {
    "expired": expired,
    "revoked": revoked,
    "of another secret": lambda asker: PresentedKey(asker.key.public_id, new_key().secret).text,
    "malformed": lambda asker: asker.key.text[:-1],
    "10 kB": lambda asker: asker.key.text + "a" * 10_000,
    "SQL": lambda asker: f"sk-chat-{asker.key.public_id}{SQL}",
    "a header": lambda asker: asker.key.text + HEADER,
}


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("name", BAD_KEYS)
def test_an_invalid_key_costs_its_owner_nothing(
    asker: Asker, provider: UpstreamServer, name: str, path: str
) -> None:
    """401 in the endpoint's format; neither the provider nor the ledger nor Alice's limits are
    touched."""
    shown = BAD_KEYS[name](asker)
    before = asker.left()
    response = asker.ask(path, HTTP_X_API_KEY=shown)
    assert response.status_code == 401, response.text
    assert code_of(path, response) == "invalid_api_key"
    assert "Set-Cookie" not in response.headers
    assert asker.key.secret not in response.text
    assert provider.calls == []
    assert asker.ledger.begun == []
    assert asker.left() == before


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", [OPENAI_PATH, ANTHROPIC_PATH])
def test_the_offline_model_accepts_a_lone_surrogate(
    make_app: AppMaker, path: str, stream: bool
) -> None:
    """It is forwarded to providers, so it is accepted here, too."""
    fields = {**BODIES[path], "model": "offline", "messages": said("a\ud800b"), "stream": stream}
    answer = make_app().test_client().post(path, json=fields)
    assert answer.status_code == 200
    assert "a?b" in answer.text
