"""What is left of each limit, in plain words; a wait ends by itself, and the message is sent."""

import re

import pytest
from playwright.sync_api import Page, Route, expect

from tests.e2e.page.actions import begin, button, message, problem, replies, say
from tests.servers import eventually

#: As many calls of the page's user as pass at once (chatapp/policy.toml); then one in two seconds.
SPEND = """async () => {
  const body = JSON.stringify({ message: "hi", user_id: localStorage.getItem("chatapp.user_id") });
  const headers = { "Content-Type": "application/json" };
  for (let i = 0; i < 10; i++) await fetch("chat", { method: "POST", headers, body });
}"""


#: What GET /usage says that the page's user may send now.
LEFT = """async () => {
  const user = encodeURIComponent(localStorage.getItem("chatapp.user_id"));
  const { limits } = await (await fetch(`usage?user_id=${user}`)).json();
  return limits.find(({ name }) => name === "user").remaining;
}"""


def say_once(page: Page) -> None:
    """Send a message; what the page shows then is what its answer said, as GET /usage no longer
    answers: a call is free again in two seconds."""
    page.route("**/usage?*", lambda _: None)
    say(page, "hello")


def say_until_denied(page: Page) -> int:
    """Send messages until one is denied. Returns the number of answers before that: none, unless
    the machine takes two seconds."""
    for number in range(1, 30):
        page.evaluate(SPEND)
        begin(page, f"message {number}")
        expect(replies(page).nth(number - 1).or_(problem(page)).first).to_be_visible()
        expect(page.locator("#log .pending")).to_have_count(0)
        if problem(page).count():
            return number - 1
    raise AssertionError("no limit denied anything")


def test_limits_are_shown_from_the_first_view_on(page: Page) -> None:
    """In one sentence, which changes with each message."""
    sentence = page.locator("#sentence")
    expect(sentence).to_have_text(
        "You can send 10 more messages now; 100 of 100 left today; $2 of $2 left this hour."
    )
    say_once(page)
    expect(sentence).to_contain_text("9 more messages now; 99 of 100 left today")


def test_what_is_left_of_each_limit_is_shown(page: Page) -> None:
    """Every limit by what it counts; of two that count the same, the scarcer one."""
    limits = page.locator("#limits li")
    expect(limits.filter(has_text="Messages now")).to_contain_text("10 of 10 left")
    say_once(page)
    expect(limits.filter(has_text="Money today")).to_contain_text("$5 of $5 left")
    expect(limits.filter(has_text="Money this month")).to_contain_text("$30 of $30 left")
    expect(limits.filter(has_text="Messages now")).to_contain_text("9 of 10 left")
    expect(limits.filter(has_text="Messages today")).to_contain_text("99 of 100 left")
    expect(limits.filter(has_text="Replies at the same time")).to_have_count(1)


def test_without_limits_the_page_says_so(page: Page) -> None:
    """GET /usage has none if limits are disabled."""
    usage = {"user": None, "plan": "starter", "team": None, "limits": [], "spent": None}
    page.route("**/usage?*", lambda route: route.fulfill(json=usage))
    page.reload()
    expect(page.locator("#sentence")).to_have_text("No limits apply to you.")


def test_limits_that_cannot_be_read_are_no_obstacle(page: Page) -> None:
    """A storage that is away: the page says so, and sends."""
    error = {"error": "The storage of the limits does not answer.", "code": "storage_unavailable"}
    page.route("**/usage?*", lambda route: route.fulfill(status=503, json=error))
    page.reload()
    expect(page.locator("#sentence")).to_have_text("Your limits cannot be shown at the moment.")
    say(page, "hello")
    expect(replies(page)).to_contain_text("I am offline")


def test_limits_that_are_counted_approximately_are_marked(page: Page) -> None:
    """While the storage is down, until an answer says otherwise."""
    sentence = page.locator("#sentence")
    expect(sentence).to_contain_text("10 more messages now")
    done = 'event: done\ndata: {"model":"m","usage":null,"finish_reason":"stop","cost_usd":0}\n\n'
    headers = {"Content-Type": "text/event-stream", "X-RateLimit-Degraded": "local"}
    page.route("**/chat", lambda route: route.fulfill(headers=headers, body=done), times=1)
    say(page, "hello")
    expect(sentence).to_contain_text("The server can only estimate this at the moment.")
    say(page, "hello")
    expect(sentence).not_to_contain_text("estimate")


def test_a_message_that_came_too_early_is_sent_by_itself(page: Page) -> None:
    """It waits during a countdown, and is answered then."""

    def ask(route: Route) -> None:
        """The server's answer, with a wait that does not end while the test looks at the page."""
        answer = route.fetch()
        wait = {"retry-after-ms": "60000"} if answer.status == 429 else {}
        route.fulfill(response=answer, headers={**answer.headers, **wait})

    page.clock.install()
    page.reload()
    page.route("**/chat", ask)
    answered = say_until_denied(page)
    expect(problem(page)).to_contain_text("You are sending messages too quickly.")
    expect(problem(page).locator("b")).to_have_text(re.compile(r"^(1 minute|\d\d seconds)$"))
    expect(button(page, "Send")).to_be_disabled()
    expect(page.locator("#sentence")).to_contain_text("You cannot send a message right now")
    expect(page.locator("#log .me")).to_have_count(answered + 1)
    eventually(lambda: page.evaluate(LEFT) >= 1)
    page.clock.run_for(61_000)
    expect(replies(page)).to_have_count(answered + 1)
    expect(problem(page)).to_have_count(0)
    expect(button(page, "Send")).to_be_enabled()
    expect(page.locator("#log .me")).to_have_count(answered + 1)


def test_a_pause_of_seconds_ends_on_the_page_too(page: Page) -> None:
    """The sentence does not say for ever that nothing can be sent."""
    sentence = page.locator("#sentence")
    limit = {"name": "user", "unit": "requests", "limit": 30, "burst": 10, "period": 60}
    lefts = iter([0, 0])

    def usage(route: Route) -> None:
        found = {**limit, "remaining": next(lefts, 1)}
        route.fulfill(json={"limits": [found]})

    page.route("**/usage?*", usage)
    page.reload()
    expect(sentence).to_have_text("You cannot send a message right now.")
    expect(sentence).to_have_text("You can send 1 more message now.")


def test_without_money_nothing_can_be_sent(page: Page) -> None:
    """Also while messages are left; an excess is not shown as a debt."""
    day = {"name": "plan", "unit": "requests", "limit": 100, "period": 86400, "remaining": 9}
    budget = {"name": "usd-day", "unit": "usd", "limit": 5.0, "period": 86400, "remaining": -0.3}
    page.route("**/usage?*", lambda r: r.fulfill(json={"limits": [day, budget]}))
    page.reload()
    expect(page.locator("#sentence")).to_have_text(
        "You cannot send a message right now; 9 of 100 left today; $0 of $5 left today."
    )
    expect(page.locator("#limits")).to_contain_text("$0 of $5 left")


def test_too_little_money_is_said_until_there_is_more(page: Page) -> None:
    """A budget refuses a message that may cost more than it has left; the next day it is full."""
    sentence = page.locator("#sentence")
    budget = {"name": "usd-day", "unit": "usd", "limit": 5.0, "period": 86400, "remaining": 0.02}

    def usage(route: Route) -> None:
        limit = {"name": "plan", "unit": "requests", "limit": 9, "period": 86400, "remaining": 9}
        route.fulfill(json={"limits": [limit, budget]})

    page.route("**/usage?*", usage)
    page.reload()
    expect(sentence).to_contain_text("You can send 9 more messages now")
    error = {"error": "Used up.", "code": "insufficient_quota"}
    page.route("**/chat", lambda route: route.fulfill(status=429, json=error))
    say(page, "hello")
    expect(sentence).to_contain_text(
        "You cannot send a message right now; 9 of 9 left today; $0.02"
    )
    budget["remaining"] = 5.0
    page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    expect(sentence).to_contain_text("You can send 9 more messages now")


@pytest.mark.parametrize(
    ("status", "code", "wait_ms"),
    [(429, "rate_limited", 56_000), (503, "server_is_overloaded", 56_000), (403, "blocked", 0)],
)
def test_the_sentence_does_not_contradict_a_refusal(
    page: Page, status: int, code: str, wait_ms: int
) -> None:
    """As one by a limit of the model, or of the address, which GET /usage does not name; until the
    wait is over, a message is answered or another model is chosen."""
    sentence = page.locator("#sentence")
    page.clock.install()
    page.reload()
    expect(sentence).to_contain_text("You can send 10 more messages now; 100")

    def refuse(route: Route) -> None:
        headers = {"retry-after-ms": str(wait_ms)} if wait_ms else {}
        route.fulfill(status=status, headers=headers, json={"error": "No.", "code": code})

    page.route("**/chat", refuse, times=1)
    begin(page, "hello")
    expect(problem(page)).to_be_visible()
    expect(sentence).to_contain_text("You cannot send a message right now; 100 of 100 left today")
    page.clock.run_for(5_000)  # GET /usage is read meanwhile
    expect(sentence).to_contain_text("You cannot send a message right now; 100 of 100 left today")
    if not wait_ms:
        button(page, "Send").click()
    page.clock.run_for(60_000)
    expect(replies(page)).to_contain_text("I am offline")
    expect(sentence).to_contain_text("more messages now; 99 of 100 left today")
    page.route("**/chat", refuse, times=1)
    begin(page, "hello")
    expect(sentence).to_contain_text("You cannot send a message right now")
    page.get_by_label("Model").dispatch_event("change")
    expect(sentence).to_contain_text("more messages now; 99 of 100 left today")
    if wait_ms:
        button(page, "Cancel").click()
        page.route("**/chat", refuse, times=1)
        begin(page, "hello")
        button(page, "Cancel").click()
        with page.expect_response("**/usage*"):
            page.clock.run_for(5_000)
        expect(sentence).to_contain_text("You cannot send a message right now")
        page.clock.run_for(60_000)
        expect(sentence).to_contain_text("more messages now; 99 of 100 left today")


def deny(page: Page, wait_ms: int, **fields: object) -> list[Route]:
    """Answer every message with a 429. Returns those that were refused."""
    refused = []

    def refuse(route: Route) -> None:
        refused.append(route)
        headers = {
            "retry-after-ms": str(wait_ms),
            "RateLimit-Policy": '"user";q=10;w=20',
            "RateLimit": '"user";r=0;t=9',
        }
        body = {"error": "Exceeded.", "code": "rate_limited", "policy": "user", **fields}
        route.fulfill(status=429, headers=headers, json=body)

    page.route("**/chat", refuse)
    return refused


def test_a_wait_can_be_cancelled(page: Page) -> None:
    """With the button or Escape; the message is in the form again, before what was typed since."""
    refused = deny(page, 60_000)
    for cancel in ("button", "Escape"):
        message(page).fill("hello")
        message(page).press("Enter")
        expect(problem(page).locator("b")).to_have_text(re.compile("^(1 minute|5. seconds)$"))
        message(page).fill("and more")
        if cancel == "button":
            button(page, "Cancel").click()
        else:
            page.keyboard.press("Escape")
        expect(message(page)).to_have_value("hello\n\nand more")
        expect(message(page)).to_be_focused()
        expect(page.locator("#log article")).to_have_count(0)
    assert len(refused) == 2


def test_a_message_is_not_sent_again_for_ever(page: Page) -> None:
    """After five more attempts it goes back into the form."""
    refused = deny(page, 1)
    begin(page, "hello")
    expect(message(page)).to_have_value("hello")
    expect(problem(page)).to_contain_text(
        "You are sending messages too quickly. Try again in 1 second."
    )
    assert len(refused) == 6


def test_another_user_need_not_wait(page: Page) -> None:
    """The id survives a reload, and a new id ends the wait of the old one."""
    deny(page, 60_000)
    begin(page, "hello")
    expect(button(page, "Send")).to_be_disabled()
    page.unroute("**/chat")
    field = page.get_by_label("User id")
    field.fill("someone-else")
    field.blur()
    expect(button(page, "Send")).to_be_enabled()
    button(page, "Send").click()
    expect(replies(page)).to_contain_text("I am offline")
    page.reload()
    expect(page.get_by_label("User id")).to_have_value("someone-else")


def test_headers_are_read_in_any_order(page: Page) -> None:
    """The fields are structured lists: order, spaces, unknown parameters and commas may vary."""
    read = page.evaluate(
        """async ([policy, state]) => {
          const { readLimits } = await import("/static/limit-headers.js");
          return readLimits(new Headers({ "RateLimit-Policy": policy, "RateLimit": state }));
        }""",
        [
            '"ip";w=60;q=20;qu="requests";pk=:YQ==:,   "a, b"; q=5 ; w=1, "lonely";q=1;w=3600',
            '"new";r=3,"a, b";t=2;r=4, "ip";t=1;r=19',
        ],
    )
    assert [(limit["name"], limit["quota"], limit["remaining"]) for limit in read] == [
        ("ip", 20, 19),
        ("a, b", 5, 4),
        ("lonely", 1, None),
        ("new", None, 3),
    ]
    assert [limit["windowSeconds"] for limit in read] == [60, 1, 3600, None]


def test_times_and_amounts_are_in_words(page: Page) -> None:
    """With two units at most, and small costs with two digits that say something."""
    shown = page.evaluate(
        """async () => {
          const words = await import("/static/words.js");
          const { count, dollars, duration, money, moment, period } = words;
          const { waitSentence } = await import("/static/problems.js");
          const now = new Date(2026, 10, 26, 20, 40, 30);
          const wait = (ms) => waitSentence(ms, +now).normalize("NFKC");
          const at = (...rest) => moment(new Date(2026, 10, ...rest), now).normalize("NFKC");
          return [
            [1, 2, 60, 61, 3600, 5025, 86400, 100000].map(duration),
            [0, 0.00004, 0.00034, 0.0126, 0.1, 1.999, 30].map(dollars),
            [60, 3600, 86400, 2592000, 2678400, 20].map(period),
            [count(1, "message"), count(1000, "message")],
            [0, 0.004, 4.2, 5, 1234.5].map(money),
            [at(26, 23, 5), at(27, 0, 0), at(30, 9, 0)],
            [0, 500, 599_000, 634_000, 636_000].map(wait),
          ];
        }"""
    )
    assert shown == [
        [
            *("1 second", "2 seconds", "1 minute", "1 minute 1 second", "1 hour"),
            *("1 hour 23 minutes", "1 day", "1 day 3 hours"),
        ],
        ["$0", "under $0.0001", "$0.00034", "$0.013", "$0.10", "$2", "$30"],
        ["this minute", "this hour", "today", "this month", "this month", "in 20 seconds"],
        ["1 message", "1,000 messages"],
        ["$0", "less than $0.01", "$4.20", "$5", "$1,234.50"],
        ["at 11:05 PM", "tomorrow at 12:00 AM", "on Monday, November 30, at 9:00 AM"],
        [
            *("", " Try again in 1 second.", " Try again in 9 minutes 59 seconds."),
            *(" Try again at 8:51 PM.", " Try again at 8:52 PM."),
        ],
    ]
