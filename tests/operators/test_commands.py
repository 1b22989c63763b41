"""The `flask ratelimit` commands of an application, beside the workers that serve it."""

import json
import re
from collections.abc import Callable, Collection, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import click
import pytest
import redis
from click.testing import Result
from flask import Blueprint, Flask, g
from flask.views import MethodView
from limits.storage import MemoryStorage

from ratelimit_ext import Callers, CheckedPolicy, Limiter, OperatorError
from ratelimit_ext.core.charge import Charge
from ratelimit_ext.operators import texts, usage
from ratelimit_ext.operators.api import all_operators
from ratelimit_ext.web.declarations.callbacks import AnyCallers
from tests.web.calls import serve, statuses
from tests.web.conftest import Maker, asked_key

POLICY = """version = 1

[[blueprints.chat.limits]]
name = "pace"
limit = "3/minute"
key = "caller"

[[blueprints.chat.limits]]
name = "stop"
limit = "unless blocked"
key = "caller"
"""


def run(app: Flask, *words: str, status: int = 0) -> Result:
    """A `flask ratelimit` command."""
    result = app.test_cli_runner().invoke(args=["ratelimit", *words])
    assert result.exit_code == status, result.output
    return result


def read(app: Flask, *words: str) -> Any:
    """What a command prints with `--json`."""
    return json.loads(run(app, *words, "--json").stdout)


@pytest.fixture
def policy_file(tmp_path: Path) -> Path:
    file = tmp_path / "policy.toml"
    file.write_text(POLICY)
    return file


@pytest.fixture
def make_site(policy_file: Path, redis_uri: str) -> Callable[[], Flask]:
    """Makes the application of a worker or of a command: each has its own extension."""

    def made() -> Flask:
        app = Flask("example")
        app.config["RATELIMIT_POLICY_FILE"] = str(policy_file)
        limiter = Limiter(
            asked_key, storage_uri=redis_uri, headers_enabled=True, application_limits=["50/hour"]
        )
        limiter.identity("caller")(asked_key)
        blueprint = Blueprint("chat", "chat", url_prefix="/chat")
        blueprint.add_url_rule("/", "one", lambda: "ok")
        blueprint.add_url_rule("/two", "two", lambda: "ok")
        app.register_blueprint(blueprint)
        serve(
            app,
            limiter.limit("9/minute", unit="tokens", name="tokens", cost=lambda: 4),
            path="/call",
        )
        app.add_url_rule("/free", "free", lambda: "ok")
        limiter.init_app(app)
        return app

    return made


@pytest.fixture
def worker(make_site: Callable[[], Flask]) -> Flask:
    return make_site()


@pytest.fixture
def console(make_site: Callable[[], Flask]) -> Flask:
    return make_site()


def call(app: Flask, path: str, calls: int = 1, key: str = "ann") -> list[int]:
    return statuses(app, path, calls, headers={"X-Key": key})


# -- check and show ----------------------------------------------------------------------------


def test_check_counts_the_limits_of_the_file(console: Flask, policy_file: Path) -> None:
    """Of the configured one, or of another."""
    assert run(console, "check").output == f"{policy_file} is valid: 2 limits; plans: none.\n"
    assert read(console, "check", str(policy_file))["limits"] == 2


def test_check_reports_every_mistake_with_its_line(console: Flask, tmp_path: Path) -> None:
    """Also names that the application does not have."""
    file = tmp_path / "other.toml"
    file.write_text('version = 1\n[[blueprints.chatt.limits]]\nlimit = "plenty"\n')
    refused = run(console, "check", str(file), status=1)
    assert "other.toml:3: blueprints.chatt.limits[0].limit: found 'plenty'" in refused.stderr
    file.write_text('version = 1\n[[blueprints.chatt.limits]]\nlimit = "1/day"\n')
    refused = run(console, "check", str(file), status=1)
    assert "other.toml:2" in refused.stderr
    assert "Did you mean 'chat'?" in refused.stderr


def test_check_reports_the_policy_that_stops_the_application(
    policy_file: Path, make_site: Callable[[], Flask], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command exists only once the application has started, which the mistake prevents."""
    policy_file.write_text(POLICY.replace("3/minute", "plenty"))
    monkeypatch.setattr("sys.argv", ["flask", "--app", "example", "ratelimit", "check"])
    with click.Context(click.Command("flask")), pytest.raises(click.ClickException) as error:
        make_site()
    assert "policy.toml:5: blueprints.chat.limits[0].limit: found 'plenty'" in str(error.value)


def test_an_application_checks_more(console: Flask, policy_file: Path) -> None:
    """By a function of its own, whose warnings are printed."""
    (limiter,) = console.extensions["ratelimit_ext"]

    @limiter.operators.policy_checker
    def checked(file: Path | None) -> object:
        path = file or policy_file
        policy = limiter.operators.check_policy_file(path)
        return CheckedPolicy(policy, path, ("no limit by address",))

    assert "Warning: no limit by address" in run(console, "check").output


def test_a_check_without_a_policy_says_so(make: Maker) -> None:
    """With what to do."""
    app, _ = make()
    assert "pass a file or set RATELIMIT_POLICY_FILE" in run(app, "check", status=1).stderr


def test_show_says_where_each_limit_is_written(console: Flask) -> None:
    """In a policy, a decorator or the constructor, with name, strategy, key and amount. Endpoints
    with the same limits are listed together."""
    output = run(console, "show").output
    assert re.search(r"chat.one: /chat/\nchat.two: /chat/two\n", output)
    assert re.search(
        r"pace +3 per 1 minute +fixed-window +caller +local +\S*policy.toml:3: ", output
    )
    assert re.search(r"9 per 1 minute .*test_commands.py:\d+\n", output)
    assert re.search(r"50 per 1 hour .*application_limits\n", output)
    assert "free: /free\n  no limits\n" in output
    by_endpoint = {each["endpoint"]: each["limits"] for each in read(console, "show")}
    assert by_endpoint["call: /call"][0]["strategy"] == "fixed-window"
    assert [each["limit"] for each in by_endpoint["chat.one: /chat/"]] == ["pace", "stop"]


def test_show_can_be_restricted_to_an_endpoint(console: Flask) -> None:
    """An unknown one is an error that lists the endpoints."""
    assert "chat.two" not in run(console, "show", "--endpoint", "chat.one").output
    refused = run(console, "show", "--endpoint", "chat", status=1)
    assert "endpoints: call, chat.one, chat.two, free" in refused.stderr


def test_show_names_functions(make: Maker) -> None:
    """Whose limits are asked for at each request."""
    app, limiter = make()

    def of_caller() -> str:
        raise LookupError("no request")

    app.add_url_rule("/", "index", limiter.limit(of_caller)(lambda: "ok"))
    assert "returned by of_caller" in run(app, "show").output


def test_show_lists_the_methods_of_a_class_that_differ(make: Maker) -> None:
    """Each with its own limits, before any request."""
    app, limiter = make(default_limits=["9/minute"])

    class Resource(MethodView):
        @limiter.limit("2/minute")
        def get(self) -> str:
            return "got"

        def post(self) -> str:
            return "posted"

    app.add_url_rule("/", view_func=Resource.as_view("resource"))
    output = run(app, "show").output
    own, others = output.index("resource: / GET"), output.index("resource: / POST")
    assert "2 per 1 minute" in output[own:others]
    assert "9 per 1 minute" in output[others:]
    assert "9 per 1 minute" not in output[own:others]


# -- states ------------------------------------------------------------------------------------


def test_inspect_shows_what_is_used_and_when_more_is_free(worker: Flask, console: Flask) -> None:
    """Of every limit that counts the identity; nothing is charged."""
    assert call(worker, "/chat/", 4) == [200, 200, 200, 429]
    assert call(worker, "/call", 1) == [200]
    for _ in range(2):
        states = {state["limit"]: state for state in read(console, "inspect", "ann")}
        pace, tokens = states["pace"], states["tokens"]
        assert (pace["used"], pace["remaining"], pace["amount"]) == (3, 0, 3)
        assert 0 < pace["retry_after"] <= 60
        assert (tokens["used"], tokens["holds"]) == (4, 0)
        assert states["50 per 1 hour"]["used"] == 4
    table = run(console, "inspect", "ann").output
    assert re.search(r"pace +ann +3 +0 +3 requests +in \d+ (s|min)", table)
    assert read(console, "inspect", "bob")[0]["used"] == 0
    assert run(console, "inspect", "ann").stderr == ""
    unused = run(console, "inspect", "bob").stderr
    assert unused == "No limit has counted anything for 'bob'. Is the name right?\n"


def test_inspect_shows_running_calls(worker: Flask, console: Flask) -> None:
    """A call that holds an estimate is one hold until it is over."""
    held = []
    limiter: Limiter = worker.extensions["ratelimit_ext"][0]

    @limiter.limit("9/minute", unit="tokens", name="tokens", cost=lambda: 4)
    def waiting() -> str:
        states = {state["limit"]: state for state in read(console, "inspect", "ann")}
        held.append(states["tokens"]["holds"])
        return "ok"

    worker.view_functions["call"] = waiting
    assert call(worker, "/call") == [200]
    assert held == [1]


def test_top_and_near_rank_by_share(worker: Flask, console: Flask) -> None:
    """The largest share first; near are those from 80 % on."""
    call(worker, "/chat/", 3, "ann")
    call(worker, "/chat/", 2, "bob")
    call(worker, "/call", 1, "cay")
    ranked = [(s["limit"], s["identity"], s["share"]) for s in read(console, "top")]
    assert ranked[:3] == [("pace", "ann", 1.0), ("pace", "bob", 0.6667), ("tokens", "cay", 0.4444)]
    assert [s["identity"] for s in read(console, "top", "--limit", "pace")] == ["ann", "bob"]
    assert [s["identity"] for s in read(console, "near")] == ["ann"]
    assert [s["identity"] for s in read(console, "near", "--at", "60")] == ["ann", "bob"]
    assert len(read(console, "top", "--most", "1")) == 1
    assert re.search(r"pace +ann +3 +3 requests +100% +in \d+ (s|min)", run(console, "near").output)
    refused = run(console, "top", "--limit", "pase", status=1)
    assert "There is no limit 'pase'; limits: 50 per 1 hour, " in refused.stderr


def test_a_search_is_bounded_and_never_uses_keys(
    worker: Flask, console: Flask, redis_client: redis.Redis
) -> None:
    """By SCAN; if only a part was read, a note says so."""
    for number in range(30):
        call(worker, "/chat/", 1, f"c{number}")
    redis_client.config_resetstat()
    assert "Only 10 names of the storage were read" in run(console, "top", "--scan", "10").stderr
    assert "Only" not in run(console, "top").stderr
    used = redis_client.info("commandstats")
    assert "cmdstat_scan" in used
    assert "cmdstat_keys" not in used


def test_a_search_ends_in_time(
    worker: Flask, console: Flask, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It shows what it has found by then, and says how many names it has read; on a terminal also
    while it reads."""
    monkeypatch.setattr(usage, "AT_ONCE", 10)
    for number in range(30):
        call(worker, "/chat/", 1, f"c{number}")
    for command in (("top",), ("near", "--at", "1")):
        shown = run(console, *command, "--json", "--seconds", "0")
        assert "Only 10 names of the storage were read, a random part." in shown.stderr
        assert 0 < len(json.loads(shown.stdout)) <= 10
        assert "Only" not in run(console, *command, "--seconds", "600").stderr
    pieces: list[int] = []
    with console.app_context():
        operators = all_operators().shared()
        found, is_cut = operators.used(scan=25, progress=pieces.append)
    assert (pieces, is_cut) == ([10, 10, 5], True)
    assert 0 < len(found) <= 25
    monkeypatch.setattr("click.testing._NamedTextIOWrapper.isatty", lambda _: True, raising=False)
    assert "Reading" in run(console, "near").stderr


def test_a_search_reads_plans_and_amounts_together(
    worker: Flask, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of many identities at once, where the application can; never those of all."""
    monkeypatch.setattr(usage, "AHEAD", 5)
    asked: list[int] = []

    class Known(AnyCallers):
        def amounts(self, identity: str) -> Mapping[str, str]:
            raise AssertionError(identity)

        def batch(self, identities: Collection[str]) -> Callers:
            asked.append(len(identities))
            return Doubled(self._identities)

    class Doubled(AnyCallers):
        def amounts(self, identity: str) -> Mapping[str, str]:
            return {"pace": "6/minute"}

    for number in range(12):
        call(worker, "/chat/", key=f"c{number}")
    with worker.app_context():
        operators = all_operators()
        operators.callers = Known(operators.identities)
        states, _ = operators.used("pace")
    assert len(states) == 12
    assert {state.share for state in states} == {1 / 6}
    assert 0 < max(asked) <= 5


def test_a_search_asks_for_a_bounded_number_at_once(
    worker: Flask, console: Flask, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No command names more than AT_ONCE buckets, and the buckets of a piece take two round trips,
    however many there are: their limits, and what calls hold."""
    monkeypatch.setattr(usage, "AT_ONCE", 10)
    for number in range(30):
        call(worker, "/call", 1, f"c{number}")
    run(console, "top")  # the connections and scripts are there
    asked: list[int] = []
    with redis_client.monitor() as monitor:
        run(console, "near", "--at", "1")
        redis_client.echo("over")
        for seen in monitor.listen():
            command, *words = seen["command"].split(" ")
            if command == "ECHO":
                break
            if seen["client_type"] == "lua":
                continue
            if command in ("FCALL", "EVALSHA"):
                asked.append(int(words[1]))
    assert asked
    assert max(asked) <= 10
    sum_of = len(asked)
    before = redis_client.info("stats")["total_reads_processed"]
    run(console, "near", "--at", "1")
    reads = redis_client.info("stats")["total_reads_processed"] - before
    assert reads <= 2 * sum_of + 10


def test_a_search_looks_again_if_the_storage_is_late(
    worker: Flask, console: Flask, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its deadline is that of requests; a search of a million names looks for it so often that a
    busy machine is late once. A storage that stays silent is an error."""
    call(worker, "/chat/", 3, "ann")
    expected = read(console, "near")
    late = [redis.exceptions.TimeoutError("Timeout reading from socket") for _ in range(2)]
    monkeypatch.setattr(usage, "PAUSES_S", (0.0, 0.0))
    for method in ("scan", "pipeline"):
        errors, real = list(late), getattr(redis.Redis, method)

        def fails_first(*words: Any, _real: Any = real, _errors: Any = errors, **more: Any) -> Any:
            if _errors:
                raise _errors.pop()
            return _real(*words, **more)

        monkeypatch.setattr(redis.Redis, method, fails_first)
        assert [s["identity"] for s in read(console, "near")] == ["ann"]
        assert not errors
        errors += [*late, *late]
        assert "Timeout reading from socket" in run(console, "near", status=1).stderr
        monkeypatch.setattr(redis.Redis, method, real)
    assert [s["identity"] for s in expected] == ["ann"]


def test_identities_are_printed_without_control_characters(worker: Flask, console: Flask) -> None:
    """Callers choose them, and an operator's terminal would obey."""
    with worker.test_request_context():
        limiter: Limiter = worker.extensions["ratelimit_ext"][0]
        rows = limiter._components.inventory.all_rows(worker)
        row = next(row for row in rows if row.limit.name == "pace")
    limiter._components.engines.primary.admit([Charge(row.limit, row.bucket("\x1b[2Jann\nbob"))])
    output = run(console, "top").output
    assert "\\x1b[2Jann\\nbob" in output
    assert "\x1b" not in output


def test_blocks_say_who_and_until_when(worker: Flask, console: Flask) -> None:
    """And why, and since when; a block without an end stays until it is removed."""
    assert "Nothing is blocked" in run(console, "blocks").stderr
    limiter: Limiter = worker.extensions["ratelimit_ext"][0]
    with worker.app_context():
        limiter.operators.block("stop", "ann", for_s=3600)
        for name in ("dan", "bob", "cat"):
            limiter.operators.block("stop", name)
    limiter.operators.note("block", "ann", limit="stop", reason="leaked key", by="olga")
    found = {each["identity"]: each for each in read(console, "blocks")}
    assert list(found) == ["ann", "bob", "cat", "dan"]
    assert (found["ann"]["by"], found["ann"]["note"]) == ("olga", "leaked key")
    until = datetime.fromisoformat(found["ann"]["until"])
    assert abs(until - datetime.now(UTC) - timedelta(hours=1)) < timedelta(minutes=1)
    assert (found["bob"]["until"], found["bob"]["reason"]) == (None, "blocked")
    shown = run(console, "blocks").output
    assert re.search(r"stop +bob +blocked +removed", shown)
    since = texts.time_text(datetime.fromisoformat(found["ann"]["at"]).timestamp())
    assert re.search(rf"stop +ann .+ UTC +olga +{since} +leaked key\n", shown)


# -- changes -----------------------------------------------------------------------------------


def test_reset_forgets_what_was_counted(worker: Flask, console: Flask) -> None:
    """Of one limit or of all, of one identity; blocks stay. It is in the log."""
    call(worker, "/chat/", 3)
    call(worker, "/chat/", 3, "bob")
    limiter: Limiter = worker.extensions["ratelimit_ext"][0]
    assert run(console, "reset", "ann", "--limit", "pace").output == "Reset pace of ann.\n"
    assert call(worker, "/chat/", 4) == [200, 200, 200, 429]
    with worker.app_context():
        limiter.operators.block("stop", "ann")
    assert read(console, "reset", "ann", "--by", "olga")["reset"] == ["50 per 1 hour", "pace"]
    assert [each["identity"] for each in read(console, "blocks")] == ["ann"]
    assert call(worker, "/chat/", 1, "bob") == [429]
    assert "Nothing was counted for 'zoe'." in run(console, "reset", "zoe", status=1).stderr
    refused = run(console, "reset", "zoe", "--limit", "pace", status=1).stderr
    assert "Nothing was counted for 'zoe' by 'pace'." in refused
    newest = read(console, "log")[0]
    assert (newest["action"], newest["identity"], newest["by"]) == ("reset", "ann", "olga")


@pytest.mark.parametrize(
    ("key", "identity"), [("user", "ada"), ("ip", "2001:db8::99"), ("api_key", "sk-secret")]
)
def test_reset_takes_users_addresses_and_api_keys(
    redis_uri: str, tmp_path: Path, key: str, identity: str
) -> None:
    """As an operator knows them: by name, by any address of the network, by the key itself."""
    file = tmp_path / "policy.toml"
    file.write_text(f'version = 1\nroutes.one.limits = [{{ limit = "1/day", key = "{key}" }}]\n')
    app = Flask("example")
    app.config["RATELIMIT_POLICY_FILE"] = str(file)
    Limiter(asked_key, app=app, storage_uri=redis_uri)
    app.before_request(lambda: setattr(g, "user_id", "ada"))
    app.add_url_rule("/", "one", lambda: "ok")
    caller = {
        "environ_overrides": {"REMOTE_ADDR": "2001:db8::7"},
        "headers": {"X-API-Key": "sk-secret"},
    }
    assert statuses(app, "/", 2, **caller) == [200, 429]
    run(app, "reset", identity)
    assert statuses(app, **caller) == [200]


def test_reset_lifts_a_ban(make: Maker, redis_uri: str) -> None:
    """The count of a meta limit."""
    app, limiter = make(storage_uri=redis_uri, meta_limits=["1/day"])
    app.get("/")(limiter.limit("1/day")(lambda: "ok"))
    assert statuses(app, times=3) == [200, 429, 429]
    run(app, "reset", "someone")
    assert statuses(app) == [200]


def test_an_override_acts_in_the_worker(worker: Flask, console: Flask) -> None:
    """As soon as it reads; it is listed with who set it, until when and why, and can be removed."""
    limiter: Limiter = worker.extensions["ratelimit_ext"][0]
    assert call(worker, "/chat/", 4)[-1] == 429
    words = ("ann", "pace", "5/minute", "--until", "2h", "--reason", "launch", "--by", "olga")
    assert run(console, "override", "set", *words).output.startswith("ann has pace=5/minute until ")
    limiter._components.overrides.refresh()
    assert call(worker, "/chat/", 3) == [200, 200, 429]
    (listed,) = read(console, "override", "list")
    assert (listed["amount"], listed["by"], listed["reason"]) == ("5/minute", "olga", "launch")
    table = run(console, "override", "list").output
    assert re.search(r"pace +ann +5/minute +\d{4}-\S+ \S+ UTC +olga", table)
    inspected = {state["limit"]: state for state in read(console, "inspect", "ann")}["pace"]
    assert (inspected["amount"], inspected["override"]["by"]) == (5, "olga")
    assert "override until" in run(console, "inspect", "ann").output
    assert (
        "Removed the override of pace from ann;"
        in run(console, "override", "clear", "ann", "pace").output
    )
    limiter._components.overrides.refresh()
    assert call(worker, "/chat/") == [429]
    assert run(console, "override", "list").stdout == ""
    refused = run(console, "override", "clear", "ann", "pace", status=1)
    assert "ann has no override of 'pace'" in refused.stderr
    assert [e["action"] for e in read(console, "log")] == ["clear-override", "override"]
    assert "launch" in run(console, "log").output


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (("ann", "pase", "5/minute"), 1, "There is no limit 'pase'"),
        (
            ("ann", "stop", "5/minute"),
            1,
            "whose amount can be changed; named limits: tokens (9 per",
        ),
        (("ann", "pace", "5/hour"), 1, "pace: found '5/hour'"),
        (("pace", "ann", "5/minute"), 1, "'pace' is the name of a limit. Write the identity first"),
        (("ann", "pace", "5/minute", "--until", "someday"), 2, "'someday' is not a time; write"),
        (("ann", "pace", "5/minute", "--until", "2020-01-01"), 2, "is not in the future"),
    ],
)
def test_a_wrong_override_is_one_sentence(
    console: Flask, words: tuple[str, ...], status: int, message: str
) -> None:
    """Exit status 1, or 2 for an argument that no limit could have."""
    refused = run(console, "override", "set", *words, status=status)
    assert message in refused.stderr
    assert read(console, "override", "list") == read(console, "log") == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("90m", "2026-11-26 17:30"),
        ("7d", "2026-12-03 16:00"),
        ("17:30", "2026-11-26 17:30"),
        ("15:00", "2026-11-27 15:00"),
        ("tomorrow", "2026-11-27 00:00"),
        ("tomorrow 9:00", "2026-11-27 09:00"),
        ("today 17:30", "2026-11-26 17:30"),
        ("Friday", "2026-11-27 00:00"),
        ("friday 9:00", "2026-11-27 09:00"),
        ("thursday", "2026-12-03 00:00"),
        ("thursday 17:30", "2026-11-26 17:30"),
        ("wednesday", "2026-12-02 00:00"),
        ("2026-12-01", "2026-12-01 00:00"),
        ("2026-12-01 08:30", "2026-12-01 08:30"),
        ("2026-12-01T08:30+02:00", "2026-12-01 06:30"),
    ],
)
def test_an_end_may_be_written_in_several_ways(text: str, expected: str) -> None:
    """By UTC, unless it states another offset. It was a Thursday."""
    now = datetime(2026, 11, 26, 16, 0, tzinfo=UTC)
    assert texts._instant(text.lower(), now).astimezone(UTC).strftime("%Y-%m-%d %H:%M") == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("90m", "2026-11-26 14:30"),
        ("7d", "2026-11-19 16:00"),
        ("17:30", "2026-11-25 17:30"),
        ("15:00", "2026-11-26 15:00"),
        ("yesterday", "2026-11-25 00:00"),
        ("yesterday 9:00", "2026-11-25 09:00"),
        ("friday", "2026-11-20 00:00"),
        ("thursday", "2026-11-26 00:00"),
        ("thursday 17:30", "2026-11-19 17:30"),
        ("2026-11-20", "2026-11-20 00:00"),
    ],
)
def test_a_beginning_is_written_as_an_end(text: str, expected: str) -> None:
    """Lengths go back from now, and a time of day is the last one."""
    now = datetime(2026, 11, 26, 16, 0, tzinfo=UTC)
    assert texts._instant(text, now, past=True).strftime("%Y-%m-%d %H:%M") == expected


@pytest.mark.parametrize(
    ("text", "past", "code"),
    [
        ("2001-01-01", False, "past_time"),
        ("tomorrow", True, "future_time"),
        ("yesterday", False, "past_time"),
        ("friday 25:00", False, "invalid_time"),
        ("30", False, "invalid_time"),
        ("2026-13-01", True, "invalid_time"),
        (f"{10**20}d", False, "invalid_time"),
    ],
)
def test_a_wrong_time_is_quoted(text: str, past: bool, code: str) -> None:
    """With what is allowed."""
    with pytest.raises(OperatorError, match=text) as caught:
        texts.instant_s(text, past=past)
    assert caught.value.code == code


@pytest.mark.parametrize(
    "words",
    [
        ("inspect", "ann"),
        ("reset", "ann"),
        ("top",),
        ("near",),
        ("blocks",),
        ("log",),
        ("override", "list"),
        ("override", "set", "ann", "pace", "5/minute"),
        ("override", "clear", "ann", "pace"),
    ],
)
def test_the_memory_of_another_process_cannot_be_seen(make: Maker, words: tuple[str, ...]) -> None:
    """The command says so, and what to do."""
    app, limiter = make()
    assert isinstance(limiter.storage, MemoryStorage)
    assert "(memory://), which no command can see" in run(app, *words, status=1).stderr


def test_an_unavailable_storage_is_one_sentence(make: Maker) -> None:
    """Without a trace."""
    app, _ = make(storage_uri="redis://127.0.0.1:1")
    assert "The limits cannot be reached: the storage failed" in run(app, "top", status=1).stderr


def test_disabled_limits_are_reported(make: Maker) -> None:
    """Instead of an empty table."""
    app, _ = make(config={"RATELIMIT_ENABLED": False})
    assert "Rate limits are disabled" in run(app, "top", status=1).stderr


def test_a_command_of_the_application_keeps_its_name() -> None:
    """`flask ratelimit` is not taken from an application that has one."""
    app = Flask("example")
    own = click.Command("ratelimit")
    app.cli.add_command(own)
    Limiter(asked_key, app=app, storage_uri="memory://")
    assert app.cli.commands["ratelimit"] is own
