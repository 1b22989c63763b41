"""Flask-Limiter's rules for defaults, blueprints and exemptions."""

from itertools import pairwise
from typing import Any

import pytest
from flask import Blueprint

from ratelimit_ext import ExemptionScope
from tests.web.calls import statuses
from tests.web.conftest import Maker, root


def alive() -> str:
    return "alive"


def nested(url: str = "/a") -> tuple[Blueprint, Blueprint]:
    """An outer blueprint and the inner one, each with a view at its own root."""
    outer, inner = Blueprint("outer", "outer", url_prefix=url), Blueprint("inner", "inner")
    outer.get("/")(lambda: "outer")
    inner.get("/inner")(lambda: "inner")
    return outer, inner


def register(*around: Any) -> None:
    """Register each in the one before it, the application first."""
    for outer, inner in reversed([*pairwise(around)]):
        outer.register_blueprint(inner)


def test_an_inner_blueprint_inherits_the_outer_limit(make: Maker) -> None:
    """In a bucket for each view."""
    app, limiter = make()
    outer, inner = nested()
    limiter.limit("1/minute")(outer)
    register(app, outer, inner)
    assert statuses(app, "/a/", 2) == [200, 429]
    assert statuses(app, "/a/inner", 2) == [200, 429]


def test_an_inner_blueprint_overrides_or_adds(make: Maker) -> None:
    """Its limit replaces the outer one's, or joins it with `override_defaults=False`."""
    for overrides, admitted in ((True, 3), (False, 1)):
        app, limiter = make()
        outer, inner = nested()
        limiter.limit("1/minute")(outer)
        limiter.limit("3/minute", override_defaults=overrides)(inner)
        register(app, outer, inner)
        assert statuses(app, "/a/inner", 4).count(200) == admitted


def test_an_inner_blueprint_of_the_same_name_is_charged_once(make: Maker) -> None:
    """Flask-Limiter files the limits of both under that name."""
    app, limiter = make()
    outer, inner = Blueprint("chat", "outer", url_prefix="/a"), Blueprint("chat", "inner")
    inner.get("/inner")(root)
    limiter.limit("2/minute", override_defaults=False)(outer)
    register(app, outer, inner)
    assert statuses(app, "/a/inner", 3) == [200, 200, 429]


def test_an_overriding_blueprint_does_not_hide_the_outer_limit_from_inner_ones(make: Maker) -> None:
    """Flask-Limiter's rule for decorators: the innermost still has the outermost one's limit."""
    app, limiter = make()
    outer, inner = nested()
    innermost = Blueprint("innermost", "innermost")
    innermost.get("/innermost")(root)
    limiter.limit("1/minute")(outer)
    limiter.limit("3/minute")(inner)
    register(app, outer, inner, innermost)
    assert statuses(app, "/a/inner", 2) == [200, 200]
    assert statuses(app, "/a/innermost", 2) == [200, 429]


def test_a_view_overrides_or_joins_its_blueprints_limit(make: Maker) -> None:
    """With `override_defaults=False` both apply."""
    for overrides, admitted in ((True, 3), (False, 1)):
        app, limiter = make()
        blueprint = Blueprint("chat", "chat")
        limiter.limit("1/minute")(blueprint)
        view = limiter.limit("3/minute", override_defaults=overrides)(lambda: "ok")
        blueprint.get("/")(view)
        app.register_blueprint(blueprint)
        assert statuses(app, times=4).count(200) == admitted


def test_an_exempt_view_has_neither_defaults_nor_application_limits(make: Maker) -> None:
    """And is not charged to the application limits of others."""
    app, limiter = make(default_limits=["1/minute"], application_limits=["2/minute"])
    app.get("/healthz", endpoint="healthz")(limiter.exempt(alive))
    app.get("/")(root)
    assert statuses(app, "/healthz", 5) == [200] * 5
    assert statuses(app, times=2) == [200, 429]


@pytest.mark.parametrize(
    ("flags", "admitted"),
    [(ExemptionScope.DEFAULT, 3), (ExemptionScope.APPLICATION, 1)],
    ids=["default", "application"],
)
def test_an_exemption_can_be_from_one_kind_of_limit(
    make: Maker, flags: ExemptionScope, admitted: int
) -> None:
    """The other kinds apply."""
    app, limiter = make(default_limits=["1/minute"], application_limits=["3/minute"])
    app.get("/")(limiter.exempt(flags=flags)(lambda: "ok"))
    assert statuses(app, times=5).count(200) == admitted


def test_an_exempt_blueprint_has_no_limits(make: Maker) -> None:
    """Nor have its views."""
    app, limiter = make(default_limits=["1/minute"], application_limits=["1/minute"])
    blueprint = Blueprint("health", "health")
    blueprint.get("/healthz")(lambda: "alive")
    limiter.exempt(blueprint)
    app.register_blueprint(blueprint)
    assert statuses(app, "/healthz", 4) == [200] * 4


def test_an_inner_blueprint_can_be_exempt_from_its_ancestors_limits(make: Maker) -> None:
    """`ExemptionScope.ANCESTORS` leaves the outer one's limit out."""
    app, limiter = make()
    outer, inner = nested()
    limiter.limit("1/minute")(outer)
    limiter.exempt(inner, flags=ExemptionScope.ANCESTORS)
    register(app, outer, inner)
    assert statuses(app, "/a/", 2) == [200, 429]
    assert statuses(app, "/a/inner", 4) == [200] * 4


def test_an_exemption_can_include_inner_blueprints(make: Maker) -> None:
    """With `ExemptionScope.DESCENDENTS`."""
    app, limiter = make(default_limits=["1/minute"])
    outer, inner = nested()
    limiter.exempt(outer, flags=ExemptionScope.DEFAULT | ExemptionScope.DESCENDENTS)
    register(app, outer, inner)
    assert statuses(app, "/a/inner", 3) == [200] * 3


def test_a_blueprint_has_its_limits_under_every_name(make: Maker) -> None:
    """It may be registered several times, also around others: each has buckets of its own."""
    app, limiter = make()
    outer, inner = nested("")
    limiter.limit("1/minute", override_defaults=False)(outer)
    outer.register_blueprint(inner, name="renamed")
    app.register_blueprint(outer, url_prefix="/a")
    app.register_blueprint(outer, url_prefix="/b", name="other")
    for url in ("/a", "/b"):
        assert statuses(app, f"{url}/", 2) == [200, 429]
        assert statuses(app, f"{url}/inner", 2) == [200, 429]


def test_a_blueprint_is_exempt_under_every_name(make: Maker) -> None:
    """And so are the inner ones, with `ExemptionScope.DESCENDENTS`."""
    app, limiter = make(default_limits=["1/minute"])
    outer, inner = nested()
    limiter.exempt(outer, flags=ExemptionScope.DEFAULT | ExemptionScope.DESCENDENTS)
    outer.register_blueprint(inner, name="renamed")
    app.register_blueprint(outer, name="other")
    assert statuses(app, "/a/", 2) == [200, 200]
    assert statuses(app, "/a/inner", 2) == [200, 200]


def test_a_view_can_be_exempt_from_meta_limits(make: Maker) -> None:
    """A banned client can still call it."""
    app, limiter = make(meta_limits=["1/hour"])
    app.get("/")(limiter.limit("1/minute")(root))
    app.get("/healthz")(limiter.exempt(flags=ExemptionScope.META)(alive))
    app.get("/other", endpoint="other")(lambda: "other")
    assert statuses(app, times=3) == [200, 429, 429]
    assert statuses(app, "/healthz") == [200]
    assert statuses(app, "/other") == [429]


def test_static_files_have_no_limits(make: Maker, tmp_path: object) -> None:
    """Neither defaults nor application limits."""
    app, _ = make(default_limits=["1/minute"], application_limits=["1/minute"])
    app.static_folder = str(tmp_path)
    assert statuses(app, "/static/nothing.css", 3) == [404] * 3


@pytest.mark.parametrize(
    ("first", "second", "warns"),
    [
        (("5/minute", {}), ("9/minute", {}), True),
        (("9/minute", {}), ("5/minute", {"error_message": "slow"}), True),
        (("5/minute; 9/hour", {}), ("9/minute", {}), True),
        (("2/minute", {"strategy": "token-bucket"}), ("9/minute", {}), False),
        (("5/minute", {}), ("300/hour", {}), False),
        (("5/minute", {}), ("9/minute", {"key_func": lambda: "other"}), False),
        (("5/minute", {}), ("9/minute", {"methods": ["GET"]}), False),
        (("5/minute", {"exempt_when": lambda: True}), ("9/minute", {}), False),
        (("5/minute", {"mode": "shadow"}), ("9/minute", {}), False),
        (("5/minute", {"name": "a"}), ("9/minute", {"name": "b"}), False),
        (("5/minute", {}), ("9/minute", {"cost": 2}), False),
        (("5/minute", {}), (lambda: "9/minute", {}), False),
    ],
    ids=map(str, range(12)),
)
def test_a_limit_beside_a_lower_one_is_logged(
    make: Maker, caplog: pytest.LogCaptureFixture, first: Any, second: Any, warns: bool
) -> None:
    """Once, as it is declared, if both differ in the amount alone: it would never deny."""
    app, limiter = make()
    (text, words), (other, others) = first, second
    app.get("/")(limiter.limit(other, **others)(limiter.limit(text, **words)(root)))
    assert statuses(app, times=2) == [200, 200]
    says = "limit 9 per 1 minute never denies: 5 per 1 minute applies with it and is lower. "
    assert [says in record.getMessage() for record in caplog.records] == [True] * warns
