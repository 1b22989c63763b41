"""Ids of what providers keep: found in every place where the installed SDKs' types have one."""

import json
import re
from collections.abc import Iterator
from typing import Any, get_args

import pytest
from anthropic.types import message_count_tokens_params, message_create_params
from anthropic.types.beta import message_count_tokens_params as beta_count_params
from anthropic.types.beta import message_create_params as beta_message_params
from openai.types.chat.completion_create_params import CompletionCreateParamsNonStreaming
from openai.types.embedding_create_params import EmbeddingCreateParams
from openai.types.responses.input_token_count_params import InputTokenCountParams
from openai.types.responses.response_compact_params import ResponseCompactParams
from openai.types.responses.response_create_params import ResponseCreateParamsNonStreaming
from typing_extensions import get_type_hints, is_typeddict

from chatapp.web.requests.named_files import NOT_READ, OF_CONVERSATIONS
from chatapp.web.requests.named_files import shared_id as shared_id_of

BODIES = {
    "chat": CompletionCreateParamsNonStreaming,
    "embeddings": EmbeddingCreateParams,
    "responses": ResponseCreateParamsNonStreaming,
    "compact": ResponseCompactParams,
    "input_tokens": InputTokenCountParams,
    "messages": message_create_params.MessageCreateParamsNonStreaming,
    "beta messages": beta_message_params.MessageCreateParamsNonStreaming,
    "count_tokens": message_count_tokens_params.MessageCountTokensParams,
    "beta count_tokens": beta_count_params.MessageCountTokensParams,
}
#: Every field of the SDKs' bodies that names something that a provider keeps for its account.
SHARED = {
    *("file_id", "file_ids", "vector_store_ids", "container_id", "skill_id", "tunnel_id"),
    *("user_profile_id", "workspace_id"),
    *("audio.id", "voice.id", "container.id"),
}
#: Of these places, `forwarded.py` checks or refuses the first ones whatever the key may.
ELSEWHERE = ("prompt", "conversation")
VALUE = "file-1"
#: The names of fields, from a body down to one of its fields.
Path = tuple[str, ...]


def carriers(type_: Any, path: Path = (), on_path: tuple[Any, ...] = ()) -> Iterator[Path]:
    """Yield the path of each field of a body with the name of an id, and of each object that a text
    may stand for. An object is not sought again within itself."""
    if not is_typeddict(type_):
        for each in get_args(type_):
            yield from carriers(each, path, on_path)
        return
    if type_ in on_path:
        return
    for name, kind in get_type_hints(type_).items():
        if re.search(r"(^|_)ids?$", name, re.IGNORECASE):
            yield (*path, name)
        if str in (parts := get_args(kind)) and any(map(is_typeddict, parts)):
            yield (*path, name)
        yield from carriers(kind, (*path, name), (*on_path, type_))


def shared_id(body: dict[str, Any]) -> str | None:
    return shared_id_of(body, json.dumps(body).encode())


def body_with(path: Path) -> dict[str, Any]:
    found: Any = [VALUE] if path[-1].endswith("ids") else VALUE
    for name in reversed(path):
        found = {name: found}
    return found


@pytest.mark.parametrize("name", BODIES)
def test_every_id_of_the_sdks_types_is_known(name: str) -> None:
    """A field that a new version of an SDK adds fails here until it is listed. Until then, it needs
    the right to files."""
    paths = set(carriers(BODIES[name]))
    assert name == "embeddings" or paths
    for path in paths:
        field, parent = path[-1], path[-2] if len(path) > 1 else ""
        is_read = not NOT_READ.intersection(path[1:])
        found = shared_id(body_with(path))
        if field in SHARED or f"{parent}.{field}" in SHARED or field == "container":
            assert (found == field) == is_read, path
        elif path[0] in ELSEWHERE:
            assert found is None, path
        else:
            assert found is None, path
            assert field in {*OF_CONVERSATIONS, *TEXTS, "user_id"}, path


def test_no_id_is_listed_that_no_protocol_has() -> None:
    """So that the list stays that of the protocols."""
    paths = {path for each in BODIES.values() for path in carriers(each)}
    fields = {path[-1] for path in paths} | {".".join(path[-2:]) for path in paths}
    assert fields >= {*SHARED, *OF_CONVERSATIONS}


#: Objects in whose place a text is no id of what a provider keeps: a name, or content.
TEXTS = {"tool_choice", "content", "system", "input", "output", "voice"}
TEXTS |= {"fallback_credit_token", "stop"}


def test_an_unknown_id_needs_the_right() -> None:
    """In each place, whatever it is called; what clients add about themselves does not."""
    for field in ("image_id", "asset_ids", "blob_id", "ids"):
        for body in (
            {field: "x"},
            {"messages": [{"role": "user", "content": [{"type": "x", "source": {field: "x"}}]}]},
            {"input": [{"type": "additional_tools", "tools": [{"type": "x", field: ["x"]}]}]},
        ):
            assert shared_id(body) == field
    for field in ("session_id", "thread_id", "idx", "valid", "grid", "paid"):
        assert shared_id({field: "x", "input": [{field: "x"}]}) is None


def test_a_name_may_be_escaped() -> None:
    """A client may write any letter of a name as its number."""
    for raw in (rb'{"file_\u0069d": "x"}', rb'{"\u0063ontainer": "x"}'):
        body = json.loads(raw)
        assert shared_id_of(body, raw) in body


def test_names_in_arguments_and_schemas_are_no_ids() -> None:
    """A tool of the client's may have a parameter of any name."""
    schema = {"type": "object", "properties": {"file_id": {"type": "string"}}}
    use = {"type": "tool_use", "id": "t", "name": "f", "input": {"file_id": "the client's"}}
    for body in (
        {"messages": [{"role": "assistant", "content": [use]}]},
        {"tools": [{"name": "f", "input_schema": schema, "input_examples": [{"file_id": "x"}]}]},
        {"tools": [{"type": "function", "function": {"name": "f", "parameters": schema}}]},
        {"tools": [{"type": "namespace", "tools": [{"name": "f", "parameters": schema}]}]},
        {"text": {"format": {"type": "json_schema", "schema": schema}}},
        {
            "metadata": {"file_id": "x"},
            "tools": [{"type": "mcp_toolset", "configs": {"get_id": {}}}],
        },
        {"input": [{"type": "custom_tool_call", "input": "file_id", "call_id": "c"}]},
    ):
        assert shared_id(body) is None, body
