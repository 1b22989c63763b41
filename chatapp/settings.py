"""The settings: CHATAPP_*, RATELIMIT_* and DATABASE_URL, typed and checked.

Variables of the environment have the same names in `app.config`; the ``config`` of `create_app`
takes precedence.
"""

from __future__ import annotations

import base64
import json
import logging
import re
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from ipaddress import IPv4Network, IPv6Network, collapse_addresses, ip_network
from typing import Annotated, Any, Final, Literal, TypeAlias, get_args
from urllib.parse import urlsplit

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from chatapp import validation
from ratelimit_ext import setting_value

log = logging.getLogger(__name__)

PREFIX: Final = "CHATAPP_"
LIMITER_PREFIX: Final = "RATELIMIT_"
# The name that hosting providers use; CHATAPP_DATABASE_URL takes precedence.
DATABASE_URL: Final = "DATABASE_URL"
# Prefix of a signing secret: https://www.standardwebhooks.com
WHSEC: Final = "whsec_"
_LINK: Final = re.compile(r"\[(.*?)\]\(.*?\)")
_HOST: Final = re.compile(r"\*|\.?[a-z0-9_-]+(\.[a-z0-9_-]+)*|\[[0-9a-f:.]+\]", re.IGNORECASE)
#: Whom single sign-on names. A header with a comma has two values, and spaces around are left out.
_PERSON: Final = re.compile(r"\*|\*@[^*@,\s]+|[^*,\s]([^*,]*[^*,\s])?")
#: What keys of operators may do.
Scope: TypeAlias = Literal["read", "keys", "users", "teams", "limits", "providers", "all"]
SCOPES: Final[tuple[Scope, ...]] = get_args(Scope)
Network: TypeAlias = IPv4Network | IPv6Network
LOOPBACK: Final = ("localhost", "127.0.0.1", "::1")
#: The IPv4 addresses as a server that listens on [::] names them.
MAPPED: Final = IPv6Network("::ffff:0:0/96")
#: The addresses that hosts on the internet have, of each version.
PUBLIC: Final = (MAPPED, IPv6Network("2000::/3"))
PREFIXES: Final = ("CHATAPP", "RATELIMIT")
SERVER_SETTINGS: Final = (
    *("GUNICORN_HOST", "GUNICORN_THREADS", "GUNICORN_REQUEST_TIMEOUT_S", "GUNICORN_VALID_FILES"),
    *("WEB_CONCURRENCY", "FORWARDED_ALLOW_IPS"),
)
CONSENT: Final = "anyone who can connect may name any operator"


class SettingsError(ValueError):
    """A setting is invalid; the message names it, the value found and the allowed values."""


def _json_object(value: object) -> object:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value, object_pairs_hook=validation.unique_names)
    except (ValueError, RecursionError):
        return None  # not an object; the message quotes the text


def _names(value: object) -> object:
    if not isinstance(value, str):
        return value
    return tuple(name.strip().lower() for name in value.split(",") if name.strip())


def _hosts(value: object) -> object:
    """Names as a Host header has them, with a dot before those that stand for their subdomains."""
    names = _names(value)
    if isinstance(names, list | tuple) and all(map(_HOST.fullmatch, map(str, names))):
        return names
    return None  # no list of names; the message quotes the text


def _percents(value: object) -> object:
    """Shares in percent, in order; none for "off"."""
    if isinstance(value, str):
        value = () if value.strip().lower() in ("off", "no", "false", "0") else value.split(",")
    try:
        percents = sorted({int(text) for text in value})  # type: ignore[attr-defined]
    except (TypeError, ValueError):
        return None  # no list; the message quotes the text
    return tuple(percents) if all(1 <= percent <= 100 for percent in percents) else None


def setting(
    meaning: str,
    default: object = None,
    least: float | None = None,
    most: float | None = None,
    *,
    shown: str = "",
    **field: Any,
) -> Any:
    """Return the field of a setting. ``meaning`` is what errors and docs/operate/settings.md say,
    where its links stay; ``shown`` is the default there if it is not plain."""
    if "default_factory" not in field:
        field["default"] = default
    field["json_schema_extra"] = {"shown": shown}
    return Field(description=meaning, ge=least, le=most, **field)


def _networks(value: object) -> object:
    """Addresses and networks, as 10.0.0.5 or 172.16.0.0/12."""
    names = _names(value)
    try:
        return tuple(ip_network(name) for name in names)  # type: ignore[attr-defined]
    except (TypeError, ValueError):
        return None  # no list of addresses; the message quotes the text


def _rights(value: object) -> object:
    """By identities, which may be *@example.com or *: scopes, and team:NAME."""
    rights = _json_object(value)
    if not (isinstance(rights, dict) and all(isinstance(text, str) for text in rights.values())):
        return None
    named = {k.lower(): v for k, v in rights.items() if _PERSON.fullmatch(k) and _is_right(v)}
    return named if len(named) == len(rights) else None


def _is_right(text: str) -> bool:
    """Return whether a text has scopes, at least one, and at most one team."""
    teams = [word for word in text.split() if word.startswith("team:")]
    scopes = {*text.split()}.difference(teams)
    return bool(scopes) and scopes <= {*SCOPES} and len(teams) <= 1 and "team:" not in teams


class Settings(BaseModel):
    """chatapp's own settings, each from the variable CHATAPP_<NAME>."""

    model_config = ConfigDict(frozen=True, extra="ignore", defer_build=True)

    providers_file: str | None = setting(
        "path of the file with the [upstreams](../gateway/providers.md)",
        shown="`chatapp/providers.toml`: OpenAI and Anthropic",
    )
    default_model: str | None = setting(
        "model for requests that name none", shown="by the keys that are set"
    )
    plans: Annotated[dict[str, str], BeforeValidator(_json_object)] = setting(
        'plans by user id without API keys, as {"alice": "pro"}, else the policy\'s default',
        default_factory=dict,
    )
    trusted_hops: int = setting(
        "trusted [proxies](deployment.md#behind-a-proxy) in front, which append to X-Forwarded-For",
        *(0, 0, 10),
    )
    trusted_hosts: Annotated[tuple[str, ...], BeforeValidator(_hosts)] = setting(
        "accepted [host names](deployment.md#behind-a-proxy) without scheme and port, `*` for any",
        (),
        shown="loopback without API keys, else any",
    )
    max_body_bytes: int = setting(
        "largest request body under /v1 and of /chat, in bytes",
        *(32 * 1024 * 1024, 65_536, 64 * 1024 * 1024),
        shown="32 MB",
    )
    metrics_token: str | None = setting(
        "token of [GET /metrics](metrics.md), of at least 16 ASCII characters, as headers have",
        shown="no metrics",
        min_length=16,
        pattern="^[ -~]+$",
    )
    traces: bool = setting(
        "[spans](metrics.md#traces) of requests and attempts, for OpenTelemetry", default=False
    )
    remember_denials: bool = setting(
        "keep the latest denials, for [`flask ratelimit why`](operators.md#denials)", default=True
    )
    admin_token: str | None = setting(
        "token of [/admin](admin.md), of at least 16 characters",
        shown="no admin page",
        min_length=16,
    )
    admin_sign_on_header: str | None = setting(
        "name of the header, with letters, digits and `-`, in which a "
        "[trusted proxy](admin.md#single-sign-on) names who uses /admin",
        shown="no single sign-on",
        pattern=r"^[A-Za-z][A-Za-z0-9-]*$",
    )
    admin_sign_on_from: Annotated[tuple[Network, ...], BeforeValidator(_networks)] = setting(
        "addresses or networks of that proxy, as connections come from it", (), shown="none"
    )
    admin_sign_on: Annotated[dict[str, str], BeforeValidator(_rights)] = setting(
        'who may do what then, as {"olga@example.com": "all", "*@example.com": "read"}: each name, '
        f"domain or `*` once, with some of {', '.join(SCOPES)}, and one `team:NAME` at most",
        default_factory=dict,
    )
    admin_sign_on_consent: str | None = setting(
        f'"{CONSENT}", for a `CHATAPP_ADMIN_SIGN_ON_FROM` with half of all addresses or more',
        shown="none",
    )
    sign_in_issuer: str | None = setting(
        "issuer of the OpenID provider with which [Claude Code signs in](../gateway/sign-in.md), "
        "with https, or http on this machine",
        shown="no sign-in",
        pattern=validation.SAFE_URL,
    )
    sign_in_client_id: str | None = setting("chatapp's client id there", shown="none")
    sign_in_client_secret: str | None = setting(
        "chatapp's client secret there, not logged", shown="none", repr=False
    )
    sign_in_url: str | None = setting(
        "chatapp's address for browsers and Claude Code, as https://chat.example.com",
        shown="none",
        pattern=validation.SAFE_URL,
    )
    sign_in_groups: Annotated[dict[str, str], BeforeValidator(_json_object)] = setting(
        'plan and team by group, such as {"ml": "pro/research", "*": "starter"}; the first group '
        "that a person has counts, `*` is everyone, and people without a group may not sign in",
        default_factory=dict,
    )
    sign_in_groups_claim: str = setting("claim with a person's groups", "groups")
    sign_in_user_claim: str = setting("claim with a person's name; `email` if verified", "email")
    sign_in_scope: str = setting(
        "scopes; most providers need `offline_access` to be asked again about a person",
        "openid email profile offline_access",
    )
    sign_in_hours: float = setting(
        "hours until the provider is asked again about a person", *(1.0, 0.25, 168)
    )
    managed_settings_file: str | None = setting(
        "path of the JSON file with the [settings of Claude Code](../gateway/sign-in.md#settings) "
        "on the machines of people who sign in",
        shown="none",
    )
    alert_at: Annotated[tuple[int, ...], BeforeValidator(_percents)] = setting(
        "shares of a budget that raise [an alert](alerts.md), in percent, `off` or 0 for none",
        (50, 80, 100),
    )
    alert_unusual_times: float = setting(
        "how many usual days' spending is [unusual](alerts.md#what-raises-an-alert), 0 for none",
        *(5.0, 0, 1000),
    )
    alert_unusual_usd: float = setting(
        "least spending of an unusual day, in dollars", *(10.0, 0, 1_000_000)
    )
    alert_webhook_url: str | None = setting(
        "where alerts are sent: https, or http on this machine, and not logged",
        shown="log only",
        repr=False,
    )
    alert_webhook_secret: str | None = setting(
        "secret that [signs alerts](alerts.md#the-webhook): `whsec_` and 24 to 64 bytes in base64",
        repr=False,
    )
    max_tokens: int = setting(
        "longest answer of /chat, in tokens with thinking", *(2048, 1, 128_000)
    )
    provider_connect_timeout_s: float = setting(
        "time to connect to a provider, in seconds", 5.0, gt=0, most=60
    )
    provider_first_byte_timeout_s: float = setting(
        "time until a stream begins, in seconds", 600.0, gt=0, most=3600
    )
    provider_timeout_s: float = setting(
        "time between two pieces of a stream, or for a whole plain answer, in seconds",
        600.0,
        gt=0,
        most=3600,
    )
    provider_attempts: int = setting(
        "attempts per call, see [retries](../gateway/trouble.md)", *(2, 1, 5)
    )
    open_tools: Annotated[frozenset[Literal["mcp", "web_fetch"]], BeforeValidator(_names)] = (
        setting(
            "`mcp`, `web_fetch`: [tools whose results a caller makes as large as it likes]"
            "(../gateway/compatible-endpoints.md#tools-that-a-provider-runs)",
            frozenset(),
        )
    )
    fallback_models: Annotated[dict[str, str], BeforeValidator(_json_object)] = setting(
        'model to use when another is overloaded, as {"gpt-4o": "o3"}', default_factory=dict
    )
    ledger_keep_days: int | None = setting(
        "days that a call stays in the [ledger](../gateway/spending.md#the-ledger)",
        *(None, 62, 36_500),
        shown="keep all",
    )
    database_url: str | None = setting(
        "[accounts and ledger](data.md#the-database), before `DATABASE_URL`",
        shown="SQLite in `instance/`",
    )


def from_environment(environment: Mapping[str, str]) -> dict[str, object]:
    """The settings in the environment, by their names in `app.config`; SettingsError or
    ConfigurationError if invalid. An empty variable counts as not set. Logs every unknown
    CHATAPP_* variable; the extension refuses a misspelt RATELIMIT_* one."""
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
            config[name] = setting_value(name, text)
        elif (near := get_close_matches(name, SERVER_SETTINGS, cutoff=0.9)) and name not in near:
            log.warning("Unknown setting %s: did you mean %s?", name, near[0])
        elif near := get_close_matches((part := name.partition("_"))[0], PREFIXES, cutoff=0.85):
            log.warning("Unknown setting %s: did you mean %s%s?", name, near[0], "".join(part[1:]))
    return config


def _warn_if_unknown(name: str) -> None:
    names = [field.upper() for field in Settings.model_fields]
    word = name.removeprefix(PREFIX)  # which all have in common
    if word not in names:
        near = get_close_matches(word, names, n=1)
        hint = f"did you mean {PREFIX}{near[0]}?" if near else "docs/operate/settings.md has all."
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
        sentences = {_sentence(mistake, ours): None for mistake in error.errors()}
        raise SettingsError("\n".join(sentences)) from error
    _check_webhook(settings.alert_webhook_url, settings.alert_webhook_secret)
    needed = [
        f"sign_in_{name}" for name in ("issuer", "client_id", "client_secret", "url", "groups")
    ]
    names = ", ".join(f"{PREFIX}{name.upper()}" for name in needed)
    if len({bool(getattr(settings, name)) for name in needed}) > 1:
        raise SettingsError(f"{PREFIX}SIGN_IN_ISSUER: found a part; set {names}, or none of them.")
    if settings.managed_settings_file and not settings.sign_in_issuer:
        raise SettingsError(
            f"{PREFIX}MANAGED_SETTINGS_FILE: only people who sign in get it; set {names}."
        )
    sign_on = (settings.admin_sign_on_header, settings.admin_sign_on_from, settings.admin_sign_on)
    if any(sign_on) and not (all(sign_on) and settings.admin_token):
        raise SettingsError(
            f"{PREFIX}ADMIN_SIGN_ON: found a part of single sign-on; set {PREFIX}ADMIN_TOKEN, "
            f"{PREFIX}ADMIN_SIGN_ON_HEADER, {PREFIX}ADMIN_SIGN_ON_FROM and {PREFIX}ADMIN_SIGN_ON, "
            "or none of the last three."
        )
    text = settings.admin_sign_on_consent
    if text not in {None, CONSENT}:
        raise SettingsError(f"{PREFIX}ADMIN_SIGN_ON_CONSENT: found {text!r}; allowed: {CONSENT!r}")
    if text is None and _has_half(settings.admin_sign_on_from):
        wide = ", ".join(map(str, settings.admin_sign_on_from))
        raise SettingsError(
            f"{PREFIX}ADMIN_SIGN_ON_FROM: found {wide}, from which anyone could name an operator; "
            f"allowed: your proxy's addresses, such as 10.0.0.5. If only your proxy can connect, "
            f'set {PREFIX}ADMIN_SIGN_ON_CONSENT="{CONSENT}".'
        )
    return settings


def _has_half(networks: Iterable[Network]) -> bool:
    """Return whether these networks together have half of all public addresses of a version."""
    mapped = [
        n if isinstance(n, IPv6Network) else IPv6Network(f"::ffff:{n[0]}/{96 + n.prefixlen}")
        for n in networks
    ]
    for public in PUBLIC:
        shared = [n if n.subnet_of(public) else public for n in mapped if n.overlaps(public)]
        if 2 * sum(n.num_addresses for n in collapse_addresses(shared)) >= public.num_addresses:
            return True
    return False


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
    is_safe = parts.scheme == "https" or (parts.scheme == "http" and host in LOOPBACK)
    # urlsplit ignores line breaks, which would reach the head of a request.
    if not (host and is_safe and (url or "").isprintable()):
        what = "nothing" if url is None else f"scheme {parts.scheme!r} and host {host!r}"
        raise SettingsError(
            f"{name}: found {what}; allowed: a URL that begins with https://, or with http:// on "
            "this machine (localhost, 127.0.0.1 or [::1]). Alerts name users and what they spend."
        )
    try:
        signing_key(secret or "")
    except ValueError:
        what = "nothing" if secret is None else f"a text of length {len(secret)} in another form"
        raise SettingsError(
            f"{PREFIX}ALERT_WEBHOOK_SECRET: found {what}; allowed: whsec_ and 24 to 64 bytes in "
            "base64, which the receiver must know. To make one: "
            'echo "whsec_$(openssl rand -base64 32)"'
        ) from None


def signing_key(secret: str) -> bytes:
    """The key in a secret of Standard Webhooks; ValueError if it is in another form."""
    key = base64.b64decode(secret.removeprefix(WHSEC), validate=True)
    if not secret.startswith(WHSEC) or not 24 <= len(key) <= 64:
        raise ValueError("not a signing secret")
    return key


def _sentence(error: ErrorDetails, values: Mapping[str, object]) -> str:
    name = str(error["loc"][0])
    field = Settings.model_fields[name]
    size, is_secret = len(str(values[name])), name.endswith(("_token", "_secret"))  # it is logged
    value = f"a text of length {size}" if is_secret or size > 300 else repr(values[name])
    meaning = _LINK.sub(r"\1", field.description or "")
    allowed = validation.allowed(field)
    return f"{PREFIX}{name.upper()}: found {value}; allowed: {allowed} ({meaning})"
