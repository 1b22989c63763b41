"""A row of the table of acts: an address, a scope, the function behind it, and the fields that it
reads. It depends neither on HTTP nor on a terminal."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from typing import Annotated, Any, Final, Literal, TypeAlias, TypedDict, TypeVar, Unpack

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from chatapp import validation
from chatapp.operators import arguments
from chatapp.operators.rights import Operator
from chatapp.settings import Scope
from ratelimit_ext import OperatorError

F = TypeVar("F", bound=Callable[..., Any])
M = TypeVar("M", bound=BaseModel)
Method: TypeAlias = Literal["GET", "PUT", "POST", "DELETE"]
#: A part of a path, as `<any(user, key):kind>`; of `<path:name>`, the name may have slashes.
PART: Final = re.compile(r"<(?:([^<>:]*):)?(\w+)>")
ONE_OF: Final = re.compile(r"any\((.*?)\)")
RANKS: Final = {"extra_forbidden": 0, "missing": 2}


Duration = Annotated[str, AfterValidator(arguments.duration)]


class Fields(BaseModel):
    """Fields of a body or a query; others are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)


class Change(Fields):
    """What every change takes: the reason, for the log."""

    reason: str = Field("", max_length=200)


class Listed(Fields):
    """What every list takes. The answer is a page of ``limit`` rows after the ``cursor``. CSV has
    all rows unless a limit is given."""

    limit: int | None = Field(None, ge=1, le=1000, description="Most rows; commands: all.")
    cursor: str | None = Field(None, description="Continue after the page that returned this.")
    format: Literal["json", "csv"] = "json"


@dataclass(frozen=True, slots=True)
class Option:
    """Metadata of a field: the name of its option in commands, if it is not the field's."""

    name: str


class Shown(TypedDict, total=False):
    """How commands show an act: the ``columns`` of its table, what they say of an ``empty`` list,
    how to ``begin`` one, and the question that asks to ``confirm`` a change for good. A column with
    a question mark is left out if all its values are empty. Without ``columns``, the table has all
    fields, as if each had a question mark."""

    columns: str
    empty: str
    begin: str
    confirm: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Action:
    """An act: its address, its command, and what it does.

    ``command`` has its arguments in capitals: parts of the path and fields; `KEY...` takes several.
    `create|set` are two commands: `create` fails if the item exists, `set` if it does not.
    ``{kind}`` is replaced by each word that the path allows. An act without ``command`` has its
    command in `flask ratelimit`.

    ``order`` has the fields that sort a list, downward after a minus. With ``of_team``, a team's
    administrator may do the act on their team.
    """

    method: Method
    path: str
    scope: Scope
    function: Callable[..., Any]
    body: type[Fields] | None
    query: type[Fields]
    of_team: bool
    order: str | None
    command: str
    shown: Shown

    @property
    def name(self) -> str:
        return self.function.__name__

    @property
    def parts(self) -> dict[str, list[str]]:
        """The names of the path's parts, each with the words that are allowed; none: any text."""
        kinds = {name: ONE_OF.fullmatch(kind) for kind, name in PART.findall(self.path)}
        return {name: words[1].split(", ") if words else [] for name, words in kinds.items()}


@dataclass(frozen=True, slots=True)
class Call:
    """A call: who makes it, the fields that it reads, and what yields the items of long work."""

    operator: Operator
    query: Any
    body: Any
    watched: Callable[[Sequence[Any]], Iterable[Any]] = iter

    @property
    def why(self) -> dict[str, str]:
        """Return the reason and the operator, for the log of changes."""
        return self.why_or("")

    def why_or(self, reason: str) -> dict[str, str]:
        """Return the same with this reason, if none was given."""
        given = (self.body or self.query).reason.strip()
        return {"reason": given or reason, "by": self.operator.by}


ACTIONS: Final[list[Action]] = []
#: The acts that read one item, by path: its ETag is compared before a change.
ITEMS: Final[dict[str, Action]] = {}


def action(
    rule: str,
    scope: Scope,
    *,
    body: type[Fields] | None = None,
    query: type[Fields] | None = None,
    command: str = "",
    of_team: bool = False,
    order: str | None = None,
    **shown: Unpack[Shown],
) -> Callable[[F], F]:
    """Add a row to the table. The function takes the :class:`Call` and the parts of the path. It
    returns an item, the rows of a list, or what a change has done: a PUT at the path of an item
    returns a :class:`Put`."""
    method, _, path = rule.partition(" ")

    def add(function: F) -> F:
        plain = Listed if order is not None else Fields if body or method == "GET" else Change
        row = Action(
            method=method,  # type: ignore[arg-type]
            path=path,
            scope=scope,
            function=function,
            body=body,
            query=query or plain,
            of_team=of_team,
            order=order,
            command=command,
            shown=shown,
        )
        ACTIONS.append(row)
        if method == "GET" and order is None:
            ITEMS[path] = row
        return function

    return add


# -- what is read --------------------------------------------------------------------------------


class FieldError(OperatorError):
    """A value of the body or of the query is invalid. ``field`` is its name, ``lines`` are the
    mistakes of a value with many."""

    def __init__(
        self, field: str, sentence: str, *, code: str = "invalid_field", lines: Sequence[str] = ()
    ) -> None:
        super().__init__(code, " ".join(filter(None, [sentence, "; ".join(lines)])))
        self.sentence = sentence
        self.field = field
        self.lines = lines


def checked(model: type[M], values: Mapping[str, Any]) -> M:
    """Return the fields; FieldError for the first that is wrong."""
    try:
        return model.model_validate(values)
    except ValidationError as mistakes:
        # A misspelt field first, and what is missing for it last.
        error = min(mistakes.errors(), key=lambda mistake: RANKS.get(mistake["type"], 1))
    name, cause = validation.location(error), error.get("ctx", {}).get("error")
    if isinstance(cause, OperatorError):
        raise FieldError(name, f"{name}: {cause}", code=cause.code)
    names = ", ".join(field.alias or name for name, field in model.model_fields.items()) or "none"
    allowed = f". Known fields: {names}" if error["type"] == "extra_forbidden" else ""
    raise FieldError(name, f'"{name}" {validation.problem(error)}{allowed}.')


@contextmanager
def of_field(name: str) -> Iterator[None]:
    """Report what is wrong as a mistake of that field: what a body names is not an address."""
    try:
        yield
    except OperatorError as error:
        if error.code == "forbidden":
            raise
        raise FieldError(name, f"{name}: {error}", code=error.code) from None


def plain(value: object) -> object:
    """Return a value of an answer as JSON has it."""
    match value:
        case Decimal():
            return float(value)
        case date():
            return value.isoformat()
        case _:
            return str(value)
