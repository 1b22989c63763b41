"""Each mistake of a program is found where it is written, at the start or at its first request.

A file in mistakes/ has small programs. The sign `#:` follows the line of the mistake, and has where
it is found and the key words of what is said: at the line itself (`code`), by `init_app` (`start`)
or `check_policy` (`check`) as an error; in the log of the start (`log`) or of a request
(`request`); or as a `warning`. No mistake makes a request fail: none is answered with 500.
A program that ends with decorators decorates a view.
"""

import gc
import logging
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import flask
import flask.views
import pytest

from ratelimit_ext import ConfigurationError, Limit, Limiter, client_ip
from tests.web.calls import statuses

HEAD = re.compile(r"^-- (.+)\n", re.MULTILINE)
SIGN = re.compile(r"  #: (\w+): (.+)$", re.MULTILINE)
DECORATORS = re.compile(r"(?:^@.+\n)+\Z", re.MULTILINE)
FILES = ("decorators", "extension", "functions")

PLAN = {"name": "plan", "limit": "9/minute", "key": "ip"}
ON_INDEX = {"routes": {"index": {"plans": True}}}
#: What programs can name besides the extension.
POLICIES: dict[str, Any] = {
    "PLANS": ON_INDEX
    | {"plans": {"free": {"default": True, "limits": [PLAN]}, "pro": {"limits": [PLAN]}}},
    "NO_DEFAULT": ON_INDEX | {"plans": {"free": {"limits": [PLAN]}}},
    "NAMED": {"default": [{"name": "calls", "limit": "1/minute", "key": "ip"}]},
    "TOKENS": {"default": [{"name": "tokens", "limit": "9/minute", "unit": "tokens", "key": "ip"}]},
}


def programs() -> Iterator[Any]:
    for name in FILES:
        file = Path(__file__).with_name("mistakes").joinpath(f"{name}.txt")
        _, *parts = HEAD.split(file.read_text())
        for label, text in zip(parts[::2], parts[1::2], strict=True):
            program = DECORATORS.sub(r'@app.get("/")\n\g<0>def view(): return "ok"', text)
            yield pytest.param(program, id=f"{name}-{label}")


def run(program: str, caplog: pytest.LogCaptureFixture) -> tuple[dict[str, str], list[int]]:
    """Where something was said, and what; and the statuses of the requests."""
    app, answers = flask.Flask("example"), list[int]()
    app.add_url_rule("/index", "index", lambda: "index")
    names: dict[str, Any] = {"app": app, "limiter": Limiter(client_ip, storage_uri="memory://")}
    names |= {
        "Limiter": Limiter,
        "Limit": Limit,
        "client_ip": client_ip,
        "flask": flask,
        "g": flask.g,
        **POLICIES,
    }
    where = "code"
    try:
        exec(program, names)  # noqa: S102 - a program of this folder
        where, limiter = "start", names["limiter"]
        if limiter not in app.extensions.get("limiter", ()):
            limiter.init_app(app)
        where = "check"
        limiter.check_policy(app)
    except (ConfigurationError, RuntimeError) as error:
        return {where: str(error)}, answers
    said = {"log": caplog.text}
    caplog.clear()
    for rule in [str(rule) for rule in app.url_map.iter_rules() if rule.endpoint != "static"]:
        answers += statuses(app, rule, 3)
    return said | {"request": caplog.text}, answers


@pytest.mark.parametrize("program", [*programs()])
def test_a_mistake(program: str, caplog: pytest.LogCaptureFixture) -> None:
    """It is said where its sign says so, with what was found and what to do."""
    caplog.set_level(logging.WARNING)
    ((where, words),) = SIGN.findall(program)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        said, answers = run(SIGN.sub("", program), caplog)
        gc.collect(1)  # what the program made is young
    said["warning"] = "\n".join(str(warning.message) for warning in warned)
    assert [word for word in words.split(" | ") if word not in said.get(where, "")] == [], said
    assert 500 not in answers


def test_there_are_many() -> None:
    """Of decorators, functions and settings."""
    assert len(list(programs())) >= 150
