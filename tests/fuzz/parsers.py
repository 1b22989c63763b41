"""Parsers of what callers and operators write: any bytes give a value or the documented error."""

import contextlib
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Final

from flask import Flask, request
from flask.testing import FlaskClient
from pydantic import BaseModel, ValidationError
from werkzeug.exceptions import HTTPException
from werkzeug.middleware.proxy_fix import ProxyFix

from chatapp.blueprints import anthropic_api, openai_api
from chatapp.catalogue import CatalogueError, providers_file
from chatapp.upstreams import event_stream
from chatapp.upstreams.openai_responses import is_looked_up, is_reference
from chatapp.web.requests import forwarded, json_body
from chatapp.web.requests.chat import OneMessage, WholeConversation
from chatapp.web.tags import HEADER, tags_of
from ratelimit_ext import ConfigurationError, Limiter, client_ip, toml_line
from ratelimit_ext.core.limit import DEFAULT_STRATEGY, NO_OPTIONS
from ratelimit_ext.core.limit_string import parse
from ratelimit_ext.policy import load_policy

ROOT: Final = Path(__file__).resolve().parents[2]
MODELS: Final[tuple[type[BaseModel], ...]] = (
    OneMessage,
    WholeConversation,
    forwarded.InputFields,
    *(each.fields for each in (anthropic_api.ADDRESSES | openai_api.ADDRESSES).values()),
)


def limit(data: bytes) -> None:
    with contextlib.suppress(ConfigurationError):
        for parsed in parse(data.decode("utf-8", "surrogateescape")):
            parsed.limit(NO_OPTIONS, DEFAULT_STRATEGY)


def policy(data: bytes) -> None:
    """A policy in TOML."""
    _file().write_bytes(data)
    with contextlib.suppress(ConfigurationError):
        load_policy(file=_file(), blueprints=None)


def providers(data: bytes) -> None:
    """A providers.toml."""
    _file().write_bytes(data)
    with contextlib.suppress(CatalogueError):
        providers_file.read(_file(), toml_line)


def body(data: bytes) -> None:
    """The body of a request, by every model of a body."""
    with _app().test_request_context("/", data=data[:65536], content_type="application/json"):
        request.max_content_length = 65536
        with contextlib.suppress(HTTPException):
            fields = json_body.read_object(request, example="{}")
            for model in MODELS:
                with contextlib.suppress(ValidationError):
                    read = model.model_validate(fields)
                    if isinstance(read, forwarded.Fields):
                        assert isinstance(read.last_text, str)
                    if isinstance(read, forwarded.InputFields):
                        assert all((*read.ids(is_reference), *read.ids(is_looked_up)))


def events(data: bytes) -> None:
    """A provider's event stream: the same events however it is cut, and every byte in them."""
    size = data[0] + 1 if data else 1
    pieces = [data[at : at + size] for at in range(0, len(data), size)]
    with contextlib.suppress(ValueError):
        found = list(event_stream.read(pieces))
        assert found == list(event_stream.read([data]))
        read = b"".join(event.raw for event in found)
        assert data.startswith(read) or data == read[:-1]


def headers(data: bytes) -> None:
    """Accept, X-Forwarded-For and Authorization of a request that is limited."""
    accept, address, key = [*data.decode("latin-1").split("\n"), "", ""][:3]
    environ = {"HTTP_ACCEPT": accept, "HTTP_X_FORWARDED_FOR": address, "HTTP_AUTHORIZATION": key}
    answer = _client().get("/", environ_overrides=environ)
    assert answer.status_code in (200, 429), answer.status_code


def tags(data: bytes) -> None:
    """The header X-Chat-Tags."""
    found = tags_of({HEADER: data.decode("latin-1")}, {})
    assert all(name and value.isprintable() for name, value in found.items())


#: By name, with what the search begins from.
TARGETS: Final[dict[str, tuple[Callable[[bytes], None], tuple[bytes, ...]]]] = {
    "limit": (limit, (b"5/second;1000 per day", b"4 in flight", b"5 usd/day", b"3x usual/hour")),
    "policy": (policy, ((ROOT / "chatapp/policy.toml").read_bytes(),)),
    "providers": (providers, ((ROOT / "chatapp/providers.toml").read_bytes(),)),
    "body": (
        body,
        (
            b'{"message": "hi", "model": "offline", "user_id": "u", "stream": true}',
            b'{"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "hi"}]}',
            b'{"model": "m", "input": [{"type": "item_reference", "id": "msg_1"}], "n": 2}',
        ),
    ),
    "events": (
        events,
        (b"event: a\ndata: 1\n\n: ping\r\n\r\ndata: 2\rdata: 3\r\r", b"data: \xff\n"),
    ),
    "headers": (headers, (b"application/problem+json;q=0.9, */*\n1.2.3.4, [::1]:7\nBearer x",)),
    "tags": (tags, (b"project=a, run=7, =, \xff=b",)),
}


@cache
def _file() -> Path:
    return Path(tempfile.mkdtemp(prefix="fuzz-")) / "a.toml"


@cache
def _app() -> Flask:
    return Flask(__name__)


@cache
def _client() -> FlaskClient:
    app = Flask("limited")
    app.wsgi_app = ProxyFix(app.wsgi_app)  # type: ignore[method-assign]
    limiter = Limiter(client_ip, app=app, storage_uri="memory://", headers_enabled=True)
    app.add_url_rule("/", view_func=limiter.limit("1/day")(lambda: "ok"))
    return app.test_client()
