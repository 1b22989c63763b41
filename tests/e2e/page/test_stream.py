"""Replies come as they are written; they can be stopped, break off, and be asked for again."""

import re
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from playwright.sync_api import Page, Route, expect

from tests.chatapp.upstream_server import Cut, Stream, UpstreamServer, Wait, openai_chunks
from tests.e2e.page.actions import begin, button, message, problem, replies, say

HALF = openai_chunks("The first part ")[:2]


@pytest.fixture
def halfway(chat: Page, provider: UpstreamServer) -> Page:
    """A reply that goes on."""
    provider.script(Stream([*HALF, Wait(), *openai_chunks("and the rest")[1:]]))
    begin(chat, "Tell me a story")
    expect(replies(chat)).to_contain_text("The first part")
    return chat


def test_a_reply_is_shown_while_it_is_written(halfway: Page, provider: UpstreamServer) -> None:
    """Meanwhile the form stops it; nothing else can be sent, but typed."""
    expect(button(halfway, "Send")).to_have_count(0)
    expect(button(halfway, "Edit your message")).to_have_count(0)
    message(halfway).fill("the next question")
    message(halfway).press("Enter")
    provider.go_on()
    expect(replies(halfway)).to_contain_text("The first part and the rest")
    expect(message(halfway)).to_have_value("the next question")
    expect(button(halfway, "Send")).to_be_visible()
    expect(button(halfway, "Edit your message")).to_be_attached()
    assert len(provider.calls) == 1


@pytest.mark.parametrize("way", ["button", "Escape"])
def test_stop_ends_the_providers_call_and_shows_what_it_cost(
    halfway: Page, provider: UpstreamServer, tmp_path: Path, way: str
) -> None:
    """The cost and its reason are the ledger's; what had come stays, and is a part of the
    conversation."""
    if way == "button":
        button(halfway, "Stop").click()
    else:
        halfway.keyboard.press("Escape")
    assert provider.hung_up.wait(10)
    reply = replies(halfway)
    expect(reply.locator(".note")).to_have_text(
        re.compile(
            r"^You stopped this reply\. It cost \$[\d.]+: the model read \d+ tokens and wrote "
            r"about [\d,]+, including what did not arrive here, such as its thoughts\.$"
        )
    )
    with closing(sqlite3.connect(tmp_path / "chatapp.db")) as connection:
        [(cost, status, read, wrote)] = connection.execute(
            "SELECT cost_micro_usd, status, input_tokens, output_tokens FROM calls"
        ).fetchall()
    assert status == "cut_off"
    shown = re.findall(r"\d[\d.,]*\d|\d", reply.locator(".note").inner_text())
    assert float(shown[0]) == pytest.approx(cost / 1e6, rel=0.05)
    assert [int(each.replace(",", "")) for each in shown[1:]] == [read, wrote]
    expect(message(halfway)).to_be_focused()
    say(halfway, "Go on")
    assert [each["content"] for each in provider.calls[-1].body["messages"]] == [  # type: ignore[attr-defined]
        "Tell me a story",
        "The first part ",
        "Go on",
    ]


def test_a_reply_can_be_stopped_before_it_begins(chat: Page, provider: UpstreamServer) -> None:
    """An empty reply is no part of the conversation."""
    provider.think()
    begin(chat, "Tell me a story")
    assert provider.waiting.wait(60)
    button(chat, "Stop").click()
    expect(replies(chat)).to_contain_text("You stopped this reply.")
    provider.go_on()
    button(chat, "Try again").click()
    expect(replies(chat)).to_contain_text("pong")
    assert len(provider.calls[-1].body["messages"]) == 1  # type: ignore[arg-type]


def test_a_reply_that_the_provider_cuts_can_be_asked_for_again(
    chat: Page, provider: UpstreamServer
) -> None:
    """What had come is shown with its cost; the new reply replaces it."""
    provider.script(Stream([*HALF, Cut()]))
    say(chat, "Tell me a story")
    expect(replies(chat)).to_contain_text("The first part")
    note = replies(chat).locator(".note")
    expect(note).to_have_text(
        re.compile(
            r"^The model's provider broke this reply off\. It cost (under )?\$[\d.]+: the model "
            r"read \d+ tokens and wrote about [\d,]+, including what did not arrive here"
        )
    )
    button(chat, "Try again").click()
    expect(replies(chat)).to_have_count(1)
    expect(replies(chat)).to_contain_text("pong")
    assert len(provider.calls[-1].body["messages"]) == 1  # type: ignore[arg-type]


def test_a_lost_connection_leaves_what_had_come(page: Page) -> None:
    """The stream ends without its last event, as behind a proxy that gives up."""

    def cut(route: Route) -> None:
        body = 'event: delta\ndata: {"text":"The first part"}\n\nevent: del'
        route.fulfill(content_type="text/event-stream", body=body)

    page.route("**/chat", cut)
    say(page, "Tell me a story")
    expect(replies(page)).to_contain_text("The connection was lost, so this reply is incomplete.")
    page.unroute("**/chat")
    button(page, "Try again").click()
    expect(replies(page)).to_contain_text("I am offline")


def test_offline_the_message_waits_for_the_network(page: Page) -> None:
    """It is sent by itself when the network is back."""
    page.context.set_offline(True)
    begin(page, "Are you there?")
    expect(problem(page)).to_contain_text("You are offline. Your message is sent when")
    expect(replies(page)).to_have_count(0)
    page.context.set_offline(False)
    expect(replies(page)).to_contain_text("I am offline")
    expect(problem(page)).to_have_count(0)
    expect(page.locator("#log .me")).to_have_count(1)


def test_a_server_that_is_away_is_a_clear_problem(page: Page) -> None:
    """The message goes back into the form; one click sends it again."""
    page.route("**/chat", lambda route: route.abort())
    say(page, "hello")
    expect(problem(page)).to_contain_text("The server cannot be reached. Check your connection.")
    expect(message(page)).to_have_value("hello")
    page.unroute("**/chat")
    button(page, "Try again").click()
    expect(replies(page)).to_contain_text("I am offline")
    expect(message(page)).to_have_value("")


def test_text_files_are_a_part_of_a_message(chat: Page, provider: UpstreamServer) -> None:
    """Between fences that nothing in them can end, with what they cost, before they are sent."""
    code = "```\n<script>alert(1)</script>\n" + "x = 1\n" * 500
    message(chat).fill("Explain:")
    with chat.expect_file_chooser() as chooser:
        button(chat, "Add files").click()
    chooser.value.set_files(
        [
            {"name": "<b>.py", "mimeType": "text/x-python", "buffer": code.encode()},
            {"name": "README", "mimeType": "", "buffer": "é".encode()},
        ]
    )
    text = f"Explain:\n\n<b>.py:\n\n````py\n{code}````\n\nREADME:\n\n```\né\n```"
    expect(message(chat)).to_have_value(text)
    expect(message(chat)).to_be_focused()
    tokens = -(-len(text.encode()) // 3)
    expect(chat.locator("#estimate")).to_have_text(
        f"About {tokens:,} tokens to read: $0.00077. The reply costs extra."
    )
    button(chat, "Send").click()
    expect(replies(chat)).to_contain_text("pong")
    expect(chat.locator("#estimate")).to_be_hidden()
    assert provider.calls[-1].body["messages"][-1]["content"] == text  # type: ignore[index]
    expect(chat.locator("#log :is(b, script)")).to_have_count(0)


def test_a_file_that_cannot_be_sent_is_a_clear_problem(chat: Page) -> None:
    """What was typed stays."""
    message(chat).fill("Look:")
    for name, content, says in (
        ("a.png", b"\x89PNG\x00\xff", "a.png is not text: images, PDF files and text can be sent."),
        ("nul.txt", b"a\x00b", "nul.txt is not text: images, PDF files and text can be sent."),
        ("big.txt", b"a" * 30_001, "big.txt is too large: 30 kB of text fit into a message."),
    ):
        chat.locator("#files").set_input_files(
            [{"name": name, "mimeType": "text/plain", "buffer": content}]
        )
        expect(problem(chat)).to_have_text(says)
        expect(message(chat)).to_have_value("Look:")
    half = [{"name": name, "mimeType": "", "buffer": b"a" * 15_000} for name in ("a.md", "b.md")]
    chat.locator("#files").set_input_files(half)
    expect(problem(chat)).to_have_text(
        "That is 31 kB together, and 30 kB of text fit into a message. Add fewer files."
    )
    expect(message(chat)).to_have_value("Look:")


def test_a_message_is_sent_once(chat: Page, provider: UpstreamServer) -> None:
    """Two clicks, and Enter on top, before the answer begins."""
    provider.think()
    message(chat).fill("hello")
    chat.evaluate("const send = document.getElementById('send'); send.click(); send.click()")
    message(chat).press("Enter")
    assert provider.waiting.wait(60)
    provider.go_on()
    expect(replies(chat)).to_contain_text("pong")
    assert len(provider.calls) == 1
    expect(chat.locator("#log .me")).to_have_count(1)


def test_a_reply_that_became_too_long_can_go_on(chat: Page, provider: UpstreamServer) -> None:
    """The page says why it ends, and asks for the rest."""
    provider.script(Stream(openai_chunks("Once upon", finish_reason="length")))
    say(chat, "Tell me a story")
    expect(replies(chat)).to_contain_text("reached the longest length")
    message(chat).fill("a draft")
    button(chat, "Edit your message").click()
    button(chat, "Continue").click()
    expect(replies(chat).nth(1)).to_contain_text("pong")
    expect(message(chat)).to_have_value("Tell me a story\n\na draft")
    assert [each["content"] for each in provider.calls[-1].body["messages"]] == [  # type: ignore[attr-defined]
        *("Tell me a story", "Once upon", "Continue.")
    ]


def test_the_log_follows_a_reply_unless_the_reader_scrolls(
    chat: Page, provider: UpstreamServer
) -> None:
    """Reading on above is not disturbed; one click leads back to the end."""
    lines = "\n\n".join(f"Line {number}" for number in range(60))
    provider.script(Stream([*openai_chunks(lines)[:2], Wait(), *openai_chunks("\n\nlast")[1:]]))
    begin(chat, "Tell me a story")
    log = chat.locator("#log")
    at_the_end = """() => {
      const log = document.getElementById("log");
      return log.scrollHeight - log.scrollTop - log.clientHeight < 60;
    }"""
    expect(log).to_contain_text("Line 59")
    chat.wait_for_function(at_the_end)
    log.evaluate("log => log.scrollTo(0, 0)")
    expect(button(chat, "Latest message")).to_be_visible()
    provider.go_on()
    expect(log).to_contain_text("last")
    assert log.evaluate("log => log.scrollTop") == 0
    button(chat, "Latest message").click()
    chat.wait_for_function(at_the_end)
    provider.script(Stream(openai_chunks(lines)))
    say(chat, "And on")
    expect(replies(chat).last.get_by_role("button", name="Copy reply")).to_be_in_viewport()
    chat.reload()
    expect(replies(chat).last.get_by_role("button", name="Copy reply")).to_be_in_viewport()
