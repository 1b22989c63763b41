"""Replies are Markdown; nothing in them runs, loads or leads anywhere without a click."""

from typing import Any

import pytest
from playwright.sync_api import Page, expect

from tests.chatapp.upstream_server import Stream, UpstreamServer, Wait, openai_chunks
from tests.e2e.page.actions import begin, replies, say

PNG = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAA"
    "AABJRU5ErkJggg=="
)
CODE = "def f(x):\n    return x  # <b>\n"
ATTACKS = [
    "<img src=x onerror=alert(1)>",
    "<script>alert(1)</script>",
    "<svg/onload=alert(1)>",
    "<iframe src=javascript:alert(1)></iframe>",
    "<style>*{display:none}</style>",
    "<form action=https://evil.example><button>Send</button></form>",
    "<a href=javascript:alert(1)>x</a>",
    "[x](javascript:alert(1))",
    "[x](JaVaScRiPt:alert(1))",
    "[x](data:text/html,<script>alert(1)</script>)",
    "[x](vbscript:x)",
    "[x](/usage)",
    "![x](data:image/svg+xml;base64,PHN2ZyBvbmxvYWQ9ImFsZXJ0KDEpIi8+)",
    "![x](data:image/svg+xml,<svg/onload=alert(1)>)",
    '![x](data:image/png;base64,AAAA"onerror="alert(1))',
    "![x](data:text/html;base64,PHNjcmlwdD5hbGVydCgxKTwvc2NyaXB0Pg==)",
    "<javascript:alert(1)>",
    "![x](https://evil.example/pixel.png)",
    '![x"onerror="alert(1)](x)',
    '[x](https://evil.example "t\\" onclick=alert(1)")',
    '```"><img src=x onerror=alert(1)>\n</code></pre><script>alert(1)</script>\n```',
    "| a |\n| --- |\n| <img src=x onerror=alert(1)> |",
    "<math><mtext><table><mglyph><style><!--</style><img title='--><img src=x onerror=alert(1)>'>",
    "[a]: javascript:alert(1)\n\n[a]",
    "\x00<b\x00>\ufeff<\u202eb>",
    ">" * 3_000 + " deep",
    "- " * 3_000 + "deep",
    "**" * 20_000,
    "[" * 20_000,
    "$" * 20_000,
    "\\(" * 20_000,
    # Each took minutes; a reply may have this size.
    *(
        part * (100_000 // len(part))
        for part in ("*a_", "a_", "[", "![a](", "< ", "~~a", "`a", "a@b")
    ),
]


def test_a_reply_is_formatted(chat: Page, provider: UpstreamServer) -> None:
    """Emphasis, lists, tables, quotes, code, and characters of every plane."""
    text = (
        "# Title\n\n**bold** *soft* `code` ~~gone~~ 😀\n\n1. one\n2. two\n\n- [x] done\n\n"
        "> said\n\n| a | b |\n| --- | ---: |\n| 1 | 2 |\n\nline\nbreak"
    )
    provider.script(Stream(openai_chunks(*text)))
    say(chat, "ping")
    reply = replies(chat).locator(".content")
    for selector in ("h1", "strong", "em", "p code", "del", "ol li", "ul li", "blockquote", "br"):
        assert reply.locator(selector).count() > 0, selector
    expect(reply.locator("td[align=right]")).to_have_text("2")
    expect(reply.locator("ul li")).to_have_text("☑ done")
    expect(reply).to_contain_text("😀")


def test_code_is_copied(chat: Page, provider: UpstreamServer) -> None:
    """Exactly as it was written, without the marks around it."""
    chat.context.grant_permissions(["clipboard-read", "clipboard-write"])
    provider.script(Stream(openai_chunks("Look:\n\n```python\n", CODE, "```\n", "That is all.")))
    say(chat, "ping")
    expect(replies(chat).locator("figcaption")).to_contain_text("python")
    copy = chat.get_by_role("button", name="Copy code")
    copy.click()
    expect(copy).to_have_text("Copied")
    assert chat.evaluate("navigator.clipboard.readText()") == CODE.removesuffix("\n")
    chat.get_by_role("button", name="Copy reply").click()
    assert CODE in chat.evaluate("navigator.clipboard.readText()")


def test_code_has_colours(chat: Page, provider: UpstreamServer) -> None:
    """In a known language; it is copied and read as it was written, and its marks are no markup."""
    chat.context.grant_permissions(["clipboard-read", "clipboard-write"])
    loaded: list[str] = []
    chat.on("request", lambda request: loaded.append(request.url.rpartition("/")[2]))
    say(chat, "ping")
    assert "highlight.min.js" not in loaded
    attack = "</span><img src=x onerror=alert(1)><script>alert(1)</script>"
    other = f"```klingon\n{attack}\n```\n\n```\n{attack}\n```\n"
    provider.script(Stream(openai_chunks(f"```python\n{CODE}s = '{attack}'\n```\n\n{other}")))
    say(chat, "ping")
    python, klingon, plain = replies(chat).locator("pre code").all()
    expect(python.locator(".hljs-keyword")).to_have_text(["def", "return"])
    expect(python.locator(".hljs-string")).to_have_text(f"'{attack}'")
    assert python.inner_text() == f"{CODE}s = '{attack}'"
    for code in (klingon, plain):
        expect(code).to_have_text(attack)
        assert code.locator("[class]").count() == 0
    expect(chat.locator("#log :is(img, script)")).to_have_count(0)
    chat.get_by_role("button", name="Copy code").first.click()
    assert chat.evaluate("navigator.clipboard.readText()") == f"{CODE}s = '{attack}'"


@pytest.mark.parametrize("letter", ["$", "é"])
def test_code_with_an_endless_word_has_no_colours(
    chat: Page, provider: UpstreamServer, letter: str
) -> None:
    """Those of Java would take the browser a time that grows with the square of its length."""
    blocks = [f"```java\nint {letter * length} = 1;\n```\n" for length in (200, 199)]
    provider.script(Stream(openai_chunks("\n".join(blocks))))
    say(chat, "ping")
    endless, long = replies(chat).locator("pre code").all()
    expect(long.locator(".hljs-type")).to_have_text(["int"])
    expect(endless.locator("[class]")).to_have_count(0)


def test_code_without_its_library_is_as_it_was_written(
    chat: Page, provider: UpstreamServer
) -> None:
    """As in the moment in which the server is gone; the next block of code asks for it again."""
    chat.route("**/highlight.min.js", lambda route: route.abort(), times=1)
    provider.script(*[Stream(openai_chunks(f"```python\n{CODE}```"))] * 2)
    with chat.expect_event("requestfailed"):
        say(chat, "ping")
    expect(replies(chat).locator("pre code")).to_have_text(CODE.strip())
    say(chat, "ping")
    expect(replies(chat).last.locator(".hljs-keyword")).to_have_text(["def", "return"])


def test_a_message_is_text_and_a_replys_html_too(page: Page) -> None:
    """Messages and replies are no markup, even if they look like HTML."""
    markup = "<img src=x onerror=alert(1)><b>bold</b>"
    say(page, markup)
    expect(page.locator("#log .me .text")).to_have_text(markup)
    expect(page.locator("#log .model")).to_contain_text(markup)
    expect(page.locator("#log img, #log b")).to_have_count(0)


def test_formulas_are_drawn(chat: Page, provider: UpstreamServer) -> None:
    """In all four ways to mark one; amounts of dollars are none, and nothing in one runs."""
    text = (
        "For $ax^2$ and \\(b_1 + b_2\\):\n\n$$\n\\frac{1}{2}\n$$\nand\n\\[\n- c\n\\]\n\n"
        "It costs $5, then $6. `$code$` "
        "$\\href{javascript:alert(1)}{x}$ $<img src=x onerror=alert(1)>$"
    )
    provider.script(Stream(openai_chunks(*text)))
    say(chat, "ping")
    reply = replies(chat).locator(".content")
    expect(reply.locator("math")).to_have_count(5)
    expect(reply.locator("math[display=block]")).to_have_count(2)
    expect(reply.locator("mfrac")).to_have_count(1)
    expect(reply).to_contain_text("It costs $5, then $6. $code$")
    expect(reply.locator("code.math")).to_have_text("\\href{javascript:alert(1)}{x}")
    expect(reply.locator("img, a, li, em")).to_have_count(0)
    load = "async () => (await document.fonts.load('16px formulas')).map((font) => font.status)"
    assert chat.evaluate(load) == ["loaded"]


def test_a_paragraph_with_thousands_of_marks_is_text(chat: Page, provider: UpstreamServer) -> None:
    """It looks as it was written, and what follows is formatted."""
    crossing = "*a_\n" * 3_000
    provider.script(Stream(openai_chunks(crossing, "\n*soft*\n\n", "**bold** " * 200)))
    say(chat, "ping")
    first, second, third = replies(chat).locator(".content p").all()
    assert first.evaluate("each => each.innerText").strip() == crossing.strip()
    assert first.locator("em").count() == 0
    assert second.locator("em").count() == 1
    assert third.locator("strong").count() == 200


def test_links_open_elsewhere_and_images_are_links(chat: Page, provider: UpstreamServer) -> None:
    """The other site does not learn who reads the reply. `chat` fails for a request to it."""
    text = "[a](https://a.example) ![b](https://b.example/b.png) https://c.example"
    provider.script(Stream(openai_chunks(text)))
    say(chat, "ping")
    links = replies(chat).locator(".content a")
    expect(links).to_have_text(["a", "b", "https://c.example"])
    for link in links.all():
        assert link.get_attribute("target") == "_blank"
        assert link.get_attribute("rel") == "noopener noreferrer nofollow"
    expect(chat.locator("#log img")).to_have_count(0)


def test_an_image_that_is_in_the_reply_is_shown(chat: Page, provider: UpstreamServer) -> None:
    """It tells no other site who reads it. While it is being written its data is not shown."""
    provider.script(
        Stream(
            [
                *openai_chunks("Look: ", f"![A dot]({PNG[:60]}")[:3],
                Wait(),
                *openai_chunks(f"{PNG[60:]}) done")[1:],
            ]
        )
    )
    begin(chat, "ping")
    expect(replies(chat).locator(".content")).to_have_text("Look: …")
    provider.go_on()
    image = replies(chat).get_by_role("img", name="A dot")
    expect(image).to_be_visible()
    assert (
        image.evaluate("async (image) => { await image.decode(); return image.naturalWidth; }") == 1
    )
    expect(replies(chat)).to_contain_text("done")


def test_nothing_in_a_reply_runs(page: Page) -> None:
    """Of attacks only harmless elements are left, and no address but those of links."""
    page.on("dialog", lambda dialog: pytest.fail(dialog.message))
    found = page.evaluate(
        """(texts) => import("/static/markdown.js").then(({ Markdown }) => texts.map((text) => {
          const box = document.body.appendChild(document.createElement("div"));
          const markdown = new Markdown(box);
          markdown.push(text);
          markdown.end();
          const all = [...box.querySelectorAll("*")];
          return {
            tags: all.map((each) => each.localName),
            attributes: all.flatMap((each) => each.getAttributeNames()),
            addresses: all.map((each) => each.getAttribute("href")).filter((href) => href !== null),
          };
        }))""",
        ATTACKS,
    )
    for text, each in zip(ATTACKS, found, strict=True):
        assert not {*each["tags"]} & {"img", "script", "svg", "iframe", "style", "form", "math"}, (
            text
        )
        assert not [name for name in each["attributes"] if name.startswith("on")], text
        assert all(address.startswith("https://evil.example") for address in each["addresses"]), (
            text
        )


SAMPLES = [
    "a\n\nb\n\nc",
    "- a\n\n  more\n- b\n  - c\n\nafter\n",
    "1. a\n2. b\n\n3. c\n\n\nafter",
    "Title\n===\n\ntext\n---\n",
    "```\ncode\n```\n\nafter\n\n```py\nmore\n",
    "text\n```js\nlet a = 1;\n\n\nlet b;\n```\nafter",
    "~~~\n```\n~~~\n\n````\n```\n````",
    "   ```\n   indented\n   ```\nafter",
    "    indented code\n\ntext",
    "| a | b |\n| --- | --- |\n| 1 | 2 |\n\nafter",
    "> a\n> b\n\nafter\n> c",
    "see [a] and [b][a]\n\nmore\n\n[a]: https://a.example\n",
    "a\r\n\r\nb\r\n",
    "- a\n\n```\nin between\n```\n\n- b",
    "1. a\n   ```\n   in a list\n   ```\n2. b\n",
    "a\n$$\nx\n- y\n= z\n$$\nb\n\nc",
    "\\[\n- x\n\\]\n\n- \\(y\\) costs $5, or $6\n\n$$\nno end\n\n- a\n",
    "مرحبا\n\n😀 emoji 👩‍👩‍👧‍👦",
    f"a ![b]({PNG}) c\n\n![d]({PNG})",
    "```",
    "```\n",
    "",
    "\n\n\n",
]


@pytest.mark.parametrize("size", [1, 3, 11])
def test_a_reply_in_pieces_looks_like_the_whole(page: Page, size: int) -> None:
    """Wherever the stream is cut into parts, and whenever the page renders."""
    both: dict[str, Any] = page.evaluate(
        """async ({ texts, size }) => {
          const { Markdown } = await import("/static/markdown.js");
          const wait = window.setTimeout;
          const html = (text, size) => {
            const box = document.createElement("div");
            const markdown = new Markdown(box);
            for (let at = 0; at < text.length; at += size) {
              let render;
              window.setTimeout = (made) => (render = made); // each piece is rendered at once
              markdown.push(text.slice(at, at + size));
              window.setTimeout = wait;
              render?.();
            }
            markdown.end();
            return box.innerHTML;
          };
          return {
            pieces: texts.map((text) => html(text, size)),
            whole: texts.map((text) => html(text, 1e6)),
          };
        }""",
        {"texts": SAMPLES, "size": size},
    )
    for text, pieces, whole in zip(SAMPLES, both["pieces"], both["whole"], strict=True):
        assert pieces == whole, repr(text)


def test_a_long_reply_is_not_rendered_again_and_again(page: Page) -> None:
    """A growing block of 2,000 lines of code, behind 200 paragraphs, removes nothing from the page,
    and each paragraph is made once."""
    found = page.evaluate(
        """async () => {
          const { Markdown } = await import("/static/markdown.js");
          const box = document.body.appendChild(document.createElement("div"));
          let removed = 0;
          const observer = new MutationObserver((records) => {
            for (const record of records) removed += record.removedNodes.length;
          });
          const markdown = new Markdown(box);
          const wait = window.setTimeout;
          const push = (text) => {
            let render;
            window.setTimeout = (made) => (render = made);
            markdown.push(text);
            window.setTimeout = wait;
            render?.();
          };
          for (let number = 0; number < 200; number += 1) push(`Paragraph ${number}\\n\\n`);
          const first = box.firstElementChild;
          push("```python\\n");
          observer.observe(box, { childList: true });
          const lines = Array.from({ length: 2000 }, (_, n) => `line_${n} = ${"x".repeat(60)}\\n`);
          for (const line of lines) push(line);
          push("```\\n");
          markdown.end();
          for (const record of observer.takeRecords()) removed += record.removedNodes.length;
          const code = box.querySelector("code");
          return {
            removed,
            isSame: first === box.firstElementChild,
            paragraphs: box.querySelectorAll("p").length,
            isWhole: code.textContent === lines.join(""),
            nodes: code.querySelectorAll("*").length,
          };
        }"""
    )
    assert found == {"removed": 0, "isSame": True, "paragraphs": 200, "isWhole": True, "nodes": 11}


def test_right_to_left_text_has_its_direction(chat: Page, provider: UpstreamServer) -> None:
    """Each paragraph its own; code is always left to right."""
    provider.script(Stream(openai_chunks("שלום עולם\n\nHello\n\n```\nשלום\n```\n")))
    say(chat, "שלום")
    direction = "each => getComputedStyle(each).direction"
    paragraphs = replies(chat).locator(".content p")
    assert [p.evaluate(direction) for p in paragraphs.all()] == ["rtl", "ltr"]
    assert replies(chat).locator("pre").evaluate(direction) == "ltr"
    assert chat.locator("#log .me .text").evaluate(direction) == "rtl"


def test_right_to_left_lists_have_their_marks_at_the_right(
    chat: Page, provider: UpstreamServer
) -> None:
    """A list follows its first letter, and so do quotes and tables; an item in another language has
    its own direction, beside its mark."""
    text = "- אחד\n- one.\n\n1. one\n\n> שלום\n\n| א | b |\n| - | - |\n| 1 | 2 |\n"
    provider.script(Stream(openai_chunks(text)))
    say(chat, "ping")
    content = replies(chat).locator(".content")
    direction = "each => getComputedStyle(each).direction"
    for name, expected in (("ul", "rtl"), ("ol", "ltr"), ("blockquote", "rtl"), ("table", "rtl")):
        assert content.locator(name).evaluate(direction) == expected, name
    ends = """item => {
      const range = document.createRange();
      range.selectNodeContents(item);
      const dot = document.createRange();
      dot.setStart(item.firstChild, 3);
      dot.setEnd(item.firstChild, 4);
      const [text, last, box] = [range, dot, item].map((each) => each.getBoundingClientRect());
      return [box.right - text.right, text.right - last.right];
    }"""
    assert content.locator("li", has_text="one.").first.evaluate(ends) == pytest.approx([0, 0])


def test_a_wide_formula_scrolls_on_a_phone(chat: Page, provider: UpstreamServer) -> None:
    """On a line of its own, also one that was written within a line; the page does not scroll, and
    a short one stays where it is."""
    chat.set_viewport_size({"width": 390, "height": 700})
    wide = " + ".join(f"a_{{{number}}}" for number in range(30))
    provider.script(
        Stream(openai_chunks(f"It is ${wide}$, $\\frac{{{wide}}}{{2}}$ or $x$.\n\n$${wide}$$\n"))
    )
    say(chat, "ping")
    formulas = replies(chat).locator("span.math")
    expect(formulas).to_have_count(4)
    expect(replies(chat).get_by_role("group", name="Formula")).to_have_count(3)
    for formula in formulas.all():
        right = formula.evaluate("each => each.getBoundingClientRect().right")
        assert right <= 390
        assert formula.evaluate("each => each.scrollWidth > each.clientWidth") == (
            len(formula.inner_text()) > 10
        )
    assert chat.evaluate("document.documentElement.scrollWidth") == 390
