"""What type checkers say of decorated views, blueprints and blocks. Nothing here is run.

mypy checks this file with the packages, pyright in test_types.py. Each ``type: ignore`` is an error
that both have to find: one that is not needed is an error itself.
"""

from __future__ import annotations

from typing import assert_type

from flask import Blueprint, Flask, Response, current_app
from flask.views import MethodView

from ratelimit_ext import ExemptionScope, Limiter, RouteLimit, client_ip

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
