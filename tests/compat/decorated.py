"""What type checkers say of decorated views, blueprints and blocks. Nothing here is run.

mypy checks this file with the packages, pyright in test_types.py. Each ``type: ignore`` is an error
that both have to find: one that is not needed is an error itself.
"""

from __future__ import annotations

from typing import assert_type

from flask import Blueprint, Flask, Response, current_app
from flask.views import MethodView

from ratelimit_ext import ExemptionScope, Limit, Limiter, RouteLimit, client_ip

app = Flask(__name__)
blueprint = Blueprint("pages", __name__)
limiter = Limiter(client_ip, app=current_app, default_limits=["100/hour"], strict=True)


@app.get("/<int:number>")
@limiter.limit("5/minute", burst=2, strategy="token-bucket")
@limiter.shared_limit("9/minute", scope="pages")
@RouteLimit("100/day", limiter=limiter)
def view(number: int, *, name: str = "") -> Response:
    return Response(f"{number} {name}")


assert_type(view(1, name="ada"), Response)
view("1")  # type: ignore[arg-type]
view(1, nam="ada")  # type: ignore[call-arg]
view()  # type: ignore[call-arg]


@limiter.limit("5/minute")
async def asynchronous(number: int) -> str:
    return str(number)


async def awaited() -> None:
    assert_type(await asynchronous(1), str)
    await asynchronous("1")  # type: ignore[arg-type]


@limiter.exempt
def exempt(number: int) -> str:
    return str(number)


@limiter.exempt(flags=ExemptionScope.DEFAULT)
def exempt_from_defaults(number: int) -> str:
    return str(number)


assert_type(exempt(1), str)
assert_type(exempt_from_defaults(1), str)
exempt("1")  # type: ignore[arg-type]
exempt_from_defaults("1")  # type: ignore[arg-type]


class Pages(MethodView):
    decorators = [limiter.limit("5/minute")]  # noqa: RUF012 - as Flask writes it

    @limiter.limit("2/minute")
    def get(self, number: int) -> str:
        return str(number)


assert_type(Pages().get(1), str)
Pages().get("1")  # type: ignore[arg-type]

limiter.limit("5/minute")(blueprint)
assert_type(limiter.exempt(blueprint), Blueprint)
assert_type(limiter.exempt(flags=ExemptionScope.APPLICATION)(blueprint), Blueprint)
limiter.limit("5/minute")("pages")  # type: ignore[call-overload]
limiter.limit("5/minute", brust=3)  # type: ignore[call-arg]

with limiter.limit("1/second"):
    view(1)

# A misspelt keyword or value is an error of that keyword.
limiter.limit("5/minute", strategy="token-buket")  # type: ignore[arg-type]
limiter.limit("5/minute", mode="shadwo")  # type: ignore[arg-type]
limiter.limit("5/minute", on_failure="opne")  # type: ignore[arg-type]
limiter.limit("5/day", anchor="weak")  # type: ignore[arg-type]
limiter.shared_limit("5/minute", scope="pages", unit="token")  # type: ignore[arg-type]
limiter.estimator("token")  # type: ignore[arg-type]
Limit("5/minute", strategy="token-buket")  # type: ignore[arg-type]
Limiter(client_ip, strategy="token-buket")  # type: ignore[arg-type]
Limiter(client_ip, stratgy="token-bucket")  # type: ignore[call-arg]
