"""Every place that takes a limit accepts the same strings and options, and makes the same limit."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flask import Flask

from ratelimit_ext import ApplicationLimit, ConfigurationError, Limit, Limiter, RouteLimit
from ratelimit_ext.core.limit import Limit as CoreLimit
from ratelimit_ext.web.declarations.limits_adapter import limit_of
from tests.web.conftest import asked_key

Options = dict[str, Any]
Place = Callable[[Path, str, Options], list[CoreLimit]]


def made(definitions: Any) -> list[CoreLimit]:
    return [
        limit_of(runtime.limit, "fixed-window")
        for definition in definitions
        for runtime in definition
    ]


def started(config: Options, **options: Any) -> list[CoreLimit]:
    app = Flask(__name__)
    app.config.update(config)
    limiter = Limiter(asked_key, app=app, storage_uri="memory://", **options)
    return made(limiter.limit_manager.definitions())


def decorator(_: Path, text: str, options: Options) -> list[CoreLimit]:
    return made([Limiter(asked_key, strategy="fixed-window").limit(text, **options)])


def shared_limit(_: Path, text: str, options: Options) -> list[CoreLimit]:
    limiter = Limiter(asked_key, strategy="fixed-window")
    return made([limiter.shared_limit(text, scope="all", **options)])


def route_limit(_: Path, text: str, options: Options) -> list[CoreLimit]:
    limiter = Limiter(asked_key, strategy="fixed-window")
    definition = RouteLimit(text, limiter=limiter, **options)
    definition(lambda: "ok")
    return made([definition])


def application_limits(_: Path, text: str, options: Options) -> list[CoreLimit]:
    return started({}, application_limits=[ApplicationLimit(text, **options)])


def default_limits(_: Path, text: str, options: Options) -> list[CoreLimit]:
    return started({}, default_limits=[Limit(text, **options)])


def config_application(_: Path, text: str, options: Options) -> list[CoreLimit]:
    if options:
        return application_limits(_, text, options)
    return started({"RATELIMIT_APPLICATION": text})


def config_default(_: Path, text: str, options: Options) -> list[CoreLimit]:
    return default_limits(_, text, options) if options else started({"RATELIMIT_DEFAULT": text})


def config_blueprints(_: Path, text: str, options: Options) -> list[CoreLimit]:
    entry = {"limit": text, **options} if options else text
    app = Flask(__name__)
    app.config["RATELIMIT_BLUEPRINTS"] = {"root": [entry]}
    limiter = Limiter(asked_key, app=app, storage_uri="memory://")
    app.add_url_rule("/", "root", lambda: "ok")
    limiter.check_policy(app)
    limiter.limit_manager.complete(app)
    return made(limiter.limit_manager.definitions())


def toml(table: str) -> Place:
    def place(folder: Path, text: str, options: Options) -> list[CoreLimit]:
        entry = {"limit": text, **options}
        lines = [f"{word} = {json.dumps(value)}" for word, value in entry.items()]
        file = folder / "policy.toml"
        file.write_text("\n".join(["version = 1", f"[[{table}]]", *lines]), encoding="utf-8")
        return started({"RATELIMIT_POLICY_FILE": str(file)})

    return place


PLACES: dict[str, Place] = {
    "shared_limit": shared_limit,
    "RouteLimit": route_limit,
    "application_limits": application_limits,
    "default_limits": default_limits,
    "RATELIMIT_APPLICATION": config_application,
    "RATELIMIT_DEFAULT": config_default,
    "RATELIMIT_BLUEPRINTS": config_blueprints,
    "TOML default": toml("default"),
    "TOML application": toml("application"),
    "TOML routes": toml("routes.root.limits"),
}

ACCEPTED: list[tuple[str, Options]] = [
    ("30/minute", {}),
    ("  30  per   2 Minutes  ", {}),
    ("30per minute", {}),
    ("30/min;2/s", {}),
    ("1.5/minute", {}),
    ("0/minute", {"strategy": "token-bucket", "burst": 5}),
    ("0 usd/day;0 in flight", {}),
    ("0.5 usd/day", {}),
    ("9999999999999999/minute", {}),
    ("5 per 50 years", {}),
    ("100 per day|5/second , 3 PER HOUR", {}),
    ("5 usd/day;100/hour", {}),
    ("100/hour;5 usd/day", {"mode": "shadow"}),
    ("5 usd/day;100/day", {}),
    ("0.50 USD per 2 hours", {"unit": "usd", "cost": 0.1}),
    ("5usd/day", {"cost": "0.01"}),
    ("0.0000011 usd/day", {"strategy": "sliding-window", "cost": 0}),
    ("4 in flight", {}),
    ("4  IN  flight", {"strategy": "concurrency", "unit": "calls", "name": "slots"}),
    ("4 in flight;30/minute", {}),
    ("5 usd/day;4 in flight;90000/minute", {}),
    ("90000/minute", {"unit": "tokens", "strategy": "token-bucket", "burst": 10}),
    ("1 usd/hour or 20 x usual", {}),
    ("90000/hour OR 20x usual", {"unit": "tokens"}),
    ("1 usd/hour or 20 x usual;5 usd/day", {}),
    ("unless blocked", {"name": "provider"}),
    ("Unless  Blocked;30/minute", {}),
    ("as reported", {"unit": "input_tokens"}),
    ("3/day", {"strategy": "moving-window"}),
    ("3/day", {"anchor": "day", "timezone": "Europe/Berlin"}),
    ("3/month", {"anchor": "month", "strategy": "fixed-window"}),
    ("3/minute", {"unit": "requests", "mode": "enforce"}),
    ("3/minute", {"cost": 3}),
]
REFUSED: list[tuple[str, Options]] = [
    ("banana", {}),
    ("5/fortnight", {}),
    ("7/0 minutes", {}),
    ("5/minute;", {}),
    ("5 usd/day;", {}),
    ("-5/minute", {}),
    ("5 usd", {}),
    ("2.5 in flight", {}),
    ("4 in flight or 20 x usual", {}),
    ("unless blocked or 20 x usual", {}),
    ("$5/day", {}),
    ("5/m", {}),
    ("0/hour or 9 x usual", {}),
    ("9 usd/hour or 0 x usual", {}),
    ("5/minute;60/60 seconds", {}),
    ("5 usd/day;6 usd/day", {}),
    ("5 usd/day", {"unit": "requests"}),
    ("5 usd/day;100/hour", {"unit": "usd"}),
    ("5 usd/day;100/hour", {"unit": "tokens"}),
    ("4 in flight;30/minute", {"strategy": "token-bucket"}),
    ("4/minute", {"strategy": "concurrency"}),
    ("1/hour", {"strategy": "surge"}),
    ("1/hour", {"strategy": "surge", "multiple": 20}),
    ("1/hour", {"strategy": "leaky"}),
    ("3/minute", {"burst": 2}),
    ("3/minute", {"burst": 0, "strategy": "token-bucket"}),
    ("3/minute", {"burst": True, "strategy": "token-bucket"}),
    ("3/minute", {"unit": "bananas"}),
    ("3/minute", {"mode": "off"}),
    ("3/minute", {"name": 'say "hi"'}),
    ("3/minute;5/hour", {"name": "x"}),
    ("3/hour", {"anchor": "day"}),
    ("3/day", {"anchor": "year"}),
    ("3/day", {"timezone": "Europe/Berlin"}),
    ("3/day", {"anchor": "day", "timezone": "Berlin"}),
    ("3/minute", {"cost": 4}),
    ("3/minute", {"cost": -1}),
    ("unless blocked", {"cost": 2}),
    ("unless blocked", {"unit": "tokens"}),
    ("as reported", {"unit": "usd"}),
]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(("text", "options"), ACCEPTED, ids=repr)
def test_every_place_accepts_what_a_decorator_accepts(
    tmp_path: Path, place: str, text: str, options: Options
) -> None:
    """With the same result: equal limits in the same order."""
    limits = decorator(tmp_path, text, options)
    assert limits
    assert PLACES[place](tmp_path, text, options) == limits


@pytest.mark.parametrize("place", ["decorator", *PLACES])
@pytest.mark.parametrize(("text", "options"), REFUSED, ids=repr)
def test_every_place_refuses_the_same(
    tmp_path: Path, place: str, text: str, options: Options
) -> None:
    """At the start, as an error of the configuration."""
    takes = {"decorator": decorator, **PLACES}[place]
    # The constructor of a definition raises Python's error for an unknown keyword.
    with pytest.raises((ConfigurationError, TypeError)):
        takes(tmp_path, text, options)
