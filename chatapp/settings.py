"""What can be set from outside: every CHATAPP_* and RATELIMIT_* variable, and DATABASE_URL, typed
and checked.

The names are those of `app.config`; a value that `create_app` is given goes before the
environment's.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Annotated, Final

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

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


class SettingsError(ValueError):
    """A setting cannot be used; the message names it, what was found and what is allowed."""


def _json_object(value: object) -> object:
    return json.loads(value) if isinstance(value, str) else value


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
        Field(description='plans by user id, as JSON: {"alice": "pro"}'),
    ] = Field(default_factory=dict)
    database_url: Annotated[
        str | None,
        Field(description="where accounts and ledger are kept; default: SQLite in instance/"),
    ] = None
    trusted_hops: Annotated[
        int,
        Field(ge=0, le=10, description="proxies in front whose X-Forwarded-For is believed"),
    ] = 0
    max_tokens: Annotated[
        int,
        Field(ge=1, le=128_000, description="the longest answer, in tokens, thinking included"),
    ] = 2048
    provider_connect_timeout_s: Annotated[
        float, Field(gt=0, le=60, description="how long a provider may take to connect, s")
    ] = 5.0
    provider_timeout_s: Annotated[
        float, Field(gt=0, le=600, description="how long a provider may take to answer, s")
    ] = 60.0
    provider_attempts: Annotated[
        int,
        Field(ge=1, le=5, description="how often a provider is asked for one call at most"),
    ] = 2
    fallback_models: Annotated[
        dict[str, str],
        BeforeValidator(_json_object),
        Field(description='models to ask where another has no room, as JSON: {"gpt-4o": "o3"}'),
    ] = Field(default_factory=dict)


def from_environment(environment: Mapping[str, str]) -> dict[str, object]:
    """The variables that are ours, under their names in `app.config`; SettingsError if wrong.

    An empty variable counts as not set. A CHATAPP_* variable that nobody reads is logged: it is a
    typing error more often than a wish.
    """
    known = {f"{PREFIX}{name.upper()}" for name in Settings.model_fields}
    config: dict[str, object] = {}
    if environment.get(DATABASE_URL, "").strip():
        config[f"{PREFIX}{DATABASE_URL}"] = environment[DATABASE_URL]
    for name, text in environment.items():
        if not text.strip():
            continue
        if name.startswith(PREFIX):
            if name not in known:
                nearest = get_close_matches(name, known, n=1)
                hint = f"did you mean {nearest[0]}?" if nearest else f"there are {sorted(known)}"
                log.warning("%s is set, and chatapp has no such setting; %s", name, hint)
            config[name] = text
        elif name.startswith(LIMITER_PREFIX):
            config[name] = _limiter_value(name, text)
    return config


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
        raise SettingsError("; ".join(map(_sentence, error.errors()))) from error
    except json.JSONDecodeError as error:
        raise SettingsError(
            f"{PREFIX}PLANS or {PREFIX}FALLBACK_MODELS: {error}; allowed is a JSON object"
        ) from error


def _sentence(error: ErrorDetails) -> str:
    field = str(error["loc"][0])
    return (
        f"{PREFIX}{field.upper()}: {error['msg']} (found {error['input']!r}); "
        f"it is: {Settings.model_fields[field].description}"
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
    return text
