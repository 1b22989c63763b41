"""How long a chat of 2,000 messages takes to open, and the frames of a reply of 5,000 tokens in it,
of typing, and of scrolling. With CHATAPP_PAGE_TIMES=1 it logs the times (pytest --log-cli-level
INFO); it asserts none."""

import json
import logging
import os

import pytest
from playwright.sync_api import Page

pytestmark = pytest.mark.skipif(
    os.environ.get("CHATAPP_PAGE_TIMES") != "1", reason="CHATAPP_PAGE_TIMES=1 measures the page"
)

log = logging.getLogger(__name__)

TOKENS = 5_000
TOKENS_PER_S = 500  # faster than models write
WORDS = "a reply has words of several lengths, and now and then **some** `marks` of Markdown "
BLOCKS = [
    WORDS * 6 + "\n\n",
    f"- {WORDS}\n" * 6 + "\n",
    "```python\n" + "value = compute(1, 2)  # and a comment\n" * 25 + "```\n\n",
    "| a | b |\n| - | - |\n" + "| some words | 1 |\n" * 8 + "\n",
    f"## A heading\n\n{WORDS} $x_1 + \\frac{{a}}{{b}}$\n\n$$\\sum_{{i=1}}^n i^2$$\n\n",
]
#: Sends a message, which the page itself answers, and returns the milliseconds of each frame.
STREAM = """async ({ tokens, tokensPerS }) => {
  const line = (name, data) => new TextEncoder().encode(
    `event: ${name}\\ndata: ${JSON.stringify(data)}\\n\\n`
  );
  const body = new ReadableStream({
    async start(to) {
      const began = performance.now();
      for (let at = 0; at < tokens.length; ) {
        await new Promise((resolve) => setTimeout(resolve, 5));
        const due = Math.ceil(((performance.now() - began) / 1000) * tokensPerS);
        for (; at < Math.min(due, tokens.length); at += 1) {
          to.enqueue(line("delta", { text: tokens[at] }));
        }
      }
      const usage = { input_tokens: 1, output_tokens: tokens.length, cached_input_tokens: 0 };
      to.enqueue(line("done", { model: "m", usage, finish_reason: "stop", cost_usd: 0 }));
      to.close();
    },
  });
  const { fetch } = window;
  window.fetch = (path, ...rest) => (path === "chat" ? new Response(body) : fetch(path, ...rest));
  const frames = [];
  let last = performance.now();
  const tick = (now) => {
    frames.push(now - last);
    last = now;
    if (document.querySelector("#log .pending")) requestAnimationFrame(tick);
    else done();
  };
  let done;
  const end = new Promise((resolve) => (done = resolve));
  document.getElementById("message").value = "Go on";
  document.getElementById("composer").requestSubmit();
  requestAnimationFrame(tick);
  await end;
  return frames;
}"""

#: Begins to record the milliseconds of each frame, until `frames.stop()` returns them.
RECORD = """() => {
  let last = performance.now(), isOn = true;
  const all = [];
  const tick = (now) => {
    all.push(now - last);
    last = now;
    if (isOn) requestAnimationFrame(tick);
  };
  requestAnimationFrame(tick);
  window.frames_ = { stop: () => { isOn = false; return all; } };
}"""


def report(what: str, frames: list[float]) -> None:
    """Log how long frames took."""
    frames = sorted(frames)
    p50, p99 = (frames[len(frames) * percent // 100] for percent in (50, 99))
    log.info(
        "%s, %d frames: p50 %.0f, p99 %.0f, most %.0f ms", what, len(frames), p50, p99, frames[-1]
    )


@pytest.mark.parametrize("turns", [0, 1_000])
def test_a_long_chat_opens_and_goes_on(page: Page, turns: int) -> None:
    """Every message and every token is there. A new chat is for comparison: other programs on the
    machine make its frames late, too."""
    messages = [
        {"role": role, "content": f"{number} " + WORDS * 4, "end": "stop", "model": "m"}
        for number in range(turns)
        for role in ("user", "assistant")
    ]
    kept = json.dumps({"messages": messages})
    page.evaluate("kept => sessionStorage.setItem('chatapp.conversation', kept)", kept)
    page.reload()
    # As a script, because a locator would lay out the whole page.
    opened_ms = page.evaluate(
        """async (count) => {
          const isOpen = () => document.querySelectorAll("#log article").length === count;
          while (!isOpen()) await new Promise(requestAnimationFrame);
          await new Promise(requestAnimationFrame);
          return performance.now();
        }""",
        2 * turns,
    )
    text = "".join(BLOCKS) * 20
    tokens = [text[at : at + 4] for at in range(0, 4 * TOKENS, 4)]
    log.info("%d messages open in %.1f s", 2 * turns, opened_ms / 1000)
    stream = page.evaluate(STREAM, {"tokens": tokens, "tokensPerS": TOKENS_PER_S})
    report(f"a reply of {TOKENS} tokens", stream)
    assert page.evaluate("document.querySelectorAll('#log article').length") == 2 * turns + 2
    last = page.evaluate(
        "JSON.parse(sessionStorage.getItem('chatapp.conversation')).messages.at(-1)"
    )
    assert last["content"] == "".join(tokens)
    page.locator("#message").focus()
    page.evaluate(RECORD)
    page.keyboard.type(WORDS * 3, delay=25)
    report("typing", page.evaluate("frames_.stop()"))
    assert page.locator("#message").input_value() == WORDS * 3
    page.mouse.move(400, 300)
    page.evaluate(RECORD)
    for step in [-400] * 75 + [-4_000] * 50 + [400] * 75:
        page.mouse.wheel(0, step)
        page.wait_for_timeout(16)
    report("scrolling", page.evaluate("frames_.stop()"))
