"""The private names of the providers' SDKs and their HTTP client that chatapp uses: which, and that
the installed versions have them. The tests of the SDKs' newest versions run this, too."""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anthropic
import httpx2
import openai
import pytest

UPSTREAMS = Path(__file__).resolve().parents[3] / "chatapp" / "upstreams"
#: Each with why there is no public one.
PRIVATE = {
    "openai.py": {"_replace"},  # documented, and of named tuples
    "openai_responses.py": {"_replace"},
    "router.py": {"_replace"},
    "sdk.py": {
        "_replace",
        "_custom_headers",  # set_default_headers adds those of the environment again
        "_make_status_error_from_response",  # else only a request of the SDK raises its error
    },
    "transport.py": {
        "_transport_for_url",  # which proxy an address needs: docs/decisions/0022
        "_pool",  # httpx2 does not hand over its connections,
        "_network_backend",  # whose backend httpcore2 takes in its constructor alone
    },
}


def private_names(source: str) -> Iterator[str]:
    """Names with an underscore that are read of, or set in, something else than self or cls."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and not (
            isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
        ):
            yield node.attr
        elif (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id in ("getattr", "hasattr", "setattr")
        ):
            yield from [str(each.value) for each in node.args if isinstance(each, ast.Constant)]


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def own_names(source: str) -> set[str]:
    """What chatapp's own classes in the file define: `other._field` of the same class is ours."""
    tree = ast.parse(source)
    attributes = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
    own = {
        node.attr
        for node in attributes
        if isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
    }
    return own | {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


def test_no_other_private_name_is_used() -> None:
    """A new one needs a line in this test, with its reason."""
    found: dict[str, set[str]] = {}
    for file in sorted(UPSTREAMS.glob("*.py")):
        source = file.read_text()
        names = {each for each in private_names(source) if is_private(each)} - own_names(source)
        if names:
            found[file.name] = names
    assert found == PRIVATE


@pytest.mark.parametrize("sdk", [openai.OpenAI, anthropic.Anthropic])
def test_the_sdks_have_their_names(sdk: Any) -> None:
    """A client's own headers decide what it sends, and nothing else keeps the environment's."""
    client = sdk(api_key="sk-test", default_headers={"X-Mine": "1"})
    assert client._custom_headers == {"X-Mine": "1"}
    client._custom_headers = {"X-Other": "2"}
    assert client.default_headers["X-Other"] == "2"
    assert "X-Mine" not in client.default_headers
    refused = httpx2.Response(429, request=httpx2.Request("POST", "http://x/"), text="{}")
    assert client._make_status_error_from_response(refused).status_code == 429


def test_the_http_client_has_its_names() -> None:
    """The backend of the connections of each transport."""
    with httpx2.Client(proxy="http://127.0.0.1:9", trust_env=False) as client:
        assert client._transport_for_url(httpx2.URL("http://x/")) in client._mounts.values()
        transports = [client._transport, *client._mounts.values()]
        assert len(transports) >= 2
        for transport in transports:
            assert transport is not None
            pool = transport._pool  # type: ignore[attr-defined]
            assert hasattr(pool._network_backend, "connect_tcp")
            assert hasattr(pool, "create_connection")
