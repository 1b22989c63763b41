"""What can be set from outside: every CHATAPP_* and RATELIMIT_* variable, and DATABASE_URL, typed
and checked.

The names are those of `app.config`; a value that `create_app` is given goes before the
environment's.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Annotated, Final

from flask_limiter.constants import ConfigVars
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from chatapp import validation

log = logging.getLogger(__name__)

PREFIX: Final = "CHATAPP_"
LIMITER_PREFIX: Final = "RATELIMIT_"
# What hosting providers call it; the name with our prefix goes before it.
DATABASE_URL: Final = "DATABASE_URL"
TRUE_WORDS: Final = frozenset({"true", "yes", "on", "1"})
FALSE_WORDS: Final = frozenset({"false", "no", "off", "0"})
# Flask-Limiter reads these by their truth, and the text "false" is true.
LIMITER_SWITCHES: Final = frozenset(
    {
        "RATELIMIT_ENABLED",
        "RATELIMIT_FAIL_ON_FIRST_BREACH",
        "RATELIMIT_SWALLOW_ERRORS",
        "RATELIMIT_APPLICATION_PER_METHOD",
        "RATELIMIT_DEFAULTS_PER_METHOD",
        "RATELIMIT_HEADERS_ENABLED",
        "RATELIMIT_IN_MEMORY_FALLBACK_ENABLED",
    }
)
LIMITER_TABLES: Final = frozenset({"RATELIMIT_STORAGE_OPTIONS", "RATELIMIT_BLUEPRINTS"})
LIMITER_COSTS: Final = frozenset({"RATELIMIT_APPLICATION_COST", "RATELIMIT_DEFAULTS_COST"})
LEASE: Final = "RATELIMIT_LEASE_SECONDS"
# Functions, which a program can set and no variable can be.
LIMITER_FUNCTIONS: Final = ("_FUNC", "_CALLBACK", "_WHEN", "_IDENTIFIER")
LIMITER_NAMES: Final = frozenset(
    {
        *(value for name, value in vars(ConfigVars).items() if name.isupper()),
        *("RATELIMIT_POLICY_FILE", "RATELIMIT_BLUEPRINTS", LEASE, "RATELIMIT_EMBEDDED_DIR"),
    }
)
# How like a known name another has to be to be called a typing error, of 1, both without prefix.
# Other programs use the prefix too, as our own tests do.
LIKENESS: Final = 0.75


class SettingsError(ValueError):
    """A setting cannot be used; the message names it, what was found and what is allowed."""


def _json_object(value: object) -> object:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return None  # no object either: what was found is told as it stood


def _names(value: object) -> object:
    if not isinstance(value, str):
        return value
    return tuple(name.strip().lower() for name in value.split(",") if name.strip())


class Settings(BaseModel):
    """chatapp's own settings; each is the variable CHATAPP_<NAME>."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    default_model: Annotated[
        str | None,
        Field(description="asked where a request names no model; else chosen by the keys set"),
    ] = None
    plans: Annotated[
        dict[str, str],
        BeforeValidator(_json_object),
        Field(description='plans by user id, as {"alice": "pro"}'),
    ] = Field(default_factory=dict)
    database_url: Annotated[
        str | None,
        Field(description="where accounts and ledger are kept; default: SQLite in instance/"),
    ] = None
    trusted_hops: Annotated[
        int,
        Field(ge=0, le=10, description="proxies in front whose X-Forwarded-For is believed"),
    ] = 0
    trusted_hosts: Annotated[
        tuple[str, ...],
        BeforeValidator(_names),
        Field(description="host names to answer to; default: while there are no keys, loopback's"),
    ] = ()
    ledger_keep_days: Annotated[
        int | None,
        Field(ge=62, le=36_500, description="days that a call stays in the ledger; default: all"),
    ] = None
    max_tokens: Annotated[
        int,
        Field(ge=1, le=128_000, description="the longest answer, in tokens, thinking included"),
    ] = 2048
    max_body_bytes: Annotated[
        int,
        Field(
            ge=65_536,
            le=64 * 1024 * 1024,
            description="the largest body of the vendors' endpoints, in bytes",
        ),
    ] = 32 * 1024 * 1024
    provider_connect_timeout_s: Annotated[
        float, Field(gt=0, le=60, description="how long a provider may take to connect, s")
    ] = 5.0
    provider_first_byte_timeout_s: Annotated[
        float, Field(gt=0, le=3600, description="how long a provider may take to begin a stream, s")
    ] = 600.0
    provider_timeout_s: Annotated[
        float,
        Field(gt=0, le=3600, description="how long a provider may take to send what is next, s"),
    ] = 600.0
    provider_attempts: Annotated[
        int,
        Field(ge=1, le=5, description="how often a provider is asked for one call at most"),
    ] = 2
    fallback_models: Annotated[
        dict[str, str],
        BeforeValidator(_json_object),
        Field(description='models to ask where another has no room, as {"gpt-4o": "o3"}'),
    ] = Field(default_factory=dict)


def from_environment(environment: Mapping[str, str]) -> dict[str, object]:
    """The variables that are ours, under their names in `app.config`; SettingsError if wrong.

    An empty variable counts as not set. A CHATAPP_* variable that nobody reads is logged, and a
    RATELIMIT_* one that is nearly another: it is a typing error more often than a wish.
    """
    config: dict[str, object] = {}
    if environment.get(DATABASE_URL, "").strip():
        config[f"{PREFIX}{DATABASE_URL}"] = environment[DATABASE_URL]
    for name, text in environment.items():
        if not text.strip():
            continue
        if name.startswith(PREFIX):
            _warn_of_a_name_of_ours(name)
            config[name] = text
        elif name.startswith(LIMITER_PREFIX):
            _warn_of_a_limiter_name(name)
            config[name] = _limiter_value(name, text)
    return config


def _warn_of_a_name_of_ours(name: str) -> None:
    known = {f"{PREFIX}{field.upper()}" for field in Settings.model_fields}
    if name in known:
        return
    nearest = get_close_matches(name, known, n=1)
    hint = f"did you mean {nearest[0]}?" if nearest else f"there are {sorted(known)}"
    log.warning("%s is set, and chatapp has no such setting; %s", name, hint)


def _warn_of_a_limiter_name(name: str) -> None:
    known = {each.removeprefix(LIMITER_PREFIX) for each in LIMITER_NAMES}
    short = name.removeprefix(LIMITER_PREFIX)
    if short not in known and (nearest := get_close_matches(short, known, n=1, cutoff=LIKENESS)):
        log.warning(
            "%s is set, and there is no such setting; did you mean %s%s?",
            *(name, LIMITER_PREFIX, nearest[0]),
        )


def from_config(config: Mapping[str, object]) -> Settings:
    """chatapp's settings out of `app.config`; SettingsError if one is wrong."""
    ours = {
        name.removeprefix(PREFIX).lower(): value
        for name, value in config.items()
        if name.startswith(PREFIX) and value is not None
    }
    try:
        return Settings.model_validate(ours)
    except ValidationError as error:
        sentences = {_sentence(each, ours): None for each in error.errors()}
        raise SettingsError("\n".join(sentences)) from error


def _sentence(error: ErrorDetails, found: Mapping[str, object]) -> str:
    name = str(error["loc"][0])
    field = Settings.model_fields[name]
    return (
        f"{PREFIX}{name.upper()}: found {found[name]!r}; allowed is {validation.allowed(field)}: "
        f"{field.description}"
    )


def _limiter_value(name: str, text: str) -> object:
    if name in LIMITER_SWITCHES:
        word = text.strip().lower()
        if word not in TRUE_WORDS | FALSE_WORDS:
            raise SettingsError(f"{name}: found {text!r}; allowed are true and false")
        return word in TRUE_WORDS
    if name in LIMITER_TABLES:
        try:
            table = json.loads(text)
        except ValueError as error:
            raise SettingsError(f"{name}: found {text!r}, which is not JSON: {error}") from error
        if not isinstance(table, dict):
            raise SettingsError(f"{name}: found {text!r}; allowed is a JSON object")
        return table
    if name in LIMITER_NAMES and name.endswith(LIMITER_FUNCTIONS):
        raise SettingsError(
            f"{name}: found {text!r}; it takes a function, which no variable can be: remove it, "
            "and set it in the `config` of `create_app`"
        )
    if name == LEASE:
        return _seconds(name, text)
    if name in LIMITER_COSTS:
        if not (text.strip().isascii() and text.strip().isdigit()):
            raise SettingsError(f"{name}: found {text!r}; allowed is a whole number from 0")
        return int(text)
    return text


def _seconds(name: str, text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise SettingsError(f"{name}: found {text!r}; allowed is a number of seconds above 0")
    return seconds
