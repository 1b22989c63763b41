"""A row of the table of acts: an address, a scope, the function behind it, and the fields that it
reads. It depends neither on HTTP nor on a terminal."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import KW_ONLY, dataclass
from datetime import date
from decimal import Decimal
from typing import Annotated, Any, Final, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from chatapp import validation
from chatapp.operators import arguments
from chatapp.operators.rights import Operator
from chatapp.settings import Scope
from ratelimit_ext import OperatorError

F = TypeVar("F", bound=Callable[..., Any])
M = TypeVar("M", bound=BaseModel)
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

    limit: int | None = Field(None, ge=1, le=1000, description="Rows; default 100, commands: all.")
    cursor: str | None = Field(None, description="Continue after the page that returned this.")
    format: Literal["json", "csv"] = "json"


@dataclass(frozen=True, slots=True)
class Option:
    """Metadata of a field: the name of its option in commands, if it is not the field's."""

    name: str


@dataclass(eq=False)
class Action:
    """An act: its address, its command, and what it does. It decorates its function, which takes
    the :class:`Call` and the parts of the path. The function returns an item, the rows of a list,
    or what a change has done: a PUT at the path of an item returns a :class:`Put`.

    ``command`` has its arguments in capitals: parts of the path and fields; `KEY...` takes several.
    `create|set` are two commands: `create` fails if the item exists, `set` if it does not.
    ``{kind}`` is replaced by each word that the path allows. An act without ``command`` has its
    command in `flask ratelimit`.

    ``order`` has the fields that sort a list, downward after a minus. With ``of_team``, a team's
    administrator may do the act on their team.

    Commands show a list with these ``columns``, say of an ``empty`` one how to ``begin`` it, and
    ask to ``confirm`` a change for good. A column with a question mark is left out if all its
    values are empty. Without ``columns``, the table has all fields, as if each had a question mark.
    """

    rule: str
    scope: Scope
    _: KW_ONLY
    body: type[Fields] | None = None
    query: type[Fields] = Fields
    of_team: bool = False
    order: str | None = None
    command: str = ""
    columns: str = ""
    empty: str = "There is nothing to list"
    begin: str = "."
    confirm: str = ""

    def __post_init__(self) -> None:
        self.method, _, self.path = self.rule.partition(" ")
        if self.query is Fields and self.order is not None:
            self.query = Listed
        elif self.query is Fields and self.body is None and self.method != "GET":
            self.query = Change

    def __call__(self, function: F) -> F:
        self.function: Callable[..., Any] = function
        self.name = function.__name__
        ACTIONS.append(self)
        if self.method == "GET" and self.order is None:
            ITEMS[self.path] = self
        return function

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
    is_ours = error["type"] == "extra_forbidden" and error["loc"][1:] == ()  # no part of a field
    allowed = f". Known fields: {names}" if is_ours else ""
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
