"""The settings of ``app.config``: what each holds, and what the documents say of it."""

from __future__ import annotations

import difflib
import json
import logging
from collections.abc import Iterator, Mapping
from typing import Any, Final, Literal, NamedTuple, TypeAlias

from flask_limiter.constants import ConfigVars

from ratelimit_ext.core.charge import LONGEST_LEASE_S
from ratelimit_ext.core.errors import ConfigurationError, checked_seconds, shown

PREFIX: Final = "RATELIMIT_"
#: Two settings that are this alike (1 is equal) are a misspelling and what was meant.
_LIKENESS: Final = 0.8

Kind: TypeAlias = Literal["text", "switch", "table", "seconds", "count", "function"]


class Setting(NamedTuple):
    """``most`` and ``hint`` are of seconds; the hint ends an error. The rest is for documents."""

    kind: Kind
    default: str = ""
    meaning: str = ""
    most: float = 0.0
    hint: str = ""


def _stock() -> Iterator[tuple[str, Setting]]:
    """Flask-Limiter's, by how their names end."""
    kinds: dict[tuple[str, ...], Kind] = {
        ("_ENABLED", "_ERRORS", "_BREACH", "_METHOD"): "switch",
        ("_FUNC", "_CALLBACK", "_WHEN", "_IDENTIFIER"): "function",
        ("_COST",): "count",
        ("_OPTIONS",): "table",
    }
    for name in (value for word, value in vars(ConfigVars).items() if word.isupper()):
        yield name, Setting(next((k for ends, k in kinds.items() if name.endswith(ends)), "text"))


SETTINGS: Final[Mapping[str, Setting]] = {
    **dict(_stock()),
    "RATELIMIT_STORAGE_URI": Setting("text", "the embedded server", "[which storage](topology.md)"),
    "RATELIMIT_STORAGE_OPTIONS": Setting(
        "table", "`{}`", 'JSON for the storage client: `{"socket_timeout": 0.1}`'
    ),
    "RATELIMIT_EMBEDDED_DIR": Setting(
        "text", "`instance/ratelimit`", "state of the embedded server"
    ),
    "RATELIMIT_SETTLEMENTS_DIR": Setting(
        "text",
        "`instance/settlements`",
        "[charges of an outage](../extension/settlement.md#when-the-storage-is-unavailable)",
    ),
    "RATELIMIT_POLICY_FILE": Setting("text", "none, chatapp: `chatapp/policy.toml`", "the limits"),
    "RATELIMIT_POLICY": Setting(
        "table", "none", "[the limits in code](../extension/configuration.md#in-appconfig)"
    ),
    "RATELIMIT_BLUEPRINTS": Setting(
        "table", "`{}`", "[limits](../extension/configuration.md) by blueprint"
    ),
    "RATELIMIT_ENABLED": Setting("switch", "true", "enforce limits"),
    "RATELIMIT_HEADERS_ENABLED": Setting("switch", "false, chatapp: true", "send their headers"),
    "RATELIMIT_DEADLINE_SECONDS": Setting(
        "seconds",
        "0.1",
        "how long a request waits for the storage [at most](failures.md)",
        60.0,
        "A request waits that long for a storage that hangs.",
    ),
    "RATELIMIT_WORKERS": Setting(
        "text",
        "gunicorn's",
        "workers that share the storage, [if several gunicorns do](failures.md#how-it-works)",
    ),
    "RATELIMIT_WAITING_MAX": Setting(
        "text",
        "1, chatapp: a quarter of its threads",
        "requests of a worker that [wait for their turn](../extension/capacity.md) at once",
    ),
    "RATELIMIT_LEASE_SECONDS": Setting(
        "seconds",
        "120, chatapp: twice `CHATAPP_PROVIDER_TIMEOUT_S`",
        "[lease of a reservation](../extension/settlement.md#refunds-debt-and-leases)",
        LONGEST_LEASE_S,
        "Set it longer than a call can go without a chunk.",
    ),
    "RATELIMIT_STRICT": Setting(
        "switch",
        "false, chatapp: true",
        "[misspelt settings](../extension/configuration.md#mistakes) end the start, or are logged",
    ),
}
#: Settings that are named as an argument of the constructor, and are called otherwise.
_ALIASES: Final = {
    f"{PREFIX}{name}": value
    for name, value in vars(ConfigVars).items()
    if name.isupper() and f"{PREFIX}{name}" not in SETTINGS
}
#: What a switch may be as text. Any text is true in Python.
_WORDS: Final = {"true": True, "yes": True, "on": True, "1": True} | dict.fromkeys(
    ("false", "no", "off", "0"), False
)
_ALLOWED: Final = {
    "switch": "true or false",
    "count": "a whole number from 0",
    "function": "a function, which only code can set; remove the variable",
}


def setting_value(name: str, text: str) -> object:
    """Return what ``app.config`` should have of a setting that the environment has as text. Raises
    ``ConfigurationError``."""
    kind, word = SETTINGS[name].kind if name in SETTINGS else "text", text.strip().lower()
    if kind == "text":
        return text
    if kind == "seconds":
        return seconds(name, text)
    if kind == "switch" and word in _WORDS:
        return _WORDS[word]
    if kind == "count" and word.isascii() and word.isdigit():
        return int(word)
    if kind == "table":
        return _table(name, text)
    raise ConfigurationError(f"{name}: found {text!r}; allowed: {_ALLOWED[kind]}.")


def _table(name: str, text: str) -> dict[str, Any]:
    """Return the JSON object. An error does not quote it, because it may have a password."""
    try:
        table = json.loads(text)
    except (ValueError, RecursionError) as error:
        found = f"a text of length {len(text)} that is not JSON ({error})"
        raise ConfigurationError(f"{name}: found {found}; allowed: a JSON object.") from None
    if not isinstance(table, dict):
        raise ConfigurationError(f"{name}: found {shown(table)}; allowed: a JSON object.")
    return table


def seconds(name: str, value: object) -> float:
    """Return the value of such a setting. Raises ``ConfigurationError``."""
    return checked_seconds(name, value, most=SETTINGS[name].most, hint=SETTINGS[name].hint)


def check_settings(config: Mapping[str, Any], logger: logging.Logger, *, strict: bool) -> None:
    """Log each key of ``app.config`` that is a misspelt setting, and each switch such as
    ``"false"``, which is on. ``strict``: raise ``ConfigurationError`` instead.

    Other keys with the prefix may be the application's own.
    """
    settings = {name.removeprefix(PREFIX): name for name in SETTINGS}
    mistakes = []
    for name in config:
        if name.startswith(PREFIX) and name not in SETTINGS:
            word = name.removeprefix(PREFIX)
            near = difflib.get_close_matches(word, settings, n=1, cutoff=_LIKENESS)
            if meant := _ALIASES.get(name) or (settings[near[0]] if near else ""):
                unknown = f"app.config: the setting {name!r} is unknown and has no effect."
                remedy = f"Did you mean {meant!r}? Rename it if it is the application's own."
                mistakes.append(f"{unknown} {remedy}")
    switches = {name: config.get(name) for name, s in SETTINGS.items() if s.kind == "switch"}
    mistakes += _mistaken(switches)
    if strict and mistakes:
        raise ConfigurationError("\n".join(mistakes))
    for mistake in mistakes:
        logger.error(mistake)


def check_switches(arguments: Mapping[str, Any], where: str) -> None:
    """Raise ``ConfigurationError`` for a switch such as ``"no"``, which is on."""
    switches = {f"{where}, {name}": value for name, value in arguments.items() if _is_switch(name)}
    for mistake in _mistaken(switches):
        raise ConfigurationError(mistake)


def _is_switch(argument: str) -> bool:
    name = f"{PREFIX}{argument.upper()}"
    setting = SETTINGS.get(_ALIASES.get(name, name))
    return setting is not None and setting.kind == "switch"


def _mistaken(switches: Mapping[str, object]) -> list[str]:
    """Return what is wrong with each switch that is a text, unless it says that it is on."""
    return [
        f"{name}: found {shown(value)}, which Python takes for true; allowed: True or False."
        for name, value in switches.items()
        if value and isinstance(value, str) and not _WORDS.get(value.lower())
    ]
