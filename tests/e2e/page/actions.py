"""What people do on the page, and where to look."""

from playwright.sync_api import Locator, Page, expect


def message(page: Page) -> Locator:
    """The form's text."""
    return page.get_by_label("Message", exact=True)


def button(page: Page, name: str) -> Locator:
    return page.get_by_role("button", name=name, exact=True)


def replies(page: Page) -> Locator:
    return page.locator("#log .model")


def problem(page: Page) -> Locator:
    return page.locator("#log .error")


def begin(page: Page, text: str) -> None:
    """Type a message and send it."""
    message(page).fill(text)
    button(page, "Send").click()


def say(page: Page, text: str) -> None:
    """Send a message, and wait until it has been answered or refused."""
    begin(page, text)
    expect(page.locator("#log .pending")).to_have_count(0)
