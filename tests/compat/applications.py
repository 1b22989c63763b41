"""Plays one sequence of requests to an application of others, and prints its answers.

``test_applications.py`` runs this file in an environment of that application, once with
Flask-Limiter and once with the import changed: ``python applications.py stock|swapped NAME``. A
function below starts an application, unchanged, and says what is asked of it.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

import flask_limiter
from flask import Blueprint, Flask, g, jsonify, make_response, request
from flask.testing import FlaskClient
from flask.views import MethodView
from flask_limiter import ExemptionScope
from flask_limiter.errors import RateLimitExceeded
from flask_limiter.util import get_remote_address
from werkzeug.middleware.proxy_fix import ProxyFix

BROWSER = {"Accept": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"}
#: The time, which stands still during a request.
NOW = [float(os.environ.get("STARTED", time.time()))]
ANSWERS: list[dict[str, Any]] = []
#: What was raised because of a limit; an application may answer it with any status.
REFUSALS: list[BaseException] = []


class Visitor(FlaskClient):
    """A client that notes each answer; a second passes after it."""

    def open(self, *args: Any, **kwargs: Any) -> Any:
        answer = super().open(*args, **kwargs)
        ANSWERS.append(
            {
                "asked": f"{answer.request.method} {answer.request.path}",
                "accepts": answer.request.headers.get("Accept", ""),
                "status": answer.status_code,
                "headers": sorted(answer.headers.items()),
                "body": answer.get_data().decode(errors="replace"),
                "refusals": len(REFUSALS),
            }
        )
        REFUSALS.clear()
        wait(1)
        return answer


def wait(seconds: float) -> None:
    """Let time pass."""
    NOW[0] += seconds


def visit(app: Flask, accept: dict[str, str] | None = None) -> FlaskClient:
    """A visitor of ``app`` with a browser, or with these headers."""
    app.test_client_class = Visitor
    client = app.test_client()
    for name, value in (BROWSER if accept is None else accept).items():
        client.environ_base[f"HTTP_{name.upper().replace('-', '_')}"] = value
    return client


def ihatemoney() -> None:
    """A proxy that is bound to no application, ``current_limit``, answers of ``on_breach``."""
    from ihatemoney.run import create_app, db
    from werkzeug.security import generate_password_hash

    class Settings:
        SQLALCHEMY_DATABASE_URI = "sqlite://"
        ADMIN_PASSWORD = generate_password_hash("right", "pbkdf2:sha256:10")
        WTF_CSRF_ENABLED = False
        SESSION_COOKIE_SECURE = False

    app = create_app(Settings)
    with app.app_context():
        db.create_all()
    client = visit(app)
    for password in ("wrong", "wrong", "right", "wrong", "right"):
        client.post("/admin?goto=%2Fcreate", data={"admin_password": password})
    client.get("/admin")
    wait(60)
    client.post("/admin?goto=%2Fcreate", data={"admin_password": "wrong"})
    for _ in range(5):
        client.post("/authenticate", data={"id": "stranger", "password": "wrong"})
    client.get("/")


def lemur() -> None:
    """An extension that is never initialised, on a method of flask-restful."""
    from flask_restful import Api
    from lemur.auth import views

    app = Flask("lemur")
    app.config["LDAP_AUTH"] = False
    app.register_blueprint(views.mod)
    assert isinstance(views.api, Api)
    views.user_service = _NoUsers()
    client = visit(app, {"Accept": "application/json"})
    for _ in range(12):
        client.post("/auth/login", json={"username": "test", "password": "wrong"})
    client.post("/auth/login", json={"username": "test"})


class _NoUsers:
    """Lemur's users, who need PostgreSQL: there are none."""

    @staticmethod
    def get_by_username(_: str) -> None:
        return None


def invenio_app() -> None:
    """A proxy for the function of keys, a dynamic application limit, endpoints with their own."""
    from invenio_app.ext import InvenioApp, limiter

    app = Flask("invenio_app")
    app.config.update(
        SECRET_KEY="secret",
        APP_ENABLE_SECURE_HEADERS=True,
        APP_HEALTH_BLUEPRINT_ENABLED=True,
        APP_ALLOWED_HOSTS=["localhost"],
        RATELIMIT_GUEST_USER="5 per hour;3 per minute",
        RATELIMIT_PER_ENDPOINT={"custom": "2 per minute"},
    )
    InvenioApp(app)

    @app.route("/unlimited")
    @limiter.exempt
    def unlimited() -> str:
        return "unlimited"

    @app.route("/normal")
    def normal() -> str:
        return "normal"

    @app.route("/custom", endpoint="custom")
    def custom() -> str:
        return "custom"

    with app.app_context():  # as its documentation says

        @app.route("/own")
        @limiter.limit("1/day")
        def own() -> str:
            return "own"

    client = visit(app, {**BROWSER, "X-Forwarded-Proto": "https"})
    for path in ("/ping", "/normal", "/normal", "/normal", "/normal", "/unlimited"):
        client.get(path, base_url="https://localhost")
    wait(60)
    for path in ("/custom", "/custom", "/custom", "/own", "/own", "/missing"):
        client.get(path, base_url="https://localhost", headers={"User-Agent": "another"})


def calibreweb() -> None:
    """``key_func=True``, two limits on a log-in that a good one clears, a handler of its own."""
    sys.argv = ["cps", "-p", str(Path.cwd() / "app.db"), "-g", str(Path.cwd() / "gdrive.db")]
    import calibreweb  # noqa: F401 - it puts its folder on the path
    from cps import main, web_server

    started: list[Flask] = []

    def start() -> bool:
        started.append(sys.modules["cps"].app)
        return True

    web_server.start = start
    try:
        main.main()
    except SystemExit as stop:
        assert stop.code == 0  # noqa: PT017 - what the application's main does at the end
    [app] = started
    app.config["WTF_CSRF_ENABLED"] = False
    client = visit(app)
    client.get("/login")
    for password in ("wrong", "wrong", "wrong", "wrong", "admin123"):
        client.post("/login", data={"username": "admin", "password": password})
    wait(60)
    for password in ("wrong", "wrong", "admin123"):
        client.post("/login", data={"username": "admin", "password": password})
    client.get("/logout")
    for password in ("wrong", "wrong", "wrong", "wrong"):
        client.post("/login", data={"username": "admin", "password": password})
    for _ in range(5):
        client.post("/register", data={"name": "x"})
    for _ in range(5):
        client.get("/opds", auth=("admin", "wrong"))
    wait(60)
    client.get("/opds", auth=("admin", "admin123"))


def flask_appbuilder() -> None:
    """Limits that the framework declares on a blueprint, and those of an application's own API."""
    from flask_appbuilder import AppBuilder
    from flask_appbuilder.api import BaseApi, expose
    from flask_appbuilder.security.decorators import limit
    from flask_appbuilder.utils.legacy import get_sqla_class

    app = Flask("flask_appbuilder")
    app.config.update(
        SECRET_KEY="secret",
        SQLALCHEMY_DATABASE_URI="sqlite://",
        WTF_CSRF_ENABLED=False,
        RATELIMIT_ENABLED=True,
        RATELIMIT_HEADERS_ENABLED=True,
        AUTH_RATE_LIMITED=True,
        AUTH_RATE_LIMIT="3 per 20 second",
    )

    class Twice(BaseApi):
        @expose("/twice")
        @limit("2 per 5 second")
        def twice(self) -> Any:
            return self.response(200, message="OK")

    class Breach(BaseApi):
        @expose("/breach")
        @limit("1/minute", on_breach=lambda _: make_response("slower", 420))
        def breach(self) -> Any:
            return self.response(200, message="OK")

    with app.app_context():
        database = get_sqla_class()(app)
        builder = AppBuilder(app, database.session)
        role = builder.sm.find_role(builder.sm.auth_role_admin)
        builder.sm.add_user("admin", "a", "b", "a@example.com", role, "password")
        builder.add_api(Twice)
        builder.add_api(Breach)
    client = visit(app)
    for password in ("wrong", "wrong", "wrong", "wrong", "password"):
        client.post("/login/", data={"username": "admin", "password": password})
    wait(20)
    client.post("/login/", data={"username": "admin", "password": "password"})
    api = visit(app, {"Accept": "application/json"})
    for name in ("twice", "twice", "twice", "breach", "breach", "missing"):
        api.get(f"/api/v1/{name}/{name}")
    wait(5)
    api.get("/api/v1/twice/twice")


def fittrackee() -> None:
    """Default limits per method, on a Redis server, exemptions, the description in a handler."""
    os.environ.update(
        APP_SECRET_KEY="secret",
        UI_URL="https://localhost",
        DATABASE_URL="sqlite://",
        APP_SETTINGS="fittrackee.config.DevelopmentConfig",
        API_RATE_LIMITS="5 per minute,100 per hour",
    )
    import fittrackee

    client = visit(fittrackee.create_app(init_email=False), {"Accept": "application/json"})
    for path in ("/api/ping", "/favicon.ico", *["/api/auth/profile"] * 7, "/api/missing"):
        client.get(path)
    for _ in range(2):
        client.post("/api/auth/login", json={})
        client.get("/api/auth/login")


def flaskbb() -> None:
    """A dynamic limit of a blueprint with a function as its message."""
    _defer_annotations("flaskbb")
    from flaskbb import create_app
    from flaskbb.configs.testing import TestingConfig
    from flaskbb.extensions import db
    from flaskbb.utils.populate import create_default_groups, create_default_settings

    app = create_app(TestingConfig)
    app.config.update(TESTING=False, WTF_CSRF_ENABLED=False)
    with app.app_context():
        db.create_all()
        create_default_groups()
        create_default_settings()
    client = visit(app)
    client.get("/", base_url="http://localhost:5000")
    for _ in range(22):
        client.post(
            "/auth/login",
            data={"login": "stranger", "password": "wrong"},
            base_url="http://localhost:5000",
        )


def _defer_annotations(package: str) -> None:
    """Read a package as Python 3.14 does: nothing evaluates its annotations."""

    def compiled(_: Any, source: bytes, path: str, *, _optimize: int = -1) -> CodeType:
        flags = annotations.compiler_flag if f"/{package}/" in path else 0
        return compile(source, path, "exec", flags, dont_inherit=True, optimize=_optimize)

    SourceFileLoader.source_to_code = compiled


def libretranslate() -> None:
    """Costs that are known after the view, dynamic limits beyond 10^12, moving windows."""
    _stand_in_for_models()
    from libretranslate.main import get_args

    sys.argv = ["libretranslate", "--req-limit", "6", "--hourly-req-limit", "30", "--api-keys"]
    from libretranslate.app import create_app

    app = create_app(get_args())
    client = visit(app, {"Accept": "application/json"})
    client.get("/languages")
    for text in ("one", "two", ["a", "b", "c"], "four", "five"):
        client.post("/translate", json={"q": text, "source": "en", "target": "es"})
    client.post("/translate", data={"q": "form", "source": "en", "target": "es"})
    client.post("/translate", json={"q": "x", "source": "en"})
    client.post("/detect", json={"q": "hello there"})
    wait(60)
    client.post("/translate", json={"q": ["a"] * 6, "source": "en", "target": "es"})
    client.post("/translate", json={"q": "one", "source": "en", "target": "es"})
    client.get("/frontend/settings")
    sys.argv = ["libretranslate", "--hourly-req-limit", "3", "--api-keys"]
    client = visit(create_app(get_args()), {"Accept": "application/json"})
    for _ in range(4):
        client.post("/translate", json={"q": "one", "source": "en", "target": "es"})
    client.post("/detect", json={"q": "hello there"})


def _stand_in_for_models() -> None:
    """Put a translator of one word into the place of models of several gigabytes."""

    class Translation:
        def __init__(self, to: Any) -> None:
            self.to_lang = to

        def hypotheses(self, text: str, number: int = 1) -> list[Any]:
            return [type("Hypothesis", (), {"value": f"<{text}>", "score": 0.0})] * number

        def translate(self, text: str) -> str:
            return f"<{text}>"

    class Language:
        def __init__(self, code: str) -> None:
            self.code = self.name = code
            self.translations_from: list[Translation] = []

        def get_translation(self, to: Any) -> Translation:
            return Translation(to)

    languages = [Language("en"), Language("es")]
    for language in languages:
        language.translations_from = [Translation(other) for other in languages]
    members = {
        "argostranslate": {},
        "argostranslate.package": {"get_installed_packages": lambda: languages},
        "argostranslate.translate": {
            "get_installed_languages": lambda: languages,
            "ITranslation": Translation,
        },
        "argostranslate.tags": {"Tag": object, "ITag": object, "translate_tags": None},
        "minisbd": {"download_models": None},
        "lexilang": {},
        "lexilang.detector": {"detect": lambda *_: ("en", 1.0)},
    }
    for name, content in members.items():
        module = sys.modules[name] = ModuleType(name)
        vars(module).update(content)
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], child, module)


def examples() -> None:
    """The two applications in Flask-Limiter's sdist."""
    sys.path.insert(0, str(Path(os.environ["SDIST"]) / "examples"))
    import kitchensink
    import sample

    client = visit(sample.app)
    for path in ("slow", "slow", "medium", "medium", "fast", "ping", "missing"):
        client.get(f"/{path}")
    client = visit(kitchensink.app())
    for path in (*["/"] * 12, "/version", "/health/", "/missing", *["/resource"] * 2):
        client.get(path)
    wait(24 * 3600)
    client = visit(kitchensink.app(), {"X-Evil": "yes"})
    for method in ("GET",) * 7 + ("POST",) * 7:
        NOW[0] -= 1  # 5/second per method
        client.open("/resource", method=method)


def _recipe(paths: list[str], settings: dict[str, Any], **views: Any) -> FlaskClient:
    """Request ``paths`` of an application with these views, and headers that it sets itself."""
    app = Flask("recipe")
    limiter = flask_limiter.Limiter(**{"key_func": get_remote_address, "app": app, **settings})
    for path, decorated in views.items():
        app.add_url_rule(f"/{path}", path, decorated(limiter)(_view(path)))
    app.wsgi_app = ProxyFix(app.wsgi_app, x_for=1)

    @app.after_request
    def add_headers(response: Any) -> Any:
        if current := limiter.current_limit:
            response.headers["RemainingLimit"] = current.remaining
            response.headers["ResetAt"] = current.reset_at
            response.headers["MaxRequests"] = current.limit.amount
            response.headers["WindowSize"] = current.limit.get_expiry()
            response.headers["Breached"] = current.breached
        return response

    client = visit(app)
    for path in paths:
        client.get(f"/{path}")
    return client


def _view(name: str) -> Callable[[], str]:
    def view() -> str:
        return name

    view.__name__ = name
    return view


def recipes() -> None:
    """The recipes of Flask-Limiter's documentation."""
    # Functions of keys, responses of the extension's and of a limit's own on_breach.
    user = {"key_func": lambda: request.headers.get("X-Forwarded-For", "me")}
    client = _recipe(
        ["a", "a", "b", "b"],
        {**user, "on_breach": lambda limit: make_response(f"no more: {limit.limit}", 429)},
        a=lambda limits: limits.limit("1 per day"),
        b=lambda limits: limits.limit(
            "1/minute", on_breach=lambda limit: jsonify(error=str(limit.limit))
        ),
    )
    client.get("/a", headers={"X-Forwarded-For": "another"})
    # Meta limits.
    client = _recipe(
        ["fast", "slow", "slow"],
        {"meta_limits": ["2/hour", "4/day"], "default_limits": ["10/minute"]},
        fast=lambda _: lambda view: view,
        slow=lambda limits: limits.limit("1/minute"),
    )
    for _ in range(2):
        wait(60)
        for path in ("slow", "slow", "fast"):
            client.get(f"/{path}")
    # A cost of its own, a deduction after the response, messages.
    _recipe(
        ["cost"] * 3 + ["free"] * 4 + ["text"] * 2 + ["function"] * 2,
        {},
        cost=lambda limits: limits.limit("4/hour", cost=lambda: 2),
        free=lambda limits: limits.limit("2/hour", deduct_when=lambda r: r.status_code != 200),
        text=lambda limits: limits.limit("1/minute", error_message="chill!"),
        function=lambda limits: limits.limit("1/minute", error_message=lambda: "slower"),
    )


def blueprints() -> None:
    """Those of class-based views, blueprints and nested ones."""
    app = Flask("blueprints")
    limiter = flask_limiter.Limiter(
        get_remote_address, app=app, default_limits=["1/minute"], application_limits=["100/day"]
    )

    class View(MethodView):
        decorators = [limiter.limit("2/minute", per_method=True)]  # noqa: RUF012 - as written there

        def get(self) -> str:
            return "get"

        def put(self) -> str:
            return "put"

    app.add_url_rule("/class", view_func=View.as_view("class"))
    names = ("login", "regular", "doc", "parent", "child", "grandchild", "health")
    prints = {name: Blueprint(name, name, url_prefix=f"/{name}") for name in names}
    for name, blueprint in prints.items():
        blueprint.add_url_rule("/", name, _view(name))
    prints["parent"].register_blueprint(prints["child"])
    prints["child"].register_blueprint(prints["grandchild"])
    prints["grandchild"].register_blueprint(prints["health"])
    limiter.limit("3/hour")(prints["login"])
    limiter.exempt(prints["doc"])
    # Of two exhausted limits Flask-Limiter names the one of the shorter period. With equal periods
    # the order of a set of blueprints, and so the hash seed, would decide.
    limiter.limit("4/hour")(prints["parent"])
    limiter.limit("2/minute", override_defaults=False)(prints["child"])
    limiter.limit("3/minute")(prints["grandchild"])
    scopes = ExemptionScope.DEFAULT | ExemptionScope.APPLICATION | ExemptionScope.ANCESTORS
    limiter.exempt(prints["health"], flags=scopes)
    for name in ("login", "regular", "doc", "parent"):
        app.register_blueprint(prints[name])
    client = visit(app)
    for method in ("GET", "GET", "PUT", "GET", "PUT", "PUT"):
        client.open("/class", method=method)
    nested = ("parent", "parent/child", "parent/child/grandchild")
    for path in ("login", "regular", "doc", *nested, "parent/child/grandchild/health"):
        for _ in range(5):
            client.get(f"/{path}/")


def redash() -> None:
    """Redash's way: decorators of a resource, before ``init_app``; a switch."""
    from flask_restful import Api, Resource

    limiter = flask_limiter.Limiter(key_func=get_remote_address, storage_uri="memory://")

    class Invitations(Resource):
        decorators = [limiter.limit("4/day;2/hour", methods=["POST"])]  # noqa: RUF012

        def get(self) -> str:
            return "get"

        def post(self) -> str:
            return "post"

    app = Flask("redash")
    limiter.init_app(app)
    Api(app).add_resource(Invitations, "/invitations")
    client = visit(app)
    for method in ("POST", "POST", "POST", "GET"):
        client.open("/invitations", method=method)
    limiter.enabled = False
    client.post("/invitations")
    limiter.enabled = True
    client.post("/invitations")


def simplelogin() -> None:
    """SimpleLogin's way: what a view left in ``g`` decides; a filter that a setting switches."""

    def caller() -> str:
        return f"userid:{request.args['user']}" if "user" in request.args else "ip:1"

    limiter = flask_limiter.Limiter(key_func=caller)
    app = Flask("simplelogin")

    @limiter.request_filter
    def is_off() -> bool:
        return bool(app.config.get("DISABLE_RATE_LIMIT"))

    @app.route("/login", methods=["GET", "POST"])
    @limiter.limit("3/minute", deduct_when=lambda _: hasattr(g, "deduct_limit") and g.deduct_limit)
    def login() -> str:
        if request.args.get("password") != "right":
            g.deduct_limit = True
        return "form"

    limiter.init_app(app)
    client = visit(app)
    for password in ("right",) * 5 + ("wrong",) * 4 + ("right",):
        client.post(f"/login?password={password}")
    client.post("/login?user=7")
    app.config["DISABLE_RATE_LIMIT"] = True
    client.post("/login?password=right")


def ai_horde() -> None:
    """The AI Horde's way: three dynamic limits of one view, each with its own key; headers."""
    from flask_restful import Api, Resource

    limiter = flask_limiter.Limiter(
        key_func=get_remote_address, default_limits=["90 per minute"], headers_enabled=True
    )
    app = Flask("horde")
    app.config["RATELIMIT_STRATEGY"] = "fixed-window"

    def path() -> str:
        return f"{request.remote_addr}@{request.method}@{request.path}"

    class Generate(Resource):
        decorators = [  # noqa: RUF012
            limiter.limit(limit_value=lambda: "4/minute", key_func=path),
            limiter.limit(limit_value=lambda: "2/second", key_func=path),
            limiter.limit(
                limit_value=lambda: "20/second" if request.headers.get("apikey") else "2/second",
                key_func=lambda: request.headers.get("apikey", "0000000000"),
            ),
        ]

        def post(self) -> tuple[dict[str, str], int]:
            return {"id": "1"}, 202

    Api(app).add_resource(Generate, "/generate")
    limiter.init_app(app)
    client = visit(app, {"Accept": "application/json"})
    for _ in range(6):
        client.post("/generate", headers={"apikey": "me"})


def token_place() -> None:
    """token.place's way: a handler of the error's class, a shared limit put on finished views."""
    app = Flask("token.place")
    limiter = flask_limiter.Limiter(
        get_remote_address,
        app=app,
        default_limits=["5/hour", "1000/day"],
        default_limits_exempt_when=lambda: request.path == "/health",
    )

    @app.errorhandler(RateLimitExceeded)
    def limited(error: RateLimitExceeded) -> Any:
        wait_s = error.limit.limit.get_expiry() if error.limit else 0
        return jsonify(limit=str(error.description), wait=wait_s), error.code

    for name in ("chat", "chat2", "health"):
        app.add_url_rule(f"/{name}", name, lambda: "ok", methods=["GET", "POST"])
    shared = limiter.shared_limit(
        "2/minute",
        scope="stream",
        methods=["POST"],
        per_method=True,
        exempt_when=lambda: not (request.get_json(silent=True) or {}).get("stream"),
        override_defaults=False,
    )
    for name in ("chat", "chat2"):
        app.view_functions[name] = shared(app.view_functions[name])
    client = visit(app, {"Accept": "application/json"})
    for name, stream in (("chat", True), ("chat2", True), ("chat", True), ("chat2", False)):
        client.post(f"/{name}", json={"stream": stream})
    for name in ("chat", "chat", "chat", "chat2", "health"):
        client.get(f"/{name}")


def _count_refusals() -> None:
    initialise = RateLimitExceeded.__init__

    def counted(error: RateLimitExceeded, *args: Any, **kwargs: Any) -> None:
        REFUSALS.append(error)
        initialise(error, *args, **kwargs)

    RateLimitExceeded.__init__ = counted


def main(limiter: str, *names: str) -> None:
    """Play applications with one of the two limiters; their answers end standard output."""
    if limiter == "swapped":
        import ratelimit_ext

        flask_limiter.Limiter = ratelimit_ext.Limiter
    _count_refusals()
    time.time = lambda: NOW[0]
    for name in names:
        globals()[name]()
    sys.stdout.write(f"\nANSWERS {json.dumps(ANSWERS)}\n")
    sys.stdout.flush()
    os._exit(0)  # threads of an application may go on


if __name__ == "__main__":
    main(*sys.argv[1:])
