"""`keep` and `priority`: a part of a limit is kept for a class of traffic."""

from pathlib import Path
from typing import Any

import pytest
from flask import Flask, request

from ratelimit_ext import ConfigurationError, DecisionEvent, Event, Limiter
from ratelimit_ext.core.limit import LimitOptions
from ratelimit_ext.metrics import prometheus
from ratelimit_ext.operators import explained
from ratelimit_ext.web.declarations.limits_adapter import items_of, limit_of
from tests import servers
from tests.web.calls import statuses
from tests.web.conftest import Maker

KEEP = {"interactive": 4, "normal": 2}


def asked_class() -> str:
    return request.headers.get("X-Class", "")


def everyone() -> str:
    return "everyone"


def limited(app: Flask, limiter: Limiter, **more: Any) -> None:
    """A view for 10 calls a minute of all callers together."""
    words: dict[str, Any] = {"strategy": "token-bucket", "name": "model", "key_func": everyone}
    words |= {"keep": KEEP, "priority": asked_class, **more}
    app.add_url_rule("/", "view", limiter.limit("10/minute", **words)(lambda: "ok"))


def admitted(app: Flask, name: str) -> int:
    """How many of twelve calls of this class pass."""
    return statuses(app, "/", 12, headers={"X-Class": name}).count(200)


@pytest.mark.parametrize("strategy", ["token-bucket", "sliding-window", "fixed-window"])
def test_each_class_leaves_what_is_kept(make: Maker, uri: str, strategy: str) -> None:
    """A class that is not listed comes last. A denial of one class is not repeated to another."""
    app, limiter = make(storage_uri=uri)
    limited(app, limiter, strategy=strategy)
    assert [admitted(app, name) for name in ("bulk", "", "normal", "interactive")] == [4, 0, 2, 4]


def test_the_refusal_says_for_whom(make: Maker) -> None:
    """The wait is that of the class; the policy in the header is the limit's."""
    app, limiter = make(headers_enabled=True)
    limited(app, limiter)
    admitted(app, "bulk")
    refused = app.test_client().get("/", headers={"X-Class": "normal"})
    assert refused.status_code == 200
    refused = app.test_client().get("/", headers={"X-Class": "bulk"})
    assert refused.json is not None
    assert refused.json["kept_for"] == ["interactive", "normal"]
    assert "Part of it is kept for interactive and normal. Try again in" in refused.json["error"]
    assert refused.headers["RateLimit-Policy"] == '"model";q=10;w=60'
    assert refused.headers["RateLimit"].startswith('"model";r=0;')
    admitted(app, "interactive")
    last = app.test_client().get("/", headers={"X-Class": "interactive"})
    assert last.json is not None
    assert "kept_for" not in last.json


def test_a_request_too_large_for_its_class(make: Maker) -> None:
    """Waiting cannot help, as it would for a higher class."""
    app, limiter = make()
    limited(app, limiter, cost=lambda: 5)
    answers = [
        app.test_client().get("/", headers={"X-Class": name}) for name in ("bulk", "interactive")
    ]
    assert [answer.status_code for answer in answers] == [400, 200]
    assert "more than 4 at once. Part of it is kept for" in answers[0].text


def test_one_question_a_request(make: Maker) -> None:
    """Several limits may have the same function."""
    asked: list[str] = []

    def counted() -> str:
        asked.append("")
        return "bulk"

    app, limiter = make()
    view = limiter.limit("10/minute", name="a", keep=KEEP, priority=counted)(lambda: "ok")
    view = limiter.limit("100/hour", name="b", keep=KEEP, priority=counted)(view)
    app.add_url_rule("/", "view", view)
    assert statuses(app, "/") == [200]
    assert len(asked) == 1


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (
            "interactve",
            "'interactve'; allowed: 'interactive', 'normal'. Did you mean 'interactive'?",
        ),
        (None, "'None'; allowed: 'interactive', 'normal'."),
        (5, "'5'; allowed: 'interactive', 'normal'."),
        ("", ""),
        ("normal", ""),
    ],
)
def test_a_class_that_is_not_declared(
    make: Maker, caplog: pytest.LogCaptureFixture, asked: Any, said: str
) -> None:
    """It is the lowest, and the log says so once. Empty is the class of callers without one."""
    app, limiter = make()
    limited(app, limiter, priority=lambda: asked)
    statuses(app, "/", 2)
    with app.app_context(), limiter.charge("model", "everyone", priority=str(asked)):
        pass
    assert caplog.text.count(f"Limit model: unknown class {said}") == bool(said)
    assert caplog.text.count("unknown class") == bool(said)


def test_a_class_that_is_kept_nothing(make: Maker, caplog: pytest.LogCaptureFixture) -> None:
    """0 declares it, at its place in the order. No refusal names it."""
    app, limiter = make()
    limited(app, limiter, keep={"interactive": 4, "batch": 0, "spare": 2, "free": 0})
    assert [admitted(app, name) for name in ("free", "batch", "interactive")] == [4, 2, 4]
    for name, left in (("free", ["interactive", "spare"]), ("batch", ["interactive"])):
        refused = app.test_client().get("/", headers={"X-Class": name}).json
        assert refused is not None
        assert refused["kept_for"] == left
    assert "unknown class" not in caplog.text


@pytest.mark.parametrize("limits", ["", '{ name = "plan", limit = "5/day" }'])
def test_the_class_of_a_plan(tmp_path: Path, limits: str) -> None:
    """The plan's keyword that is named as the identity: a mistake in the file, with its line. A
    plan needs no limits to have a class."""
    app, limiter = with_policy(tmp_path)
    limiter.identity("class")(asked_class)
    limiter.plan_keyword("class")(str)
    limiter.plan_keyword("models")(str)
    limiter.plan_loader(lambda: "free")
    plan = f"""
plans = true
[plans.free]
class = "interactve"
models = "all"
limits = [{limits}]
"""
    Path(app.config["RATELIMIT_POLICY_FILE"]).write_text(f"{POLICY}\n[routes.view]{plan}")
    with pytest.raises(
        ConfigurationError,
        match=r"plans.free.class: unknown class 'interactve'; .* mean 'interactive'\? Or add",
    ):
        limiter.init_app(app)


def test_classes_that_clients_invent_take_no_room(
    make: Maker, caplog: pytest.LogCaptureFixture
) -> None:
    """All of them are the lowest class. They neither fill the log nor control a terminal."""
    app, limiter = make()
    limited(app, limiter)
    for number in range(3):
        statuses(app, "/", headers={"X-Class": f"class \x1b{number}"})
    assert limiter._components.resolver._of_class.cache_info().currsize == 1
    assert caplog.text.count("unknown class") == 1
    assert "\x1b" not in caplog.text


@pytest.mark.parametrize(
    ("amount", "passing"), [(2, [1, 0, 1]), (3, [1, 1, 1]), (1, [1, 0, 0]), (0, [0] * 3)]
)
def test_a_small_override_keeps_one_for_each(make: Maker, amount: int, passing: list[int]) -> None:
    """The highest class first; a limit of one is for everyone, and one of zero denies all."""
    app, limiter = make()
    limited(app, limiter, strategy="sliding-window")
    with app.app_context():
        limiter.operators.override("model", "everyone", f"{amount}/minute")
    assert [admitted(app, name) for name in ("bulk", "normal", "interactive")] == passing


@pytest.mark.parametrize("first", ["own", "model"])
def test_an_identity_may_be_the_class_too(make: Maker, first: str) -> None:
    """Each class then has a bucket of its own in the other limit."""
    app, limiter = make()
    shared = {"key_func": everyone, "keep": KEEP, "priority": asked_class}
    limits = [("2/minute", {"name": "own", "key_func": asked_class}), ("10/minute", shared)]
    view = lambda: "ok"  # noqa: E731
    for text, words in limits if first == "own" else reversed(limits):
        view = limiter.limit(text, **words)(view)
    app.add_url_rule("/", "view", view)
    assert [admitted(app, name) for name in ("bulk", "normal", "interactive")] == [2, 2, 2]


@pytest.mark.parametrize("last", ["bulk", "interactive"])
def test_an_outage_gives_nothing_twice(make: Maker, last: str, own_server: servers.Server) -> None:
    """Whatever class was decided last before it."""
    app, limiter = make(storage_uri=own_server.uri)
    limited(app, limiter, strategy="sliding-window")
    before = statuses(app, "/", 8, headers={"X-Class": "interactive"})
    before += statuses(app, "/", headers={"X-Class": last})
    own_server.stop()
    during = statuses(app, "/", 10, headers={"X-Class": "interactive"})
    assert (before + during).count(200) == 10


@pytest.mark.parametrize(
    ("words", "passing"), [({"strategy": "sliding-window"}, [2, 1, 2]), ({"burst": 10}, [4, 2, 4])]
)
def test_an_override_keeps_the_same_share(
    make: Maker, words: dict[str, Any], passing: list[int]
) -> None:
    """Half of the amount: half of what is kept. A burst that is written stays as it is, and so does
    what is kept of it."""
    app, limiter = make()
    limited(app, limiter, **words)
    with app.app_context():
        limiter.operators.override("model", "everyone", "5/minute")
    assert [admitted(app, name) for name in ("bulk", "normal", "interactive")] == passing


def test_operators_see_the_classes(make: Maker) -> None:
    """Denials of two classes are two records; metrics count them apart from the limit's own."""
    app, limiter = make()
    limiter.remember_denials()
    exporter = prometheus.measure(limiter)
    limited(app, limiter, strategy="sliding-window")
    assert [admitted(app, name) for name in ("bulk", "normal", "interactive")] == [4, 2, 4]
    with app.app_context():
        found = limiter.operators.denials(since=60).records
    assert [each.kept_for for each in found] == [["interactive", "normal"], ["interactive"], []]
    assert "(a part is kept for interactive, normal)" in explained(found[0]).left
    figures = exporter.scrape()[0].decode()
    counted = 'ratelimit_decisions_total{limit="model",outcome="%s",strategy="sliding-window"} %s.0'
    assert counted % ("kept", 8 + 10) in figures
    assert counted % ("denied", 8) in figures


def test_an_override_of_a_limit_that_denies_all(make: Maker) -> None:
    """There is no share of zero: an override of such a limit keeps nothing."""
    app, limiter = make()
    words: dict[str, Any] = {"keep": KEEP, "priority": asked_class, "key_func": everyone}
    app.add_url_rule("/", "view", limiter.limit("0/minute", name="model", **words)(lambda: "ok"))
    assert admitted(app, "interactive") == 0
    with app.app_context():
        limiter.operators.override("model", "everyone", "5/minute")
    assert admitted(app, "bulk") == 5


@pytest.mark.parametrize(
    ("text", "candidate", "keep"),
    [
        ("10/minute", "2/minute", KEEP),
        (
            "0.00001 usd/minute",
            "0.000002 usd/minute",
            {"interactive": 0.000004, "normal": 0.000002},
        ),
    ],
)
def test_a_small_candidate_keeps_what_an_override_keeps(
    text: str, candidate: str, keep: dict[str, Any]
) -> None:
    """One unit for the highest class, and one for all."""
    options = LimitOptions(candidate=candidate, keep=tuple(keep.items()), priority=asked_class)
    (item,) = items_of(text, options)
    tried = limit_of(item, "sliding-window").with_candidate()
    assert tried is not None
    assert tried.keep == (("interactive", 1), ("normal", 0))


def test_a_candidate_keeps_the_same_share(make: Maker) -> None:
    """Another amount that is tried has classes, too."""
    app, limiter = make()
    limited(app, limiter, strategy="sliding-window", candidate="5/minute")
    would: list[int] = []

    @limiter.listen
    def count(event: Event) -> None:
        if isinstance(event, DecisionEvent):
            would.append(len(event.shadow_denials))

    statuses(app, "/", 3, headers={"X-Class": "bulk"})
    assert would == [0, 0, 1]


POLICY = """
version = 1

[[default]]
limit = "10/minute"
name = "model"
keep = { interactive = 4, normal = 2 }
priority = "class"
"""


def with_policy(folder: Path) -> tuple[Flask, Limiter]:
    """An application with the policy, and its extension, which has not seen it."""
    file = folder / "policy.toml"
    file.write_text(POLICY)
    app = Flask("example")
    app.config["RATELIMIT_POLICY_FILE"] = str(file)
    return app, Limiter(everyone, storage_uri="memory://")


def test_in_a_policy(tmp_path: Path) -> None:
    """`priority` is the name of an identity."""
    app, limiter = with_policy(tmp_path)
    limiter.identity("class")(asked_class)
    limiter.init_app(app)
    app.add_url_rule("/", "view", lambda: "ok")
    assert [admitted(app, name) for name in ("bulk", "normal", "interactive")] == [4, 2, 4]


def test_an_unknown_identity_is_named(tmp_path: Path) -> None:
    """With its place."""
    app, limiter = with_policy(tmp_path)
    with pytest.raises(ConfigurationError, match=r"default\[0\].priority: there is no identity"):
        limiter.init_app(app)


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("text", ["10/hour", lambda: "10/hour"])
@pytest.mark.parametrize("word", ["priority", "fair"])
def test_an_unknown_identity_in_code_is_named(word: str, text: Any, late: bool) -> None:
    """At the start, or at the declaration if that is later: the limit would not apply."""
    app, limiter = Flask("example"), Limiter(everyone, storage_uri="memory://")
    keywords = {"priority": {"keep": KEEP}, "fair": {"strategy": "fixed-window"}}
    limiter.identity("class")(asked_class)
    if late:
        limiter.init_app(app)

    def start() -> None:
        limiter.limit(text, **keywords[word], **{word: "clas"})(lambda: "ok")
        assert not late, "it was accepted"
        limiter.init_app(app)

    with pytest.raises(
        ConfigurationError, match=rf"{word}: there is no identity 'clas'.*Did you mean 'class'"
    ):
        start()
