"""The application with its page, offline or in front of a provider, and a real browser."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import (
    Browser,
    BrowserContext,
    ConsoleMessage,
    Page,
    expect,
    sync_playwright,
)

from chatapp import POLICY_FILE, create_app
from chatapp.accounts.api_key import PresentedKey
from chatapp.accounts.store import Accounts
from chatapp.database.connection import Database
from tests.chatapp.conftest import empty_database
from tests.chatapp.end_of_process import end_of_process
from tests.chatapp.upstream_server import UpstreamServer
from tests.served import serving
from tests.servers import START_SECONDS

__all__ = ["empty_database"]

expect.set_options(timeout=START_SECONDS * 1000)

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
#: The browser's own reports of answers that are errors, and of connections that tests end.
EXPECTED = ("the server responded with a status of", "net::ERR_")

#: Those that `key` allows.
MODELS = ["gpt-5.4-mini", "gpt-5.4-nano"]

#: All that the browser keeps for the page.
KEPT = """async () => {
  const request = indexedDB.open("chatapp", 1);
  request.onupgradeneeded = () => request.transaction.abort();
  const chats = await new Promise((resolve) => {
    request.onerror = () => resolve([]);
    request.onsuccess = () => {
      const found = request.result.transaction("chats").objectStore("chats").getAll();
      found.onsuccess = () => resolve(found.result);
    };
  });
  return JSON.stringify([{ ...sessionStorage }, { ...localStorage }, chats]);
}"""

Opener = Callable[..., Page]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The tests of this folder need a browser."""
    if CHROMIUM is None:
        for item in items:
            if item.path.is_relative_to(Path(__file__).parent):
                item.add_marker(pytest.mark.skip(reason="needs the program `chromium` on PATH"))


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Debian's chromium, without a window."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=BROWSER_OPTIONS)
        yield browser
        browser.close()


@pytest.fixture(scope="module", autouse=True)
def threads_end_with_the_module() -> Iterator[None]:
    """The threads of its applications, one of which all tests of a module share."""
    with end_of_process():
        yield


@pytest.fixture(scope="module")
def url(empty_database: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The application without providers and accounts. The tests of a module share it: each has a
    user of its own, and their address has no limit."""
    folder = tmp_path_factory.mktemp("offline")
    policy = POLICY_FILE.read_text()
    edge = 'limit = "120/minute"\nburst = 20\n'
    assert edge in policy
    (folder / "policy.toml").write_text(
        policy.replace(edge, 'limit = "1000000/minute"\nburst = 1000000\n', 1)
    )
    file = shutil.copy(empty_database, folder / "chatapp.db")
    config = {
        "RATELIMIT_STORAGE_URI": "memory://",
        "RATELIMIT_POLICY_FILE": str(folder / "policy.toml"),
        "CHATAPP_DATABASE_URL": f"sqlite:///{file}",
    }
    with pytest.MonkeyPatch.context() as patch:
        for key in ("OPENAI_API_KEY", "ANTHROPIC_API_KEY"):
            patch.delenv(key, raising=False)
        with serving(create_app(config)) as url:
            yield url


@pytest.fixture
def accounts(empty_database: Path, tmp_path: Path) -> Accounts:
    """The application's accounts, without keys at first."""
    file = shutil.copy(empty_database, tmp_path / "chatapp.db")
    return Accounts(Database(f"sqlite:///{file}"))


@pytest.fixture
def key(accounts: Accounts) -> PresentedKey:
    """A key that exists before the application starts: accounts are on."""
    return accounts.create_key("alice", plan=None, default_plan="starter", models=MODELS)


@pytest.fixture
def online_url(
    accounts: Accounts, provider: UpstreamServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[str]:
    """The application in front of `provider`, without retries. Accounts are on if the test has a
    `key`."""
    for name, value in provider.variables.items():
        monkeypatch.setenv(name, value)
    config = {
        "RATELIMIT_STORAGE_URI": "memory://",
        "CHATAPP_DATABASE_URL": f"sqlite:///{tmp_path / 'chatapp.db'}",
        "CHATAPP_PROVIDER_ATTEMPTS": 1,
        "CHATAPP_DEFAULT_MODEL": "gpt-5.4-mini",
    }
    with serving(create_app(config)) as url:
        yield url


@pytest.fixture
def open_page(browser: Browser) -> Iterator[Opener]:
    """Opens a page; a script error, or a request to another site, fails the test."""
    contexts: list[BrowserContext] = []
    complaints: list[str] = []

    def on_console(message: ConsoleMessage) -> None:
        if message.type == "error" and not any(each in message.text for each in EXPECTED):
            complaints.append(message.text)

    def open_page(url: str, **options: object) -> Page:
        context = browser.new_context(**options)  # type: ignore[arg-type]
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", on_console)
        context.on(
            "request",
            lambda request: (
                None
                if request.url.startswith((url, "blob:"))
                else complaints.append(f"request to {request.url}")
            ),
        )
        page.goto(url)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert complaints == []


@pytest.fixture
def page(open_page: Opener, url: str) -> Page:
    """The page without providers."""
    return open_page(url)


@pytest.fixture
def chat(open_page: Opener, online_url: str) -> Page:
    """The page in front of `provider`."""
    return open_page(online_url)
