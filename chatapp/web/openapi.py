"""The OpenAPI description, made from the routes, the models of request bodies and the formats of
errors that the server itself uses."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final

from flask import Flask
from pydantic import TypeAdapter
from werkzeug.routing import Rule

from chatapp.web.errors import ErrorReport

OPENAPI: Final = "3.1.0"
REFERENCE: Final = "#/components/schemas/{model}"
DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"
TITLE: Final = "chatapp"
ABOUT: Final = (
    "Language models behind limits by user, team, plan, model and cost. Any answer may be a 429: "
    "wait for `retry-after-ms` or `Retry-After`, and stop on `x-should-retry: false`. Addresses of "
    "a vendor's protocol take every field of that vendor's API; listed are those that are read "
    "here. API keys are needed once the operator has made one."
)
#: One of them, or none while there are no API keys.
SECURITY: Final[Sequence[Mapping[str, object]]] = ({"bearer": []}, {"key": []}, {})
SECURITY_SCHEMES: Final = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
}
_WHOLE: Final = {"type": "string", "pattern": "^[0-9]+$"}
#: The headers of limited answers, and those of refusals.
LIMIT_HEADERS: Final = {
    "RateLimit": ("What is left of each limit, and seconds until it is full.", {"type": "string"}),
    "RateLimit-Policy": ("The amount and the period of each limit.", {"type": "string"}),
    "X-RateLimit-Limit": ("Of the limit nearest to exhaustion.", {"type": "string"}),
    "X-RateLimit-Remaining": ("Of the limit nearest to exhaustion.", {"type": "string"}),
    "X-RateLimit-Reset": ("Seconds since 1970.", _WHOLE),
}
RETRY_HEADERS: Final = {
    "Retry-After": ("Seconds until a retry may pass.", _WHOLE),
    "retry-after-ms": ("Milliseconds until the same request passes.", _WHOLE),
    "x-should-retry": ("No retry helps, or only after more than a minute.", {"const": "false"}),
}
REFUSALS: Final = (429, 503)
#: What a value is called in JSON Schema.
TYPES: Final[Mapping[type, str]] = {
    dict: "object",
    str: "string",
    bool: "boolean",
    int: "integer",
    float: "number",
    type(None): "null",
}
ErrorFormat = Callable[[ErrorReport], Mapping[str, object]]

_ARGUMENT: Final = re.compile(r"<(?:[a-z]+:)?([a-z]+)_?>")


@dataclass(frozen=True, slots=True)
class Described:
    """What a route does not say itself: the statuses of its errors and the name of their format,
    its body, its answer and the types of it, its query parameters and headers. ``is_open``: it
    needs no key."""

    errors: str
    statuses: Collection[int]
    body: Any = None
    answer: Mapping[str, object] | None = None
    content: Sequence[str] = ("application/json",)
    query: Sequence[str] = ()
    headers: Sequence[str] = ()
    is_open: bool = False
    is_limited: bool = True


def document(
    app: Flask, described: Mapping[str, Described], formats: Mapping[str, Sequence[ErrorFormat]]
) -> dict[str, object]:
    """The description of these endpoints of the application, whose views have the summaries as
    docstrings. ``formats`` write the bodies of errors."""
    paths: dict[str, dict[str, object]] = {}
    responses: dict[str, object] = {}
    for rule in app.url_map.iter_rules():
        if (own := described.get(rule.endpoint)) is not None:
            operations = paths.setdefault(_ARGUMENT.sub(r"{\1}", rule.rule), {})
            summary = inspect.getdoc(app.view_functions[rule.endpoint]) or ""
            for method in sorted((rule.methods or set()) - {"HEAD", "OPTIONS"}):
                operations[method.lower()] = _operation(rule, method, own, summary)
            responses |= {_name(own, status): _error(own, status) for status in own.statuses}
    headers = {**LIMIT_HEADERS, **RETRY_HEADERS}
    return {
        "openapi": OPENAPI,
        "jsonSchemaDialect": DIALECT,
        "info": {"title": TITLE, "version": "1", "description": ABOUT},
        "paths": paths,
        "components": {
            "schemas": {
                **{name: _schema_of_errors(writers) for name, writers in formats.items()},
                **_schemas_of_bodies(described),
            },
            "responses": responses,
            "securitySchemes": SECURITY_SCHEMES,
            "headers": {
                name: {"description": about, "schema": schema}
                for name, (about, schema) in headers.items()
            },
        },
    }


def schema_of(*samples: object) -> dict[str, object]:
    """The JSON Schema of values like these; an object may have more fields.

    >>> schema_of({"a": 1}, {"a": None, "b": "x"})["required"]
    ['a']
    """
    kinds = list(dict.fromkeys(TYPES[type(sample)] for sample in samples))
    schema: dict[str, object] = {"type": kinds[0] if len(kinds) == 1 else kinds}
    if objects := [sample for sample in samples if isinstance(sample, Mapping)]:
        names = list(dict.fromkeys(name for each in objects for name in each))
        schema |= {
            "properties": {
                name: schema_of(*(each[name] for each in objects if name in each)) for name in names
            },
            "required": [name for name in names if all(name in each for each in objects)],
        }
    return schema


def _schema_of_errors(writers: Sequence[ErrorFormat]) -> dict[str, object]:
    reports = [ErrorReport(400, "", "", param, request_id="id") for param in (None, "field")]
    schemas = [schema_of(*(write(report) for report in reports)) for write in writers]
    return schemas[0] if len(schemas) == 1 else {"anyOf": schemas}


def _schemas_of_bodies(described: Mapping[str, Described]) -> dict[str, object]:
    """By the names of the endpoints, and the models within them by their own."""
    schemas: dict[str, object] = {}
    for name, own in described.items():
        if own.body is not None:
            schema = TypeAdapter(own.body).json_schema(ref_template=REFERENCE)
            schemas |= schema.pop("$defs", {})
            schemas[name] = schema
    return schemas


def _operation(rule: Rule, method: str, own: Described, summary: str) -> dict[str, object]:
    content: dict[str, object] = {
        each: {"schema": own.answer or {"type": "object"}} if "json" in each else {}
        for each in own.content
    }
    responses: dict[str, object] = {
        "200": {"description": "OK", "headers": _headers(own, 200), "content": content}
    }
    for status in sorted(own.statuses):
        responses[str(status)] = {"$ref": f"#/components/responses/{_name(own, status)}"}
    operation: dict[str, object] = {
        "operationId": f"{rule.endpoint}.{method.lower()}",
        "summary": " ".join(summary.partition("\n\n")[0].split()),
        "parameters": list(_parameters(rule, own)),
        "responses": responses,
    }
    if own.body is not None:
        schema = {"$ref": f"#/components/schemas/{rule.endpoint}"}
        body = {"required": True, "content": {"application/json": {"schema": schema}}}
        operation["requestBody"] = body
    if not own.is_open:
        operation["security"] = SECURITY
    return operation


def _parameters(rule: Rule, own: Described) -> Iterator[dict[str, object]]:
    for place, names in (
        ("path", sorted(rule.arguments)),
        ("query", own.query),
        ("header", own.headers),
    ):
        for name in names:
            schema = {"type": "string", **({"minLength": 1} if place == "path" else {})}
            yield {
                "name": name.rstrip("_"),
                "in": place,
                "required": place == "path",
                "schema": schema,
            }


def _name(own: Described, status: int) -> str:
    return f"{own.errors}_{status}" if own.is_limited else f"unlimited_{own.errors}_{status}"


def _error(own: Described, status: int) -> dict[str, object]:
    schema = {"$ref": f"#/components/schemas/{own.errors}"}
    return {
        "description": HTTPStatus(status).phrase,
        "headers": _headers(own, status),
        "content": {"application/json": {"schema": schema}},
    }


def _headers(own: Described, status: int) -> dict[str, object]:
    names = [*(LIMIT_HEADERS if own.is_limited else ())]
    names += RETRY_HEADERS if status in REFUSALS and own.is_limited else ()
    return {name: {"$ref": f"#/components/headers/{name}"} for name in names}
