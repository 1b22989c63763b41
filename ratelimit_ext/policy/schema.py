"""The document of a policy as pydantic models. Loads pydantic: import it where a policy is read."""

from __future__ import annotations

import dataclasses
import re
import threading
import zoneinfo
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping
from decimal import Decimal
from http import HTTPMethod
from types import NoneType
from typing import Annotated, Any, ClassVar, Final, TypeAlias, TypeVar, get_args, get_type_hints

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PlainValidator,
    RootModel,
    ValidationError,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    create_model,
    field_validator,
    model_validator,
)

from ratelimit_ext.core.errors import did_you_mean, not_allowed, shown
from ratelimit_ext.core.limit import MOST_AMOUNT, OPTION_NAMES, LimitOptions
from ratelimit_ext.core.limit_string import parse, states_guard, wait_us
from ratelimit_ext.core.money import micro_dollars
from ratelimit_ext.policy import functions
from ratelimit_ext.policy.errors import NAME, Mistake, Mistakes, Path, Place, sentence
from ratelimit_ext.policy.policy import PolicyLimit
from ratelimit_ext.strategies import ALIASES, STRATEGIES

_T = TypeVar("_T", bound="Table")
_V = TypeVar("_V")
_M = TypeVar("_M", bound="BaseModel")

VERSION: Final = 1

#: The default of a keyword that is not written. ``None`` is no value of it.
_UNSET: Final[Any] = None
#: Stands for what has a mistake, so that the rest of the document can be read.
_MISTAKEN: Final = object()
_SURROGATE: Final = re.compile("[\ud800-\udfff]")
#: Nothing in a policy lies deeper.
_DEEPEST: Final = 8

# -- values ----------------------------------------------------------------------------------


def _version(value: object) -> object:
    if type(value) is not int or value != VERSION:
        raise Mistake(f"found {shown(value)}; allowed: {VERSION}, the version of this file format.")
    return value


def _one_of(allowed_words: Callable[[], Iterable[str]]) -> Callable[[object], str]:
    def check(value: object) -> str:
        words = tuple(allowed_words())  # strategies, and their units, may be registered later
        if not isinstance(value, str) or value not in words:
            hint = did_you_mean(value, words) if isinstance(value, str) else ""
            allowed = ", ".join(f'"{word}"' for word in words)
            raise Mistake(f"found {shown(value)}; allowed: {allowed}.{hint}")
        return value

    return check


def _strategy(value: object) -> str:
    """Return a strategy's own name, also for an alias."""
    given = _one_of(lambda: sorted([*STRATEGIES, *ALIASES]))(value)
    return ALIASES.get(given, given)


def _timezone(value: object) -> str:
    if isinstance(value, str):
        try:
            zoneinfo.ZoneInfo(value)
        except (KeyError, ValueError, OSError):
            pass
        else:
            return value
    zones = zoneinfo.available_timezones()
    hint = did_you_mean(value, zones) if isinstance(value, str) else ""
    install = "" if zones else " This system has no time zones: install the package tzdata."
    allowed = not_allowed(value, 'a time zone such as "Europe/Berlin"')
    raise Mistake(f"{allowed}{hint}{install}")


def _methods(value: object) -> tuple[str, ...]:
    """Methods in capitals, without HEAD, which counts as GET."""
    allowed = [method.value for method in HTTPMethod if method is not HTTPMethod.HEAD]
    if not isinstance(value, list) or not value:
        raise Mistake(f'found {shown(value)}; allowed: a list of methods such as ["POST"].')
    given = [method.upper() if isinstance(method, str) else method for method in value]
    for method in given:
        if method == "HEAD":
            raise Mistake('found "HEAD"; HEAD counts as GET. Write "GET".')
        if method not in allowed:
            hint = did_you_mean(method, allowed) if isinstance(method, str) else ""
            found = f"found {shown(method)} in the list"
            raise Mistake(f"{found}; allowed: {', '.join(allowed)}.{hint}")
    return tuple(dict.fromkeys(given))


def _cost(value: object, info: ValidationInfo) -> Any:
    """Return a whole number, or an amount of dollars as it is written."""
    if isinstance(value, float | str) or (info.context and isinstance(value, Decimal)):
        try:
            micro_dollars(value)
        except ValueError:
            pass
        else:
            return value
    elif type(value) is int and 0 <= value <= MOST_AMOUNT:
        return value
    whole = f"a whole number from 0 to {MOST_AMOUNT}"
    dollars = "for a limit in usd an amount of dollars such as 0.01"
    raise Mistake(not_allowed(value, f"{whole}; {dollars}"))


def _or_function(value: object, check: ValidatorFunctionWrapHandler, info: ValidationInfo) -> Any:
    return functions.checked(value, 0) if info.context and callable(value) else check(value)


def _message(value: str, info: ValidationInfo) -> str:
    if functions.is_dotted(value) and not info.context:
        raise Mistake(f"found {value!r}; allowed: a text. Only code can have a function here.")
    return value


def _function(arguments: int) -> Any:
    def check(value: object, info: ValidationInfo) -> Callable[..., Any]:
        return functions.function(value, arguments, python=bool(info.context))

    return PlainValidator(check)


def _identity(value: object, info: ValidationInfo) -> Any:
    return functions.identity(value, python=bool(info.context))


def _key(value: object, info: ValidationInfo) -> Any:
    return functions.limit_key(value, python=bool(info.context))


def _limit_string(value: object) -> object:
    limits = parse(value)
    if len({(limit.period_us, limit.unit, limit.strategy) for limit in limits}) < len(limits):
        raise Mistake(
            f"found {value!r}, in which two limits have the same period: the smaller always "
            "decides. Remove the larger one."
        )
    return value


# -- tables ----------------------------------------------------------------------------------


def _element(value: object, check: ValidatorFunctionWrapHandler) -> Any:
    return None if value is _MISTAKEN else check(value)


def _limit(value: object, check: ValidatorFunctionWrapHandler) -> Any:
    return _element({"limit": value} if isinstance(value, str) else value, check)


def _target(value: object, check: ValidatorFunctionWrapHandler) -> Any:
    if isinstance(value, str):
        raise Mistake(f"found {shown(value)}; allowed: a list. Write [{value[:40]!r}].")
    return _element({"limits": value} if isinstance(value, list) else value, check)


Name: TypeAlias = Annotated[str, Field(pattern=f"^{NAME}$")]
Text: TypeAlias = Annotated[str, Field(pattern=r"\S")]
Amount: TypeAlias = Annotated[int, Field(ge=1, le=MOST_AMOUNT)]
#: Of tables that may have the application's keywords, which `nesting` checks.
WITH_KEYWORDS: Final = ConfigDict(extra="allow")
#: Elements of lists and tables are ``None`` if they have a mistake.
Element: TypeAlias = Annotated[_V, WrapValidator(_element)]
Limits: TypeAlias = Annotated[list[Annotated[_T, WrapValidator(_limit)]], Field(min_length=1)]
Tables: TypeAlias = dict[str, Element[_T]]


class Table(BaseModel):
    """A table. Its unknown keys are mistakes; a field with a mistake is ``None``."""

    # Few of the tables are ever read as a whole: `read` builds what reads them.
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, defer_build=True)

    #: Keywords without effect here, each with the reason.
    no_effect: ClassVar[Mapping[str, str]] = {}

    @field_validator("*", mode="wrap")
    @classmethod
    def _unless_mistaken(
        cls, value: object, check: ValidatorFunctionWrapHandler, info: ValidationInfo
    ) -> Any:
        reason = cls.no_effect.get(str(info.field_name))
        if reason and value is not _MISTAKEN:
            raise Mistake(f"has no effect here: {reason}. Remove it.")
        return _element(value, check)


def _is_pair(value: object) -> bool:
    return isinstance(value, list) and len(value) == 2 and isinstance(value[0], Hashable)


def _keep(value: object, info: ValidationInfo) -> tuple[tuple[str, Any], ...]:
    """Return the classes with their units; a definition in code has them as pairs already."""
    if info.context and isinstance(value, list) and all(map(_is_pair, value)):
        value = dict(map(tuple, value))
    if not isinstance(value, Mapping) or not value:
        example = '{"interactive": 40}' if info.context else "{ interactive = 40 }"
        raise Mistake(f"found {shown(value)}; allowed: units by class, as {example}.")
    return tuple(value.items())


def _wait(value: object) -> object:
    wait_us(value)
    return value


def _scalar(value: object) -> object:
    """Return a value that the core checks."""
    if not isinstance(value, str | int | float | Decimal):
        raise Mistake(f"found {shown(value)}; allowed: a number or a text.")
    return value


_CHECKS: Final[Mapping[str, Any]] = {
    "strategy": _strategy,
    "timezone": _timezone,
    "keep": _keep,
    "priority": _identity,
    "wait": _wait,
    "fair": _identity,
    **dict.fromkeys(("pace", "hours", "spread"), _scalar),
}


def _option_type(option: dataclasses.Field[Any], hint: Any) -> Any:
    """Return the type of a keyword of ``LimitOptions`` in a document."""
    if option.name in _CHECKS:
        return Annotated[Any, PlainValidator(_CHECKS[option.name])]
    if "allowed" in option.metadata:
        return Annotated[Any, PlainValidator(_one_of(option.metadata["allowed"]))]
    [kind] = [kind for kind in get_args(hint) or (hint,) if kind is not NoneType]
    return Name if option.name == "name" else {int: Amount, str: Text}.get(kind, kind)


_HINTS: Final = get_type_hints(LimitOptions)
_OPTIONS: Final[dict[str, Any]] = {
    option.name: (_option_type(option, _HINTS[option.name]), option.default)
    for option in dataclasses.fields(LimitOptions)
}
_LIMIT: Final[Any] = (Annotated[Any, PlainValidator(_limit_string)], ...)
_Options: Any = create_model("_Options", __base__=Table, limit=_LIMIT, **_OPTIONS)


class LimitTable(_Options):  # type: ignore[misc]
    """A limit: its string, the keywords of ``LimitOptions``, and what only views know."""

    model_config = WITH_KEYWORDS

    key: Annotated[Any, PlainValidator(_key)] = None
    cost: Annotated[Any, PlainValidator(_cost), WrapValidator(_or_function)] = 1
    methods: Annotated[Any, PlainValidator(_methods)] = None
    per_method: bool = False
    override_defaults: bool = True
    error_message: Annotated[Text, AfterValidator(_message), WrapValidator(_or_function)] = _UNSET
    shared: bool = True
    scope: Name = _UNSET
    optional: bool = False
    exempt_when: Annotated[Any, _function(0)] = None
    deduct_when: Annotated[Any, _function(1)] = None
    on_breach: Annotated[Any, _function(1)] = None

    def policy_limit(
        self, place: Place, scope: str | None, keywords: Mapping[str, Any] = functions.NO_KEYWORDS
    ) -> PolicyLimit:
        """Return the limit, which must have a valid string; ``scope`` is that of a shared bucket
        that names none. Other values with mistakes are left out."""
        given = {word: getattr(self, word) for word in type(self).model_fields}
        text = given.pop("limit")
        given = {word: value for word, value in given.items() if value is not None}
        options = LimitOptions(**{word: given.pop(word) for word in OPTION_NAMES if word in given})
        is_written = "override_defaults" in self.model_fields_set
        if (self.optional or states_guard(text, options)) and not is_written:
            # A guard applies beside other limits, and an optional one leaves most callers the rest.
            given["override_defaults"] = False
        shared = given.get("shared", True) or "scope" in given
        given |= {"shared": shared, "scope": given.get("scope") or (scope if shared else None)}
        return PolicyLimit(
            source=str(place),
            place=place,
            text=text,
            parsed=parse(text),
            options=options,
            replaces=is_written and bool(self.override_defaults),
            keywords=tuple([pair for pair in keywords.items() if pair[1] is not None]),
            **given,
        )


class ApplicationLimitTable(LimitTable):
    no_effect: ClassVar = {
        "shared": "a limit of the application always has one bucket",
        "override_defaults": "a limit of the application applies beside all others",
        "optional": "a limit of the application applies to every request",
    }


class DefaultLimitTable(LimitTable):
    no_effect: ClassVar = {
        "override_defaults": "this is a default",
        "optional": "a default applies to every caller",
    }
    shared: bool = False


class RouteLimitTable(LimitTable):
    no_effect: ClassVar = {"shared": 'a route has one bucket; scope = "…" shares it with others'}
    shared: bool = False


class PlanLimitTable(LimitTable):
    name: Name
    override_defaults: bool = False  # a plan applies beside other limits


class RouteTable(Table):
    plans: bool = False
    limits: Limits[RouteLimitTable] = []

    @model_validator(mode="before")
    @classmethod
    def _is_filled(cls, value: object) -> object:
        if value == {}:
            keys = ", ".join(cls.model_fields)
            raise Mistake(f"the table is empty; allowed: {keys}. Fill or remove it.")
        return value


class TargetTable(RouteTable):
    """A blueprint or endpoint in ``app.config``."""

    limits: Limits[LimitTable] = []


class BlueprintTable(TargetTable):
    routes: Tables[RouteTable] = {}


class GroupTable(TargetTable):
    members: Annotated[list[Element[Text]], Field(min_length=1)] = []
    #: May be empty: code names the group, and there is to be no limit.
    limits: list[Annotated[LimitTable, WrapValidator(_limit)]] = []


class PlanTable(Table):
    model_config = WITH_KEYWORDS
    title: Text = _UNSET
    next: Text = _UNSET
    default: bool = False
    price: Text = _UNSET
    upgrade_url: Annotated[str, Field(pattern=r"^https?://\S+$")] = _UNSET
    limits: Limits[PlanLimitTable]


class Document(Table):
    """A policy file."""

    version: Annotated[int, PlainValidator(_version)]
    application: Limits[ApplicationLimitTable] = []
    default: Limits[DefaultLimitTable] = []
    blueprints: Tables[BlueprintTable] = {}
    routes: Tables[RouteTable] = {}
    groups: Tables[GroupTable] = {}
    plans: Tables[PlanTable] = {}


class Targets(RootModel[dict[str, Annotated[TargetTable, WrapValidator(_target)]]]):
    """``RATELIMIT_BLUEPRINTS`` of ``app.config``."""

    model_config = ConfigDict(strict=True)


# -- reading ---------------------------------------------------------------------------------

#: Views check limits in code, and pydantic builds a model in one thread at a time only.
_building: Final = threading.Lock()
_TABLES: Final[Mapping[str, type[Table]]] = {
    "blueprints": BlueprintTable,
    "routes": RouteTable,
    "groups": GroupTable,
    "plans": PlanTable,
}


def read(model: type[_M], place: Place, mistakes: Mistakes) -> _M | None:
    """Return the document at ``place`` without what has mistakes; ``None`` if it is not a table.

    The first pass finds the mistakes. Others read the rest, so that it can be checked too; what
    they find, such as a table without any other key, follows from the mistakes.
    """
    if place.origin.document is None:
        return None  # a file that cannot be read
    with _building:
        model.model_rebuild()  # unless it is built
    python = place.origin.python
    document = _plain(place.origin.document, place, mistakes)
    for attempt in range(3):
        try:
            return model.model_validate(document, context=python)
        except ValidationError as invalid:
            errors = invalid.errors(include_url=False)
        for error in errors:
            kind, path = error["type"], error["loc"]
            at = place.at(*path)
            if attempt == 0:
                keys = _keys(model, path[:-1]) if kind == "extra_forbidden" else ()
                where = at.around(1) if kind == "missing" else at
                mistakes.add(where, sentence(error, keys, python=python))
            if at.path:
                _leave_out(document, at.path, unknown=kind == "extra_forbidden")
    return None


def _keys(model: type[BaseModel], path: Path) -> Collection[str]:
    if path:
        model = TargetTable if len(path) == 1 else _TABLES[str(path[-2])]
    return model.model_fields.keys()


def _leave_out(document: Any, path: Path, *, unknown: bool) -> None:
    *outer, last = path
    for key in outer:
        if not isinstance(document[key], dict | list):  # a string that stands for a table
            last = key
            break
        document = document[key]
    if unknown:
        del document[last]
    else:
        document[last] = _MISTAKEN


def _plain(value: object, place: Place, mistakes: Mistakes, depth: int = _DEEPEST) -> Any:
    """A copy in dicts and lists; what is not a name as a key is a mistake."""
    if depth and isinstance(value, list | tuple):
        return [
            _plain(inner, place.at(position), mistakes, depth - 1)
            for position, inner in enumerate(value)
        ]
    if not depth or not isinstance(value, Mapping):
        return value
    copy = {}
    for key, inner in value.items():
        if isinstance(key, str) and key.strip() and not _SURROGATE.search(key):
            copy[key] = _plain(inner, place.at(key), mistakes, depth - 1)
        else:
            mistakes.add(place, f"found the key {shown(key)}; allowed: a name.")
    return copy
