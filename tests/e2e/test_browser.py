"""The page at / in a real browser: chat until a limit denies, see it count down, chat again."""

from __future__ import annotations

import re
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, Request, expect, sync_playwright
from werkzeug.serving import make_server

from chatapp import create_app
from chatapp.accounts.api_key import PresentedKey
from chatapp.accounts.store import Accounts
from chatapp.database import migration
from chatapp.database.connection import Database

CHROMIUM = shutil.which("chromium")
BROWSER_OPTIONS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
BURST = 10  # of a user, in chatapp/policy.toml; then one call every two seconds

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs the program `chromium` on PATH")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Debian's chromium, without a window."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=BROWSER_OPTIONS)
        yield browser
        browser.close()


@pytest.fixture
def accounts(tmp_path: Path) -> Accounts:
    """The application's accounts, without keys at first."""
    database = Database(f"sqlite:///{tmp_path / 'chatapp.db'}")
    migration.upgrade(database)
    return Accounts(database)


@pytest.fixture
def url(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, accounts: Accounts) -> Iterator[str]:
    """The application without providers, on a free port, with a new storage and database."""
    monkeypatch.setenv("DATABASE_URL", f"sqlite:///{tmp_path / 'chatapp.db'}")
    for key in ("OPENAI_API_KEY", "ANTHROPIC_API_KEY"):
        monkeypatch.delenv(key, raising=False)
    app = create_app({"RATELIMIT_STORAGE_URI": "memory://"})
    server = make_server("127.0.0.1", 0, app, threaded=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield f"http://127.0.0.1:{server.port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def page(browser: Browser, url: str) -> Iterator[Page]:
    """The loaded page; a script error or a request to another site fails the test."""
    context = browser.new_context()
    page = context.new_page()
    complaints: list[str] = []

    def watch(request: Request) -> None:
        if not request.url.startswith(url):
            complaints.append(f"request to {request.url}")

    page.on("request", watch)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on(
        "console",
        # What the browser itself says of a 429 is no error of the page.
        lambda message: (
            complaints.append(message.text)
            if message.type == "error" and "status of 4" not in message.text
            else None
        ),
    )
    page.goto(url)
    yield page
    context.close()
    assert complaints == []


def say(page: Page, text: str) -> None:
    """Type a message, send it, and wait until it has been answered or denied."""
    page.get_by_label("Message", exact=True).fill(text)
    page.get_by_role("button", name="Send").click()
    expect(page.locator("#log .pending")).to_have_count(0)


def say_until_denied(page: Page) -> int:
    """Send messages until one is denied. Returns the number of answers before that."""
    denials = page.locator("#log .error")
    for number in range(1, 3 * BURST):
        say(page, f"message {number}")
        if denials.count():
            return number - 1
    raise AssertionError("no limit denied anything")


def test_a_conversation_until_the_limit_and_after(page: Page) -> None:
    """The eleventh message is held back during a countdown, and then sent."""
    send = page.get_by_role("button", name="Send")
    replies = page.locator("#log .model")
    answered = say_until_denied(page)
    # One more where the machine took over two seconds for the first ten.
    assert BURST <= answered <= BURST + 2
    expect(replies).to_have_count(answered)
    expect(replies.first).to_contain_text("I am offline")
    expect(replies.first).to_contain_text("tokens in")

    expect(page.locator("#log .error")).to_contain_text("Try again in")
    expect(page.locator("#countdown")).to_have_text(re.compile(r"^[12] s$"))
    expect(send).to_be_disabled()
    # It was not said: the text is back where it can be sent again.
    message = page.get_by_label("Message", exact=True)
    expect(message).to_have_value(f"message {answered + 1}")
    expect(page.locator("#log .me")).to_have_count(answered)

    expect(send).to_be_enabled(timeout=10_000)
    expect(page.locator("#wait")).to_be_hidden()
    send.click()
    expect(replies).to_have_count(answered + 1)


def test_what_is_left_of_each_limit_is_shown(page: Page) -> None:
    """Every limit by name, with the rest that this conversation has."""
    say(page, "hello")
    limits = page.locator("#limits li")
    expect(limits).to_have_count(10)
    expect(limits.filter(has_text="money per day")).to_contain_text("$5.00 of $5.00 left")
    expect(limits.filter(has_text="user per 20 s")).to_contain_text("9 of 10 left")
    expect(limits.filter(has_text="plan per day")).to_contain_text("99 of 100 left")


def test_another_user_need_not_wait(page: Page) -> None:
    """The id survives a reload, and a new id ends the wait of the old one."""
    field = page.get_by_label("User id")
    say_until_denied(page)
    expect(page.get_by_role("button", name="Send")).to_be_disabled()
    field.fill("someone-else")
    field.blur()
    expect(page.get_by_role("button", name="Send")).to_be_enabled()
    page.reload()
    expect(page.get_by_label("User id")).to_have_value("someone-else")


def test_markup_is_shown_and_never_run(page: Page) -> None:
    """Messages and replies are text, even if they look like HTML."""
    markup = "<img src=x onerror=alert(1)><b>bold</b>"
    say(page, markup)
    expect(page.locator("#log .me")).to_have_text(markup)
    expect(page.locator("#log .model")).to_contain_text(markup)
    expect(page.locator("#log img, #log b")).to_have_count(0)


def test_an_error_is_shown_in_the_servers_words(page: Page) -> None:
    """The error is in the conversation, and the message is kept."""
    page.get_by_label("Model").fill("llama")
    say(page, "hello")
    expect(page.locator("#log .error")).to_contain_text('The model "llama" is unknown')
    expect(page.get_by_role("button", name="Send")).to_be_enabled()


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


@pytest.mark.parametrize("width", [320, 390])
def test_the_page_fits_a_phone(page: Page, width: int) -> None:
    """It does not scroll sideways, and the button to send stays visible."""
    page.set_viewport_size({"width": width, "height": 700})
    page.reload()
    say(page, "a-long-word-" * 60)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    expect(page.get_by_role("button", name="Send")).to_be_in_viewport(ratio=1)
    limits = page.locator("aside").bounding_box()
    talk = page.locator(".talk").bounding_box()
    assert limits is not None
    assert talk is not None
    assert limits["y"] + limits["height"] <= talk["y"], "one covers the other"
    assert talk["height"] > 350, "too little room to talk"


@pytest.fixture
def key(accounts: Accounts) -> PresentedKey:
    """A key that exists before the application starts."""
    return accounts.create_key("alice", plan=None, default_plan="starter")


def test_with_accounts_on_the_page_asks_for_a_key(key: PresentedKey, page: Page) -> None:
    """A wrong key is reported, the right one is accepted; only the tab stores it."""
    field = page.get_by_label("API key")
    expect(field).to_be_focused()
    expect(page.get_by_label("User id")).to_have_count(0)
    field.fill("sk-chat-wrong")
    say(page, "hello")
    expect(page.locator("#log .error")).to_contain_text("API key is malformed")
    field.fill(key.text)
    say(page, "hello")
    expect(page.locator("#log .model")).to_contain_text("I am offline")
    page.reload()
    expect(field).to_have_value(key.text)
    assert page.evaluate("Object.values(localStorage).join()").find(key.secret) == -1
    assert page.context.cookies() == []
    elsewhere = page.context.new_page()
    elsewhere.goto(page.url)
    expect(elsewhere.get_by_label("API key")).to_have_value("")
