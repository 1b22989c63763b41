"""The pictures of README: the chat page, and `/admin` of a company of the tests.
TUTORIAL_SCREENSHOTS=1 takes them."""

import os
import random
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from playwright.sync_api import expect

from chatapp import create_app
from chatapp.accounts.store import Accounts
from chatapp.database.connection import Database
from chatapp.ledger import table
from tests.chatapp.ledger.calls import begun, finished
from tests.chatapp.upstream_server import Stream, UpstreamServer, openai_chunks
from tests.e2e.page.actions import begin, problem, replies, say
from tests.e2e.page.conftest import Opener
from tests.e2e.page.test_layout import violations
from tests.e2e.page.test_tutorial import BOTTOM
from tests.gunicorn_master import ROOT
from tests.served import serving

CHAT = ROOT / "docs" / "gateway" / "chat.png"
PICTURE = ROOT / "docs" / "operate" / "admin.png"
TOKEN = "a token of some length"
MOST_BYTES = 150_000
SIZE = {"width": 1100, "height": 950}
#: Dollars on a working day, by user.
USUAL = {"ada": 6.2, "grace": 4.1, "ci": 2.4, "linus": 1.7, "margaret": 1.1, "barbara": 0.8}


def test_the_picture_shows_the_page(
    empty_database: Path, tmp_path: Path, open_page: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Spending by day and by user, of thirty days; the file is small."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-openai-test")
    url = f"sqlite:///{shutil.copy(empty_database, tmp_path / 'chatapp.db')}"
    database, chance = Database(url), random.Random(5)
    accounts, today = Accounts(database), datetime.now(UTC)
    calls = []
    for name, dollars in USUAL.items():
        accounts.create_key(name, plan=None, default_plan="pro")
        for day in range(30):
            at = today - timedelta(days=day)
            share = chance.uniform(0.6, 1.5) * (0.2 if at.weekday() > 4 else 1)
            cost = round(dollars * share * 1_000_000)
            calls.append(finished(begun(started_at=at, user=f"user:{name}"), cost_micro_usd=cost))
    table.write(database, calls)
    app = create_app(
        {
            "RATELIMIT_STORAGE_URI": "memory://",
            "CHATAPP_DATABASE_URL": url,
            "CHATAPP_ADMIN_TOKEN": TOKEN,
        }
    )
    with serving(app) as address:
        page = open_page(address, viewport=SIZE, color_scheme="light")
        page.goto(f"{address}/admin")
        page.get_by_label("Token").fill(TOKEN)
        page.keyboard.press("Enter")
        expect(page.get_by_role("img", name="Spending from")).to_be_visible()
        expect(page.get_by_role("link", name="ada")).to_be_visible()
        assert violations(page) == []
        if os.environ.get("TUTORIAL_SCREENSHOTS") == "1":
            clip = {"x": 0, "y": 0, "width": SIZE["width"], "height": page.evaluate(BOTTOM) + 20}
            page.screenshot(path=PICTURE, clip=clip)
    assert PICTURE.stat().st_size < MOST_BYTES


ASKED = "How does a token bucket differ from a fixed window?"
REPLY = """A **token bucket** refills all the time, so a caller who waits a little may go on:

| | after a burst | at the border of a window |
| --- | --- | --- |
| token bucket | one call each few seconds | no difference |
| fixed window | nothing until the next window | twice the limit |

```python
tokens = min(burst, tokens + elapsed * rate)
allowed = tokens >= 1
```
"""


def test_the_picture_shows_a_reply_and_a_refusal(
    open_page: Opener, online_url: str, provider: UpstreamServer
) -> None:
    """A 429 as a person sees it: why, and when the message is sent again. The file is small."""
    page = open_page(online_url, viewport={"width": 1000, "height": 720}, color_scheme="light")
    page.get_by_label("User id").fill("ada")
    page.get_by_label("User id").press("Tab")
    provider.script(Stream(list(openai_chunks(REPLY))))
    say(page, ASKED)
    expect(replies(page)).to_contain_text("twice the limit")
    provider.end_script()
    for _ in range(12):
        page.request.post(f"{online_url}/chat", data={"message": "hi", "user_id": "ada"})
    begin(page, "And a sliding window?")
    expect(problem(page)).to_contain_text("is sent again in")
    if os.environ.get("TUTORIAL_SCREENSHOTS") == "1":
        page.locator("aside").evaluate("aside => aside.scrollTo(0, 0)")
        page.screenshot(path=CHAT)
    assert CHAT.stat().st_size < MOST_BYTES
