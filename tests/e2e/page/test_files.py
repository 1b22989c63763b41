"""Images and PDF files in a message: their price before they are sent, and where they are kept."""

import base64
import struct
import zlib
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from tests.chatapp.upstream_server import UpstreamServer
from tests.e2e.page.actions import button, message, problem, replies, say
from tests.e2e.page.conftest import KEPT

PDF = b"%PDF-1.7\n" + b"0" * 9_000


def png(width: int = 8, height: int = 8) -> bytes:
    """An image of one colour."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content))
            + name
            + content
            + struct.pack(">I", zlib.crc32(name + content))
        )

    rows = (b"\0" + b"\x40\x80\xc0" * width) * height
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def attach(page: Page, *files: tuple[str, str, bytes]) -> None:
    """Choose files as (name, type, content)."""
    page.locator("#files").set_input_files(
        [{"name": name, "mimeType": kind, "buffer": content} for name, kind, content in files]
    )


def sent(provider: UpstreamServer) -> list[Any]:
    messages: Any = provider.calls[-1].body["messages"]
    return [each["content"] for each in messages]


def parts(content: list[dict[str, Any]]) -> list[str]:
    return [each["type"] for each in content]


def test_files_are_priced_before_they_are_sent(chat: Page, provider: UpstreamServer) -> None:
    """By the server's estimate for the model. The provider gets them, and again with each later
    message; the page shows them, and they can be saved."""
    attach(chat, ("large.pdf", "application/pdf", PDF * 400))
    expect(chat.locator("#estimate")).to_contain_text("Up to 400,000 tokens to read: $0.30.")
    button(chat, "Remove large.pdf").click()
    attach(chat, ("a photo.png", "image/png", png()))
    expect(chat.locator("#estimate")).to_contain_text("About 2,500 tokens to read: $0.0019.")
    attach(chat, ("plan.pdf", "application/pdf", PDF))
    expect(chat.get_by_role("img", name="a photo.png")).to_be_visible()
    expect(chat.locator("#attached")).to_contain_text("plan.pdf")
    tokens = round(2_500 + len(PDF) / 2.25) + 1
    expect(chat.locator("#estimate")).to_contain_text(f"Up to {tokens:,} tokens to read: $0.0049.")
    message(chat).fill("What is it?")
    button(chat, "Send").click()
    expect(replies(chat)).to_contain_text("pong")
    expect(chat.locator("#attached")).to_be_hidden()
    [content] = sent(provider)
    assert parts(content) == ["image_url", "file", "text"]
    image = content[0]["image_url"]["url"].removeprefix("data:image/png;base64,")
    assert base64.b64decode(image) == png()
    assert content[1]["file"]["filename"] == "plan.pdf"
    expect(chat.locator("#log").get_by_role("img", name="a photo.png")).to_be_visible()
    with chat.expect_download() as download:
        chat.get_by_role("link", name="plan.pdf").click()
    assert download.value.path().read_bytes() == PDF
    say(chat, "And now?")
    assert parts(sent(provider)[0]) == ["image_url", "file", "text"]
    assert sent(provider)[1:] == ["pong", "And now?"]


def test_a_file_can_be_taken_out_again(chat: Page, provider: UpstreamServer) -> None:
    """Also one of a message that is changed, or that could not be sent."""
    attach(chat, ("a.png", "image/png", png()), ("b.pdf", "application/pdf", PDF))
    button(chat, "Remove b.pdf").click()
    expect(message(chat)).to_be_focused()
    say(chat, "Look")
    assert parts(sent(provider)[0]) == ["image_url", "text"]
    button(chat, "Edit your message").click()
    expect(chat.locator("#attached").get_by_role("img", name="a.png")).to_be_visible()
    button(chat, "Do not replace it").click()
    expect(chat.locator("#attached")).to_be_hidden()
    button(chat, "Edit your message").click()
    button(chat, "Remove a.png").click()
    error = {"error": "Failed.", "code": "internal_error"}
    chat.route("**/chat", lambda route: route.fulfill(status=500, json=error), times=1)
    attach(chat, ("c.png", "image/png", png()))
    button(chat, "Send").click()
    expect(problem(chat)).to_be_visible()
    expect(chat.locator("#attached").get_by_role("img", name="c.png")).to_be_visible()
    button(chat, "Send").click()
    expect(chat.locator("#log .model:not(.pending)")).to_have_count(1)
    assert parts(sent(provider)[0]) == ["image_url", "text"]
    button(chat, "Ask again").click()
    expect(button(chat, "Earlier version")).to_be_visible()
    expect(chat.locator("#log .pending")).to_have_count(0)
    assert parts(sent(provider)[0]) == ["image_url", "text"]


@pytest.mark.parametrize("way", ["drop", "paste"])
def test_an_image_is_dropped_or_pasted(chat: Page, way: str) -> None:
    """A picture from the clipboard has no name of its own. Text is pasted as text."""
    image = base64.b64encode(png()).decode()
    chat.evaluate(
        """({ way, image }) => {
          const data = new DataTransfer();
          const content = Uint8Array.from(atob(image), (each) => each.charCodeAt(0));
          data.items.add(new File([content], "image.png", { type: "image/png" }));
          const options = { bubbles: true, cancelable: true };
          const made = way === "drop"
            ? new DragEvent("drop", { ...options, dataTransfer: data })
            : new ClipboardEvent("paste", { ...options, clipboardData: data });
          document.getElementById("message").dispatchEvent(made);
        }""",
        {"way": way, "image": image},
    )
    expect(chat.locator("#attached").get_by_role("img", name="image.png")).to_be_visible()


def test_a_large_image_is_made_smaller(chat: Page, provider: UpstreamServer) -> None:
    """As a provider would before the model sees it."""
    attach(chat, ("wide.png", "image/png", png(3_000, 1_000)))
    expect(chat.get_by_role("img", name="wide.png")).to_be_visible()
    say(chat, "Look")
    url = sent(provider)[0][0]["image_url"]["url"]
    assert url.startswith("data:image/jpeg;base64,")
    size = """async (url) => {
      const image = Object.assign(new Image(), { src: url });
      await image.decode();
      return [image.width, image.height];
    }"""
    assert chat.evaluate(size, url) == [1568, 523]


def test_a_file_that_cannot_be_sent_says_why(chat: Page, provider: UpstreamServer) -> None:
    """Before anything is sent."""
    for name, kind, content, says in (
        ("a.heic", "image/heic", b"x", "a.heic is not an image that can be sent"),
        ("a.pdf", "application/pdf", b"%PDF" * 10**6, "a.pdf is too large: a file may have 3.7 MB"),
        ("b.pdf", "application/pdf", b"", "b.pdf is empty."),
    ):
        attach(chat, (name, kind, content))
        expect(problem(chat)).to_contain_text(says)
    attach(chat, *[(f"{number}.png", "image/png", png()) for number in range(21)])
    expect(problem(chat)).to_have_text("20 files fit into a message. Add fewer.")
    expect(chat.locator("#attached")).to_be_hidden()
    attach(chat, ("a.pdf", "application/pdf", PDF))
    button(chat, "Send").click()
    expect(problem(chat)).to_have_text("Write what you want to know about the file.")
    message(chat).fill("What is it?")
    chat.locator("#model").select_option("gpt-4")
    says = "gpt-4 cannot read PDF files. Choose another model at the top, or remove the files."
    expect(chat.locator("#estimate")).to_have_text(says)
    button(chat, "Send").click()
    expect(problem(chat)).to_have_text(says)
    assert provider.calls == []
    chat.locator("#model").select_option("gpt-5.4-mini")
    button(chat, "Send").click()
    expect(replies(chat)).to_contain_text("pong")
    chat.locator("#model").select_option("gpt-4")
    say(chat, "And in words?")
    assert sent(provider) == ["What is it?", "pong", "And in words?"]


def test_files_stay_with_their_chat(chat: Page, provider: UpstreamServer) -> None:
    """In the tab, and in the browser if its user wants that; in a saved chat, too."""
    attach(chat, ("a.png", "image/png", png()))
    say(chat, "Look")
    chat.reload()
    expect(chat.locator("#log").get_by_role("img", name="a.png")).to_be_visible()
    chat.get_by_label("Keep my chats").check()
    other = chat.context.new_page()
    other.goto(chat.url)
    button(other, "Look").click()
    expect(other.locator("#log").get_by_role("img", name="a.png")).to_be_visible()
    say(other, "And now?")
    assert parts(sent(provider)[0]) == ["image_url", "text"]
    with other.expect_download() as download:
        button(other, "Save text").click()
    assert "## You\n\nLook\n\n(File: a.png)\n" in download.value.path().read_text()
    other.once("dialog", lambda dialog: dialog.accept())
    button(other, "Forget everything").click()
    expect(other.locator("#log article")).to_have_count(0)
    assert "base64" not in other.evaluate(KEPT)


def test_the_oldest_files_of_a_chat_are_not_kept(page: Page) -> None:
    """Of all that a chat has had, 20 MB are kept, and 20 files are sent."""
    kept, files = page.evaluate(
        """async () => {
          const { Conversation } = await import("/static/conversation.js");
          const talk = new Conversation();
          const head = "data:image/png;base64,";
          const fileOf = (size) => ({ name: "a", data: head + "A".repeat(size) });
          for (const size of [9e6, 9e6, 9e6]) {
            talk.add({ role: "user", content: "a", files: [fileOf(size)] });
          }
          const kept = talk.messages.map(({ files: [{ data }] }) => Boolean(data));
          for (let n = 0; n < 30; n += 1) {
            talk.messages.push({ role: "user", content: "b", files: [fileOf(4)] });
          }
          const options = { contextTokens: 1e6, inputUsd: 0, leftUsd: null, takes: ["image"] };
          return [kept, talk.history(options).map(({ files = [] }) => files.length)];
        }"""
    )
    assert kept == [False, True, True]
    assert files == [0] * 13 + [1] * 20


def test_an_image_counts_in_a_long_history(page: Page) -> None:
    """By the tokens that the model reads for it."""
    assert page.evaluate(
        """async () => {
          const { Conversation } = await import("/static/conversation.js");
          const talk = new Conversation();
          const files = [{ name: "a", data: "data:image/png;base64,AAAA" }];
          for (let n = 0; n < 9; n += 1) talk.messages.push({ role: "user", content: "b", files });
          const model = { contextTokens: 20_000, inputUsd: 0, takes: ["image"], imageTokens: 2500 };
          return [talk.history({ ...model, leftUsd: null }).length, talk.chat.cutFor];
        }"""
    ) == [4, "context"]
