"""A small service with Flask-Limiter; flask_limiter_after.py is the same with ratelimit_ext."""

from __future__ import annotations

from flask import Blueprint, Flask, Response, jsonify, request
from flask_limiter import Limiter
from flask_limiter.util import get_remote_address


def current_user() -> str:
    """Who calls: a user, or else an address."""
    return request.headers.get("X-User") or get_remote_address()


limiter = Limiter(current_user, default_limits=["100/hour"], strategy="moving-window")
search = Blueprint("search", __name__)


@search.get("/search")
@limiter.limit("5/minute")
def find() -> Response:
    """Has a limit of its own."""
    return jsonify(found=[])


@search.post("/summaries")
@limiter.shared_limit("3/minute", scope="models", cost=lambda: int(request.args.get("pages", "1")))
def summarise() -> Response:
    """Shares its limit with other views of models, and costs as many as it has pages."""
    return jsonify(summary="short")


def create_app(**config: object) -> Flask:
    app = Flask(__name__)
    app.config.update(RATELIMIT_STORAGE_URI="memory://", RATELIMIT_HEADERS_ENABLED=True, **config)
    limiter.init_app(app)
    app.register_blueprint(search)

    @app.get("/")
    def home() -> str:
        """Has the default limit."""
        return "home"

    @app.get("/healthz")
    @limiter.exempt
    def healthz() -> str:
        return "ok"

    @app.errorhandler(429)
    def too_many(error: Exception) -> tuple[Response, int]:
        return jsonify(error="slow down", limit=str(getattr(error, "description", ""))), 429

    return app
