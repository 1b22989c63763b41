"""Phones and desktops, light and dark, keyboards and screen readers."""

import json
import re

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, expect

from chatapp.accounts.api_key import PresentedKey
from tests.chatapp.upstream_server import Cut, Stream, UpstreamServer, Wait, openai_chunks
from tests.e2e.page.actions import begin, button, message, problem, replies, say
from tests.e2e.page.conftest import Opener
from tests.e2e.page.test_files import PDF, attach, png

REPLY = (
    "# A\n\n[link](https://a.example) `code`\n\n- a\n\n> b\n\n```python\nx = 1\n```\n\n"
    f"```\n{'long ' * 80}\n```\n\n| a | b |\n| --- | --- |\n| 1 | {'wide ' * 60} |\n"
)


@pytest.mark.parametrize("width", [320, 390])
def test_the_page_fits_a_phone(page: Page, width: int) -> None:
    """It does not scroll sideways, and the button to send stays visible."""
    page.set_viewport_size({"width": width, "height": 700})
    page.reload()
    say(page, "a-long-word-" * 60)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    expect(button(page, "Send")).to_be_in_viewport(ratio=1)
    limits = page.locator("aside").bounding_box()
    talk = page.locator(".talk").bounding_box()
    assert limits is not None
    assert talk is not None
    assert limits["y"] + limits["height"] <= talk["y"], "one covers the other"
    assert talk["height"] > 350, "too little room to talk"


def test_on_a_phone_the_key_is_out_of_the_way_once_it_works(
    key: PresentedKey, open_page: Opener, online_url: str
) -> None:
    """Also with a keyboard on the screen its field stays while it is being filled."""
    page = open_page(online_url, viewport={"width": 360, "height": 400})
    field = page.get_by_label("API key")
    expect(field).to_be_focused()
    expect(field).to_be_in_viewport()
    field.fill(key.text)
    field.press("Enter")
    expect(message(page)).to_be_focused()
    expect(page.locator("aside")).to_be_hidden()
    page.set_viewport_size({"width": 360, "height": 700})
    expect(page.locator("#sentence")).to_contain_text("more messages now")
    expect(field).to_be_hidden()


@pytest.mark.parametrize("width", [320, 390])
def test_the_buttons_of_a_reply_stay_in_one_line(page: Page, width: int) -> None:
    """On a phone below its facts."""
    page.set_viewport_size({"width": width, "height": 700})
    say(page, "hello")
    buttons = replies(page).get_by_role("button", name=re.compile("Copy|Ask again"))
    copy, again = buttons.evaluate_all("all => all.map((each) => each.getBoundingClientRect().y)")
    assert copy == again


@pytest.mark.parametrize("width", [390, 1280])
def test_the_way_to_the_latest_message_covers_no_field(chat: Page, width: int) -> None:
    """Also above files and their price; and it takes no room."""
    chat.set_viewport_size({"width": width, "height": 700})
    say(chat, "hello\n" * 60)
    latest, log = button(chat, "Latest message"), chat.locator("#log")
    before = log.bounding_box()
    log.evaluate("log => log.scrollTo(0, 0)")
    expect(latest).to_be_visible()
    assert log.bounding_box() == before
    attach(chat, ("plan.pdf", "application/pdf", PDF))
    expect(chat.locator("#estimate")).to_be_visible()
    inner, outer = latest.bounding_box(), log.bounding_box()
    assert inner is not None
    assert outer is not None
    assert outer["y"] + outer["height"] >= inner["y"] + inner["height"]


def test_what_can_be_touched_is_large_enough(
    key: PresentedKey, open_page: Opener, online_url: str, provider: UpstreamServer
) -> None:
    """44 px, the size of a fingertip, in each state of the page."""
    size = {"width": 390, "height": 844}
    page = open_page(online_url, viewport=size, has_touch=True, is_mobile=True)
    small = """() => [...document.querySelectorAll("button, select, summary, input, textarea")]
      .map((each) => (each.type === "checkbox" ? each.closest("label") : each))
      .filter((each) => each.checkVisibility({ visibilityProperty: true }))
      .map((each) => [each, each.getBoundingClientRect()])
      .filter(([, { width, height }]) => width < 44 || height < 44)
      .map(([each, { width, height }]) => `${each.outerHTML.slice(0, 80)}: ${width} x ${height}`)"""
    assert page.evaluate(small) == []
    page.get_by_label("API key").fill(key.text)
    page.get_by_label("API key").press("Enter")
    provider.script(Stream([*openai_chunks("```\nx\n```\n")[:2], Wait(), *openai_chunks("")[1:]]))
    begin(page, "ping")
    expect(button(page, "Copy code")).to_be_visible()
    assert page.evaluate(small) == []
    provider.go_on()
    expect(page.locator("#log .pending")).to_have_count(0)
    button(page, "Ask again").click()
    expect(button(page, "Earlier version")).to_be_visible()
    button(page, "Edit your message").click()
    attach(page, ("a.png", "image/png", png()), ("plan.pdf", "application/pdf", PDF))
    expect(button(page, "Remove plan.pdf")).to_be_visible()
    assert page.evaluate(small) == []
    button(page, "Do not replace it").click()
    page.route(
        "**/chat", lambda route: route.fulfill(status=502, json={"code": "provider_unavailable"})
    )
    say(page, "ping")
    for details in page.locator("details:visible").all():
        details.evaluate("details => (details.open = true)")
    assert page.evaluate(small) == []
    assert page.evaluate("document.documentElement.scrollWidth") == 390


def violations(page: Page) -> list[str]:
    found = Axe().run(page).response["violations"]
    return [f"{each['id']}: {node['html'][:200]}" for each in found for node in each["nodes"]]


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("scheme", ["dark", "light"])
def test_axe_finds_nothing(
    key: PresentedKey,
    open_page: Opener,
    online_url: str,
    provider: UpstreamServer,
    scheme: str,
    width: int,
) -> None:
    """In each state: asking for a key, empty, streaming, with replies of all kinds, with limits,
    waiting, and with a problem."""
    size = {"width": width, "height": 800}
    page = open_page(online_url, color_scheme=scheme, viewport=size, reduced_motion="reduce")
    assert violations(page) == []
    page.get_by_label("API key").fill(key.text)
    page.get_by_label("API key").press("Enter")
    expect(page.locator("#sentence")).to_contain_text("more messages now")
    assert violations(page) == []
    provider.script(Stream([*openai_chunks(REPLY)[:2], Wait(), *openai_chunks("")[1:]]))
    begin(page, "ping")
    expect(replies(page).locator("table")).to_be_visible()
    assert violations(page) == []
    provider.go_on()
    expect(page.locator("#log .pending")).to_have_count(0)
    expect(page.locator(".hljs-number")).to_have_count(1)
    button(page, "Ask again").click()
    expect(button(page, "Earlier version")).to_be_visible()
    button(page, "Edit your message").click()
    attach(page, ("a.png", "image/png", png()), ("plan.pdf", "application/pdf", PDF))
    expect(page.locator("#estimate")).to_contain_text("to read")
    assert violations(page) == []
    button(page, "Send").click()
    expect(page.get_by_role("link", name="plan.pdf")).to_be_visible()
    expect(page.locator("#log .pending")).to_have_count(0)
    assert violations(page) == []
    provider.script(Stream([*openai_chunks("ab")[:2], Cut()]))
    say(page, "ping")
    assert violations(page) == []
    body = {"error": "Overloaded.", "code": "server_is_overloaded", "retry_after": 60}
    page.route("**/chat", lambda route: route.fulfill(status=503, json=body))
    say(page, "ping")
    expect(problem(page)).to_contain_text("sent again")
    page.locator("#limits-box").evaluate("box => (box.open = true)")
    assert violations(page) == []
    button(page, "Cancel").click()
    page.route(
        "**/chat", lambda route: route.fulfill(status=502, json={"code": "provider_unavailable"})
    )
    say(page, "ping")
    problem(page).locator("summary").click()
    assert violations(page) == []
    button(page, "New chat").click()
    for box in page.locator("aside details:visible").all():
        box.evaluate("box => (box.open = true)")
    page.get_by_label("Instructions for this chat").fill("Be brief.")
    assert violations(page) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_the_keyboard_is_enough(chat: Page, provider: UpstreamServer) -> None:
    """Enter sends, Shift+Enter begins a line, and the way back from a reply is short."""
    expect(message(chat)).to_be_focused()
    message(chat).press_sequentially("one")
    message(chat).press("Shift+Enter")
    message(chat).press_sequentially("two")
    message(chat).press("Enter")
    expect(replies(chat)).to_contain_text("pong")
    assert provider.calls[-1].body["messages"][-1]["content"] == "one\ntwo"  # type: ignore[index]
    expect(message(chat)).to_be_focused()
    for name in ("Ask again", "Copy reply", "Edit your message", "Messages"):
        while chat.evaluate("document.activeElement.textContent") == "Latest message":
            chat.keyboard.press("Shift+Tab")
        chat.keyboard.press("Shift+Tab")
        focused = chat.evaluate(
            "(document.activeElement.ariaLabel ?? document.activeElement.textContent)"
        )
        assert focused == name


def test_enter_while_composing_a_character_sends_nothing(page: Page) -> None:
    """In Japanese or Chinese it chooses a word."""
    message(page).fill("かな")
    message(page).dispatch_event("keydown", {"key": "Enter", "isComposing": True})
    expect(message(page)).to_have_value("かな")
    expect(page.locator("#log article")).to_have_count(0)


def test_a_screen_reader_hears_a_reply_once(chat: Page, provider: UpstreamServer) -> None:
    """When it is complete; not its parts, and not the seconds of a countdown."""
    chat.evaluate(
        """() => {
          window.heard = [];
          const status = document.getElementById("status");
          new MutationObserver(() => window.heard.push(status.textContent))
            .observe(status, { childList: true, characterData: true, subtree: true });
        }"""
    )
    expect(chat.get_by_role("log")).to_have_attribute("aria-live", "off")
    provider.script(Stream([*openai_chunks(*"**Hello**")[:10], Wait(), *openai_chunks("!")[1:]]))
    begin(chat, "ping")
    reply = replies(chat)
    expect(reply).to_contain_text("Hello")
    expect(reply).to_have_attribute("aria-busy", "true")
    assert chat.evaluate("window.heard") == ["Writing a reply."]
    provider.go_on()
    expect(chat.locator("#status")).to_have_text("Reply: Hello!")
    assert reply.get_attribute("aria-busy") is None
    assert chat.evaluate("window.heard.length") == 2
    expect(chat.get_by_role("article", name="You")).to_have_count(1)
    expect(chat.get_by_role("article", name="Reply")).to_have_count(1)


def test_the_form_grows_with_its_text(page: Page) -> None:
    """Up to a third of the window; then it scrolls."""
    page.set_viewport_size({"width": 800, "height": 600})
    field = message(page)

    def height() -> float:
        box = field.bounding_box()
        assert box is not None
        return box["height"]

    before = height()
    field.fill("one\ntwo\nthree")
    assert before * 2 < height() < 200
    field.fill("line\n" * 100)
    assert height() <= 200
    field.fill("")
    assert height() == before


def test_paper_has_the_whole_conversation_and_nothing_else(open_page: Opener, url: str) -> None:
    """Also what the window does not show, in black on white where the screen is dark."""
    page = open_page(url, color_scheme="dark")
    said = [f"{number} {'some words ' * 40}".strip() for number in range(120)]
    roles = ["user", "assistant"] * 60
    messages = [
        {"role": role, "content": text, "end": "stop", "model": "m"}
        for role, text in zip(roles, said, strict=True)
    ]
    kept = json.dumps({"messages": messages})
    page.evaluate("kept => sessionStorage.setItem('chatapp.conversation', kept)", kept)
    page.reload()
    expect(page.locator("#log article")).to_have_count(120)
    message(page).fill("not sent")
    pages = len(re.findall(rb"/Type\s*/Page\b", page.pdf()))
    page.emulate_media(media="print")
    assert page.locator("body").inner_text().split("\n\n") == said
    ink, height = page.evaluate(
        "[getComputedStyle(document.body).color, document.querySelector('#log').scrollHeight]"
    )
    assert ink == "rgb(27, 28, 37)"
    assert pages >= height // 1200, "what the window does not show is missing"
