"""Invalid input: each error names its cause, none is a 500, none is charged to a plan."""

import base64
import gzip
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
from flask.testing import FlaskClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from chatapp.blueprints import anthropic_api, openai_api
from chatapp.web.current_request import current_request
from chatapp.web.requests.chat import (
    CONVERSATION_MAX_BYTES,
    MESSAGE_MAX_BYTES,
    OneMessage,
    WholeConversation,
)
from chatapp.web.requests.files import FILE_MAX_BYTES
from tests.chatapp.conftest import AppMaker, json_of
from tests.chatapp.upstream_server import Answer, UpstreamServer


@dataclass(frozen=True)
class Case:
    name: str
    status: int
    code: str
    body: bytes
    says: str
    sent: Mapping[str, Any] = field(default_factory=dict)


GZIP = {"Content-Encoding": "gzip"}


def fields(**fields: object) -> bytes:
    return json.dumps({"message": "hello", **fields}).encode()


def said(role: object, content: object = "hello", **more: object) -> dict[str, object]:
    return {"role": role, "content": content, **more}


def talk(*messages: object, **fields: object) -> bytes:
    return json.dumps({"messages": messages, **fields}).encode()


def file(content: bytes, kind: str, **more: str) -> dict[str, str]:
    return {"data": f"data:{kind};base64,{base64.b64encode(content).decode()}", **more}


PNG = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\0\1\0\0\0\1\x08\2\0\0\0\x90wS\xde"
PDF = b"%PDF-1.7\n"
IMAGE = file(PNG, "image/png")
USER = said("user")
LONGEST = "a" * MESSAGE_MAX_BYTES

#: Name, body and words of the error, and how it is sent, by the status and the code of the answer.
REFUSED: dict[tuple[int, str], list[Any]] = {
    (400, "invalid_json"): [
        ("no body", b"", "empty"),
        ("not JSON", b"hello", "not JSON"),
        ("no content type", fields(), "Content-Type", {"content_type": None}),
        ("a form", b"message=hello", "Content-Type", {"content_type": "text/plain"}),
        (
            "a multipart form",
            b"--x\r\n\r\n--x--",
            "Content-Type",
            {"content_type": "multipart/form-data; boundary=x"},
        ),
        ("a broken end", b'{"message": "hel', "not JSON"),
        ("two documents", b'{"message": "a"}{"message": "b"}', "not JSON"),
        ("deep lists", b"[" * 200_000, "nested too deeply"),
        ("deep objects", b'{"a":' * 100_000 + b"1", "nested too deeply"),
        (
            "deep and valid",
            b'{"message":"a","x":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
            "nested too deeply",
        ),
        ("not UTF-8", b'{"message": "\xff\xfe"}', "UTF-8"),
        ("UTF-16", '{"message": "a"}'.encode("utf-16"), "UTF-8"),
        ("a huge integer", b'{"message": 1' + b"0" * 10_000 + b"}", "digits"),
        ("NaN", b'{"message": NaN}', "NaN"),
        ("infinity elsewhere", b'{"message":"a","x":-Infinity}', "Infinity"),
        ("a name twice", b'{"message":"a","message":"b"}', "duplicate"),
        ("gzip garbage", b"\x1f\x8b\x08garbage", "UTF-8"),
        ("101 levels", b"[" * 101 + b"]" * 101, "100 levels"),
        ("many values", b"[" + b"0," * 100_000 + b"0]", "too many values"),
        ("endless strings", b'"\\"' * 50_000, "not JSON"),
    ],
    (400, "invalid_body"): [
        ("no gzip", fields(), "encoding", {"headers": GZIP}),
        ("half a gzip", gzip.compress(fields())[:-9], "ends", {"headers": GZIP}),
        ("gzip and more", gzip.compress(fields()) + b"x", "", {"headers": GZIP}),
    ],
    (413, "body_too_large"): [
        ("a bomb", gzip.compress(b" " * 10**8), "32 MB", {"headers": GZIP}),
        ("33 MiB", fields(message="a" * 2**25), "32 MB"),
    ],
    (415, "unsupported_encoding"): [
        ("br", fields(), "gzip", {"headers": {"Content-Encoding": "br"}})
    ],
    (422, "invalid_body"): [
        ("a list", b"[]", "a list"),
        ("a number", b"42", "a number"),
        ("a huge float", b"1e999", "a number"),
        ("a string", b'"hello"', "a string"),
        ("null", b"null", "null"),
        ("true", b"true", "a boolean"),
    ],
    (422, "invalid_message"): [
        ("no message", b"{}", "missing"),
        ("message null", fields(message=None), "null"),
        ("message 1", fields(message=1), "a number"),
        ("message true", fields(message=True), "a boolean"),
        ("message a list", fields(message=["hello"]), "a list"),
        ("message an object", fields(message={"a": 1}), "an object"),
        ("message empty", fields(message=""), "blank"),
        ("message blank", fields(message=" \n\t\u3000"), "blank"),
        ("NUL", fields(message="a\x00b"), "NUL"),
        ("a high surrogate", rb'{"message":"\ud800"}', "surrogate"),
        ("a low surrogate", rb'{"message":"a\udc00b"}', "surrogate"),
    ],
    (413, "message_too_long"): [
        ("message too long", fields(message="a" * (MESSAGE_MAX_BYTES + 1)), "32001 bytes"),
        (
            "message too long in bytes",
            json.dumps({"message": "é" * (MESSAGE_MAX_BYTES // 2 + 1)}).encode(),
            "32002 bytes",
        ),
        ("system too long", fields(system=LONGEST + "a"), '"system" has 32001'),
        ("a long end", talk(said("user", LONGEST + "a")), "32001 bytes"),
        ("1 MB", fields(message="a" * 1_000_000), "(at most 32000)"),
    ],
    (422, "unknown_field"): [
        ("a misspelt field", fields(mesage="hi"), 'mean "message"?'),
        ("a field of none", fields(colour="red"), '"stream", "system".'),
        ("max_tokens", fields(max_tokens=5), "sets the longest answer"),
        ("history", fields(history=[]), 'conversation as "messages"'),
        ("NUL as a field", b'{"\\u0000": 1}', "\\u0000"),
        ("half a field", b'{"\\ud800": 1}', "\\ud800"),
        ("a long field", fields(**{"x" * 9000: 1}), "is not a field"),
        ("images", fields(images=[IMAGE]), 'send it as "files"'),
    ],
    (422, "invalid_system"): [
        ("system blank", fields(system=" "), "blank"),
        ("system a list", fields(system=[]), "is a list"),
    ],
    (422, "invalid_messages"): [
        ("no messages", talk(), "has too few entries: 0; send at least 1"),
        ("messages null", b'{"messages": null}', "is null; send a list"),
        ("messages a string", b'{"messages": "hi"}', "is a string"),
        ("both forms", fields(messages=[USER]), "Send one of them"),
        ("a text in messages", talk("hi"), '"messages.0" is a string'),
        ("no content", talk({"role": "user"}), "0.content"),
        ("content in parts", talk(said("user", [])), "is a list"),
        ("content blank", talk(said("user", " \n")), "is blank"),
        ("content with NUL", talk(said("user", "\x00")), "NUL"),
        ("half a content", talk(said("user", "\ud800")), "surrogate"),
        ("no role", talk({"content": "a"}), '"messages.0.role" is missing'),
        ("a system message", talk(said("system")), "'assistant'"),
        ("a field more", talk(said("user", name="x")), "0.name"),
        ("ends unasked", talk(USER, said("assistant")), "ends with"),
        ("begins answered", talk(said("assistant"), USER), "begins with"),
        ("1,001 messages", talk(*[USER] * 1001), "(at most 1000)"),
        (
            "21 files in a conversation",
            talk(*[said("user", files=[IMAGE] * 7)] * 3),
            "(at most 20)",
        ),
        (
            "a file of the assistant",
            talk(USER, said("assistant", files=[IMAGE]), USER),
            "only the user's",
        ),
    ],
    (413, "conversation_too_long"): [
        (
            "a long conversation",
            talk(*[said("user", LONGEST)] * (CONVERSATION_MAX_BYTES // MESSAGE_MAX_BYTES + 1)),
            "leave out the oldest messages",
        )
    ],
    (422, "invalid_files"): [
        ("files an object", fields(files={}), "is an object"),
        ("a file as a text", fields(files=["a"]), '"files.0" is a string'),
        ("no data", fields(files=[{"name": "a"}]), '0.data" is missing'),
        ("no data URL", fields(files=[{"data": "https://a.example/b.png"}]), "is not a data URL"),
        ("SVG", fields(files=[file(b"<svg>", "image/svg+xml")]), "image/gif"),
        ("another type", fields(files=[file(PNG, "image/gif")]), "like a file"),
        ("not a PDF", fields(files=[file(b"x", "application/pdf")]), "begin"),
        ("nothing in it", fields(files=[file(b"", "image/png")]), "begin"),
        ("half a base64", fields(files=[{"data": IMAGE["data"][:-1]}]), "not valid base64"),
        ("21 files", fields(files=[IMAGE] * 21), "has 21 files (at most"),
        ("a name with a line", fields(files=[{**IMAGE, "name": "a\nb"}]), "name"),
        ("files beside messages", talk(USER, files=[IMAGE]), "into a message"),
    ],
    (413, "file_too_large"): [
        (
            "a large file",
            fields(files=[file(PNG + b"a" * FILE_MAX_BYTES, "image/png")]),
            "(at most 3750000)",
        )
    ],
    (422, "invalid_user_id"): [
        ("user_id 1", fields(user_id=1), "a number"),
        ("user_id a list", fields(user_id=["a"]), "a list"),
        ("user_id an object", fields(user_id={}), "an object"),
        ("user_id 10 kB", fields(user_id="u" * 10_000), "10000 characters"),
        ("user_id 257", fields(user_id="u" * 257), "(at most 256)"),
        ("user_id empty", fields(user_id=""), "blank"),
        ("user_id newline", fields(user_id="a\nb"), "control"),
        ("user_id NUL", fields(user_id="a\x00"), "NUL"),
        ("user_id C1", fields(user_id="a\x9b"), "control"),
        ("user_id line separator", fields(user_id="a\u2028b"), "control"),
        ("user_id surrogate", rb'{"message":"a","user_id":"\udfff"}', "surrogate"),
    ],
    (422, "unknown_model"): [
        ("model unknown", fields(model="llama-9"), "models: offline"),
        ("model with a path", fields(model="../offline"), "unknown"),
        ("model in capitals", fields(model="OFFLINE"), "unknown"),
    ],
    (422, "invalid_model"): [
        ("model empty", fields(model=""), "blank"),
        ("model 1", fields(model=1), "a number"),
        ("model huge", fields(model="gpt-" + "x" * 10_000), "(at most 100)"),
        ("model with NUL", fields(model="gpt-\x00"), "NUL"),
    ],
    (422, "model_unavailable"): [
        ("no OpenAI key", fields(model="gpt-4o"), "available models: offline"),
        ("no Anthropic key", fields(model="claude-haiku-4-5"), "is not available on this server"),
    ],
}
CASES = [
    Case(name, status, code, *row)
    for (status, code), rows in REFUSED.items()
    for name, *row in rows
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_bad_body_is_refused(client: FlaskClient, case: Case) -> None:
    """The answer has the right status, a code, and one sentence that says what is wrong."""
    sent = {"content_type": "application/json", **case.sent}
    response = client.post("/chat", data=case.body, **sent)
    assert response.status_code == case.status, response.text
    assert response.mimetype == "application/json"
    assert set(json_of(response)) == {"error", "code"}
    assert response.json["code"] == case.code
    assert case.says in response.json["error"]
    assert response.json["error"].endswith(".")
    assert len(response.json["error"]) < 500
    response.close()  # it holds a share of the memory for large bodies


GOOD = {
    "as plain as can be": {"message": "hello"},
    "at the limit": {"message": "a" * MESSAGE_MAX_BYTES},
    "nulls for what is optional": {
        "message": "hello",
        "model": None,
        "user_id": None,
        "stream": None,
    },
    "a user with a long name": {"message": "hello", "user_id": "ü" * 256},
    "a user who looks like a key": {"message": "hello", "user_id": "a/b:{c}%*"},
    "every plane": {"message": "héllo 😀 \U0010ffff \u202e"},
    "a named model": {"message": "hello", "model": "offline"},
    "a conversation of one": {"messages": [USER]},
    "a long answer": {"messages": [USER, said("assistant", LONGEST * 3), USER]},
    "a question twice": {"messages": [USER, USER]},
    "files": {"message": "hello", "files": [IMAGE, file(b" \n" + PDF, "application/pdf")]},
    "no files": {"messages": [said("user", files=[])]},
}


@pytest.mark.parametrize("name", GOOD)
def test_what_is_merely_odd_is_answered(client: FlaskClient, name: str) -> None:
    """Strictness stops at what is wrong: unusual text and null options pass."""
    response = client.post("/chat", json=GOOD[name])
    assert response.status_code == 200, response.text


@pytest.mark.parametrize(
    ("model", "path"), [("gpt-5.4-mini", "/chat/c"), ("claude-haiku-4-5", "/m")]
)
def test_the_provider_gets_the_whole_conversation(
    online: FlaskClient, provider: UpstreamServer, model: str, path: str
) -> None:
    """In its order and with its roles, plain and streamed."""
    messages = [
        said("user", "My name is Ada."),
        said("assistant", "Hi!"),
        said("user", "Who am I?"),
    ]
    for stream in (False, True):
        body = {"messages": messages, "model": model, "stream": stream}
        assert online.post("/chat", json=body).status_code == 200
        assert path in provider.calls[-1].path
        assert provider.calls[-1].body["messages"] == messages


#: What a provider gets of an image and of a PDF file.
OPENAI_PARTS = [
    {"type": "image_url", "image_url": {"url": IMAGE["data"]}},
    {
        "type": "file",
        "file": {"filename": "a.pdf", "file_data": file(PDF, "application/pdf")["data"]},
    },
]
ANTHROPIC_PARTS = [
    {"type": kind, "source": {"type": "base64", "media_type": type_, "data": data}, **more}
    for kind, type_, data, more in (
        ("image", "image/png", base64.b64encode(PNG).decode(), {}),
        ("document", "application/pdf", base64.b64encode(PDF).decode(), {"title": "a.pdf"}),
    )
]


@pytest.mark.parametrize(
    ("model", "parts"), [("gpt-5.4-mini", OPENAI_PARTS), ("claude-haiku-4-5", ANTHROPIC_PARTS)]
)
def test_the_provider_gets_the_files_of_each_message(
    online: FlaskClient, provider: UpstreamServer, model: str, parts: list[object]
) -> None:
    """In the form that it takes, in front of the message's text."""
    files = [IMAGE, file(PDF, "application/pdf", name="a.pdf")]
    expected = {"role": "user", "content": [*parts, {"type": "text", "text": "What is it?"}]}
    asked = said("user", "What is it?", files=files)
    for messages in ([asked], [asked, said("assistant", "A dot."), USER]):
        assert online.post("/chat", json={"messages": messages, "model": model}).status_code == 200
        assert provider.calls[-1].body["messages"] == [expected, *messages[1:]]
    body = {"message": "What is it?", "files": files, "model": model, "stream": True}
    assert online.post("/chat", json=body).status_code == 200
    assert provider.calls[-1].body["messages"] == [expected]


@pytest.mark.parametrize(
    ("model", "sent", "says"),
    [
        (
            "gpt-4",
            IMAGE,
            'model "gpt-4" takes no images here. Choose one that does, as gpt-5.6-luna,',
        ),
        ("gpt-4-turbo", file(PDF, "application/pdf"), '"gpt-4-turbo" takes no PDF files here.'),
        ("gpt-99", IMAGE, 'model "gpt-99" takes no images here.'),
    ],
)
def test_a_model_that_takes_no_such_files_is_not_called(
    online: FlaskClient, provider: UpstreamServer, model: str, sent: object, says: str
) -> None:
    """The caller gets a sentence with models that do, and nothing is charged."""
    body = {"message": "Look", "files": [sent], "model": model}
    response = online.post("/chat", json=body)
    assert response.status_code == 422
    assert json_of(response)["code"] == "unsupported_files"
    assert says in response.json["error"]
    assert provider.calls == []
    assert online.post("/chat", json={"message": "Look", "model": model}).status_code == 200


def test_files_are_estimated(online: FlaskClient, provider: UpstreamServer) -> None:
    """An image has the tokens that GET /usage/models says, a PDF file those of its length."""
    shown = json_of(online.get("/usage/models"))
    [model] = [each for each in shown["models"] if each["name"] == "claude-haiku-4-5"]
    assert model["files"] == ["image", "pdf"]

    def estimate(*files: object) -> int:
        body = {"message": "Look", "files": files, "model": model["name"]}
        with online:
            assert online.post("/chat", json=body).status_code == 200
            return current_request().demand.estimate.input_tokens

    without, pdf = estimate(), PDF + b"\0" * 90_000
    assert estimate(IMAGE, IMAGE) - without == 2 * model["image_tokens"] == 3_200
    tokens = estimate(file(pdf, "application/pdf")) - without
    assert tokens == pytest.approx(len(pdf) / shown["pdf_bytes_per_token"], rel=0.01)


def test_a_fallback_gets_files_that_it_takes(make_app: AppMaker, provider: UpstreamServer) -> None:
    """Another fallback is not called."""
    client = make_app(
        CHATAPP_PROVIDER_ATTEMPTS=1,
        CHATAPP_FALLBACK_MODELS={"gpt-5.4-mini": "gpt-4", "gpt-4o": "claude-haiku-4-5"},
    ).test_client()
    for model, called, status in (("gpt-5.4-mini", 1, 503), ("gpt-4o", 2, 200)):
        provider.calls.clear()
        provider.script(Answer(503, {"error": {"message": "busy"}}))
        body = {"message": "Look", "files": [IMAGE], "model": model}
        assert client.post("/chat", json=body).status_code == status
        assert len(provider.calls) == called


def test_a_history_is_estimated(client: FlaskClient) -> None:
    """It is held against limits in tokens: the offline model bills all of it."""
    history = [said("user", "a" * 4000), said("assistant", "b" * 4000)]
    response = client.post("/chat", json={"messages": [*history, USER]})
    assert json_of(response)["usage"]["input_tokens"] == 2002
    [tokens] = re.findall(r'"tokens";r=(\d+)', response.headers["RateLimit"])
    assert int(tokens) < 200_000 - 2002


def test_a_provider_json_type_counts_as_json(client: FlaskClient) -> None:
    """application/*+json and a charset are JSON too."""
    for content_type in ("application/vnd.chat+json", "application/json; charset=utf-8"):
        response = client.post("/chat", data=fields(), content_type=content_type)
        assert response.status_code == 200, response.text


def test_a_compressed_body_is_as_good_as_any(client: FlaskClient) -> None:
    """gzip is decoded, within the bound on bodies."""
    body = gzip.compress(fields())
    response = client.post("/chat", data=body, content_type="application/json", headers=GZIP)
    assert response.status_code == 200, response.text


@pytest.mark.parametrize("length", ["abc", "-5", "99999999999999999999", "5"])
def test_a_wrong_content_length_is_no_failure_of_ours(client: FlaskClient, length: str) -> None:
    """A length that is no number, too long or too short is the client's error."""
    response = client.post(
        "/chat",
        data=fields(),
        content_type="application/json",
        environ_overrides={"CONTENT_LENGTH": length},
    )
    assert response.status_code in {400, 413}, response.text
    assert set(json_of(response)) == {"error", "code"}


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
VALUES = st.recursive(SCALARS, lambda v: st.lists(v) | st.dictionaries(st.text(), v), max_leaves=8)
FIELDS = st.sampled_from(["message", "messages", "model", "user_id", "other"])
ANY_TEXT = st.text(st.characters(codec=None), max_size=300)
DOCUMENTS = VALUES | st.dictionaries(FIELDS, VALUES | ANY_TEXT | st.just("offline"))
BODIES = st.binary(max_size=200) | DOCUMENTS.map(lambda value: json.dumps(value).encode())


@pytest.fixture
def unlimited(make_app: AppMaker) -> FlaskClient:
    """A client whose every request is judged by its body alone."""
    return make_app(RATELIMIT_ENABLED=False).test_client()


@settings(
    max_examples=300,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(body=BODIES)
def test_no_body_at_all_is_a_failure_of_ours(unlimited: FlaskClient, body: bytes) -> None:
    """Whatever comes in is answered or refused, in JSON."""
    response = unlimited.post("/chat", data=body, content_type="application/json")
    assert response.status_code in {200, 400, 413, 422}, response.text
    if response.status_code != 200:
        assert set(json_of(response)) == {"error", "code"}


@pytest.mark.parametrize(
    ("form", "field"),
    [
        (OneMessage, "files"),
        (WholeConversation, "messages"),
        (openai_api.ADDRESSES["chat_completions"].fields, "messages"),
        (anthropic_api.ADDRESSES["messages"].fields, "messages"),
    ],
)
def test_mistakes_in_a_list_are_read_up_to_the_first(form: type[BaseModel], field: str) -> None:
    """A caller may send 100,000 of them for nothing, and the answer names one."""
    body = {"message": "hi", "model": "offline", "max_tokens": 1, field: [1] * 99}
    with pytest.raises(ValidationError) as caught:
        form.model_validate(body)
    assert [error["loc"] for error in caught.value.errors() if error["loc"][0] == field] == [
        (field, 0)
    ]
