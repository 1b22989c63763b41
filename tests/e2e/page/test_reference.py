"""GET /reference: the server's descriptions of its addresses, as forms that send real requests."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Locator, Page, expect

from chatapp import create_app
from tests.e2e.page.actions import button
from tests.e2e.page.conftest import Opener
from tests.e2e.page.test_layout import violations
from tests.served import serving
from tests.servers import eventually

TOKEN = "a token of some length"


@pytest.fixture
def managed_url(
    empty_database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    """The application offline, with a management API."""
    for key in ("OPENAI_API_KEY", "ANTHROPIC_API_KEY"):
        monkeypatch.delenv(key, raising=False)
    url = f"sqlite:///{shutil.copy(empty_database, tmp_path / 'chatapp.db')}"
    config = {
        "RATELIMIT_STORAGE_URI": "memory://",
        "CHATAPP_DATABASE_URL": url,
        "CHATAPP_ADMIN_TOKEN": TOKEN,
    }
    with serving(create_app(config)) as address:
        yield address


def reference(open_page: Opener, url: str, **options: object) -> Page:
    page = open_page(url, **options)
    page.goto(f"{url}/reference")
    return page


def opened(page: Page, name: str) -> Locator:
    """The form of an operation."""
    details = page.locator(f'[id="{name}"]')
    details.locator("> summary").click()
    return details.locator("form")


def send(form: Locator) -> Locator:
    """Send it, and return its status."""
    form.get_by_role("button", name="Send").click()
    status = form.get_by_role("status")
    expect(status).to_contain_text(" ms")
    return status


def test_a_request_is_sent_from_the_page(open_page: Opener, url: str) -> None:
    """With what is required to begin with; what is wrong is said beside it, and not sent."""
    page = reference(open_page, url)
    expect(page.locator("#operations > details")).to_have_count(
        sum(map(len, page.request.get(f"{url}/openapi.json").json()["paths"].values()))
    )
    form = opened(page, "chat.chat.post")
    assert json.loads(form.get_by_label("Body").input_value()) == {"message": ""}
    form.get_by_label("Body").fill("{message: 1}")
    form.get_by_role("button", name="Send").click()
    expect(form.get_by_role("alert")).to_contain_text("This is not JSON")
    expect(form.get_by_label("Body")).to_be_focused()
    form.get_by_label("Body").fill('{"message": "it\'s me", "user_id": "reference"}')
    expect(send(form)).to_contain_text("200 OK")
    answer = json.loads(form.get_by_label("Answer").inner_text())
    assert answer["model"] == "offline"
    form.get_by_text("As a command").click()
    command = form.get_by_label("Command")
    expect(command).to_contain_text(f"curl '{url}/chat' -H \"Authorization: Bearer $KEY\"")
    expect(command).to_contain_text("--json '{\"message\": \"it'\\''s me\"")
    form.get_by_text("Fields").click()
    expect(form.locator("table").first).to_contain_text("At most 32000 bytes.")
    expect(form.locator("h2")).to_have_count(2)  # one message, or a conversation
    page.get_by_label("Search").fill("post CHAT reply")
    expect(page.locator("#operations > details:visible")).to_have_count(1)
    nothing = page.get_by_text("No address has all these words.")
    expect(nothing).to_be_hidden()
    page.get_by_label("Search").fill("post nonsense")
    expect(nothing).to_be_visible()
    page.reload()
    expect(page.locator('[id="chat.chat.post"]')).to_have_attribute("open", "")


def test_a_refusal_says_when_to_try_again(open_page: Opener, managed_url: str) -> None:
    """Beside the status, as the answer has it."""
    page = reference(open_page, managed_url)
    form = opened(page, "chat.chat.post")
    form.get_by_label("Body").fill('{"message": "hi", "user_id": "fast"}')
    expect(status := send(form)).to_contain_text("200 OK")
    for _ in range(40):  # ten at once, and one more every two seconds
        if "429" in send(form).inner_text():
            break
    expect(status).to_contain_text("429 TOO MANY REQUESTS")
    expect(status).to_contain_text("try again in")


def test_a_stream_is_shown_as_it_comes(open_page: Opener, url: str) -> None:
    """Its events are text."""
    page = reference(open_page, url)
    form = opened(page, "chat.chat.post")
    form.get_by_label("Body").fill('{"message": "hi", "stream": true, "user_id": "streams"}')
    expect(send(form)).to_contain_text("200 OK")
    expect(form.get_by_label("Answer")).to_contain_text("event: done")


#: The first description is read when the test says so.
LATE = """
const json = Response.prototype.json;
Response.prototype.json = async function () {
  Response.prototype.json = json;
  await new Promise((resolve) => { window.arrive = resolve; });
  return json.call(this);
};
"""


def test_a_late_description_is_not_shown(open_page: Opener, managed_url: str) -> None:
    """Another one has been chosen meanwhile, which needs a key; entered, it is read."""
    page = open_page(managed_url)
    page.add_init_script(LATE)
    page.goto(f"{managed_url}/reference")
    eventually(lambda: page.evaluate("'arrive' in window"))
    page.get_by_label("Addresses").select_option("Management")
    expect(page.locator("#problem")).to_contain_text("Enter a management key")
    page.evaluate("window.arrive()")
    page.get_by_label("Key").fill(TOKEN)
    page.get_by_label("Key").press("Enter")
    expect(page.locator('[id="put_user"]')).to_be_visible()
    expect(page.locator('[id="chat.chat.post"]')).to_have_count(0)


def test_the_management_api_needs_its_key(open_page: Opener, managed_url: str, url: str) -> None:
    """Until it is entered, nothing is listed. Without a management API, the page says so."""
    page = reference(open_page, managed_url)
    page.get_by_label("Addresses").select_option("Management")
    expect(page.locator("#problem")).to_contain_text("Enter a management key")
    page.get_by_label("Key").fill(TOKEN)
    page.get_by_label("Key").press("Enter")
    form = opened(page, "put_user")
    form.get_by_label("user", exact=True).fill("dora")
    form.get_by_label("Body").fill('{"plan": "pro"}')
    expect(send(form)).to_contain_text("201 CREATED")
    assert json.loads(form.get_by_label("Answer").inner_text())["plan"] == "pro"
    form.get_by_text("As a command").click()
    expect(form.get_by_label("Command")).to_contain_text(
        f"curl -X PUT '{managed_url}/admin/api/v1/users/dora'"
    )
    form = opened(page, "delete_user")
    form.get_by_role("button", name="Send").click()
    assert form.get_by_label("user", exact=True).evaluate("input => input.validity.valueMissing")
    page = reference(open_page, url)
    page.get_by_label("Addresses").select_option("Management")
    expect(page.locator("#problem")).to_contain_text("This server has no management API")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing(open_page: Opener, managed_url: str, scheme: str) -> None:
    """With an answer, with everything unfolded, and with the management API."""
    page = reference(open_page, managed_url, color_scheme=scheme)
    form = opened(page, "chat.chat.post")
    form.get_by_label("Body").fill('{"message": "hi", "user_id": "axe"}')
    send(form)
    for name in ("Fields", "As a command", "Headers"):
        form.get_by_text(name, exact=True).click()
    assert violations(page) == []
    page.get_by_label("Key").fill(TOKEN)
    page.get_by_label("Addresses").select_option("Management")
    opened(page, "list_users")
    assert violations(page) == []
    assert button(page, "Send").count() == 1


def test_it_fits_a_phone(open_page: Opener, url: str) -> None:
    """It does not scroll sideways."""
    page = reference(open_page, url, viewport={"width": 320, "height": 700})
    form = opened(page, "chat.chat.post")
    form.get_by_text("Fields").click()
    assert page.evaluate("document.documentElement.scrollWidth") <= 320
