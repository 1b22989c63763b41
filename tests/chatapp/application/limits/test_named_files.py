"""Files that a provider keeps are those of all clients here: a key must be allowed to name them."""

from datetime import timedelta

import pytest

from chatapp.accounts.store import Accounts
from tests.chatapp.conftest import AppMaker
from tests.chatapp.upstream_server import Answer, UpstreamServer, anthropic_body, openai_body

FILE = {"type": "file", "file_id": "file-1"}
TEXT = {"type": "text", "text": "p"}
CHAT, MESSAGES, RESPONSES = "/v1/chat/completions", "/v1/messages", "/v1/responses"
RESULT = {"type": "tool_result", "tool_use_id": "t", "content": [{"type": "image", "source": FILE}]}
IMAGE = {"type": "image", "source": FILE}
PICTURES = {"type": "content", "content": [IMAGE]}
STORES = {"type": "file_search", "vector_store_ids": ["vs_1"]}
NAMED: dict[str, tuple[str, dict[str, object]]] = {
    "a chat's": (CHAT, {"type": "file", "file": {"file_id": "file-1"}}),
    "a document": (MESSAGES, {"type": "document", "source": FILE}),
    "in a result": (MESSAGES, RESULT),
    "a container's": (MESSAGES, {"type": "container_upload", "file_id": "file-1"}),
    "an input's": (RESPONSES, {"type": "input_file", "file_id": "file-1"}),
    "a picture": (RESPONSES, {"type": "input_image", "file_id": "file-1"}),
    "within a document": (
        MESSAGES,
        {"type": "document", "source": {"type": "content", "content": [IMAGE]}},
    ),
    "a search": (RESPONSES, {"tools": [STORES]}),
    "an added search": (RESPONSES, {"type": "additional_tools", "role": "x", "tools": [STORES]}),
    "a search in a namespace": (RESPONSES, {"tools": [{"type": "namespace", "tools": [STORES]}]}),
}
USE = {"type": "tool_use", "id": "t", "name": "f", "input": {"file_id": "the client's"}}
DATA = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "aa"}}


def body(path: str, part: dict[str, object]) -> dict[str, object]:
    message = {"role": "user", "content": [TEXT, part]}
    if "tools" in part:
        items = [{"role": "user", "content": "p"}, *([part] if "type" in part else [])]
        tools = {} if "type" in part else part
        return {"model": "gpt-5.4-mini", "input": items, **tools}
    if path == RESPONSES:
        return {"model": "gpt-5.4-mini", "input": [message]}
    model = "gpt-5.4-mini" if path == CHAT else "claude-haiku-4-5"
    return {"model": model, "max_tokens": 9, "messages": [message]}


@pytest.mark.parametrize("name", NAMED)
def test_a_file_is_named_only_by_a_key_that_may(
    make_app: AppMaker, provider: UpstreamServer, accounts: Accounts, name: str
) -> None:
    """By the command; anyone else gets a 403 that names it, and nothing is sent."""
    app = make_app()
    key = accounts.create_key("ada", plan="team", default_plan="starter")
    path, part = NAMED[name]
    client = app.test_client()
    client.environ_base["HTTP_X_API_KEY"] = key.text
    refused = client.post(path, json=body(path, part))
    assert (refused.status_code, provider.calls) == (403, [])
    assert "chat keys set KEY --files" in refused.text
    for word, says in (("files", "may name"), ("no-files", "may not name"), ("files", "may")):
        words = ["chat", "keys", "set", key.public_id, f"--{word}"]
        done = app.test_cli_runner().invoke(args=words)
        assert says in done.stdout, done.output
    assert "FILES" in app.test_cli_runner().invoke(args=["chat", "keys", "list"]).stdout
    client = make_app().test_client()
    client.environ_base["HTTP_X_API_KEY"] = key.text
    answer = anthropic_body() if path == MESSAGES else openai_body()
    provider.script(Answer(200, answer))
    assert client.post(path, json=body(path, part)).status_code == 200
    rotated, _ = accounts.rotate(key.public_id, overlap=timedelta(days=1))
    assert accounts.find(rotated.public_id)[0].files  # type: ignore[index]


@pytest.mark.parametrize("part", [USE, DATA])
def test_what_a_client_sends_itself_is_no_file(
    make_app: AppMaker, provider: UpstreamServer, part: dict[str, object]
) -> None:
    """Arguments of its own tools may have any name."""
    assert make_app().test_client().post(MESSAGES, json=body(MESSAGES, part)).status_code == 200
