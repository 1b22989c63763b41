"""The public names, formats and addresses are those of the lists beside this file."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import json
import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

import click
import pytest
from pydantic import BaseModel

from chatapp.catalogue import models_file, providers_file
from chatapp.catalogue.price import LongPrice, Price
from chatapp.cli.chat import chat
from chatapp.web import allowed_models, call_limits
from chatapp.web import metrics as chatapp_metrics
from ratelimit_ext import SETTINGS
from ratelimit_ext.cli import ratelimit
from ratelimit_ext.core.limit import LimitOptions
from ratelimit_ext.metrics import measures
from ratelimit_ext.policy import schema
from ratelimit_ext.strategies import ALIASES, STRATEGIES
from ratelimit_ext.web import errors
from tests.promise import promised

ROOT = Path(__file__).resolve().parents[2]
#: The modules that an application may import; the rest is internal.
MODULES = (
    "ratelimit_ext",
    "ratelimit_ext.metrics.opentelemetry",
    "ratelimit_ext.metrics.prometheus",
    "ratelimit_ext.operators",
    "ratelimit_ext.terminal",
    "ratelimit_ext.testing",
)
#: Of a default that is listed.
LONGEST = 60
#: The classes that an application calls. Instances of the others come from the extension.
CONSTRUCTED = (
    *("Limiter", "Limit", "ApplicationLimit", "MetaLimit", "RouteLimit", "Claim", "Guess"),
    *("PrometheusExporter", "RestoredUsage"),
)
POLICY = {
    "policy": schema.Document,
    "policy.application[]": schema.ApplicationLimitTable,
    "policy.blueprints.*": schema.BlueprintTable,
    "policy.default[]": schema.DefaultLimitTable,
    "policy.groups.*": schema.GroupTable,
    "policy.plans.*": schema.PlanTable,
    "policy.plans.*.limits[]": schema.PlanLimitTable,
    "policy.routes.*": schema.RouteTable,
    "policy.routes.*.limits[]": schema.RouteLimitTable,
}
FILES: dict[str, type[BaseModel]] = {
    "models.toml": models_file.ModelsFile,
    "models.toml models.*": models_file.ModelEntry,
    "models.toml price": Price,
    "models.toml long_context": LongPrice,
    "providers.toml": providers_file._Document,
    "providers.toml upstreams.*": providers_file.UpstreamTable,
    "providers.toml upstreams.*.models.*": providers_file.OwnModel,
    "providers.toml upstreams.*.timeouts": providers_file.TimeoutTable,
}
#: What answers of these addresses have is the provider's.
OF_PROVIDERS = "/v1/"


# -- names ---------------------------------------------------------------------------------------


def public_names(module: ModuleType) -> list[str]:
    """Its `__all__`; without one, what it defines without an underscore."""
    if names := getattr(module, "__all__", None):
        return list(names)
    return [
        name
        for name, value in vars(module).items()
        if name[0] != "_" and getattr(value, "__module__", "") == module.__name__
    ]


def signature(path: str, value: Any) -> Iterator[str]:
    """A line for each parameter, and one for what is returned."""
    marks = {"KEYWORD_ONLY": "*, ", "VAR_POSITIONAL": "*", "VAR_KEYWORD": "**"}
    found = inspect.signature(value)
    parameters = [each for name, each in found.parameters.items() if name not in ("self", "cls")]
    for each in parameters:
        default = "" if each.default is each.empty else f" = {readable(each.default)}"
        kind = (
            ""
            if each.annotation is each.empty
            else f": {getattr(each.annotation, '__forward_arg__', each.annotation)}"
        )
        yield f"{path}({marks.get(each.kind.name, '')}{each.name}{kind}{default})"
    if isinstance(found.return_annotation, str) and not inspect.isclass(value):
        yield f"{path}() -> {found.return_annotation}"
    elif not parameters:
        yield f"{path}()"


def readable(value: object) -> str:
    """A default as code has it; `…` if that is long, or not code."""
    text = repr(value)
    return "…" if text.startswith("<") or " at 0x" in text or len(text) > LONGEST else text


def members(path: str, kind: type) -> Iterator[str]:
    """The public attributes of a class that this project defines: fields, and what has a docstring,
    as the reference lists them."""
    for name in dir(kind):
        owner = next((each for each in kind.__mro__ if name in vars(each)), object)
        if name[0] == "_" or not owner.__module__.startswith("ratelimit_ext"):
            continue
        value = vars(owner)[name]
        value = getattr(value, "__func__", value)
        if inspect.isfunction(value):
            yield from signature(f"{path}.{name}", value) if value.__doc__ else ()
        elif not isinstance(value, property) or value.__doc__:
            yield f"{path}.{name}"


def of_name(path: str, value: Any) -> Iterator[str]:
    if inspect.isclass(value):
        bases = [base.__name__ for base in value.__bases__ if base is not object]
        yield from (f"{path} is a {name}" for name in [*bases, "class"])
        if value.__module__.startswith("ratelimit_ext"):
            if value.__name__ in CONSTRUCTED:
                yield from signature(path, value)
            yield from members(path, value)
    elif inspect.isfunction(value):
        yield from signature(path, value)
    elif words := get_args(value):
        yield from (f"{path}: {getattr(word, '__name__', word)}" for word in words)
    else:
        yield path


def test_no_public_name_changes() -> None:
    """Functions, classes, their attributes and parameters, with types and defaults."""
    lines = [
        line
        for module in map(import_module, MODULES)
        for name in public_names(module)
        for line in of_name(f"{module.__name__}.{name}", getattr(module, name))
    ]
    keywords = (
        f"keyword of a limit: {each.name}: {each.type}" for each in dataclasses.fields(LimitOptions)
    )
    promised.compare("names", [*lines, *keywords])


# -- formats -------------------------------------------------------------------------------------


def table(path: str, model: type[BaseModel]) -> Iterator[str]:
    for name, field in model.model_fields.items():
        yield f"{path}.{field.alias or name}{' required' if field.is_required() else ''}"


def test_no_format_of_a_file_changes() -> None:
    """The keys of a policy and of chatapp's files, strategies, and settings with their defaults."""
    lines = [line for path, model in (POLICY | FILES).items() for line in table(path, model)]
    words = (allowed_models.KEYWORD, call_limits.MODELS, call_limits.AT_LIMIT, call_limits.WARN_AT)
    lines += [f"policy, of chatapp: {word}" for word in words]
    lines += [f"strategy {name}" for name in (*STRATEGIES, *ALIASES)]
    lines += [f"version of a policy: {schema.VERSION}"]
    settings = (ROOT / "docs" / "operate" / "settings.md").read_text()
    rows = re.findall(r"^\| (`.*?) \| (.*?) \|", settings, re.MULTILINE)
    lines += [
        f"setting {name}, default: {default or 'none'}"
        for names, default in rows
        for name in re.findall(r"`([A-Z_]+)`", names)
    ]
    promised.compare("formats", [*lines, *(f"setting {name}" for name in SETTINGS)])


# -- commands ------------------------------------------------------------------------------------


def words_of(command: click.Command, path: str) -> Iterator[str]:
    if isinstance(command, click.Group):
        for name, each in command.commands.items():
            yield from words_of(each, f"{path} {name}")
        return
    yield path
    for each in command.params:
        many = "…" if each.nargs == -1 or getattr(each, "multiple", False) else ""
        needed = " required" if each.required else ""
        shown = each.human_readable_name if each.param_type_name == "argument" else each.opts[-1]
        for word in [shown, *each.secondary_opts]:
            yield f"{path} {word}{many}{needed}"


def test_no_command_changes() -> None:
    """`flask ratelimit` and `flask chat`: names, arguments and options. Their answers in JSON are
    those of the management API."""
    lines = [*words_of(ratelimit, "flask ratelimit"), *words_of(chat, "flask chat")]
    promised.compare("commands", lines)


# -- HTTP ----------------------------------------------------------------------------------------


class Description:
    """An OpenAPI document as lines."""

    def __init__(self, path: str) -> None:
        self.document: Any = json.loads((ROOT / path).read_text())

    def resolved(self, value: Any) -> Any:
        while "$ref" in value:
            found: Any = self.document
            for part in value["$ref"].removeprefix("#/").split("/"):
                found = found[part]
            value = found
        return value

    def lines(self) -> Iterator[str]:
        for path, methods in self.document["paths"].items():
            for method, operation in methods.items():
                yield from self.of_operation(f"{method.upper()} {path}", path, operation)
        for name, answer in self.document["components"]["responses"].items():
            yield from self.of_answer(f"answer {name}", answer)

    def of_operation(self, address: str, path: str, operation: Any) -> Iterator[str]:
        yield address
        for each in map(self.resolved, operation.get("parameters", [])):
            needed = " required" if each.get("required") else ""
            yield f"{address} {each['in']} {each['name']}{needed}"
        if not path.startswith(OF_PROVIDERS):
            yield from self.of_content(f"{address} body", operation.get("requestBody", {}))
        for status, answer in operation["responses"].items():
            if "$ref" in answer:
                yield f"{address} answers {status}: {answer['$ref'].rpartition('/')[2]}"
            elif path.startswith(OF_PROVIDERS):
                yield f"{address} answers {status}"
            else:
                yield from self.of_answer(f"{address} answers {status}", answer)

    def of_answer(self, path: str, answer: Any) -> Iterator[str]:
        yield path
        yield from (f"{path} {name}" for name in answer.get("headers", {}))
        yield from self.of_content(path, answer)

    def of_content(self, path: str, content: Any) -> Iterator[str]:
        for kind, each in content.get("content", {}).items():
            yield f"{path} {kind}"
            yield from (f"{path} {field}" for field in self.fields(each.get("schema", {})))

    def fields(self, schema: Any, path: str = "", above: tuple[str, ...] = ()) -> Iterator[str]:
        """The fields of a schema, not again those of one within itself."""
        name = schema.get("$ref", "")
        if name and name in above:
            return
        schema = self.resolved(schema)
        above = (*above, name)
        for kind in ("anyOf", "oneOf", "allOf"):
            for each in schema.get(kind, []):
                yield from self.fields(each, path, above)
        for field, each in schema.get("properties", {}).items():
            needed = " required" if field in schema.get("required", []) else ""
            yield f"{path}.{field}{needed}"
            yield from self.fields(each, f"{path}.{field}", above)
        if isinstance(schema.get("items"), dict):
            yield from self.fields(schema["items"], f"{path}[]", above)


@pytest.mark.parametrize(
    ("name", "document"),
    [("api", "chatapp/openapi.json"), ("management", "chatapp/blueprints/management/openapi.json")],
)
def test_no_address_changes(name: str, document: str) -> None:
    """Addresses, parameters, bodies, statuses and headers, by their OpenAPI descriptions, which
    other tests compare with the routes."""
    promised.compare(name, Description(document).lines())


def codes() -> Iterator[str]:
    """The codes of errors: those of the extension, and the ones that chatapp's code names."""
    for answer in errors._ANSWERS.values():
        yield f"{answer.status} {answer.code}"
    for path in sorted((ROOT / "chatapp").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "ApiError":
                match node.args:
                    case [ast.Constant(value=int(status)), ast.Constant(value=str(code)), *_]:
                        yield f"{status} {code}"


def test_no_code_of_an_error_changes() -> None:
    """The status and the code by which programs tell errors apart."""
    promised.compare("codes", codes())


def test_no_metric_changes() -> None:
    """Names, kinds and labels."""
    both = {"ratelimit": measures.MEASURES, "chatapp": chatapp_metrics.MEASURES}
    lines = [
        f"{each.kind} {prefix}_{each.name}{{{','.join(each.labels)}}}"
        for prefix, found in both.items()
        for each in found
    ]
    promised.compare("metrics", lines)
