"""The OpenAPI document of the management API, made of its table of actions.

`python -m tests.chatapp.blueprints.management.description` writes it.
"""

import json
from inspect import getdoc
from typing import Any

from chatapp.actions.action import PART
from chatapp.actions.table import ACTIONS, Action
from chatapp.blueprints.management.access import DOCUMENT
from chatapp.blueprints.management.routes import bp

WIDTH = 120
SCHEMAS = "#/components/schemas/"
INTRODUCTION = (
    "What chatapp's commands and /admin do. Send a management key as a bearer token. A list is a "
    "page, after the `cursor` of the one before; `format=csv` returns all of it. What a PUT "
    "leaves out stays as it is."
)


def _schema(model: Any, schemas: dict[str, Any]) -> dict[str, Any]:
    found = model.model_json_schema(ref_template=SCHEMAS + "{model}")
    schemas.update(found.pop("$defs", {}))
    for each in found.get("properties", {}).values():
        each.pop("title", None)
    return {name: value for name, value in found.items() if name != "title"}


def _operation(action: Action, schemas: dict[str, Any]) -> dict[str, Any]:
    parameters: list[dict[str, Any]] = []
    for name, words in action.parts.items():
        schema = {"enum": words} if words else {}
        parameters.append(
            {"in": "path", "name": name, "required": True, "schema": {"type": "string", **schema}}
        )
    asked = _schema(action.query, schemas)
    for name, schema in asked.get("properties", {}).items():
        is_required = name in asked.get("required", [])
        parameters.append({"in": "query", "name": name, "required": is_required, "schema": schema})
    found: dict[str, Any] = {"type": "object"}
    content: dict[str, Any] = {"application/json": {"schema": found}}
    if action.order is not None:
        found["properties"] = {
            "items": {"items": {"type": "object"}, "type": "array"},
            "next": {"type": ["string", "null"]},
        }
        content["text/csv"] = {}
    operation: dict[str, Any] = {
        "operationId": action.name,
        "summary": (getdoc(action.function) or "").partition("\n\n")[0].replace("\n", " "),
        "description": f"Scope: {action.scope}."
        + (" A team's administrator may, on the team." if action.of_team else ""),
        "parameters": parameters,
        "responses": {
            "2XX": {"description": "Done", "content": content},
            "default": {"$ref": "#/components/responses/problem"},
        },
    }
    if action.body is not None:
        name = action.body.__name__
        schemas[name] = _schema(action.body, schemas)
        content = {"application/json": {"schema": {"$ref": f"{SCHEMAS}{name}"}}}
        operation["requestBody"] = {"required": True, "content": content}
    return operation


def description() -> dict[str, Any]:
    problem = {
        "properties": {
            "code": {"type": "string"},
            "detail": {"type": "string"},
            "field": {"type": "string"},
            "status": {"type": "integer"},
            "title": {"type": "string"},
            "type": {"type": "string"},
        },
        "required": ["code", "detail", "status", "title", "type"],
        "type": "object",
    }
    schemas: dict[str, Any] = {"problem": problem}
    paths: dict[str, Any] = {}
    for action in ACTIONS:
        path = f"{bp.url_prefix}{PART.sub(lambda part: f'{{{part[2]}}}', action.path)}"
        paths.setdefault(path, {})[action.method.lower()] = _operation(action, schemas)
    return {
        "openapi": "3.1.0",
        "info": {"title": "chatapp: management", "version": "1", "description": INTRODUCTION},
        "paths": dict(sorted(paths.items())),
        "components": {
            "responses": {
                "problem": {
                    "description": "What is wrong, and what to do",
                    "content": {
                        "application/problem+json": {"schema": {"$ref": f"{SCHEMAS}problem"}}
                    },
                }
            },
            "schemas": dict(sorted(schemas.items())),
            "securitySchemes": {"bearer": {"scheme": "bearer", "type": "http"}},
        },
        "security": [{"bearer": []}],
    }


def text() -> str:
    return _text(description()) + "\n"


def _text(value: Any, indent: int = 0, before: int = 0) -> str:
    """JSON whose objects and lists stand in one line if they fit."""
    flat = json.dumps(value)
    if not isinstance(value, dict | list) or before + len(flat) < WIDTH:
        return flat
    inner, parts = " " * (indent + 1), []
    for name, each in value.items() if isinstance(value, dict) else (("", each) for each in value):
        lead = inner + (f"{json.dumps(name)}: " if isinstance(value, dict) else "")
        parts.append(lead + _text(each, indent + 1, len(lead)))
    opening, closing = "{}" if isinstance(value, dict) else "[]"
    return "\n".join([opening, ",\n".join(parts), " " * indent + closing])


if __name__ == "__main__":
    DOCUMENT.write_text(text())
