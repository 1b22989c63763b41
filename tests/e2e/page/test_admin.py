"""/admin as an operator uses it: on phones and desktops, light and dark, by keyboard."""

import re
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import redis
from flask import Flask
from playwright.sync_api import Page, expect
from sqlalchemy import update

from chatapp import POLICY_FILE, create_app
from chatapp.accounts.store import Accounts
from chatapp.alerts.alert import Alert
from chatapp.alerts.table import remember
from chatapp.database.connection import Database
from chatapp.ledger import table
from chatapp.ledger.table import CALLS
from chatapp.services import services_of
from tests import servers
from tests.chatapp.ledger.calls import begun, finished
from tests.e2e.page.actions import button
from tests.e2e.page.conftest import Opener
from tests.e2e.page.test_layout import violations
from tests.served import serving

TOKEN = "a token of some length"
BODY = {"message": "hi", "model": "offline"}
VIEWS = (
    *("Spending", "Users and keys", "Limits", "Live", "Latency", "Denials", "Shadow", "Changes"),
    "Operators",
)
#: What is folded on a page, by its address.
FOLDED = {
    "users?page=2": ("Create a key", "Teams", "Import users"),
    "user?name=alice": ("Change",),
    "limits": (
        *("Block a user or a key", "Block a model", "Block all calls"),
        *("Pause a provider", "End the pauses of a provider"),
    ),
}


#: Forms with a mistake: the page, what is folded, what is written, the button, and the field that
#: has the mistake, by its name.
MISTAKES = (
    ("user?name=alice", "", {"Amount": "lots", "Reason": "Launch"}, "Set amount", "amount"),
    ("user?name=alice", "", {"Amount": "1 usd/day", "Until (UTC)": "now"}, "Set amount", "until"),
    ("user?name=alice", "", {"Expires (empty: never)": "2020-01-01"}, "Create key", "expires"),
    ("user?name=alice", "Change", {"Amounts, a line each": "2"}, "Change key", "limits"),
    ("user?name=alice", "Change", {"Class of traffic": "a class"}, "Change key", "class"),
    ("user?name=alice", "", {"Dollars": "-5"}, "Give credit", "usd"),
    ("user?name=bob", "", {"For": "long", "Reason": "Night"}, "Block user", "for"),
    (
        "users",
        "Create a key",
        {"User": "e", "Expires (empty: never)": "2020-01-01"},
        "Create key",
        "expires",
    ),
    ("users", "Teams", {"Name": "research"}, "Create team", "team"),
    ("users", "Import users", {"CSV": "user,plan\neve,gold"}, "Import", "csv"),
    ("limits", "Block a user or a key", {"Name": "eve", "For": "2h"}, "Block", "name"),
    ("limits", "Block a model", {"Model": "none", "For": "2h"}, "Block model", "name"),
    ("limits", "Block all calls", {"For": "long"}, "Block all calls", "for"),
    ("limits", "Pause a provider", {"For": "long"}, "Pause provider", "for"),
    ("team?name=research", "", {"User": "eve"}, "Add member", "user"),
    ("team?name=research", "", {"Amount": "lots"}, "Set amount", "amount"),
    ("operators", "", {"Name, for the log of changes": "hr"}, "Create key", "scopes"),
)


class Site(NamedTuple):
    """The application, and the key of bob, whose next call is denied."""

    app: Flask
    key: str


@pytest.fixture
def site(
    empty_database: Path,
    tmp_path: Path,
    redis_server: servers.Server,
    redis_client: redis.Redis,
    monkeypatch: pytest.MonkeyPatch,
) -> Site:
    """With two users, one of them blocked, their calls, a denial, an alert, and a pause."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-openai-test")
    policy = POLICY_FILE.read_text().replace('"120/minute"\nburst = 20\n', '"1000000/minute"\n', 1)
    (tmp_path / "policy.toml").write_text(policy)
    database = Database(f"sqlite:///{shutil.copy(empty_database, tmp_path / 'chatapp.db')}")
    accounts = Accounts(database)
    accounts.create_team("research", limits={"team-usd-day": "40 usd/day"})
    for number in range(50):
        accounts.create_key(f"member-{number}", plan=None, default_plan="starter", team="research")
    for name in ("alice", "bob"):
        key = accounts.create_key(name, plan=None, default_plan="starter")
    now = datetime.now(UTC)
    calls = [begun(started_at=now, user="user:member-0", team="research")]
    calls += [
        begun(started_at=now - timedelta(days=day), user=f"user:{name}", slug=f"model-{day % 9}")
        for day in range(20)
        for name in ("alice", "bob")
    ]
    times = {"streamed": True, "first_byte_ms": 640, "total_ms": 2400}
    table.write(database, [finished(call, cost_micro_usd=1_500_000, **times) for call in calls])
    facts = {"identity": "user:bob", "name": "usd-day", "threshold": 80, "since": now}
    remember(database, Alert(type="budget.reached", spent=4_000_000, amount=5_000_000, **facts))
    accounts.set_amount("user", "bob", "plan", "1/day")
    app = create_app(
        {
            "RATELIMIT_STORAGE_URI": redis_server.uri,
            "RATELIMIT_POLICY_FILE": str(tmp_path / "policy.toml"),
            "CHATAPP_DATABASE_URL": f"sqlite:///{tmp_path / 'chatapp.db'}",
            "CHATAPP_ADMIN_TOKEN": TOKEN,
        }
    )
    app.test_client().post("/chat", json=BODY, headers=bearer(key.text))
    denied(Site(app, key.text))
    with app.app_context():
        limiter = services_of(app).limiter
        limiter.operators.block("blocked-user", "user:alice", for_s=3600)
        limiter.operators.block("provider", "openai/gpt-4o", for_s=60)
    return Site(app, key.text)


@pytest.fixture
def admin_url(site: Site) -> Iterator[str]:
    with serving(site.app) as url:
        yield url


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def denied(site: Site) -> None:
    """A denial of bob, which is written as a worker's thread does."""
    answer = site.app.test_client().post("/chat", json=BODY, headers=bearer(site.key))
    assert answer.status_code == 429
    services_of(site.app).limiter._components.recorder.flush()


def log_in(page: Page) -> None:
    """By keyboard: the field has the focus."""
    expect(page.get_by_label("Token")).to_be_focused()
    page.keyboard.type(TOKEN)
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="Spending")).to_be_visible()


def signed_in(open_page: Opener, admin_url: str, **options: Any) -> Page:
    """An operator's page, at 390 px unless the options have another size."""
    page = open_page(admin_url, **{"viewport": {"width": 390, "height": 800}, **options})
    page.goto(f"{admin_url}/admin")
    log_in(page)
    return page


def test_an_operator_raises_an_amount_and_replaces_a_key(open_page: Opener, admin_url: str) -> None:
    """From who spends most to the user; every step has its sentence, and is among the changes."""
    page = signed_in(open_page, admin_url, viewport={"width": 1280, "height": 900})
    expect(page.get_by_role("img", name="Spending from")).to_be_visible()
    page.get_by_role("link", name="alice").click()
    page.get_by_role("combobox", name="Limit").select_option("usd-day")
    page.get_by_label("Amount", exact=True).fill("20 usd/day")
    page.get_by_label("Until (UTC)").fill("2h")
    page.get_by_label("Reason").first.fill("The launch is on Monday")
    button(page, "Set amount").click()
    expect(page.get_by_role("status")).to_contain_text("alice has usd-day=20 usd/day until")
    button(page, "Create key").click()
    expect(page.locator("#new-key")).to_contain_text("sk-chat-")
    page.reload()
    expect(button(page, "Create key")).to_be_visible()
    expect(page.locator("#new-key")).to_have_count(0)
    asked: list[str] = []
    for answer in ("dismiss", "accept"):
        page.once("dialog", lambda d, a=answer: (asked.append(d.message), getattr(d, a)()))
        page.get_by_role("button", name="Revoke key").first.click()
    expect(page.get_by_role("status")).to_contain_text("is revoked")
    assert len(asked) == 2
    page.get_by_role("link", name="Changes").click()
    rows = page.locator("tbody tr")
    expect(rows).to_have_count(3)
    expect(rows.last.get_by_text("The launch is on Monday")).to_be_in_viewport(ratio=1)
    button(page, "Log out").click()
    expect(page.get_by_label("Token")).to_be_focused()


def test_a_phone_shows_the_newest_day_of_the_chart(open_page: Opener, admin_url: str) -> None:
    """The bars are wider than the phone; the end is what an operator looks for."""
    page = signed_in(open_page, admin_url)
    bars = page.locator(".chart rect")
    expect(bars.last).to_be_in_viewport()
    expect(bars.first).not_to_be_in_viewport()


def test_from_spending_to_a_team_and_a_member(open_page: Opener, admin_url: str) -> None:
    """The team's budget is raised until tomorrow, and a member leaves it for a new one."""
    page = signed_in(open_page, admin_url, viewport={"width": 1280, "height": 720})
    page.get_by_role("link", name="team", exact=True).click()
    page.get_by_role("link", name="research").click()
    page.get_by_role("combobox", name="Limit").select_option("team-usd-day")
    page.get_by_role("textbox", name="Amount").fill("90 usd/day")
    page.get_by_label("Until (UTC)").fill("tomorrow 9:00")
    button(page, "Set amount").click()
    expect(page.get_by_role("status")).to_contain_text("research has team-usd-day=90 usd/day until")
    expect(page.get_by_role("row", name="team-usd-day")).to_contain_text("0 of 90 usd")
    page.get_by_role("link", name="member-7", exact=True).click()
    page.get_by_role("combobox", name="Team").select_option("none")
    button(page, "Change team").click()
    expect(page.get_by_role("status")).to_contain_text("member-7 has no team")
    page.get_by_role("link", name="Users and keys").click()
    page.get_by_text("Teams", exact=True).click()
    page.get_by_label("Name", exact=True).fill("sales")
    button(page, "Create team").click()
    page.get_by_role("combobox", name="User").fill("member-7")
    button(page, "Add member").click()
    expect(page.get_by_role("status")).to_contain_text("member-7 has the team sales")
    expect(page.get_by_role("heading", name="Team sales")).to_be_visible()


def test_an_operator_imports_users_and_changes_a_key(
    open_page: Opener, site: Site, admin_url: str
) -> None:
    """Users by CSV, checked first, then with keys that are downloaded; and the models of a key. A
    credit of a budget without spending is refused with the reason."""
    page = signed_in(open_page, admin_url)
    page.get_by_role("link", name="Users and keys").click()
    page.get_by_text("Import users", exact=True).click()
    for boxes in ((), ("Only check it", "Create a key for each new user")):
        page.get_by_label("CSV", exact=True).fill("user,plan\ndora,pro")
        for box in boxes:
            page.get_by_label(box).click()
        if not boxes:
            button(page, "Import").click()
            expect(page.get_by_role("status")).to_contain_text("Users (dry run): 1 created")
            page.get_by_text("Import users", exact=True).click()
    with page.expect_download() as download:
        button(page, "Import").click()
    assert download.value.path().read_text().startswith("user,key\ndora,sk-chat-")
    page.get_by_label("CSV", exact=True).fill("user,plan\ndora,gold")
    button(page, "Import").click()
    expect(page.get_by_role("alert")).to_contain_text("line 2: plan: unknown plan 'gold'")
    page.goto(f"{admin_url}/admin/user?name=dora")
    page.get_by_text("Change", exact=True).click()
    page.get_by_label("Models, a line each").fill("o3\ngpt-5*")
    button(page, "Change key").click()
    expect(page.get_by_role("listitem")).to_contain_text("models o3, gpt-5*")
    page.get_by_label("Dollars").fill("5")
    button(page, "Give credit").click()
    expect(page.get_by_role("alert")).to_contain_text("dora")


def test_a_user_goes_on_leave_and_leaves(open_page: Opener, admin_url: str) -> None:
    """A deletion is asked for, a deactivation is not; the users are downloaded."""
    page = signed_in(open_page, admin_url)
    page.goto(f"{admin_url}/admin/user?name=bob")
    button(page, "Deactivate user").click()
    expect(page.get_by_role("status")).to_contain_text("bob is deactivated")
    asked: list[str] = []
    for answer in ("dismiss", "accept"):
        page.once("dialog", lambda d, a=answer: (asked.append(d.message), getattr(d, a)()))
        button(page, "Delete user").click()
    expect(page.get_by_role("status")).to_contain_text("bob is deleted with all keys")
    assert asked == ["Delete bob and all keys? This cannot be undone."] * 2
    page.get_by_label("Find a user").fill("alice")
    button(page, "Find").click()
    with page.expect_download() as download:
        page.get_by_role("link", name="Download CSV").click()
    text = download.value.path().read_text()
    assert download.value.suggested_filename.startswith("users-20")
    assert [line.partition(",")[0] for line in text.splitlines()] == ["user", "alice"]


def test_the_live_view_follows_until_it_is_paused(
    open_page: Opener, site: Site, admin_url: str
) -> None:
    """Without a reload; what has the focus stays, and the end of the session is said."""
    page = open_page(admin_url)
    page.clock.install()
    page.goto(f"{admin_url}/admin")
    log_in(page)
    page.get_by_role("link", name="Live").click()
    row = page.get_by_role("row", name="plan").first
    cells = row.get_by_role("cell")
    expect(cells.nth(4)).to_have_text("1")
    denied(site)
    page.clock.run_for(5000)
    expect(cells.nth(4)).to_have_text("2")
    link = row.get_by_role("link")
    link.focus()
    pause = button(page, "Pause")
    with page.expect_response("**/admin/live"):
        page.clock.run_for(5000)
    expect(link).to_be_focused()
    pause.press("Enter")
    expect(page.get_by_role("status")).to_have_text("Paused")
    denied(site)
    page.clock.run_for(20_000)
    expect(cells.nth(4)).to_have_text("2")
    button(page, "Continue").click()
    expect(cells.nth(4)).to_have_text("3")
    page.context.clear_cookies()
    page.clock.run_for(5000)
    expect(page.get_by_role("status")).to_contain_text("The session has ended.")


@pytest.mark.parametrize(("width", "scheme"), [(390, "dark"), (1280, "light")])
def test_admin_fits_and_axe_finds_nothing(
    open_page: Opener, site: Site, admin_url: str, width: int, scheme: str
) -> None:
    """In each view, with what is folded, the form that failed and the new key."""
    size = {"width": width, "height": 800}
    page = open_page(admin_url, color_scheme=scheme, viewport=size)
    page.goto(f"{admin_url}/admin")

    def check() -> None:
        page.wait_for_load_state()
        assert violations(page) == []
        assert page.evaluate("document.documentElement.scrollWidth") <= width

    check()
    log_in(page)
    for view in VIEWS:
        page.get_by_role("link", name=view, exact=True).click()
        expect(page.get_by_role("heading", name=view, exact=True)).to_be_visible()
        check()
    page.goto(f"{admin_url}/admin/team?name=research")
    expect(page.get_by_role("heading", name="Team research")).to_be_visible()
    check()
    page.goto(f"{admin_url}/admin?days=last")
    check()
    month = f"{datetime.now(UTC):%Y-%m}"
    page.get_by_label("Month", exact=True).fill(month)
    button(page, "Show month").click()
    expect(page.get_by_role("img", name=f"Spending from {month}-01")).to_be_visible()
    check()
    with site.app.app_context():
        call = next(iter(services_of(site.app).reports.calls()))
    page.get_by_label("Find a call").fill(call["id"])
    button(page, "Find").click()
    expect(page.get_by_role("heading", name=f"Call {call['id']}")).to_be_visible()
    check()
    for path, names in FOLDED.items():
        page.goto(f"{admin_url}/admin/{path}")
        for name in names:
            page.locator("summary", has_text=re.compile(f"^{name}$")).click()
        expect(page.locator("details[open]")).to_have_count(len(names))
        check()
    page.goto(f"{admin_url}/admin/operators")
    page.get_by_label("Name, for the log").fill("hr")
    page.get_by_label("read", exact=True).check()
    button(page, "Create key").click()
    expect(page.locator("#new-key")).to_contain_text("sk-admin-")
    check()
    page.goto(f"{admin_url}/admin/user?name=alice")
    button(page, "Create key").click()
    expect(page.locator("#new-key")).to_be_visible()
    check()
    page.get_by_label("Amount", exact=True).fill("nonsense")
    button(page, "Set amount").click()
    expect(page.get_by_role("alert")).to_contain_text("usd-day: ")
    check()


def test_long_names_and_large_sums_fit(open_page: Opener, site: Site, admin_url: str) -> None:
    """A phone does not scroll sideways, and the chart shows the whole amounts of its axis."""
    services, user, team = services_of(site.app), "u" * 256, "T" * 64
    with site.app.app_context():
        services.accounts.create_team(team)
        services.accounts.create_key(user, plan=None, default_plan="starter", team=team)
        spent = begun(started_at=datetime.now(UTC), user=f"user:{user}", team=team)
        table.write(services.database, [finished(spent, cost_micro_usd=1_234_567_890_000)])
    page = signed_in(open_page, admin_url)
    expect(page.locator(".sums")).to_contain_text("$1,234,629.39")
    labels = page.locator(".chart text[text-anchor=end]")
    expect(labels.get_by_text("$2,000,000.00")).to_have_count(1)
    starts = labels.evaluate_all("all => all.map((label) => label.getBBox().x)")
    assert min(starts) >= 0
    for path in ("", f"/user?name={user}", f"/team?name={team}", f"?team={team}"):
        page.goto(f"{admin_url}/admin{path}")
        assert page.evaluate("document.documentElement.scrollWidth") <= 390, path


@pytest.mark.parametrize(("width", "scheme"), [(390, "light"), (1280, "dark")])
def test_a_slow_call_is_traced(
    open_page: Opener, site: Site, admin_url: str, width: int, scheme: str
) -> None:
    """From the latency of a model to a call with its limits and milliseconds. Axe finds nothing,
    also where there is nothing to draw."""
    size = {"width": width, "height": 800}
    page = signed_in(open_page, admin_url, color_scheme=scheme, viewport=size)
    assert services_of(site.app).ledger.flush()
    with site.app.app_context():
        *_, call = services_of(site.app).reports.calls()
    for path, name in (
        ("latency?days=30", "half within"),
        ("latency?days=30&model=model-3", "Latency of model-3"),
        ("latency?kind=whole", "offline"),
        (f"call?id={call['id']}", "Limits of this call"),
    ):
        page.goto(f"{admin_url}/admin/{path}")
        expect(page.locator("main")).to_contain_text(name)
        assert violations(page) == []
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    with site.app.app_context(), services_of(site.app).database.writing() as connection:
        connection.execute(update(CALLS).values(first_byte_ms=None))
    page.goto(f"{admin_url}/admin/latency")
    expect(page.get_by_text("There are no such answers in this period.")).to_be_visible()
    assert violations(page) == []


@pytest.mark.parametrize(("width", "scheme"), [(390, "dark"), (1280, "light")])
def test_a_mistake_is_beside_its_field(
    open_page: Opener, admin_url: str, width: int, scheme: str
) -> None:
    """The form keeps what was written. The field has the focus and the sentence, both in view, and
    axe finds nothing."""
    page = open_page(admin_url, color_scheme=scheme, viewport={"width": width, "height": 800})
    page.on("dialog", lambda dialog: dialog.accept())
    page.goto(f"{admin_url}/admin")
    log_in(page)
    for path, folded, written, press, field in MISTAKES:
        page.goto(f"{admin_url}/admin/{path}")
        if folded:
            page.locator("summary", has_text=re.compile(f"^{folded}$")).click()
        form = page.locator("form", has=button(page, press)).first
        fields = [  # the text of an area is a part of its label
            (form.get_by_label(re.compile(f"^{re.escape(label)}")), text)
            for label, text in written.items()
        ]
        for labelled, text in fields:
            labelled.fill(text)
        form.get_by_role("button", name=press, exact=True).click()
        problem = page.get_by_role("alert")
        expect(problem).to_be_in_viewport(ratio=1)
        focused = page.locator(":focus")
        expect(focused).to_have_attribute("name", field)
        expect(focused).to_be_in_viewport(ratio=1)
        described = page.locator("[aria-describedby=form-problem]")
        expect(described).to_have_accessible_description(problem.inner_text())
        for labelled, text in fields:
            expect(labelled).to_have_value(text)
        assert violations(page) == []
        assert page.evaluate("document.documentElement.scrollWidth") <= width
