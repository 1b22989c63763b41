"""The settings: CHATAPP_*, RATELIMIT_* and DATABASE_URL, typed and checked.

Variables of the environment have the same names in `app.config`; the ``config`` of `create_app`
takes precedence.
"""

from __future__ import annotations

import base64
import json
import logging
import math
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Annotated, Final, Literal
from urllib.parse import urlsplit

from flask_limiter.constants import ConfigVars
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from chatapp import validation

log = logging.getLogger(__name__)

PREFIX: Final = "CHATAPP_"
LIMITER_PREFIX: Final = "RATELIMIT_"
# The name that hosting providers use; CHATAPP_DATABASE_URL takes precedence.
DATABASE_URL: Final = "DATABASE_URL"
TRUE_WORDS: Final = frozenset({"true", "yes", "on", "1"})
FALSE_WORDS: Final = frozenset({"false", "no", "off", "0"})
# Flask-Limiter tests these for truth, and the string "false" is true.
LIMITER_SWITCHES: Final = frozenset(
    {
        "RATELIMIT_ENABLED",
        "RATELIMIT_FAIL_ON_FIRST_BREACH",
        "RATELIMIT_SWALLOW_ERRORS",
        "RATELIMIT_APPLICATION_PER_METHOD",
        "RATELIMIT_DEFAULTS_PER_METHOD",
        "RATELIMIT_HEADERS_ENABLED",
        "RATELIMIT_IN_MEMORY_FALLBACK_ENABLED",
        "RATELIMIT_STRICT",
    }
)
LIMITER_TABLES: Final = frozenset({"RATELIMIT_STORAGE_OPTIONS", "RATELIMIT_BLUEPRINTS"})
LIMITER_COSTS: Final = frozenset({"RATELIMIT_APPLICATION_COST", "RATELIMIT_DEFAULTS_COST"})
LEASE: Final = "RATELIMIT_LEASE_SECONDS"
# Functions, which only a program can set.
LIMITER_FUNCTIONS: Final = frozenset(
    value
    for value in map(str, vars(ConfigVars).values())
    if value.endswith(("_FUNC", "_CALLBACK", "_WHEN", "_IDENTIFIER"))
)
# Prefix of a signing secret: https://www.standardwebhooks.com
WHSEC: Final = "whsec_"
LOOPBACK: Final = ("localhost", "127.0.0.1", "::1")


class SettingsError(ValueError):
    """A setting is invalid; the message names it, the value found and the allowed values."""


def _json_object(value: object) -> object:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return None  # not an object; the message quotes the text


def _names(value: object) -> object:
    if not isinstance(value, str):
        return value
    return tuple(name.strip().lower() for name in value.split(",") if name.strip())


def _percents(value: object) -> object:
    """Shares in percent, in order; none for "off"."""
    if isinstance(value, str):
        value = () if value.strip().lower() in FALSE_WORDS else value.split(",")
    try:
        found = sorted({int(each) for each in value})  # type: ignore[attr-defined]
    except (TypeError, ValueError):
        return None  # no list; the message quotes the text
    return tuple(found) if all(1 <= each <= 100 for each in found) else None


class Settings(BaseModel):
    """chatapp's own settings, each from the variable CHATAPP_<NAME>."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    default_model: Annotated[
        str | None,
        Field(description="model for requests that name none"),
    ] = None
    plans: Annotated[
        dict[str, str],
        BeforeValidator(_json_object),
        Field(description='plans by user id, as {"alice": "pro"}'),
    ] = Field(default_factory=dict)
    database_url: Annotated[
        str | None,
        Field(description="database of accounts and ledger"),
    ] = None
    providers_file: Annotated[
        str | None,
        Field(description="path of the file with the upstreams"),
    ] = None
    trusted_hops: Annotated[
        int,
        Field(ge=0, le=10, description="trusted proxies in front, which append to X-Forwarded-For"),
    ] = 0
    trusted_hosts: Annotated[
        tuple[str, ...],
        BeforeValidator(_names),
        Field(description="accepted host names"),
    ] = ()
    ledger_keep_days: Annotated[
        int | None,
        Field(ge=62, le=36_500, description="days that a call stays in the ledger"),
    ] = None
    metrics_token: Annotated[
        str | None,
        Field(min_length=16, description="token of GET /metrics, of at least 16 characters"),
    ] = None
    remember_denials: Annotated[
        bool,
        Field(description="keep the latest denials, for `flask ratelimit why`"),
    ] = True
    admin_token: Annotated[
        str | None,
        Field(min_length=16, description="token of /admin, of at least 16 characters"),
    ] = None
    alert_at: Annotated[
        tuple[int, ...],
        BeforeValidator(_percents),
        Field(description="shares of a budget that raise an alert, in percent"),
    ] = (50, 80, 100)
    alert_unusual_times: Annotated[
        float,
        Field(ge=0, le=1000, description="how many usual days' spending is unusual; 0: none"),
    ] = 5.0
    alert_unusual_usd: Annotated[
        float,
        Field(ge=0, le=1_000_000, description="least spending of an unusual day, in dollars"),
    ] = 10.0
    alert_webhook_url: Annotated[
        str | None,
        Field(repr=False, description="where alerts are sent"),
    ] = None
    alert_webhook_secret: Annotated[
        str | None,
        Field(repr=False, description="with which alerts are signed"),
    ] = None
    max_tokens: Annotated[
        int,
        Field(ge=1, le=128_000, description="longest answer of /chat, in tokens with thinking"),
    ] = 2048
    max_body_bytes: Annotated[
        int,
        Field(
            ge=65_536,
            le=64 * 1024 * 1024,
            description="largest request body under /v1, in bytes",
        ),
    ] = 32 * 1024 * 1024
    provider_connect_timeout_s: Annotated[
        float, Field(gt=0, le=60, description="time to connect to a provider, in seconds")
    ] = 5.0
    provider_first_byte_timeout_s: Annotated[
        float, Field(gt=0, le=3600, description="time until a stream begins, in seconds")
    ] = 600.0
    provider_timeout_s: Annotated[
        float,
        Field(gt=0, le=3600, description="time between two pieces of an answer, in seconds"),
    ] = 600.0
    provider_attempts: Annotated[
        int,
        Field(ge=1, le=5, description="attempts per call"),
    ] = 2
    open_tools: Annotated[
        frozenset[Literal["mcp", "web_fetch"]],
        BeforeValidator(_names),
        Field(
            description="tools of the providers whose results a caller makes as large as it likes"
        ),
    ] = frozenset()
    fallback_models: Annotated[
        dict[str, str],
        BeforeValidator(_json_object),
        Field(description='model to use when another is overloaded, as {"gpt-4o": "o3"}'),
    ] = Field(default_factory=dict)


def from_environment(environment: Mapping[str, str]) -> dict[str, object]:
    """The settings in the environment, by their names in `app.config`; SettingsError if invalid.

    An empty variable counts as not set. Logs every unknown CHATAPP_* variable; the extension
    refuses a misspelt RATELIMIT_* one.
    """
    config: dict[str, object] = {}
    if environment.get(DATABASE_URL, "").strip():
        config[f"{PREFIX}{DATABASE_URL}"] = environment[DATABASE_URL]
    for name, text in environment.items():
        if not text.strip():
            continue
        if name.startswith(PREFIX):
            _warn_if_unknown(name)
            config[name] = text
        elif name.startswith(LIMITER_PREFIX):
            config[name] = _limiter_value(name, text)
    return config


def _warn_if_unknown(name: str) -> None:
    known = {f"{PREFIX}{field.upper()}" for field in Settings.model_fields}
    if name in known:
        return
    nearest = get_close_matches(name, known, n=1)
    hint = f"did you mean {nearest[0]}?" if nearest else f"known are {sorted(known)}"
    log.warning("Unknown setting %s: %s", name, hint)


def from_config(config: Mapping[str, object]) -> Settings:
    """chatapp's settings in `app.config`; SettingsError if any is invalid."""
    ours = {
        name.removeprefix(PREFIX).lower(): value
        for name, value in config.items()
        if name.startswith(PREFIX) and value is not None
    }
    try:
        settings = Settings.model_validate(ours)
    except ValidationError as error:
        sentences = {_sentence(each, ours): None for each in error.errors()}
        raise SettingsError("\n".join(sentences)) from error
    _check_webhook(settings.alert_webhook_url, settings.alert_webhook_secret)
    return settings


def _check_webhook(url: str | None, secret: str | None) -> None:
    """Raise SettingsError unless both are set, or neither, and valid. Both may be secrets, so no
    message quotes them."""
    if url is None and secret is None:
        return
    name = f"{PREFIX}ALERT_WEBHOOK_URL"
    try:
        parts = urlsplit(url or "")
        host, _port = parts.hostname or "", parts.port
    except ValueError:
        parts, host = urlsplit(""), ""
    # urlsplit ignores line breaks, which would reach the head of a request.
    is_plain = (url or "").isprintable()
    is_safe = parts.scheme == "https" or (parts.scheme == "http" and host in LOOPBACK)
    if not (host and is_plain and is_safe):
        found = "nothing" if url is None else f"scheme {parts.scheme!r} and host {host!r}"
        raise SettingsError(
            f"{name}: found {found}; allowed: a URL that begins with https://, or with http:// on "
            "this machine (localhost, 127.0.0.1 or [::1]). Alerts name users and what they spend."
        )
    try:
        signing_key(secret or "")
    except ValueError:
        found = "nothing" if secret is None else f"{len(secret)} characters in another form"
        raise SettingsError(
            f"{PREFIX}ALERT_WEBHOOK_SECRET: found {found}; allowed: whsec_ and 24 to 64 bytes in "
            "base64, which the receiver must know. To make one: "
            'echo "whsec_$(openssl rand -base64 32)"'
        ) from None


def signing_key(secret: str) -> bytes:
    """The key in a secret of Standard Webhooks; ValueError if it is in another form."""
    key = base64.b64decode(secret.removeprefix(WHSEC), validate=True)
    if not secret.startswith(WHSEC) or not 24 <= len(key) <= 64:
        raise ValueError("not a signing secret")
    return key


def _sentence(error: ErrorDetails, found: Mapping[str, object]) -> str:
    name = str(error["loc"][0])
    field = Settings.model_fields[name]
    is_secret = name.endswith("_token")  # the error is logged
    value = f"{len(str(found[name]))} characters" if is_secret else repr(found[name])
    return (
        f"{PREFIX}{name.upper()}: found {value}; allowed: {validation.allowed(field)} "
        f"({field.description})"
    )


def _limiter_value(name: str, text: str) -> object:
    if name in LIMITER_SWITCHES:
        word = text.strip().lower()
        if word not in TRUE_WORDS | FALSE_WORDS:
            raise SettingsError(f"{name}: found {text!r}; allowed: true or false")
        return word in TRUE_WORDS
    if name in LIMITER_TABLES:
        try:
            table = json.loads(text)
        except ValueError as error:
            raise SettingsError(
                f"{name}: found {text!r}, which is not JSON ({error}); allowed: a JSON object"
            ) from error
        if not isinstance(table, dict):
            raise SettingsError(f"{name}: found {text!r}; allowed: a JSON object")
        return table
    if name in LIMITER_FUNCTIONS:
        raise SettingsError(
            f"{name}: found {text!r}; allowed: a function, in the `config` of `create_app`. Remove "
            "the variable."
        )
    if name == LEASE:
        return _seconds(name, text)
    if name in LIMITER_COSTS:
        if not (text.strip().isascii() and text.strip().isdigit()):
            raise SettingsError(f"{name}: found {text!r}; allowed: a whole number from 0")
        return int(text)
    return text


def _seconds(name: str, text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise SettingsError(f"{name}: found {text!r}; allowed: a number of seconds above 0")
    return seconds
