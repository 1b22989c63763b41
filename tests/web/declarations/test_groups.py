"""Views and blueprints that name a group of the policy."""

import functools
import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flask import Blueprint, Flask
from flask.views import MethodView, View

from ratelimit_ext import ConfigurationError, ExemptionScope, Limiter, client_ip
from tests.web.calls import serve, statuses
from tests.web.conftest import asked_key
from tests.web.declarations.test_policies import left, policy, root

GROUPS = """
[groups.calls]
limits = [{ name = "user", limit = "9/hour" }]
[groups.reads]
limits = [{ name = "read", limit = "7/hour" }]
"""


def started(tmp_path: Path, app: Flask, text: str = GROUPS, **config: Any) -> Limiter:
    """The extension of an application that has all its routes, as at the end of a factory."""
    app.config.update(policy(tmp_path, text), **config)
    limiter = Limiter(asked_key, app=app, storage_uri="memory://", headers_enabled=True)
    limiter.check_policy(app)
    return limiter


def here() -> str:
    """The file and line of the caller."""
    frame = inspect.stack()[1]
    return f"{frame.filename}:{frame.lineno}"


@pytest.mark.parametrize("order", ["below the route", "above the route", "below another decorator"])
def test_a_view_is_limited_whatever_the_order_of_its_decorators(tmp_path: Path, order: str) -> None:
    """Of the route, the group, and others that use functools.wraps."""
    app = Flask(__name__)
    route, group = app.get("/"), Limiter.group("calls")

    def other(view: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(view)
        def called() -> Any:
            return view()

        return called

    def view() -> str:
        return "ok"

    if order == "below the route":
        route(group(view))
    elif order == "above the route":
        group(route(view))
    else:
        route(other(group(view)))
    started(tmp_path, app)
    assert left(app, "/") == {"user": 8}


def test_a_group_of_one_route_is_not_of_another(tmp_path: Path) -> None:
    """Two routes wrap one function, and one of them names a further group."""
    app = Flask(__name__)

    @Limiter.group("calls")
    def view() -> str:
        return "ok"

    for name in ("one", "two"):
        wrapper = functools.wraps(view)(lambda: "ok")
        app.get(f"/{name}", endpoint=name)(
            Limiter.group("reads")(wrapper) if name == "one" else wrapper
        )
    started(tmp_path, app)
    assert left(app, "/one") == {"user": 8, "read": 6}
    assert left(app, "/two") == {"user": 7}


def test_a_blueprint_is_limited_with_what_is_inside(tmp_path: Path) -> None:
    """Once, also where a view and an inner blueprint name the same group."""
    app = Flask(__name__)
    outer, inner = Blueprint("outer", "outer", url_prefix="/outer"), Blueprint("inner", "inner")
    named = [Limiter.group("calls")(each) for each in (outer, inner)]
    assert named == [outer, inner]
    inner.get("/in")(Limiter.group("calls")(lambda: "ok"))
    outer.get("/out", endpoint="out")(root)
    outer.register_blueprint(inner)
    app.register_blueprint(outer)
    app.get("/", endpoint="free")(root)
    started(tmp_path, app)
    assert left(app, "/outer/in") == {"user": 8}
    assert left(app, "/outer/out") == {"user": 7}  # one bucket for the group
    assert statuses(app, "/", 10) == [200] * 10


def test_a_view_has_several_groups_beside_its_own_limits(tmp_path: Path) -> None:
    """And those of its blueprint's group."""
    app, blueprint = Flask(__name__), Limiter.group("reads")(Blueprint("chat", "chat"))
    limiter = Limiter(asked_key, storage_uri="memory://", headers_enabled=True)
    serve(blueprint, limiter.limit("5/minute", name="own"), limiter.group("calls"))
    app.config.update(policy(tmp_path, GROUPS))
    app.register_blueprint(blueprint)
    limiter.init_app(app)
    assert left(app, "/") == {"own": 4, "read": 6, "user": 8}


def test_class_views_and_their_methods_are_limited(tmp_path: Path) -> None:
    """By the list of decorators of a class, and method by method."""
    app = Flask(__name__)

    class Whole(View):
        decorators = [Limiter.group("calls")]  # noqa: RUF012 - Flask's

        def dispatch_request(self) -> str:
            return "ok"

    class Methods(MethodView):
        @Limiter.group("reads")
        def get(self) -> str:
            return "ok"

        @Limiter.group("calls")
        def post(self) -> str:
            return "ok"

    app.add_url_rule("/whole", view_func=Whole.as_view("whole"))
    app.add_url_rule("/methods", view_func=Methods.as_view("methods"))
    started(tmp_path, app)
    assert left(app, "/whole") == {"user": 8}
    assert left(app, "/methods") == {"read": 6}
    assert left(app, "/methods", method="HEAD") == {"read": 5}
    assert left(app, "/methods", method="POST") == {"user": 7}


def test_a_plan_applies_where_the_group_says_so(tmp_path: Path) -> None:
    """`plans = true` of a group holds for all that name it."""
    text = """
        [groups.calls]
        plans = true
        [plans.starter]
        limits = [{ name = "plan", limit = "9/day" }]
    """
    app = Flask(__name__)
    app.get("/")(Limiter.group("calls")(lambda: "ok"))
    app.config.update(policy(tmp_path, text))
    limiter = Limiter(asked_key, storage_uri="memory://", headers_enabled=True)
    limiter.plan_loader(lambda: "starter")
    limiter.init_app(app)
    assert left(app, "/") == {"plan": 8}


def test_an_exempt_view_is_exempt_from_its_group(tmp_path: Path) -> None:
    """What the file itself says of the view or its blueprint stays."""
    app = Flask(__name__)
    limiter = Limiter(asked_key, storage_uri="memory://", headers_enabled=True)
    text = GROUPS + '[routes.listed]\nlimits = [{ name = "file", limit = "9/hour" }]'
    for name in ("view", "listed"):
        app.get(f"/{name}", endpoint=name)(limiter.exempt(limiter.group("calls")(_view(name))))
    blueprint = limiter.group("calls")(Blueprint("bp", "bp"))
    blueprint.get("/bp")(lambda: "ok")
    limiter.exempt(blueprint, flags=ExemptionScope.DEFAULT | ExemptionScope.META)
    app.register_blueprint(blueprint)
    app.config.update(policy(tmp_path, text))
    limiter.init_app(app)
    assert statuses(app, "/view", 10) == statuses(app, "/bp", 10) == [200] * 10
    assert left(app, "/listed") == {"file": 8}


def _view(name: str) -> Callable[[], str]:
    def view() -> str:
        return name

    view.__qualname__ = name
    return view


def test_applications_of_one_process_have_their_own_amounts(tmp_path: Path) -> None:
    """A blueprint at the level of a module, and a factory with an extension and a policy of its
    own for each application: each decides by its own file and storage."""
    blueprint = Limiter.group("calls")(Blueprint("chat", "chat"))
    blueprint.get("/")(lambda: "ok")
    shared = Limiter(asked_key, storage_uri="memory://", headers_enabled=True)

    def create_app(name: str, amount: int, limiter: Limiter) -> Flask:
        app, directory = Flask(name), tmp_path / name
        directory.mkdir()
        app.register_blueprint(blueprint)
        text = f'[groups.calls]\nlimits = [{{ name = "user", limit = "{amount}/hour" }}]'
        app.config.update(policy(directory, text))
        limiter.init_app(app)
        return app

    one, other = create_app("one", 2, shared), create_app("other", 3, shared)
    third = create_app("third", 1, Limiter(client_ip, storage_uri="memory://"))
    assert statuses(one, "/", 3) == [200, 200, 429]
    assert statuses(other, "/", 4) == [200, 200, 200, 429]
    assert statuses(third, "/", 2) == [200, 429]


# -- mistakes --------------------------------------------------------------------------------------


def test_an_unknown_group_stops_the_start(tmp_path: Path) -> None:
    """With the place of the decorator and the group that was meant."""
    app = Flask(__name__)
    group, place = Limiter.group("cals"), here()
    app.get("/")(group(_view("app")))
    expected = f"{place}: there is no group 'cals' in the policy; its groups: 'calls', 'reads'. Did"
    with pytest.raises(ConfigurationError) as mistake:
        started(tmp_path, app)
    assert expected in str(mistake.value)
    assert "Did you mean 'calls'?" in str(mistake.value)


def test_an_unknown_group_of_a_method_stops_the_start(tmp_path: Path) -> None:
    """Methods of a class name groups as views do."""

    class Methods(MethodView):
        @Limiter.group("cals")
        def get(self) -> str:
            return "ok"

    app = Flask(__name__)
    app.add_url_rule("/", view_func=Methods.as_view("methods"))
    with pytest.raises(ConfigurationError, match="no group 'cals'"):
        started(tmp_path, app)


def test_an_unknown_group_is_named_beside_the_mistakes_of_the_file(tmp_path: Path) -> None:
    """One error lists all mistakes."""
    app = Flask(__name__)
    app.get("/")(Limiter.group("cals")(_view("app")))
    with pytest.raises(ConfigurationError, match="2 mistakes") as mistake:
        started(tmp_path, app, GROUPS.replace("9/hour", "9/our"))
    assert "no group 'cals'" in str(mistake.value)
    assert "groups.calls.limits[0]" in str(mistake.value)


def test_an_unknown_group_of_a_later_route_is_found_by_check_policy(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Without it, the first request logs the mistake; other limits apply."""
    app = Flask(__name__)
    app.config.update(policy(tmp_path, '[[application]]\nname = "all"\nlimit = "2/hour"'))
    limiter = Limiter(asked_key, app=app, storage_uri="memory://", headers_enabled=True)
    app.get("/")(limiter.group("calls")(_view("late")))
    with pytest.raises(ConfigurationError, match=r"no group 'calls'.*its groups: none\."):
        limiter.check_policy(app)
    assert statuses(app, "/", 3) == [200, 200, 429]
    [logged] = [each for each in caplog.messages if "no group 'calls'" in each]
    assert "all other limits apply" in logged


@pytest.mark.parametrize("config", [{}, {"RATELIMIT_ENABLED": False}], ids=["on", "off"])
def test_a_group_needs_a_policy(config: dict[str, Any]) -> None:
    """Without one the start fails, and names what to do; an application without limits starts."""
    app = Flask(__name__)
    app.config.update(config)
    app.get("/")(Limiter.group("calls")(_view("none")))
    limiter = Limiter(asked_key, storage_uri="memory://")
    if config:
        limiter.init_app(app)
        assert statuses(app, "/", 1) == [200]
        return
    with pytest.raises(
        ConfigurationError,
        match=r"the group 'calls' needs a policy, and none is configured\. Set "
        r"RATELIMIT_POLICY_FILE to a file with \[groups\.calls\], or RATELIMIT_POLICY\.",
    ):
        limiter.init_app(app)


@pytest.mark.parametrize(
    "found", [root, "a/b", "", 3], ids=["no parentheses", "sign", "empty", "3"]
)
def test_only_a_name_is_a_group(found: Any) -> None:
    """Anything else is refused where it is written."""
    with pytest.raises(ConfigurationError, match=r"limiter\.group: found .*; allowed: a name of 1"):
        Limiter.group(found)


@pytest.mark.parametrize("target", [View, 3, None], ids=["class", "number", "nothing"])
def test_only_views_and_blueprints_have_groups(target: Any) -> None:
    """As with other decorators."""
    with pytest.raises(ConfigurationError, match="allowed: a function or a blueprint"):
        Limiter.group("calls")(target)


def test_a_group_that_nothing_uses_is_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """At the start and in `ratelimit check`; one with members in the file is used."""
    app = Flask(__name__)
    app.get("/")(Limiter.group("calls")(_view("used")))
    listed = '[groups.listed]\nmembers = ["static"]\nlimits = ["9/hour"]'
    started(tmp_path, app, GROUPS + listed)
    [warning] = [each for each in caplog.messages if "nothing uses" in each]
    assert warning == (
        f"{tmp_path}/policy.toml:5: groups.reads: nothing uses this group. Write "
        '@limiter.group("reads") at a view or blueprint, or remove it.'
    )
    checked = app.test_cli_runner().invoke(args=["ratelimit", "check"])
    assert f"Warning: {warning}" in checked.output
    assert checked.exit_code == 0


# -- where a limit comes from, and where it does not apply -----------------------------------------


def test_show_says_where_each_limit_comes_from(tmp_path: Path) -> None:
    """The decorator that attaches it and the line of its amount; of a limit in code, its line."""
    app = Flask(__name__)
    limiter = Limiter(asked_key, storage_uri="memory://")
    limit, of_limit = limiter.limit("5/minute", name="own"), here()
    group, of_group = Limiter.group("calls"), here()
    app.get("/")(limit(group(_view("shown"))))
    app.config.update(policy(tmp_path, GROUPS))
    limiter.init_app(app)
    run = app.test_cli_runner()
    [shown] = json.loads(run.invoke(args=["ratelimit", "show", "--json"]).output)
    own, user = shown["limits"]
    here_ = f"{Path.cwd()}/"
    assert (own["source"], own["attached"]) == (of_limit.removeprefix(here_), None)
    assert user["source"] == f"{tmp_path}/policy.toml:4: groups.calls.limits[0]"
    assert user["attached"] == of_group.removeprefix(here_)
    table = run.invoke(args=["ratelimit", "show"]).output
    assert f"view: /  (@limiter.group at {user['attached']})" in table


def test_check_names_each_view_for_which_a_files_limit_does_not_apply(tmp_path: Path) -> None:
    """With the decorator that keeps it out, or the exemption. The others are not named."""
    app = Flask(__name__)
    text = """
        [[application]]
        name = "all"
        limit = "99/minute"
        [[default]]
        name = "usual"
        limit = "9/day"
        [[blueprints.chat.limits]]
        name = "user"
        limit = "2/minute"
    """
    app.config.update(policy(tmp_path, text))
    limiter = Limiter(asked_key, storage_uri="memory://", headers_enabled=True)
    blueprint = Blueprint("chat", "chat")
    places = {}
    for name, overrides in (("out", True), ("beside", None), ("joined", False)):
        words: dict[str, Any] = {"name": name, "override_defaults": overrides}
        limit, places[name] = limiter.limit("30/minute", **words), here()
        blueprint.get(f"/{name}", endpoint=name)(limit(_view(name)))
    blueprint.get("/plain", endpoint="plain")(_view("plain"))
    app.get("/free", endpoint="free")(limiter.exempt(_view("free")))
    app.register_blueprint(blueprint)
    limiter.init_app(app)
    limiter.check_policy(app)
    checked = app.test_cli_runner().invoke(args=["ratelimit", "check"]).output
    notes = [line for line in checked.splitlines() if line.startswith("Note: ")]
    missing = "limits of the policy do not apply because of"
    assert notes == [
        f"Note: free: /free: {missing} limiter.exempt: all, usual",
        f"Note: chat.out: /out: {missing} {places['out']}: user",
    ]
    assert left(app, "/out") == {"all": 98, "out": 29}
    assert left(app, "/beside") == {"all": 97, "beside": 29, "user": 1}
    assert statuses(app, "/plain", 3) == [200, 429, 429]  # one bucket for the blueprint


def test_a_configured_limit_stays_beside_a_decorator(tmp_path: Path) -> None:
    """30/minute in code and 2/minute in app.config for the blueprint: two calls pass."""
    app = Flask(__name__)
    app.config["RATELIMIT_BLUEPRINTS"] = {"chat": ["2/minute"]}
    limiter, blueprint = Limiter(asked_key, storage_uri="memory://"), Blueprint("chat", "chat")
    blueprint.get("/")(limiter.limit("30/minute")(_view("view")))
    app.register_blueprint(blueprint)
    limiter.init_app(app)
    assert statuses(app, "/", 4) == [200, 200, 429, 429]


def test_a_file_replaces_what_code_says_of_a_blueprint_in_words(tmp_path: Path) -> None:
    """`override_defaults = true` of a view in the file leaves out both; else they add up."""
    text = """
        [routes]
        "chat.out".limits = [{ name = "file", limit = "9/hour", override_defaults = true }]
        "chat.in".limits = [{ name = "file", limit = "9/hour" }]
        [blueprints.chat]
        limits = [{ name = "around", limit = "9/day" }]
    """
    app, blueprint = Flask(__name__), Blueprint("chat", "chat")
    limiter = Limiter(asked_key, storage_uri="memory://", headers_enabled=True)
    limiter.limit("9/second", name="code")(blueprint)
    for name in ("out", "in"):
        blueprint.get(f"/{name}", endpoint=name)(_view(name))
    app.register_blueprint(blueprint)
    app.config.update(policy(tmp_path, text))
    limiter.init_app(app)
    assert left(app, "/out") == {"file": 8}
    assert left(app, "/in") == {"file": 8, "around": 8, "code": 8}
