"""The schema of providers.toml: the upstreams, and their models besides models.toml."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import date
from decimal import Decimal
from difflib import get_close_matches
from fnmatch import fnmatchcase
from glob import escape
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self, TypeAlias, TypeGuard, cast
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    model_validator,
)
from pydantic_core import ErrorDetails

from chatapp import validation
from chatapp.catalogue.key import Key
from chatapp.catalogue.models_file import CatalogueError, ModelEntry, ModelsFile, ModelTable
from chatapp.catalogue.price import LongPrice, Price

#: The length of the ledger's columns for an upstream and for a model of it.
NAME: Final = re.compile(r"[a-z][a-z0-9_-]{0,31}")
NAME_ALLOWED: Final = "1 to 32 lower-case letters, digits, _ and -, other than offline"
SLUG_MAX_CHARACTERS: Final = 100
CLASS_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
HEADER: Final = re.compile(r"[A-Za-z0-9-]+")
TOML_LINE: Final = re.compile(r"at line (\d+)")
#: Headers that hold a key, and those that tell where a request ends.
KEY_HEADERS: Final = frozenset({"authorization", "x-api-key", "api-key"})
FRAMING: Final = frozenset({"connection", "content-length", "transfer-encoding"})
RESERVED: Final = frozenset({"offline"})
#: The end of a request's address, by protocol: its SDK adds it to the base_url.
ADDED: Final = {
    "openai": re.compile(r"/(chat/completions|responses|embeddings)$"),
    "anthropic": re.compile(r"/v1(/messages)?$"),
}
#: What a file without `upstreams` has.
PACKAGED: Final = Path(__file__).parents[1] / "providers.toml"
FREE: Final = "free"
#: Fields of a body without which it is another request.
NOT_FOR_CLASSES: Final = frozenset({"", "model", "messages", "input", "stream", "max_tokens"})

KeyPath: TypeAlias = tuple[str | int, ...]
#: The line of the key at that path of a TOML text; 0 if unknown.
LineOf: TypeAlias = Callable[[str, KeyPath], int]


def _address(text: str, of: ValidationInfo) -> str:
    try:
        parts = urlsplit(text)
        plain = parts.scheme in {"http", "https"} and parts.hostname and parts.port != 0
        more = parts.query or parts.fragment or parts.username is not None
    except ValueError:
        plain, more = None, None
    # urlsplit ignores line breaks, which would reach the head of a request.
    if not plain or more or not text.isprintable() or " " in text:
        raise ValueError(
            "is not an address; write https://HOST/PATH, with parameters under `query` and a key "
            "under `keys`"
        )
    protocol, address = of.data.get("protocol"), text.rstrip("/")
    if protocol and (end := ADDED[protocol].search(address)):
        raise ValueError(f"ends in {end[0]}, which is added; write it without that")
    return address


def _header(name: str) -> str:
    if not HEADER.fullmatch(name):
        raise ValueError("is not the name of a header; write for example api-key")
    return name


def _headers(headers: dict[str, str]) -> dict[str, str]:
    for name, value in headers.items():
        _header(name)
        if name.lower() in KEY_HEADERS:
            raise ValueError(f"contain {name!r}; name the variable of the key under `keys`")
        if name.lower() in FRAMING:
            raise ValueError(f"contain {name!r}, which each request states itself; remove it")
        if not (value.isascii() and value.isprintable()):
            raise ValueError(f"have a value of {name!r} that is not printable ASCII; correct it")
    return headers


def _distinct(values: list[Any]) -> list[Any]:
    if len({*map(repr, values)}) < len(values):
        raise ValueError("have an entry twice; remove one of the two")
    return values


def _own_field(name: str) -> str:
    if name in NOT_FOR_CLASSES:
        raise ValueError("has another meaning; write for example priority or service_tier")
    return name


def _price(written: object) -> object:
    if written == FREE:
        return dict.fromkeys(("input", "cached_input", "cache_write", "output"), 0)
    if isinstance(written, dict):
        return written
    raise ValueError(f'is {validation.type_name(written)}; write "{FREE}" or a table of prices')


def _seconds(written: object) -> object:
    return float(written) if isinstance(written, int | Decimal) and written is not True else written


Name = Annotated[str, Field(min_length=1)]
Seconds = Annotated[float, BeforeValidator(_seconds), Field(gt=0, le=3600)]


class _Table(BaseModel):
    model_config = ConfigDict(
        extra="forbid", strict=True, arbitrary_types_allowed=True, defer_build=True
    )


class TimeoutTable(_Table):
    """Seconds; without a value, those of the settings apply."""

    connect_s: Seconds | None = None
    first_byte_s: Seconds | None = None
    read_s: Seconds | None = None


class OwnModel(ModelTable):
    """``like``: a model of models.toml that it equals, ``name``: what the upstream calls it."""

    like: str | None = None
    name: Name | None = None


class ListedModel(ModelTable):
    """A change of a model of models.toml, or a new one: its `provider` says whose, or `like` which
    model it equals."""

    provider: str | None = None
    like: str | None = None


class ClassTable(_Table):
    """How an upstream reads the class of a call: in a ``field`` of the body or in a ``header``.
    ``values`` are by class, the highest first; another class has the last."""

    field: Annotated[str, AfterValidator(_own_field)] | None = None
    header: Annotated[str, AfterValidator(_header)] | None = None
    values: Annotated[dict[str, int | str], Field(min_length=2)]

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if (self.field is None) == (self.header is None):
            raise ValueError("need a `field` or a `header`; write one of them")
        if len({*self.values.values()}) == 1 or len({*map(type, self.values.values())}) > 1:
            raise ValueError("have one value for all, or numbers beside texts; correct them")
        if not all(map(CLASS_NAME.fullmatch, self.values)):
            raise ValueError("have a blank or odd name; write names such as batch")
        if self.header is not None:
            _headers({self.header: "".join(map(str, self.values.values()))})
        return self

    def values_for(self, class_name: str, sent: object = None) -> list[int | str | None]:
        """Return what to send for a class, the best first: the client's own value only if that is
        lower, and higher ones for a model that has no price for it."""
        values = [*self.values.values()]
        ours = self.values.get(class_name, values[-1])
        above = values[values.index(ours) :: -1]
        if sent is None:
            return [*above]
        return [sent, *above, None] if self._is_lower(sent, ours) else [*above, None]

    def _is_lower(self, sent: object, ours: int | str) -> TypeGuard[int | str]:
        values = [*self.values.values()]
        first, last = values[0], values[-1]
        if type(sent) is int and isinstance(ours, int):
            return sent >= ours if cast(int, last) > cast(int, first) else sent <= ours
        return isinstance(sent, str) and sent in values[values.index(ours) :]


class UpstreamTable(_Table):
    """An upstream, named by its table. docs/gateway/providers.md explains the keys."""

    protocol: Literal["openai", "anthropic"]
    base_url: Annotated[str, AfterValidator(_address)] | None = None
    keys: Annotated[
        list[Annotated[Key, BeforeValidator(lambda source: Key(str(source)))]],
        AfterValidator(_distinct),
    ] = []
    key_header: Annotated[str, AfterValidator(_header)] | None = None
    headers: Annotated[dict[str, str], AfterValidator(_headers)] = {}
    query: dict[str, str] = {}
    timeouts: TimeoutTable = Field(default_factory=TimeoutTable)
    refuse: list[Name] = []
    patterns: Annotated[list[Name], AfterValidator(_distinct)] = []
    unlisted: Literal["dearest", "refused"] = "dearest"
    default_model: str | None = None
    classes: ClassTable | None = None
    models_of: str | None = None
    price: Annotated[Price, BeforeValidator(_price)] | None = None
    models: dict[str, OwnModel] = {}


class _Document(_Table):
    version: Literal[1]
    as_of: date | None = None
    models: dict[str, ListedModel] = {}
    upstreams: Annotated[dict[str, UpstreamTable], Field(min_length=1)]


@dataclass(frozen=True, slots=True)
class ProvidersFile:
    """A file with a valid schema."""

    path: Path
    text: str
    line_of: LineOf
    upstreams: Mapping[str, UpstreamTable]
    as_of: date | None = None
    models: Mapping[str, ListedModel] = field(default_factory=dict)

    def merged(self, listed: ModelsFile) -> ModelsFile:
        """models.toml with the changes, and what the upstreams have besides. Raises
        CatalogueError."""
        changed = {slug: self._changed(slug, model, listed) for slug, model in self.models.items()}
        listed = listed.model_copy(update={"models": {**listed.models, **changed}})
        models, defaults = dict(listed.models), dict(listed.defaults)
        tiers, tools = dict(listed.tiers), dict(listed.tools)
        for name, table in self.upstreams.items():
            if (source := table.models_of) is not None:
                models |= self._copied(name, source, listed)
                tiers[name] = listed.tiers.get(source, {})
                if source in listed.tools:
                    tools[name] = listed.tools[source]
            for model_name, model in table.models.items():
                models[f"{name}/{model_name}"] = self._entry(name, model_name, model, listed)
            own = [entry for entry in models.values() if entry.provider == name]
            if table.unlisted == "refused" and not own:
                raise self._mistake((name, "unlisted"), "leaves no model; write some under models")
            if table.price is None and not any(entry.price for entry in own):
                raise self._mistake(
                    (name,),
                    f'has no price; write price = "{FREE}" or a table of prices, models_of = '
                    '"openai", or models with prices',
                )
            if (default := table.default_model) is not None:
                slug = f"{name}/{default}"
                defaults[name] = default if default in models and slug not in models else slug
                if defaults[name] not in models or models[defaults[name]].provider != name:
                    raise self._mistake(
                        (name, "default_model"), f"is {default!r}; write one of its models"
                    )
        merged = {"models": models, "defaults": defaults, "tiers": tiers, "tools": tools}
        merged |= {"as_of": max(listed.as_of, self.as_of or listed.as_of)}
        # model_copy would copy what the listed file has computed of its own tiers, too.
        return ModelsFile.model_construct(**{**dict(listed), **merged})

    @property
    def sent_names(self) -> dict[str, str]:
        """What upstreams call their models, by slug, if it is not the requested name."""
        return {
            f"{name}/{model_name}": model.name
            for name, table in self.upstreams.items()
            for model_name, model in table.models.items()
            if model.name is not None
        }

    def patterns(self, name: str, names: Iterable[str]) -> tuple[str, ...]:
        """Return what an upstream serves, as shell patterns: its patterns and the names in its own
        tables; without patterns, all ``names`` of its models."""
        table = self.upstreams[name]
        if table.patterns:
            names = [n for key, model in table.models.items() for n in (key, *model.aliases)]
        return (*table.patterns, *(escape(n.removeprefix(f"{name}/")) for n in names))

    def _changed(self, slug: str, change: ListedModel, listed: ModelsFile) -> ModelEntry:
        """Return the model with what the file says of it."""
        fields = {key: getattr(change, key) for key in change.model_fields_set - {"like"}}
        path, providers = ("models", slug), {*self.upstreams, *listed.defaults}
        if not 0 < len(slug) <= SLUG_MAX_CHARACTERS:
            sentence = f"is empty or too long; write 1 to {SLUG_MAX_CHARACTERS} characters"
            raise CatalogueError(self.located(path, sentence))
        if change.provider not in {None, *providers}:
            sentence = f"is {change.provider!r}; write one of {', '.join(sorted(providers))}"
            raise CatalogueError(self.located((*path, "provider"), sentence))
        if change.like is not None:
            model = self._named(change.like, listed, (*path, "like"))
            return model.model_copy(update={"aliases": [], **fields})
        if (known := listed.models.get(slug)) is not None:
            return known.model_copy(update=fields)
        for key in ("provider", "context"):
            if key not in fields:
                sentence = f"is new and has no {key}; write it, or `like`"
                raise CatalogueError(self.located(path, sentence))
        return ModelEntry(**fields)

    def _named(self, name: str, listed: ModelsFile, path: KeyPath) -> ModelEntry:
        if name in listed.models:
            return listed.models[name]
        near = get_close_matches(name, listed.models, n=1)
        hint = f". Did you mean {near[0]!r}?" if near else ""
        sentence = f"is {name!r}; write a name of a table in models.toml{hint}"
        raise CatalogueError(self.located(path, sentence))

    def _copied(self, name: str, source: str, listed: ModelsFile) -> dict[str, ModelEntry]:
        """Return the models of models.toml that the upstream has too, under its name."""
        providers = {entry.provider for entry in listed.models.values()} - RESERVED
        if source not in providers:
            listed_names = " or ".join(map(repr, sorted(providers)))
            raise self._mistake((name, "models_of"), f"is {source!r}; write {listed_names}")
        patterns = self.upstreams[name].patterns or ["*"]
        return {
            f"{name}/{slug}": entry.model_copy(
                update={"provider": name, "aliases": [f"{name}/{alias}" for alias in entry.aliases]}
            )
            for slug, entry in listed.models.items()
            if entry.provider == source and any(fnmatchcase(slug, pattern) for pattern in patterns)
        }

    def _entry(self, name: str, model_name: str, model: OwnModel, listed: ModelsFile) -> ModelEntry:
        path, most = (name, "models", model_name), SLUG_MAX_CHARACTERS - len(name) - 1
        if not 0 < len(model_name) <= most:
            raise self._mistake(path, f"is empty or too long; write 1 to {most} characters")
        fields = {
            key: getattr(model, key) for key in model.model_fields_set - {"like", "name", "aliases"}
        }
        aliases = [f"{name}/{alias}" for alias in model.aliases]
        update = {**fields, "provider": name, "aliases": aliases}
        if model.like is None:
            if model.context is None:
                raise self._mistake((*path, "context"), "is missing; write it, or `like`")
            return ModelEntry(**update)
        place = ("upstreams", *path, "like")
        return self._named(model.like, listed, place).model_copy(update=update)

    def _mistake(self, path: KeyPath, sentence: str) -> CatalogueError:
        return CatalogueError(self.located(("upstreams", *path), sentence))

    def located(self, path: KeyPath, sentence: str) -> str:
        line = self.line_of(self.text, path)
        place = f"{self.path}:{line}" if line else str(self.path)
        return f"{place}: {'.'.join(map(str, path))} {sentence}"


def read(path: Path, line_of: LineOf) -> ProvidersFile:
    """Return the file; CatalogueError, with every mistake and its line, if it is invalid."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
        document = tomllib.loads(text, parse_float=Decimal)
    except OSError as error:
        raise CatalogueError(
            f"CHATAPP_PROVIDERS_FILE: {path} cannot be read: {error.strerror}. Correct the path, "
            "or remove the setting."
        ) from error
    except (ValueError, RecursionError) as error:
        at = TOML_LINE.search(str(error))
        place = f"{path}:{at[1]}" if at else path
        raise CatalogueError(
            f"{place}: this is not TOML: {error}. Write strings in quotes and names of tables "
            "in brackets."
        ) from None
    file = ProvidersFile(path, text, line_of, {})
    if "models" in document and "upstreams" not in document:
        document["upstreams"] = tomllib.loads(PACKAGED.read_text("utf-8"))["upstreams"]
    try:
        valid = _Document.model_validate(document)
    except ValidationError as error:
        sentences = {e["loc"]: _sentence(e) for e in error.errors(include_url=False)}
    else:
        sentences = {
            ("upstreams", name): f"is not allowed; write a name of {NAME_ALLOWED}"
            for name in valid.upstreams
            if not NAME.fullmatch(name) or name in RESERVED
        }
        if not sentences:
            return replace(file, upstreams=valid.upstreams, as_of=valid.as_of, models=valid.models)
    lines = sorted(sentences, key=lambda path: line_of(text, path))
    raise CatalogueError("\n".join([file.located(path, sentences[path]) for path in lines]))


def _sentence(error: ErrorDetails) -> str:
    """Return what is wrong and what to do. Shows hardly any value: it may be a key."""
    if error["type"] == "literal_error":
        return f"is {str(error['input'])[:20]!r}; write {error['ctx']['expected']}"
    if error["type"] != "extra_forbidden":
        return validation.problem(error, verb="write")
    key, keys = str(error["loc"][-1]), list(_keys_beside(error["loc"]))
    near = get_close_matches(key, keys, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return f"is unknown; allowed: {', '.join(keys)}.{hint}"


def _keys_beside(path: KeyPath) -> Iterable[str]:
    # A model of an upstream is `upstreams.NAME.models.MODEL`, one of models.toml `models.MODEL`.
    match path[2:-1] if path[0] == "upstreams" else path[:-1]:
        case ("timeouts" | "classes" as name,):
            return (ClassTable if name == "classes" else TimeoutTable).model_fields
        case ("models", _):
            return (OwnModel if path[0] == "upstreams" else ListedModel).model_fields
        case (*_, "later", _):
            return ["from", *Price.model_fields, "long_context"]
        case (*_, "price"):
            return Price.model_fields
        case (*_, "long_context"):
            return LongPrice.model_fields
        case _:
            return _Document.model_fields if len(path) == 1 else UpstreamTable.model_fields
