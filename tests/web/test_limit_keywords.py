"""Keywords of limits that are the application's own: `limiter.limit_keyword`."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from flask import Blueprint, Flask, request

from ratelimit_ext import ConfigurationError, Limiter, Policy
from tests.web.conftest import asked_key

POLICY = """version = 1

[blueprints.{blueprint}]
[[blueprints.{blueprint}.limits]]
name = "few"
limit = "1/minute"
areas = ["eu"]

[[blueprints.{blueprint}.limits]]
name = "many"
limit = "9/minute"
"""


def areas(value: object) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise ValueError(f"found {value!r}; allowed: a list of areas.")  # noqa: TRY004 - a policy's
    return tuple(value)


def applies(found: Any, who: Mapping[str, str] | None) -> bool:
    area = request.headers.get("X-Area", "") if who is None else who.get("area", "")
    return area in found


def site(tmp_path: Path, *changes: tuple[str, str]) -> tuple[Flask, Limiter]:
    text = POLICY.format(blueprint="shop")
    for before, after in changes:
        assert before in text
        text = text.replace(before, after)
    file = tmp_path / "policy.toml"
    file.write_text(text)
    app = Flask("example")
    app.config["RATELIMIT_POLICY_FILE"] = str(file)
    limiter = Limiter(asked_key, storage_uri="memory://", headers_enabled=True)
    limiter.limit_keyword("areas", applies=applies)(areas)
    limiter.limit_keyword("note")(str)

    @limiter.policy_rules
    def rules(policy: Policy) -> Iterator[tuple[Any, str]]:
        for limit in policy.all_limits():
            if limit.place is not None and dict(limit.keywords).get("note") == "no":
                yield limit.place.at("note"), "is no note."

    shop = Blueprint("shop", "shop")
    shop.add_url_rule("/", "view", lambda: "ok")
    app.register_blueprint(shop)
    limiter.init_app(app)
    return app, limiter


def test_a_limit_applies_where_its_keyword_says(tmp_path: Path) -> None:
    """Elsewhere it neither counts nor appears in a header."""
    app, _ = site(tmp_path)
    answers = [
        app.test_client().get("/", headers={"X-Area": area}) for area in ("us", "eu", "us", "eu")
    ]
    assert [each.status_code for each in answers] == [200, 200, 200, 429]
    assert ['"few"' in each.headers["RateLimit-Policy"] for each in answers] == [
        *(False, True, False, True)
    ]


def test_a_request_reads_the_keywords_of_its_limits(tmp_path: Path) -> None:
    """As the application has returned them; another keyword changes nothing by itself."""
    app, limiter = site(tmp_path, ('areas = ["eu"]', 'areas = ["eu"]\nnote = "x"'))
    with app.test_request_context("/", headers={"X-Area": "eu"}):
        shown = limiter.current.peek("shop.view")
    assert [each.keywords for each in shown] == [{"areas": ("eu",), "note": "x"}, {}]


@pytest.mark.parametrize(("visited", "left"), [(["us"], 9), (["us", "eu"], 5)])
def test_another_attempt_holds_what_applies_to_it(
    tmp_path: Path, visited: list[str], left: int
) -> None:
    """A limit that does not apply to it gives back what it held, and is charged again by a third
    one to which it applies."""
    tokens = 'limit = "9/minute"\nunit = "tokens"\ncost = 4'
    app, limiter = site(tmp_path, ('limit = "1/minute"', tokens))

    def view() -> str:
        for area in visited:
            request.environ["HTTP_X_AREA"] = area
            assert limiter.current.admit_again() is None
        return "ok"

    app.view_functions["shop.view"] = view
    app.test_client().get("/", headers={"X-Area": "eu"}).close()
    with app.test_request_context("/", headers={"X-Area": "eu"}):
        few = limiter.current.peek("shop.view")[0]
    assert (few.verdict.charge.limit.name, few.verdict.remaining) == ("few", left)


@pytest.mark.parametrize(
    ("before", "after", "sentence"),
    [
        ('["eu"]', '"eu"', "limits[0].areas: found 'eu'; allowed: a list of areas."),
        ("areas", "area", "Did you mean 'areas'?"),
        ('areas = ["eu"]', 'note = "no"', "limits[0].note: is no note."),
    ],
)
def test_a_mistake_has_its_line(tmp_path: Path, before: str, after: str, sentence: str) -> None:
    """Also one that only the application can find."""
    with pytest.raises(ConfigurationError) as caught:
        site(tmp_path, (before, after))
    assert "policy.toml:7: " in str(caught.value)
    assert sentence in str(caught.value)


def test_it_is_a_keyword_of_every_limit_of_a_policy(tmp_path: Path) -> None:
    """Of the application, of routes and of plans, too."""
    more = (
        '[[application]]\nlimit = "1/day"\nareas = ["eu"]\n\n[routes."shop.view"]\n'
        'limits = [{ limit = "8/minute", areas = ["us"] }]\n\n[[blueprints'
    )
    app, _ = site(
        tmp_path,
        ('[[blueprints.shop.limits]]\nname = "many"', more + '.shop.limits]]\nname = "many"'),
    )
    client = app.test_client()
    first = client.get("/", headers={"X-Area": "us"}).headers["RateLimit-Policy"]
    assert "q=8" in first
    assert [client.get("/", headers={"X-Area": "eu"}).status_code for _ in range(2)] == [200, 429]
