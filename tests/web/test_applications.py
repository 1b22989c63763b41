"""One extension, several applications: each has its own settings, storage, policy and state.

As with an application factory that each test calls."""

import gc
import logging
import subprocess
import sys
import threading
import weakref
from pathlib import Path
from typing import Any

import pytest
from flask import Blueprint, Flask, request

from ratelimit_ext import ConfigurationError, DecisionEvent, Limiter
from ratelimit_ext.core.key import Naming
from ratelimit_ext.testing import RateLimits
from tests.web.calls import serve, statuses
from tests.web.conftest import asked_key

ROOT = Path(__file__).parents[2]
MEMORY = {"RATELIMIT_STORAGE_URI": "memory://", "RATELIMIT_HEADERS_ENABLED": True}


def factory(limiter: Limiter, name: str = "example", **settings: Any) -> Flask:
    """An application with a blueprint of a plain and a decorated view, as a factory makes it."""
    app = Flask(name)
    app.config.update(MEMORY, **settings)
    limiter.init_app(app)
    blueprint = Blueprint("api", "api")
    blueprint.get("/plain", endpoint="plain")(plain)
    blueprint.get("/limited", endpoint="limited")(limiter.limit("2/minute")(limited))
    app.register_blueprint(blueprint)
    return app


def plain() -> str:
    return "plain"


def limited() -> str:
    return "limited"


def shown_limit(app: Flask, path: str = "/plain") -> str:
    return app.test_client().get(path).headers.get("RateLimit-Policy", "")


def test_each_application_has_its_settings() -> None:
    """Whatever the order in which they are made."""
    limiter = Limiter(asked_key)
    first = factory(limiter, RATELIMIT_DEFAULT="5/minute", RATELIMIT_KEY_PREFIX="one")
    second = factory(limiter, RATELIMIT_DEFAULT="7/hour", RATELIMIT_STRATEGY="sliding-window")
    silent = factory(limiter, RATELIMIT_HEADERS_ENABLED=False)
    assert shown_limit(first) == '"5-per-60s";q=5;w=60'
    assert shown_limit(second) == '"7-per-3600s";q=7;w=3600'
    assert shown_limit(silent) == ""
    with first.app_context():
        assert limiter._components.inventory.naming == Naming("LIMITS", "one", "fixed-window")
    with second.app_context():
        assert limiter._components.inventory.naming == Naming("LIMITS", "", "sliding-window")


def test_settings_of_defaults_are_each_applications() -> None:
    """Flask-Limiter writes them into the limits of the constructor."""
    limiter = Limiter(asked_key, default_limits=["4/minute"])
    cheap = factory(limiter)
    dear = factory(limiter, RATELIMIT_DEFAULTS_COST=2)
    assert statuses(cheap, "/plain", 5) == [200] * 4 + [429]
    assert statuses(dear, "/plain", 3) == [200, 200, 429]


def test_each_application_counts_in_its_own_storage() -> None:
    """Decorated and default limits; the first application goes on as before."""
    limiter = Limiter(asked_key, default_limits=["1/minute"])
    apps = [factory(limiter, name) for name in ("one", "two", "three")]
    for app in (*apps, *apps[:1]):
        assert statuses(app, "/limited", 3)[-1] == 429
    assert [statuses(app, "/plain", 2) for app in apps] == [[200, 429]] * 3


def test_each_application_has_its_policy(tmp_path: Path) -> None:
    """Nothing of one applies in another; one may have none."""
    limiter = Limiter(asked_key)
    for name, amount in (("strict", 1), ("generous", 3)):
        text = f'version = 1\n[[default]]\nlimit = "{amount}/minute"\n'
        (tmp_path / name).write_text(text)
    files = [str(tmp_path / name) for name in ("strict", "generous")]
    strict, generous = (factory(limiter, RATELIMIT_POLICY_FILE=file) for file in files)
    by_config = factory(limiter, RATELIMIT_BLUEPRINTS={"api": ["4/hour"]})
    without = factory(limiter)
    shown = [shown_limit(app) for app in (strict, generous, by_config, without)]
    assert shown == ['"1-per-60s";q=1;w=60', '"3-per-60s";q=3;w=60', '"4-per-3600s";q=4;w=3600', ""]
    assert [limiter.policy(app) is None for app in (by_config, without)] == [False, True]


@pytest.mark.parametrize("order", [(True, False), (False, True)])
def test_an_application_can_be_disabled_alone(order: tuple[bool, bool]) -> None:
    """By its setting; the next one is enabled unless it says otherwise."""
    limiter = Limiter(asked_key)
    apps = {on: factory(limiter, RATELIMIT_ENABLED=on) for on in order}
    assert statuses(apps[True], "/limited", 3) == [200, 200, 429]
    assert statuses(apps[False], "/limited", 3) == [200] * 3
    for on, app in apps.items():
        with app.app_context():
            assert limiter.enabled is on
    default = factory(limiter)  # without the setting
    assert statuses(default, "/limited", 3) == [200, 200, 429]


def test_the_switch_is_for_all_applications() -> None:
    """`limiter.enabled = False` in a test."""
    limiter = Limiter(asked_key)
    apps = [factory(limiter), factory(limiter)]
    limiter.enabled = False
    assert [statuses(app, "/limited", 3) for app in apps] == [[200] * 3] * 2
    limiter.enabled = True
    assert [statuses(app, "/limited", 3) for app in apps] == [[200, 200, 429]] * 2


def test_a_decorator_after_init_app_reaches_every_application() -> None:
    """Limits and exemptions of a blueprint that they have in common, also of routes that are
    compiled already."""
    limiter = Limiter(asked_key)
    apps, common = [factory(limiter), factory(limiter)], Blueprint("common", "common")
    common.get("/common")(plain)
    for app in apps:
        app.register_blueprint(common)
    assert [statuses(app, "/common", 2) for app in apps] == [[200, 200]] * 2
    limiter.limit("1/minute")(common)
    assert [statuses(app, "/common", 2) for app in apps] == [[200, 429]] * 2
    limiter.exempt(common)
    assert [statuses(app, "/common", 2) for app in apps] == [[200] * 2] * 2


def test_outside_of_a_context_the_latest_application_is_meant() -> None:
    """Within one, the current application: to reset it, or to read its storage."""
    limiter = Limiter(asked_key)
    first, second = factory(limiter), factory(limiter)
    for app in (first, second):
        statuses(app, "/limited", 2)
    limiter.reset()
    assert statuses(first, "/limited") == [429]
    assert statuses(second, "/limited") == [200]
    with first.app_context():
        limiter.reset()
        mine = limiter.storage
    assert statuses(first, "/limited") == [200]
    assert mine is not limiter.storage
    with pytest.raises(ConfigurationError):
        factory(limiter, RATELIMIT_BLUEPRINTS={"api": ["5/minit"]})
    del app, second
    gc.collect()
    assert limiter.storage is mine


def test_overrides_are_each_applications() -> None:
    """One that is given in a context is that application's."""
    limiter = Limiter(asked_key, default_limits=["1/minute"])
    named = {"RATELIMIT_BLUEPRINTS": {"api": [{"limit": "1/minute", "name": "pace"}]}}
    first, second = factory(limiter, **named), factory(limiter, **named)
    with first.app_context():
        limiter.operators.override("pace", "someone", "3/minute")
    assert statuses(first, "/plain", 4) == [200] * 3 + [429]
    assert statuses(second, "/plain", 2) == [200, 429]


def test_listeners_learn_of_every_application() -> None:
    """Whether it was attached before or after them."""
    limiter = Limiter(asked_key)
    first, seen = factory(limiter), []
    limiter.listen(seen.append)
    second = factory(limiter)
    statuses(first, "/limited")
    statuses(second, "/limited")
    assert [type(event) for event in seen] == [DecisionEvent] * 2
    limiter.unlisten(seen.append)
    statuses(second, "/limited")
    assert len(seen) == 2


def test_denials_are_remembered_for_each_application() -> None:
    """Whether it was attached before or after `remember_denials`."""
    limiter = Limiter(asked_key)
    first = factory(limiter)
    limiter.remember_denials()
    second = factory(limiter)
    statuses(first, "/limited", 3)
    statuses(second, "/limited", 2)
    found = []
    for app in (first, second):
        with app.app_context():
            denials = limiter._components.recorder.denials.read()
            found.append(sum(record.count for record in denials))
    assert found == [1, 0]


def test_limits_under_test_are_those_of_the_fixtures_application() -> None:
    """Also if another application was made later."""
    limiter = Limiter(asked_key)
    app, later = factory(limiter), factory(limiter)
    limits = RateLimits(limiter, app)
    client = app.test_client()
    for _ in range(2):
        limits.assert_admitted(client.get("/limited"))
    limits.assert_limited(client.get("/limited"))
    statuses(later, "/limited")
    assert len(limits.decisions) == 3
    limits.reset()
    limits.assert_admitted(client.get("/limited"))
    limits.close()
    assert statuses(later, "/limited", 2) == [200, 429]


def test_views_inside_a_factory_have_the_limits_of_their_application() -> None:
    """Not those of the last one, nor all that were ever written there."""
    limiter = Limiter(asked_key)

    def create_app(amount: int) -> Flask:
        app = Flask("factory")
        app.config.update(MEMORY)
        limiter.init_app(app)

        @app.get("/")
        @limiter.limit(f"{amount}/minute", key_func=lambda: app.name + asked_key())
        def view() -> str:
            return helper()

        @limiter.limit("5/minute", key_func=lambda: request.path)
        def helper() -> str:
            return "ok"

        blueprint = Blueprint("api", "api")
        limiter.limit(f"{amount}/minute", key_func=lambda: app.name + asked_key())(blueprint)
        blueprint.get("/plain")(plain)
        app.register_blueprint(blueprint)
        return app

    apps = [create_app(amount) for amount in (1, 2, 3)]
    assert [statuses(app, times=4).count(200) for app in apps] == [1, 2, 3]
    assert [statuses(app, "/plain", times=4).count(200) for app in apps] == [1, 2, 3]


def objects_of_many_applications() -> tuple[int, int]:
    """How many of 200 that a factory made are alive, and by how many objects 180 of them grew."""
    limiter = Limiter(asked_key, default_limits=["9/minute"])

    def create_app() -> Flask:
        app = factory(limiter, RATELIMIT_BLUEPRINTS={"api": ["8/minute"]})

        limiter.limit("6/minute", exempt_when=lambda: not app.name)(app.blueprints["api"])
        serve(app, limiter.limit("7/minute", exempt_when=lambda: not app.name))
        assert statuses(app) + statuses(app, "/plain") + statuses(app, "/limited") == [200] * 3
        with app.app_context():
            assert limiter._components.inventory.all_rows(app)
        return app

    def objects() -> int:
        for thread in threading.enumerate():
            if thread is not threading.current_thread():
                thread.join()  # a timer of a storage in memory, which keeps it for a moment
        gc.collect()
        return len(gc.get_objects())

    create_app()
    made = [weakref.ref(create_app()) for _ in range(20)]
    before = objects()
    made += [weakref.ref(create_app()) for _ in range(180)]
    grown = objects() - before - 180  # the references
    return sum(each() is not None for each in made), grown


def test_applications_are_freed() -> None:
    """Of many that a factory has made, none stays but the last, to which a function of a limit
    refers. In a process of its own: the threads of other tests make objects, too."""
    program = f"from {__name__} import *; print(*objects_of_many_applications())"
    run = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    alive, grown = map(int, run.stdout.split())
    assert alive <= 1
    assert grown < 90, "less than half an object for each application"


def test_an_application_that_the_extension_was_not_attached_to_logs_an_error(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Once: its decorated views run without limits."""
    limiter = Limiter(asked_key)
    factory(limiter)
    app = Flask("forgotten")
    app.get("/")(limiter.limit("1/minute")(limited))
    with caplog.at_level(logging.ERROR):
        assert statuses(app, times=3) == [200] * 3
    (record,) = caplog.records
    assert record.getMessage() == (
        "Limits of decorated views do not apply in the application 'forgotten'. Call "
        "limiter.init_app(app) where it is made."
    )
