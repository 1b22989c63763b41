"""Errors in a user's words: what happened, and what to do."""

from dataclasses import dataclass, field

import pytest
from playwright.sync_api import Locator, Page, Route, expect

from chatapp.accounts.api_key import PresentedKey
from tests.e2e.page.actions import button, message, problem, replies, say
from tests.e2e.page.conftest import KEPT


@dataclass(frozen=True)
class Case:
    status: int
    code: str
    says: str
    error: str = "The server's own sentence."
    headers: dict[str, str] = field(default_factory=dict)
    policy: str = ""


def wait(seconds: int, *limits: str) -> dict[str, str]:
    return {"Retry-After": str(seconds), "RateLimit-Policy": ", ".join(limits)}


FINAL = {"x-should-retry": "false"}
CASES = [
    Case(
        429,
        "rate_limited",
        "You have used all your messages for today. Try again ",
        headers=wait(12_000, '"user";q=10;w=20', '"plan";q=100;w=86400'),
        policy="plan",
    ),
    Case(
        429,
        "rate_limited",
        "Your messages and replies were very long.",
        headers=wait(130, '"tokens";q=200000;w=60;qu="tokens"'),
        policy="tokens",
    ),
    Case(
        429,
        "rate_limited",
        "Too many of your messages are being answered",
        headers=wait(130, '"at-once";q=4;qu="concurrent-requests"'),
        policy="at-once",
    ),
    Case(
        429,
        "insufficient_quota",
        "Your budget for this month is used up. Try again on ",
        "Rate limit 'usd-month' exceeded: 30 usd per 1 month. Try again in 2 days.",
        wait(172_800, '"usd-month";q=30000000;w=2592000;qu="micro-usd"'),
        "usd-month",
    ),
    Case(
        429,
        "insufficient_quota",
        "The shared budget of your team for this month is used up. Try again on ",
        "The shared budget of your team for this month is used up. Try again in 2 days.",
        wait(172_800),
        "team-usd-month",
    ),
    Case(429, "abnormal_usage", "You have spent far more than usual", headers=FINAL),
    Case(403, "blocked", "Your access is blocked. Ask your administrator.", headers=FINAL),
    Case(403, "model_not_allowed", "Your key does not allow this model. Choose another one"),
    Case(413, "message_too_long", "Your message is too long"),
    Case(413, "conversation_too_long", "This chat has become too long. Start a new one."),
    Case(400, "request_too_large", "This is more than your limits allow at once."),
    Case(500, "internal_error", "Something went wrong in the server."),
    Case(502, "provider_unavailable", "The model cannot be reached. Try again in a moment"),
    Case(502, "provider_refused", "Your administrator has to fix that"),
    Case(502, "provider_rejected", "start a new chat, or choose another model"),
    Case(504, "provider_timeout", "The model took too long."),
    Case(503, "switched_off", "Your administrator has switched this off for now.", headers=FINAL),
    Case(503, "storage_unavailable", "The server cannot check your limits at the moment."),
    Case(503, "new_code", "Something went wrong in the server. Try again in a moment."),
    Case(422, "new_code", "The server's own sentence."),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.code}-{case.policy}")
def test_an_error_is_in_a_users_words(page: Page, case: Case) -> None:
    """The message is kept. The server's sentence and the request's id are for the administrator."""
    body = {"error": case.error, "code": case.code, "policy": case.policy}
    headers = {"x-request-id": "req_12ab", **case.headers}
    page.route("**/chat", lambda r: r.fulfill(status=case.status, headers=headers, json=body))
    say(page, "hello")
    expect(problem(page).locator("p").first).to_contain_text(case.says)
    details = f"{case.error} ({case.code}) Request req_12ab"
    expect(problem(page)).to_contain_text(details)
    expect(message(page)).to_have_value("hello")
    expect(button(page, "Send")).to_be_enabled()
    expect(page.locator("#log .me")).to_have_count(0)
    expect(page.locator("#status")).to_contain_text(case.says)


def test_the_details_of_a_problem_are_copied(page: Page) -> None:
    """For a report to the administrator."""
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    body = {"error": "The server failed.", "code": "internal_error"}
    page.route(
        "**/chat", lambda r: r.fulfill(status=500, headers={"x-request-id": "req_1"}, json=body)
    )
    say(page, "hello")
    problem(page).locator("summary").click()
    problem(page).get_by_role("button", name="Copy details").click()
    expect(problem(page).get_by_role("button", name="Copy details")).to_have_text("Copied")
    copied = page.evaluate("navigator.clipboard.readText()")
    assert copied == "The server failed. (internal_error) Request req_1"


def test_an_answer_that_is_no_json_is_a_clear_problem(page: Page) -> None:
    """As a proxy between the page and the server sends."""
    page.route("**/chat", lambda route: route.fulfill(status=502, body="<html>Bad gateway"))
    say(page, "hello")
    expect(problem(page)).to_contain_text("Something went wrong in the server.")


def test_a_busy_model_is_asked_again(page: Page) -> None:
    """After the wait that the server names."""
    page.clock.install()
    page.reload()
    body = {"error": "Overloaded.", "code": "server_is_overloaded", "retry_after": 60}
    page.route("**/chat", lambda r: r.fulfill(status=503, json=body), times=1)
    say(page, "hello")
    expect(problem(page)).to_contain_text("The model is very busy. Your message is sent again in")
    page.clock.run_for(61_000)
    expect(replies(page)).to_contain_text("I am offline")
    expect(problem(page)).to_have_count(0)


def enter(field: Locator, text: str) -> None:
    field.fill(text)
    field.press("Enter")


def test_with_accounts_on_the_page_asks_for_a_key(key: PresentedKey, chat: Page) -> None:
    """A wrong key is reported, the right one is accepted; only the tab stores it, unless the user
    chooses that the browser keeps it."""
    page = chat
    asks = "Paste the key that your administrator gave you."
    expect(page.get_by_role("heading", name=asks)).to_be_visible()
    field = page.get_by_label("API key")
    expect(field).to_be_focused()
    expect(page.get_by_label("User id")).to_have_count(0)
    expect(page.locator("#sentence")).to_have_text(asks)
    say(page, "hello")
    expect(problem(page)).to_contain_text(asks)
    expect(field).to_be_focused()
    enter(field, "sk-chat-typo")
    expect(page.locator("#status")).to_have_text(f"This key does not work. {asks}")
    expect(field).to_be_focused()
    expect(message(page)).to_have_value("hello")
    expect(problem(page)).to_have_count(0)
    expect(page.get_by_role("heading", name=asks)).to_be_visible()
    for wrong in ("sk-chat-…", "sk-chat-wrong"):
        field.fill("")
        field.blur()
        expect(page.locator("#sentence")).to_have_text(asks)
        field.fill(wrong)
        field.blur()
        expect(page.locator("#sentence")).to_have_text(f"This key does not work. {asks}")
    say(page, "hello")
    expect(problem(page)).to_contain_text(f"This key does not work. {asks}")
    expect(problem(page)).to_contain_text("API key is malformed")
    expect(field).to_be_focused()
    enter(field, key.text)
    expect(page.locator("#sentence")).to_contain_text("You can send 10 more messages now")
    expect(page.locator("#welcome h2")).to_have_text("What can I do for you?")
    expect(message(page)).to_be_focused()
    message(page).press("Enter")
    expect(replies(page)).to_contain_text("pong")
    page.reload()
    expect(field).to_have_value(key.text)
    assert page.evaluate("Object.values(localStorage).join()").find(key.secret) == -1
    assert page.context.cookies() == []
    elsewhere = page.context.new_page()
    elsewhere.goto(page.url)
    expect(elsewhere.get_by_label("API key")).to_have_value("")
    page.get_by_label("Keep my key").check()
    elsewhere.reload()
    expect(elsewhere.get_by_label("API key")).to_have_value(key.text)
    expect(elsewhere.locator("#sentence")).to_contain_text("more messages now")
    elsewhere.get_by_label("Keep my key").uncheck()
    page.context.new_page().goto(page.url)
    last = page.context.pages[-1]
    expect(last.get_by_label("API key")).to_be_focused()
    expect(last.get_by_label("API key")).to_have_value("")


def test_accounts_may_be_turned_on_meanwhile(page: Page) -> None:
    """The page has no field for a key yet; a reload brings one, and the message stays."""
    body = {"error": "Missing API key.", "code": "invalid_api_key"}
    page.route("**/chat", lambda route: route.fulfill(status=401, json=body))
    say(page, "hello")
    expect(problem(page)).to_contain_text("A key is needed here now. Reload this page")
    page.reload()
    expect(message(page)).to_have_value("hello")


@pytest.mark.parametrize("stays", [False, True])
def test_signing_out_leaves_nothing(key: PresentedKey, chat: Page, stays: bool) -> None:
    """Neither the key, nor the conversation and what was being typed, nor the user's limits; in no
    tab, also of what the user chose to keep in the browser."""
    other = chat.context.new_page()
    other.goto(chat.url)
    for each in (chat, other):
        each.once("dialog", lambda dialog: dialog.accept())
    if stays:
        chat.get_by_label("Keep my key").check()
        chat.get_by_label("Keep my chats").check()
    chat.get_by_label("API key").fill(key.text)
    chat.get_by_label("API key").press("Enter")
    say(chat, "My name is Ada.")
    message(chat).fill("Ada again")
    other.get_by_label("API key").fill(key.text)
    other.get_by_label("API key").press("Enter")
    say(other, "I am Ada, too.")
    expect(button(chat, "I am Ada, too.")).to_have_count(int(stays))
    button(chat, "Sign out and forget everything").click()
    for page in (chat, other):
        expect(page.locator("#log article")).to_have_count(0)
        expect(page.get_by_label("API key")).to_be_focused()
        expect(page.get_by_label("API key")).to_have_value("")
        expect(message(page)).to_have_value("")
        expect(page.locator("#limits-box")).to_be_hidden()
        expect(page.locator("#chats-box")).to_be_hidden()
        kept = page.evaluate(KEPT)
        assert "Ada" not in kept
        assert key.secret not in kept


def test_what_is_typed_before_the_script_comes_stays(page: Page) -> None:
    """As on a slow network; and it can be sent then."""

    def slowly(route: Route) -> None:
        message(page).fill("early")
        route.continue_()

    page.route("**/chat.js", slowly)
    page.reload()
    expect(page.locator("#sentence")).not_to_be_empty()
    expect(message(page)).to_have_value("early")
    button(page, "Send").click()
    expect(replies(page)).to_contain_text("early")


def test_without_storage_in_the_browser_the_page_works(page: Page) -> None:
    """Some browsers forbid it: nothing is remembered then."""
    page.add_init_script(
        """for (const name of ["localStorage", "sessionStorage"]) {
          Object.defineProperty(window, name, { get() { throw new DOMException("forbidden"); } });
        }"""
    )
    page.reload()
    say(page, "hello")
    expect(replies(page)).to_contain_text("I am offline")
    say(page, "again")
    expect(replies(page)).to_have_count(2)


def test_a_full_storage_keeps_the_latest_messages(page: Page) -> None:
    """A browser keeps about 5 MB for a page."""
    kept = page.evaluate(
        """async () => {
          const { Conversation } = await import("/static/conversation.js");
          const talk = new Conversation();
          for (let n = 0; n < 60; n += 1) {
            talk.messages.push({ role: "user", content: `${n} ` + "x".repeat(200_000) });
          }
          talk.save();
          const again = new Conversation();
          again.load();
          return [talk.isKept, again.messages.length, again.last.content.slice(0, 3)];
        }"""
    )
    assert kept[0] is False
    assert 5 <= kept[1] < 60
    assert kept[2] == "59 "
