"""The page remembers a conversation, in its tab only, and sends as much of it as is sensible."""

import json
import re

import pytest
from playwright.sync_api import Page, expect

from chatapp.accounts.api_key import PresentedKey
from tests.chatapp.upstream_server import Stream, UpstreamServer, Wait, openai_chunks
from tests.e2e.page.actions import begin, button, message, problem, replies, say
from tests.e2e.page.conftest import KEPT, MODELS, Opener

#: The dollars of the open chat, by the page's own sum.
SPENT = """async () => {
  const { Conversation } = await import("/static/conversation.js");
  const talk = new Conversation();
  await talk.load();
  return talk.costUsd;
}"""


def sent(provider: UpstreamServer) -> list[tuple[str, str]]:
    """The messages of the last call, as role and text."""
    messages = provider.calls[-1].body["messages"]
    assert isinstance(messages, list)
    return [(each["role"], each["content"]) for each in messages]


def test_the_model_gets_what_was_said_before(chat: Page, provider: UpstreamServer) -> None:
    """In its order, with the role of each message."""
    say(chat, "My name is Ada.")
    say(chat, "Who am I?")
    assert sent(provider) == [
        ("user", "My name is Ada."),
        ("assistant", "pong"),
        ("user", "Who am I?"),
    ]
    assert provider.calls[-1].body["stream"] is True


def test_chats_survive_a_reload_until_they_are_deleted(
    chat: Page, provider: UpstreamServer
) -> None:
    """They are in the tab's storage only: another tab does not have them."""
    provider.script(Stream(openai_chunks("**Hi** there")))
    say(chat, "My name is Ada.")
    message(chat).fill("a draft")
    chat.reload()
    expect(chat.locator("#log .me .text")).to_have_text("My name is Ada.")
    expect(replies(chat).locator("strong")).to_have_text("Hi")
    expect(replies(chat)).to_contain_text("12 tokens in")
    expect(message(chat)).to_have_value("a draft")
    assert "Ada" not in chat.evaluate("Object.values(localStorage).join()")
    other = chat.context.new_page()
    other.goto(chat.url)
    expect(other.locator("#log article")).to_have_count(0)

    say(chat, "Who am I?")
    assert len(sent(provider)) == 3
    button(chat, "New chat").click()
    expect(chat.locator("#log article")).to_have_count(0)
    expect(message(chat)).to_be_focused()
    say(chat, "Hello")
    assert sent(provider) == [("user", "Hello")]
    chat.reload()
    button(chat, "My name is Ada.").click()
    expect(replies(chat)).to_have_count(2)
    say(chat, "And now?")
    assert len(sent(provider)) == 5
    expect(button(chat, "My name is Ada.")).to_have_count(0)  # it is open
    button(chat, "Hello").click()
    expect(chat.locator("#log .me .text")).to_have_text("Hello")
    chat.once("dialog", lambda dialog: dialog.accept())
    button(chat, "Delete the chat My name is Ada.").click()
    expect(chat.get_by_label("Search earlier chats")).to_be_hidden()
    assert "Ada" not in chat.evaluate("Object.values(sessionStorage).join()")


def test_chats_are_found_by_their_words(chat: Page, provider: UpstreamServer) -> None:
    """Of messages, replies and names, in whatever order; a name is text, and stays."""
    provider.script(Stream(openai_chunks("Paris is the capital.")))
    say(chat, "Tell me of France")
    for name in ("<img src=x onerror=alert(1)>", "", "My trip"):
        chat.once("dialog", lambda dialog, name=name: dialog.accept(name))
        button(chat, "Rename").click()
        expect(chat.locator("#status")).to_contain_text("name")
    button(chat, "New chat").click()
    say(chat, "Tell me a joke")
    button(chat, "New chat").click()
    chats = chat.locator("#chats .title")
    expect(chats).to_have_text(["Tell me a joke", "My trip"])
    for words, found in (
        ("tell", ["Tell me a joke", "My trip"]),
        ("PARIS tell", ["My trip"]),
        ("trip", ["My trip"]),
        ("nothing of that", []),
    ):
        chat.get_by_label("Search earlier chats").fill(words)
        expect(chats).to_have_text(found)
        expect(chat.locator("#status")).to_have_text(
            f"{len(found)} chat{'' if len(found) == 1 else 's'} found."
        )
    chat.reload()
    expect(chats).to_have_text(["Tell me a joke", "My trip"])


def test_a_chat_has_instructions(chat: Page, provider: UpstreamServer) -> None:
    """Each its own; they are sent with each of its messages, and can be saved for other chats."""
    box = chat.get_by_label("Instructions for this chat")
    chat.get_by_text("Instructions", exact=True).click()
    box.fill("Answer in rhymes. <b>\u05d0</b>")
    for text in ("one", "two"):
        say(chat, text)
        assert sent(provider)[0] == ("system", "Answer in rhymes. <b>\u05d0</b>")
    assert len(sent(provider)) == 4
    chat.once("dialog", lambda dialog: dialog.accept("<i>Rhymes</i>"))
    button(chat, "Save").click()
    expect(chat.locator("#status")).to_have_text("Saved.")
    button(chat, "New chat").click()
    expect(box).to_have_value("")
    say(chat, "three")
    assert sent(provider) == [("user", "three")]
    chat.get_by_label("Saved instructions").select_option("<i>Rhymes</i>")
    expect(box).to_have_value("Answer in rhymes. <b>\u05d0</b>")
    say(chat, "four")
    assert [role for role, _ in sent(provider)] == ["system", "user", "assistant", "user"]
    chat.reload()
    expect(box).to_have_value("Answer in rhymes. <b>\u05d0</b>")
    chat.get_by_label("Saved instructions").select_option("<i>Rhymes</i>")
    chat.locator("#delete-preset").click()
    expect(chat.get_by_label("Saved instructions").locator("option")).to_have_text(
        ["Nothing is saved"]
    )
    assert "rhymes" not in chat.evaluate("JSON.stringify({ ...localStorage })")


def test_instructions_are_counted_as_a_part_of_what_is_sent(
    chat: Page, provider: UpstreamServer
) -> None:
    """Of a dear model, $10 per million tokens, all that is sent may cost 5 cents: 15,000 bytes."""
    chat.get_by_label("Model").select_option("gpt-6-astra")
    chat.get_by_text("Instructions", exact=True).click()
    chat.get_by_label("Instructions for this chat").fill("x" * 8_000)
    say(chat, "a" * 4_000)
    say(chat, "b" * 4_000)
    assert [text[0] for _, text in sent(provider)] == ["x", "b"]


def test_a_saved_chat_has_its_instructions(chat: Page) -> None:
    """Without them its replies are not what they were."""
    chat.get_by_text("Instructions", exact=True).click()
    chat.get_by_label("Instructions for this chat").fill("Answer in rhymes.")
    say(chat, "Hello")
    with chat.expect_download() as download:
        button(chat, "Save text").click()
    assert download.value.path().read_text() == (
        "# Hello\n\n## Instructions\n\nAnswer in rhymes.\n\n## You\n\nHello\n\n"
        "## gpt-5.4-mini\n\npong\n"
    )
    with chat.expect_download() as download:
        button(chat, "Save JSON").click()
    assert json.loads(download.value.path().read_text())["instructions"] == "Answer in rhymes."


def test_a_chat_is_saved_as_a_file(chat: Page, provider: UpstreamServer) -> None:
    """As Markdown, exactly as it was written, or as JSON. Whatever it begins with, the name of the
    file is no path and has the right ending."""
    text = "Look:\n\n```html\n<script>alert(1)</script>\n```"
    provider.script(Stream(openai_chunks(text)))
    say(chat, "../../.bashrc\u202egpj.exe <b>")
    with chat.expect_download() as download:
        button(chat, "Save text").click()
    assert download.value.suggested_filename == "bashrc-gpj-exe-b.md"
    assert download.value.path().read_text() == (
        "# ../../.bashrc\u202egpj.exe <b>\n\n## You\n\n../../.bashrc\u202egpj.exe <b>\n\n"
        f"## gpt-5.4-mini\n\n{text}\n"
    )
    with chat.expect_download() as download:
        button(chat, "Save JSON").click()
    assert download.value.suggested_filename == "bashrc-gpj-exe-b.json"
    saved = json.loads(download.value.path().read_text())
    assert [each["content"] for each in saved["messages"]] == [
        "../../.bashrc\u202egpj.exe <b>",
        text,
    ]
    assert saved["messages"][1]["usage"]["input_tokens"] == 12


@pytest.fixture
def stays(chat: Page) -> Page:
    """A page whose user keeps the chats in the browser."""
    chat.get_by_label("Keep my chats").check()
    return chat


def another(page: Page) -> Page:
    """Another tab."""
    other = page.context.new_page()
    other.goto(page.url)
    return other


def test_chats_stay_in_the_browser_if_the_user_wants_that(
    chat: Page, provider: UpstreamServer
) -> None:
    """In all tabs, after they are closed, and with what was said before; until they are deleted."""
    say(chat, "My name is Ada.")
    chat.get_by_label("Keep my chats").check()
    say(chat, "Who am I?")
    other = another(chat)
    chat.close()
    expect(other.get_by_label("Keep my chats")).to_be_checked()
    button(other, "My name is Ada.").click()
    expect(replies(other)).to_have_count(2)
    say(other, "And now?")
    assert len(sent(provider)) == 5
    other.reload()
    expect(replies(other)).to_have_count(3)
    third = another(other)
    expect(third.locator("#log article")).to_have_count(0)
    third.once("dialog", lambda dialog: dialog.accept())
    button(third, "Delete the chat My name is Ada.").click()
    expect(other.locator("#log article")).to_have_count(0)
    assert "Ada" not in third.evaluate(KEPT)


def test_tabs_see_what_others_say(stays: Page) -> None:
    """In the list, and in the chat that both have open."""
    other = another(stays)
    say(stays, "I am the first tab")
    button(other, "I am the first tab").click()
    say(other, "I am the second tab")
    expect(stays.locator("#log .me .text")).to_have_text(
        ["I am the first tab", "I am the second tab"]
    )
    expect(replies(stays)).to_have_count(2)
    button(other, "New chat").click()
    say(other, "Something else")
    expect(button(stays, "Something else")).to_be_visible()


def test_nothing_is_lost_if_two_tabs_go_on_with_a_chat(
    stays: Page, provider: UpstreamServer
) -> None:
    """What both write at the same time becomes two chats."""
    say(stays, "Hello")
    other = another(stays)
    button(other, "Hello").click()
    provider.script(Stream([*openai_chunks("Half a reply")[:2], Wait(), *openai_chunks("")[1:]]))
    begin(stays, "first")
    expect(replies(stays).last).to_contain_text("Half a reply")
    expect(other.locator("#log .me")).to_have_count(2)
    say(other, "second")
    provider.go_on()
    expect(stays.locator("#log .pending")).to_have_count(0)
    for page in (stays, other):
        expect(button(page, "Hello")).to_have_count(1)
    assert stays.locator("#log .me .text").all_inner_texts() == ["Hello", "first"]
    button(stays, "Hello").click()
    expect(stays.locator("#log .me .text")).to_have_text(["Hello", "first", "second"])


@pytest.fixture
def duplicate(chat: Page) -> Page:
    """A duplicated tab: it begins with a copy of what the tab has."""
    say(chat, "Hello")
    with chat.expect_popup() as popup:
        chat.evaluate("() => { window.open(location.href) }")
    expect(popup.value.locator("#log .me .text")).to_have_text("Hello")
    return popup.value


@pytest.mark.parametrize("is_first", [True, False])
def test_a_duplicated_tab_loses_nothing_if_chats_begin_to_stay(
    chat: Page, duplicate: Page, is_first: bool
) -> None:
    """What only one of the two tabs has becomes a chat of its own; what both have stays one."""
    say(chat, "Only here")
    say(duplicate, "Only there")
    (chat if is_first else duplicate).get_by_label("Keep my chats").check()
    for page, here, there in (
        (chat, "Only here", "Only there"),
        (duplicate, "Only there", "Only here"),
    ):
        expect(page.get_by_label("Keep my chats")).to_be_checked()
        expect(button(page, "Hello")).to_have_count(1)
        expect(page.locator("#log .me .text")).to_have_text(["Hello", here])
        page.reload()
        expect(page.locator("#log .me .text")).to_have_text(["Hello", here])
        button(page, "Hello").click()
        expect(page.locator("#log .me .text")).to_have_text(["Hello", there])
        button(page, "Hello").click()


def test_a_duplicated_tab_without_messages_of_its_own_gets_those_of_the_other(
    chat: Page, duplicate: Page
) -> None:
    """It shows them, and no chat is there twice."""
    say(chat, "Only here")
    chat.get_by_label("Keep my chats").check()
    expect(duplicate.locator("#log .me .text")).to_have_text(["Hello", "Only here"])
    expect(button(duplicate, "Hello")).to_have_count(0)
    say(duplicate, "More")
    expect(chat.locator("#log .me .text")).to_have_text(["Hello", "Only here", "More"])


def test_a_reply_in_a_duplicated_tab_is_not_lost_if_chats_begin_to_stay(
    chat: Page, duplicate: Page, provider: UpstreamServer
) -> None:
    """The other tab has gone on with the chat that the reply belongs to."""
    provider.script(Stream([*openai_chunks("Half a reply")[:2], Wait(), *openai_chunks("")[1:]]))
    begin(duplicate, "Only there")
    expect(replies(duplicate).last).to_contain_text("Half a reply")
    say(chat, "Only here")
    chat.get_by_label("Keep my chats").check()
    expect(duplicate.get_by_label("Keep my chats")).to_be_checked()
    provider.go_on()
    expect(duplicate.locator("#log .pending")).to_have_count(0)
    expect(duplicate.locator("#log .me .text")).to_have_text(["Hello", "Only there"])
    expect(replies(duplicate).last).to_contain_text("Half a reply")
    expect(button(chat, "Hello")).to_have_count(1)
    assert "Half a reply" in chat.evaluate(KEPT)


def test_a_chat_that_was_in_the_tab_only_stays_once_its_tab_is_restored(
    chat: Page, duplicate: Page
) -> None:
    """Another tab has begun to keep the chats while this one was closed."""
    say(duplicate, "Only there")
    button(duplicate, "New chat").click()
    duplicate.evaluate("() => { location.href = 'about:blank' }")
    duplicate.wait_for_url("about:blank")
    chat.get_by_label("Keep my chats").check()
    say(chat, "Only here")
    duplicate.go_back()
    expect(button(duplicate, "Hello")).to_have_count(2)
    duplicate.reload()
    expect(button(duplicate, "Hello")).to_have_count(2)
    expect(button(chat, "Hello")).to_have_count(1)


@pytest.mark.parametrize("leaves", [False, True])
def test_a_chat_that_is_deleted_during_its_reply_is_gone(
    stays: Page, provider: UpstreamServer, leaves: bool
) -> None:
    """Also where the reply was read, whether it ends or its user begins another chat; what is said
    there afterwards is a chat of its own, and stays."""
    say(stays, "Hello")
    other = another(stays)
    provider.script(Stream([*openai_chunks("Half a reply")[:2], Wait(), *openai_chunks("")[1:]]))
    begin(stays, "More")
    expect(replies(stays).last).to_contain_text("Half a reply")
    other.once("dialog", lambda dialog: dialog.accept())
    button(other, "Delete the chat Hello").click()
    expect(other.get_by_role("status")).to_have_text("The chat is deleted.")
    if leaves:
        button(stays, "New chat").click()
    provider.go_on()
    expect(stays.locator("#log article")).to_have_count(0)
    say(stays, "Something else")
    for page in (stays, other):
        expect(button(page, "Hello")).to_have_count(0)
    expect(button(other, "Something else")).to_be_visible()
    assert "Hello" not in other.evaluate(KEPT)


def test_a_chat_whose_first_message_was_refused_stays_once_it_is_answered(stays: Page) -> None:
    """Its tab had taken it out of the browser itself."""
    error = {"error": "Failed.", "code": "internal_error"}
    stays.route("**/chat", lambda route: route.fulfill(status=500, json=error), times=1)
    say(stays, "Hello")
    expect(problem(stays)).to_be_visible()
    button(stays, "Try again").click()
    expect(replies(stays)).to_contain_text("pong")
    expect(button(another(stays), "Hello")).to_be_visible()


def test_a_chat_that_stays_survives_the_end_of_its_page(
    stays: Page, provider: UpstreamServer
) -> None:
    """As a reload in the middle of a reply, which leaves no time to write into the database."""
    provider.script(Stream([*openai_chunks("Half a reply")[:2], Wait()]))
    begin(stays, "Tell me more")
    expect(replies(stays)).to_contain_text("Half a reply")
    stays.evaluate(
        "() => { IDBObjectStore.prototype.put = () => { throw new DOMException('too late'); } }"
    )
    stays.reload()
    expect(replies(stays)).to_contain_text("Half a reply")
    expect(replies(stays)).to_contain_text("this reply is incomplete. It cost $")


def test_chats_need_not_stay_any_longer(stays: Page) -> None:
    """They leave the browser, for all tabs, and are in the tab until it is closed."""
    say(stays, "My name is Ada.")
    button(stays, "New chat").click()
    other = another(stays)
    expect(button(other, "My name is Ada.")).to_be_visible()
    stays.once("dialog", lambda dialog: dialog.dismiss())
    stays.get_by_label("Keep my chats").click()
    expect(stays.get_by_label("Keep my chats")).to_be_checked()
    stays.once("dialog", lambda dialog: dialog.accept())
    stays.get_by_label("Keep my chats").click()
    expect(other.get_by_label("Keep my chats")).not_to_be_checked()
    expect(button(other, "My name is Ada.")).to_have_count(0)
    assert "Ada" not in other.evaluate(KEPT)
    stays.reload()
    expect(button(stays, "My name is Ada.")).to_be_visible()


def test_a_browser_that_forbids_to_keep_chats_says_so(chat: Page) -> None:
    """As some do in private windows."""
    chat.evaluate("() => { IDBFactory.prototype.open = () => { throw new DOMException('no'); } }")
    chat.get_by_label("Keep my chats").click()
    expect(chat.locator("#status")).to_have_text("This browser does not allow that.")
    expect(chat.get_by_label("Keep my chats")).not_to_be_checked()


def test_the_latest_message_can_be_changed(chat: Page, provider: UpstreamServer) -> None:
    """It goes into the form. Until another is sent in its place, nothing is lost."""
    say(chat, "one")
    say(chat, "two")
    button(chat, "Edit your message").last.click()
    expect(message(chat)).to_be_focused()
    expect(message(chat)).to_have_value("two")
    expect(chat.locator("#log article")).to_have_count(4)
    for cancel in ("button", "Escape"):
        if cancel == "button":
            button(chat, "Do not replace it").click()
        else:
            button(chat, "Edit your message").last.click()
            chat.keyboard.press("Escape")
        expect(chat.locator("#editing")).to_be_hidden()
    button(chat, "Edit your message").last.click()
    say(chat, "three")
    assert sent(provider) == [("user", "one"), ("assistant", "pong"), ("user", "three")]


def test_a_message_that_has_left_the_chat_replaces_nothing(
    chat: Page, provider: UpstreamServer
) -> None:
    """Its reply was asked for again while it was being changed, and the call failed."""
    say(chat, "one")
    provider.script(Stream([*openai_chunks("Half a reply")[:2], Wait()]))
    begin(chat, "two")
    expect(replies(chat).last).to_contain_text("Half a reply")
    button(chat, "Stop").click()
    expect(replies(chat).last).to_contain_text("You stopped this reply.")
    button(chat, "Edit your message").last.click()
    error = {"error": "Failed.", "code": "internal_error"}
    chat.route("**/chat", lambda route: route.fulfill(status=500, json=error), times=1)
    button(chat, "Try again").last.click()
    expect(problem(chat)).to_be_visible()
    expect(chat.locator("#editing")).to_be_hidden()
    say(chat, "three")
    assert sent(provider) == [("user", "one"), ("assistant", "pong"), ("user", "three")]
    expect(replies(chat)).to_have_count(2)


def test_a_version_of_a_message_that_is_not_in_the_chat_takes_nothing_out(page: Page) -> None:
    """The page may show a chat that another tab has changed."""
    assert page.evaluate(
        """async () => {
          const { Conversation } = await import("/static/conversation.js");
          const talk = new Conversation();
          const gone = { role: "user", content: "gone", versions: { tails: [null, [{}]], at: 0 } };
          for (const role of ["user", "assistant"]) talk.add({ role, content: role });
          talk.branch(gone);
          talk.turn(gone, 1);
          return [talk.messages.map(({ content }) => content), talk.chat.from];
        }"""
    ) == [["user", "assistant"], 0]


def test_a_version_of_a_message_that_is_no_longer_sent_is_sent(page: Page) -> None:
    """The history had been cut after it."""
    assert page.evaluate(
        """async () => {
          const { Conversation } = await import("/static/conversation.js");
          const talk = new Conversation();
          for (const content of ["one", "two", "three"]) talk.add({ role: "user", content });
          talk.chat.from = 2;
          const versions = talk.branch(talk.messages[0]);
          talk.add({ role: "user", content: "ONE", versions });
          return talk.history({ contextTokens: null, inputUsd: 0, leftUsd: null });
        }"""
    ) == [{"role": "user", "content": "ONE"}]


def texts(page: Page) -> list[str]:
    return page.locator("#log .me .text").all_inner_texts()


def test_an_earlier_message_that_is_changed_begins_a_version(
    chat: Page, provider: UpstreamServer
) -> None:
    """What followed it stays, and can be shown again; versions have versions, after a reload, too.
    All of them cost."""
    costs = []
    for text in ("one", "two", "three"):
        say(chat, text)
    for old, new in ((0, "ONE"), (0, "Eins")):
        button(chat, "Edit your message").nth(old).click()
        say(chat, new)
        assert texts(chat) == [new]
        assert sent(provider) == [("user", new)]
    say(chat, "zwei")
    button(chat, "Edit your message").nth(1).click()
    say(chat, "ZWEI")
    assert texts(chat) == ["Eins", "ZWEI"]
    expect(chat.locator(".versions")).to_have_text(["‹3 of 3›", "‹2 of 2›"])
    spent = chat.evaluate(SPENT)
    chat.reload()
    button(chat, "Earlier version").nth(1).click()
    assert texts(chat) == ["Eins", "zwei"]
    for expected in (["ONE"], ["one", "two", "three"]):
        button(chat, "Earlier version").first.click()
        assert texts(chat) == expected
        costs.append(chat.evaluate(SPENT))
    expect(button(chat, "Earlier version")).to_be_disabled()
    say(chat, "four")
    assert [text for role, text in sent(provider) if role == "user"] == [
        *("one", "two", "three", "four")
    ]
    button(chat, "Later version").first.click()
    button(chat, "Later version").first.click()
    assert texts(chat) == ["Eins", "zwei"]
    assert costs == [pytest.approx(spent)] * 2


def test_a_version_that_is_refused_is_taken_back(chat: Page) -> None:
    """The chat is as before, and the message is in the form to replace the earlier one."""
    say(chat, "one")
    say(chat, "two")
    error = {"error": "Failed.", "code": "internal_error"}
    chat.route("**/chat", lambda route: route.fulfill(status=500, json=error), times=1)
    button(chat, "Edit your message").first.click()
    message(chat).fill("ONE")
    button(chat, "Send").click()
    expect(problem(chat)).to_be_visible()
    assert texts(chat) == ["one", "two"]
    expect(message(chat)).to_have_value("ONE")
    button(chat, "Try again").click()
    expect(chat.locator(".versions")).to_have_text("‹2 of 2›")
    assert texts(chat) == ["ONE"]
    button(chat, "Ask again").click()
    expect(chat.locator(".versions")).to_have_text("‹3 of 3›")
    expect(replies(chat)).to_have_text(re.compile("pong"))


def test_after_a_refusal_the_version_from_before_is_shown(chat: Page) -> None:
    """Whichever of them was changed."""
    say(chat, "one")
    for text in ("two", "three"):
        button(chat, "Edit your message").click()
        say(chat, text)
    for _ in range(2):
        button(chat, "Earlier version").click()
    error = {"error": "Failed.", "code": "internal_error"}
    chat.route("**/chat", lambda route: route.fulfill(status=500, json=error), times=1)
    button(chat, "Edit your message").click()
    say(chat, "ONE")
    expect(problem(chat)).to_be_visible()
    expect(chat.locator(".versions")).to_have_text("‹1 of 3›")
    assert texts(chat) == ["one"]


def test_a_reload_in_the_middle_of_a_reply_keeps_what_had_come(
    chat: Page, provider: UpstreamServer
) -> None:
    """The provider's call ends, its cost is shown, and the reply can be asked for again."""
    provider.script(Stream([*openai_chunks("Half a reply")[:2], Wait()]))
    begin(chat, "Tell me more")
    expect(replies(chat)).to_contain_text("Half a reply")
    chat.reload()
    expect(replies(chat)).to_contain_text("Half a reply")
    expect(replies(chat)).to_contain_text("this reply is incomplete. It cost $")
    assert provider.hung_up.wait(10)
    button(chat, "Try again").click()
    expect(replies(chat)).to_have_count(1)
    expect(replies(chat)).to_contain_text("pong")
    assert sent(provider) == [("user", "Tell me more")]


def test_a_reload_before_the_reply_gives_the_message_back(
    chat: Page, provider: UpstreamServer
) -> None:
    """It can be sent again, or changed."""
    provider.think()
    begin(chat, "Are you there?")
    assert provider.waiting.wait(60)
    chat.reload()
    expect(message(chat)).to_have_value("Are you there?")
    expect(chat.locator("#log article")).to_have_count(0)
    provider.go_on()


def test_a_new_chat_in_the_middle_of_a_reply_stops_it(chat: Page, provider: UpstreamServer) -> None:
    """Nothing of it comes into the new one; what had come is in its own."""
    provider.script(Stream([*openai_chunks("Half a reply")[:2], Wait()]))
    begin(chat, "Tell me more")
    expect(replies(chat)).to_contain_text("Half a reply")
    button(chat, "New chat").click()
    assert provider.hung_up.wait(10)
    expect(chat.locator("#log article")).to_have_count(0)
    say(chat, "Hello")
    assert sent(provider) == [("user", "Hello")]
    button(chat, "Tell me more").click()
    expect(replies(chat)).to_contain_text("Half a reply")
    expect(replies(chat)).to_contain_text("You stopped this reply. It cost $")


def test_each_reply_has_its_cost(chat: Page) -> None:
    """From the server's bill, with a sum for the chat: 4 tokens in at $0.75, 8 cached at $0.075 and
    5 out at $4.50 per million."""
    say(chat, "ping")
    expect(replies(chat)).to_contain_text("gpt-5.4-mini · 12 tokens in (8 cached) · 5 out")
    # A text that is not on the screen yet has no inner text.
    cost = (replies(chat).locator("small").text_content() or "").rpartition("$")[2]
    assert 0 < float(cost.removeprefix("under ").removeprefix("$")) <= 0.0001
    expect(chat.locator("#spent")).to_have_text(f"This chat has cost under ${cost}.")
    usage = {"input_tokens": 1, "output_tokens": 1200, "cached_input_tokens": 0}
    done = {"model": "m", "usage": usage, "finish_reason": "stop", "cost_usd": 0}
    events = f'event: delta\ndata: {{"text": "A"}}\n\nevent: done\ndata: {json.dumps(done)}\n\n'
    head = {"Content-Type": "text/event-stream"}
    chat.route("**/chat", lambda route: route.fulfill(headers=head, body=events))
    say(chat, "ping")
    expect(replies(chat).last).to_contain_text("m · 1 token in · 1,200 out · $0")


def test_a_long_history_is_cut_and_the_page_says_so(chat: Page, provider: UpstreamServer) -> None:
    """Of a dear model, $10 per million tokens, it may cost 5 cents: 15,000 bytes."""
    chat.get_by_label("Model").select_option("gpt-6-astra")
    say(chat, "a" * 6_000)
    say(chat, "b" * 6_000)
    expect(chat.locator(".cut-line")).to_have_count(0)
    say(chat, "c" * 6_000)
    assert [text[0] for _, text in sent(provider)] == ["c"]
    line = chat.locator(".cut-line")
    expect(line).to_contain_text("no longer sent to the model, to keep replies cheap")
    assert line.evaluate("line => line.nextElementSibling.textContent[0]") == "c"
    chat.reload()
    expect(chat.locator(".cut-line")).to_have_count(1)
    say(chat, "Still here?")
    assert [text[0] for _, text in sent(provider)] == ["c", "p", "S"]


def test_a_first_message_has_no_line_above_it(chat: Page) -> None:
    """However long it is: nothing is left out."""
    chat.get_by_label("Model").select_option("gpt-6-astra")
    say(chat, "a" * 16_000)
    expect(replies(chat)).to_contain_text("pong")
    expect(chat.locator(".cut-line")).to_have_count(0)


def test_the_model_is_chosen_from_those_that_the_key_allows(
    key: PresentedKey, chat: Page, provider: UpstreamServer
) -> None:
    """The choice is remembered in the browser."""
    page = chat
    page.get_by_label("API key").fill(key.text)
    page.get_by_label("API key").press("Enter")
    choice = page.get_by_label("Model")
    expect(choice.locator("option")).to_have_text(MODELS)
    choice.select_option("gpt-5.4-nano")
    expect(page.locator("#price")).to_have_text(re.compile(r"gpt-5.4-nano: \$\S+ for a million"))
    say(page, "ping")
    assert provider.calls[-1].body["model"] == "gpt-5.4-nano"
    page.reload()
    expect(choice).to_have_value("gpt-5.4-nano")


def test_a_model_that_is_gone_is_a_clear_problem(page: Page) -> None:
    """The list was read before the operator changed the models; the message is kept."""
    expect(page.locator("#model option[title]").first).to_be_attached()  # the list is read
    page.evaluate(
        "document.getElementById('model').append(new Option('llama', 'llama', true, true))"
    )
    say(page, "hello")
    expect(problem(page)).to_contain_text("This model does not exist here. Choose another one")
    expect(problem(page)).to_contain_text('The model "llama" is unknown')
    expect(message(page)).to_have_value("hello")
    page.get_by_label("Model").select_option("offline")
    button(page, "Send").click()
    expect(replies(page)).to_contain_text("I am offline")
    expect(problem(page)).to_have_count(0)


def test_two_tabs_have_two_conversations(chat: Page, provider: UpstreamServer) -> None:
    """Each sends its own, and the limits of both are the same."""
    other = chat.context.new_page()
    other.goto(chat.url)
    say(chat, "I am the first tab")
    say(other, "I am the second tab")
    assert sent(provider) == [("user", "I am the second tab")]
    expect(other.locator("#sentence")).to_contain_text("98 of 100 left today")


def test_a_history_fits_the_model_and_the_budget(page: Page) -> None:
    """Three quarters of the context, a tenth of what is left, and the server's bounds; the newest
    message is sent in any case, and the first one is never the assistant's."""
    cuts = page.evaluate(
        """async () => {
          const { Conversation } = await import("/static/conversation.js");
          const cut = (options, turns = 10, size = 3000) => {
            const talk = new Conversation();
            for (let n = 0; n < turns; n += 1) {
              talk.messages.push({ role: "user", content: "é".repeat(size / 2) });
              talk.messages.push({ role: "assistant", content: "b".repeat(size) });
            }
            talk.messages.pop();
            const free = { contextTokens: 1e6, inputUsd: 0, leftUsd: null, ...options };
            const sent = talk.history(free);
            return [sent.length, sent[0].role, talk.chat.cutFor];
          };
          return [
            cut({}),
            cut({ contextTokens: 8000 }),
            cut({ contextTokens: null }),
            cut({ inputUsd: 10 }),
            cut({ inputUsd: 1, leftUsd: 0.05 }),
            cut({ inputUsd: 1, leftUsd: 0 }),
            cut({}, 600, 10),
            cut({}, 200, 3000),
          ];
        }"""
    )
    assert cuts == [
        [19, "user", None],
        [3, "user", "context"],
        [7, "user", "context"],
        [3, "user", "money"],
        [3, "user", "money"],
        [1, "user", "money"],
        [559, "user", "context"],
        [69, "user", "context"],
    ]


def test_a_long_chat_is_laid_out_once(open_page: Opener, url: str) -> None:
    """And not after each of its messages, which would take minutes."""
    messages = [
        {"role": role, "content": f"{role} {number}", "end": "stop"}
        for number in range(500)
        for role in ("user", "assistant")
    ]
    kept = json.dumps(json.dumps({"messages": messages}))
    page = open_page(url)
    page.add_init_script(
        f"""sessionStorage.setItem("chatapp.conversation", {kept});
        window.layouts = 0;
        for (const [owner, name] of [[Element, "scrollHeight"], [HTMLElement, "innerText"]]) {{
          const found = Object.getOwnPropertyDescriptor(owner.prototype, name);
          const get = function () {{ window.layouts += 1; return found.get.call(this); }};
          Object.defineProperty(owner.prototype, name, {{ ...found, get }});
        }}"""
    )
    page.reload()
    expect(page.locator("#log article")).to_have_count(1000)
    expect(replies(page).last).to_be_in_viewport()
    assert page.evaluate("window.layouts") < 50


def test_the_old_messages_of_a_long_chat_are_grouped(page: Page) -> None:
    """Each can be changed as before, and the last one can be asked again."""
    messages = [
        {"role": role, "content": f"{role} {number}", "end": "stop", "model": "m"}
        for number in range(75)
        for role in ("user", "assistant")
    ]
    kept = json.dumps({"messages": messages})
    page.evaluate("kept => sessionStorage.setItem('chatapp.conversation', kept)", kept)
    page.reload()
    expect(page.locator("#log article")).to_have_count(150)
    expect(page.locator("#log > .older")).to_have_count(3)
    expect(page.locator("#log > article")).to_have_count(30)
    expect(button(page, "Ask again")).to_have_count(1)
    # By keyboard: an old group is laid out once it is in view, and moves what a mouse would press.
    button(page, "Edit your message").nth(2).press("Enter")
    expect(page.locator("#editing")).to_be_visible()
    expect(message(page)).to_have_value("user 2")
    say(page, "another")
    expect(page.locator("#log > .older")).to_have_count(0)
    expect(button(page, "Ask again")).to_have_count(1)
    expect(page.locator("#log .me .text")).to_have_text(["user 0", "user 1", "another"])
    button(page, "Earlier version").click()
    expect(page.locator("#log article")).to_have_count(150)
    expect(page.locator("#log article").last).to_contain_text("assistant 74")
