"""Users and keys in a real database."""

from datetime import UTC, date, datetime, timedelta

import pytest
from sqlalchemy import text

from chatapp.accounts.store import (
    Accounts,
    RefusedChangeError,
    UnknownKeyError,
    UnknownTeamError,
    UnknownUserError,
    amounts_of,
)
from chatapp.database.connection import Database

LATER = datetime(2030, 1, 2, 3, 4, 5, 678, tzinfo=UTC)


@pytest.fixture
def accounts(database: Database) -> Accounts:
    """No user and no key yet."""
    return Accounts(database)


def test_a_key_is_found_by_its_id(accounts: Accounts) -> None:
    """With its user and all its fields."""
    made = accounts.create_key(
        "alice", plan="pro", default_plan="starter", name="laptop", expires_at=LATER
    )
    found = accounts.find(made.public_id)
    assert found is not None
    key, user = found
    assert made.has_secret(key.secret_sha256)
    assert (key.user, key.name, key.expires_at, key.revoked_at) == ("alice", "laptop", LATER, None)
    assert (user.name, user.plan) == ("alice", "pro")
    assert accounts.find("0" * 16) is None


def test_the_database_has_no_secret(accounts: Accounts, database: Database) -> None:
    """The database alone gives no access: it has no secret."""
    made = accounts.create_key("alice", plan=None, default_plan="starter", name="laptop")
    with database.reading() as connection:
        rows = [
            str(row)
            for table in ("users", "api_keys")
            for row in connection.execute(
                text(f"SELECT * FROM {table}")  # noqa: S608 - the two names above
            )
        ]
    assert made.public_id in "".join(rows)
    assert made.secret not in "".join(rows)
    assert made.secret_sha256 not in repr(accounts.all_keys())  # nor has a log the digest


def test_a_second_key_keeps_the_plan(accounts: Accounts) -> None:
    """A key with another plan than its user's is not created."""
    for plan in ("pro", None, "pro"):
        accounts.create_key("alice", plan=plan, default_plan="starter")
    with pytest.raises(RefusedChangeError, match="alice has the plan pro") as refused:
        accounts.create_key("alice", plan="team", default_plan="starter")
    assert refused.value.code == "other_plan"
    assert [user.plan for user in accounts.users()] == ["pro"]
    accounts.create_key("bob", plan=None, default_plan="starter")
    assert [(user.name, user.plan) for user in accounts.users()] == [
        ("alice", "pro"),
        ("bob", "starter"),
    ]
    assert [key.user for key in accounts.all_keys()] == ["alice"] * 3 + ["bob"]


def test_a_revoked_key_stays_revoked(accounts: Accounts) -> None:
    """Revoking twice keeps the first time; the key stays in the list and counts as a key."""
    assert not accounts.any_key()
    made = accounts.create_key("alice", plan=None, default_plan="starter")
    first = accounts.revoke(made.public_id).revoked_at
    assert first is not None
    assert accounts.revoke(made.public_id).revoked_at == first
    assert accounts.any_key()
    with pytest.raises(UnknownKeyError):
        accounts.revoke("0" * 16)


def test_a_plan_is_set_for_an_existing_user(accounts: Accounts) -> None:
    """A misspelt name does not create a user."""
    accounts.create_key("alice", plan=None, default_plan="starter")
    accounts.change("user", "alice", plan="pro")
    with pytest.raises(UnknownUserError):
        accounts.change("user", "Alice", plan="pro")
    assert [(user.name, user.plan) for user in accounts.users()] == [("alice", "pro")]


def test_a_use_is_noted_by_the_day(accounts: Accounts) -> None:
    """The last day counts, in any order of the workers' writes."""
    made = accounts.create_key("alice", plan=None, default_plan="starter")
    today = date(2026, 11, 25)
    yesterday = today - timedelta(days=1)
    for day in (yesterday, today, yesterday):
        accounts.note_use(made.public_id, day)
    assert accounts.all_keys()[0].last_used_on == today


ODD_NAMES = ["o'brien", '"; DROP TABLE users; --', "%s %(name)s :name", "ü" * 256, "{}", "a\\b"]


@pytest.mark.parametrize("name", ODD_NAMES)
def test_a_name_is_only_a_name(accounts: Accounts, name: str) -> None:
    """Names are never SQL."""
    made = accounts.create_key(name, plan=None, default_plan="starter", name=name[:100])
    found = accounts.find(made.public_id)
    assert found is not None
    assert found[1].name == name
    assert accounts.find("' OR '1'='1") is None


# -- teams and amounts -------------------------------------------------------------------------


def test_a_key_is_found_with_its_users_team(accounts: Accounts) -> None:
    """And with the amounts of all three, in one query."""
    accounts.create_team("research", limits={"team-usd-day": "9 usd/day"})
    made = accounts.create_key(
        "alice",
        plan=None,
        default_plan="starter",
        team="research",
        limits={"key-usd-day": "1 usd/day"},
        models=["gpt-5*"],
    )
    accounts.set_amount("user", "alice", "plan", "7/day")
    found = accounts.find(made.public_id)
    assert found is not None
    key, user = found
    assert user.team is not None
    assert amounts_of(user.team, user, key) == {
        "team-usd-day": "9 usd/day",
        "plan": "7/day",
        "key-usd-day": "1 usd/day",
    }
    assert (user.team.name, key.models) == ("research", ["gpt-5*"])


def test_an_amount_is_set_and_cleared(accounts: Accounts) -> None:
    """Of one limit; the others stay."""
    accounts.create_team("research")
    for amount, changed in (("9 usd/day", True), ("9 usd/day", False), ("8 usd/day", True)):
        assert accounts.set_amount("team", "research", "team-usd-day", amount) is changed
    accounts.set_amount("team", "research", "team-at-once", "5 in flight")
    for changed in (True, False):
        assert accounts.set_amount("team", "research", "team-usd-day", None) is changed
    (team,) = accounts.teams()
    assert team.limits == {"team-at-once": "5 in flight"}
    accounts.set_amount("team", "research", "team-at-once", None)
    assert accounts.team("research").limits is None  # type: ignore[union-attr]
    with pytest.raises(RefusedChangeError) as refused:
        accounts.create_team("research")
    assert refused.value.code == "existing_team"


UNKNOWN = {
    "user": (lambda a: a.set_amount("user", "zoe", "plan", "1/day"), UnknownUserError),
    "key": (lambda a: a.set_amount("key", "0" * 16, "plan", "1/day"), UnknownKeyError),
    "team": (lambda a: a.set_amount("team", "zoe", "plan", "1/day"), UnknownTeamError),
    "member": (lambda a: a.change("user", "zoe", team_name=None), UnknownUserError),
    "membership": (
        lambda a: a.create_key("zoe", plan=None, default_plan="starter", team="sales"),
        UnknownTeamError,
    ),
    "files": (lambda a: a.change("key", "0" * 16, files=True), UnknownKeyError),
    "limits": (lambda a: a.change("team", "zoe", limits=None), UnknownTeamError),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_no_owner_is_made_by_a_misspelt_name(accounts: Accounts, name: str) -> None:
    """Each has an error."""
    change, error = UNKNOWN[name]
    with pytest.raises(error):
        change(accounts)
    assert not accounts.users()
    assert not accounts.teams()


def test_a_new_key_moves_no_user(accounts: Accounts) -> None:
    """A key with another team than its user's is not created; nor one of an unknown team."""
    accounts.create_team("research")
    accounts.create_key("alice", plan=None, default_plan="starter")
    with pytest.raises(RefusedChangeError) as refused:
        accounts.create_key("alice", plan=None, default_plan="starter", team="research")
    assert refused.value.code == "other_team"
    with pytest.raises(UnknownTeamError):
        accounts.create_key("bob", plan=None, default_plan="starter", team="sales")
    accounts.change("user", "alice", team_name="research")
    accounts.create_key("alice", plan=None, default_plan="starter", team="research")
    assert [user.name for user in accounts.users()] == ["alice"]
    assert len(accounts.all_keys()) == 2
