"""Users, keys, teams, plans, and the amounts of them; management keys, which an operator with the
scope ``all`` makes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from typing import Annotated, Any, Final

from pydantic import AfterValidator, Field

from chatapp.accounts import store
from chatapp.accounts.api_key import public_id_of
from chatapp.accounts.people import HEADERS, MOST_NEW, People
from chatapp.accounts.store import (
    Owner,
    RefusedChangeError,
    UnknownKeyError,
    UnknownTeamError,
    UnknownUserError,
)
from chatapp.actions.action import (
    Action,
    Call,
    Change,
    FieldError,
    Fields,
    Listed,
    Option,
    of_field,
)
from chatapp.operators import amounts, arguments, blocks, callers, keys, user_file, users
from chatapp.operators.amounts import OwnersAmounts, checked
from chatapp.operators.callers import name_of
from chatapp.operators.errors import unknown
from chatapp.services import current_services
from chatapp.settings import Scope
from chatapp.web import allowed_models
from chatapp.web.policy_keywords import UNREAD, declared_classes
from ratelimit_ext import OperatorError
from ratelimit_ext.operators import instant_s, time_text

Name = partial(arguments.name, most=arguments.USER)
User = Annotated[str, AfterValidator(lambda text: name_of(Name(text)))]
NewUser = Annotated[str, AfterValidator(arguments.new_user)]
Team = Annotated[str, AfterValidator(partial(arguments.name, most=arguments.TEAM))]
Plan = Annotated[str, AfterValidator(arguments.plan)]
KeyName = Annotated[str, AfterValidator(partial(arguments.name, most=arguments.KEY_NAME))]
Files = Annotated[bool | None, Field(description="Let the key name files that providers store.")]
Model = Annotated[str, AfterValidator(arguments.models)]
Models = Annotated[list[Model], Field(max_length=allowed_models.PATTERNS_MOST)]
Class = Annotated[
    Annotated[str, AfterValidator(arguments.traffic_class)] | None,
    Field(description="The key's class, such as batch; null (in a command: '') for the plan's."),
]
End = Annotated[str, AfterValidator(arguments.end)]
Until = Annotated[str, AfterValidator(instant_s)]
Overlap = Annotated[str, AfterValidator(partial(arguments.duration, least_s=0))]
Amounts = dict[str, str]
LIMITS: Final = 'An amount instead of the policy\'s, such as {}="20 usd/day".'
MODELS: Final = 'Allow only this model, or all that match, such as "gpt-5*".'
CREATE_KEY: Final = " yet; `chat keys create --user NAME` creates one."
EXPIRES: Final = "When it expires, in UTC: 90d, friday; default: never."


class UserQuery(Listed):
    q: Annotated[str, Option("query")] = Field("", description="Only names that contain this text.")
    team: str | None = Field(None, description="Only users of this team.")
    plan: str | None = Field(None, description="Only users with this plan.")
    key: Annotated[str, AfterValidator(public_id_of)] | None = Field(
        None, description="Only users first named by this key."
    )


class UserFields(Change):
    """Fields that are left out stay unchanged; a new user gets their defaults."""

    plan: Plan | None = Field(None, description="The plan.")
    team: Team | None = Field(None, description="The team; null (in a command: '') removes it.")
    limits: Amounts | None = Field(None, description=LIMITS.format("usd-day"))
    active: bool | None = Field(None, description="Accept the user's keys, or not.")


class ImportFields(Change):
    csv: str = Field(description="Lines with user, and any of plan, team and limits.")
    dry_run: bool = Field(default=False, description="Check the CSV and report what would change.")
    keys: bool = Field(default=False, description="Create a key for each new user.")


class KeyQuery(Listed):
    user: User | None = Field(None, description="Only keys of this user.")
    team: str | None = Field(None, description="Only keys of this team's members.")


class UsersKeys(Change):
    user: User = Field(description="The user.")


class PeopleFields(Fields):
    """The users for whom a key acts: the headers that name them, or none for the body's user."""

    headers: Annotated[
        list[Annotated[str, AfterValidator(arguments.header)]], Option("user-header")
    ] = Field(
        list(HEADERS),
        max_length=10,
        description="The header that names the user; default: Open WebUI's. If empty, use "
        'the body\'s "user".',
    )
    plan: Annotated[Plan | None, Option("plan-of-new")] = Field(
        None, description="The plan of new users; default: the plan of the key."
    )
    most_new: Annotated[int, Option("most-new")] = Field(
        MOST_NEW,
        ge=1,
        le=100_000,
        description=f"How many new users the key may create in an hour; default {MOST_NEW}.",
    )

    def people(self) -> People:
        return People(tuple(self.headers), self.plan, self.most_new)


ActsForUsers = Annotated[PeopleFields | None, Option("acts-for-users")]


class NewKey(Change):
    user: NewUser = Field(description="The user of the key.")
    plan: Plan | None = Field(None, description="The plan of a new user.")
    team: Team | None = Field(None, description="The team of a new user.")
    name: KeyName = Field("key", description="A name for the key.")
    expires: End | None = Field(None, description=EXPIRES)
    limits: Amounts = Field(default_factory=dict, description=LIMITS.format("key-usd-day"))
    models: Models = Field(default_factory=list, description=MODELS)
    files: Files = None
    traffic_class: Class = Field(None, alias="class")
    people: ActsForUsers = Field(None, description="Let the key act for the users of a program.")


class KeyFields(Change):
    """Fields that are left out stay unchanged. With a null ``class`` the key has its plan's; with
    null ``people`` it acts for no users but its own."""

    limits: Amounts | None = Field(None, description=LIMITS.format("key-usd-day"))
    models: Models | None = Field(None, description=f"{MODELS} Empty: all models of its plan.")
    files: Files = None
    traffic_class: Class = Field(None, alias="class")
    people: ActsForUsers = Field(None, description="Let the key act for the users of a program.")


class Rotation(Change):
    overlap: Overlap = Field(
        "24h", validate_default=True, description="How long the old key stays valid: 0s, 2h, 7d."
    )


class TeamFields(Change):
    """Without ``limits`` the budgets stay unchanged. Otherwise it replaces all of them."""

    limits: Amounts | None = Field(None, description=LIMITS.format("team-usd-day"))


class AmountFields(Change):
    amount: str = Field(description="The amount, such as 20 usd/day.")
    until: Until | None = Field(
        None, description="Make it an override that ends then, in UTC: 2h, 17:30, friday."
    )


class NewAdminKey(Change):
    name: KeyName = Field(description="The name of the operator, for the log of changes.")
    scopes: list[Scope] = Field(min_length=1, description="What it may do.")
    team: Team | None = Field(None, description="Only this team; the key is for its administrator.")
    expires: End | None = Field(None, description=EXPIRES)


# -- users -------------------------------------------------------------------------------------


@Action(
    "GET /users",
    "read",
    query=UserQuery,
    of_team=True,
    order="user",
    command="users list",
    columns="user plan team limits state",
    empty="There are no users",
    begin=CREATE_KEY,
)
def list_users(call: Call) -> list[dict[str, object]]:
    """List the users with their plans, teams and amounts."""
    query, overrides = call.query, OwnersAmounts()
    return [
        users.as_json(user, overrides)
        for user in call.operator.visible_users()
        if query.q.lower() in user.name.lower()
        and query.team in {None, user.team_name}
        and query.plan in {None, user.plan}
        and query.key in {None, user.brought_by}
    ]


@Action("GET /users/<path:user>", "read", of_team=True, command="users show USER")
def get_user(call: Call, user: str) -> dict[str, object]:
    """Show a user."""
    name = name_of(user)
    call.operator.check_user(name)
    row = current_services().accounts.user(name)
    if row is None:
        raise UnknownUserError(name)
    return users.as_json(row, OwnersAmounts()) | blocks.shown("user", callers.identity_of(name))


@Action(
    "PUT /users/<path:user>",
    "users",
    body=UserFields,
    of_team=True,
    command="users create|set USER",
)
def put_user(call: Call, user: str) -> users.Put:
    """Create a user, or change the fields of one."""
    body, operator, services = call.body, call.operator, current_services()
    name = arguments.new_user(name_of(user))
    _check_spaces(name_of(user))
    operator.check_user(name, may_be_new=True)
    given = body.model_fields_set
    row = services.accounts.user(name)
    if not given.isdisjoint({"plan", "active"}):
        operator.check("users")  # not of a team alone
    if "team" in given:
        operator.check_team(body.team or "")
    values: dict[str, Any] = {}
    if body.plan is not None:
        values["plan"] = body.plan
    if "team" in given or (operator.team is not None and row is None):
        values["team_name"] = team = body.team if "team" in given else operator.team
        _check_team(team)
    if "limits" in given:
        plan = body.plan or (row.plan if row else services.default_plan)
        values["limits"] = _checked_amounts(call, "user", body.limits or {}, plan) or None
    return users.put(name, values, active=body.active, **call.why)


def _check_spaces(name: str) -> None:
    """Refuse a name that GET would not find: it looks names up as they are written."""
    if name != name.strip():
        raise OperatorError("invalid_name", f"{name!r} begins or ends with a space; leave it out")


def _check_team(team: str | None) -> None:
    if team is not None and current_services().accounts.team(team) is None:
        with of_field("team"):
            raise unknown("team", team)


@Action(
    "DELETE /users/<path:user>",
    "users",
    command="users delete USER",
    confirm="Delete {user} and all their keys for good?",
)
def delete_user(call: Call, user: str) -> dict[str, object]:
    """Delete a user with their keys, amounts and overrides, for good."""
    return {"done": users.delete(name_of(user), **call.why)}


@Action("POST /users", "users", body=ImportFields, command="users import CSV")
def import_users(call: Call) -> dict[str, object]:
    """Create and change users by CSV: all lines or none."""
    body, lines = call.body, call.body.csv.splitlines(keepends=True)
    heads = user_file.columns(lines)
    for scope in (*(("keys",) if body.keys else ()), *(("limits",) if "limits" in heads else ())):
        call.operator.check(scope)
    answer, mistakes = user_file.import_users(
        lines, dry_run=body.dry_run, with_keys=body.keys, watched=call.watched, **call.why
    )
    if mistakes:
        raise FieldError("csv", answer["done"], code="invalid_csv", lines=mistakes)
    return answer


# -- keys --------------------------------------------------------------------------------------


@Action(
    "GET /keys",
    "read",
    query=KeyQuery,
    of_team=True,
    order="user id",
    command="keys list",
    columns="id user name created last_used? state limits? models? files? class? people? team?",
    empty="There are no keys",
    begin=CREATE_KEY,
)
def list_keys(call: Call) -> list[dict[str, object]]:
    """List the keys, without their secrets."""
    accounts, overrides, query = current_services().accounts, OwnersAmounts(), call.query
    names = [] if query.user is None else [query.user]
    if query.user is not None:
        call.operator.check_user(query.user)
        if accounts.user(query.user) is None:
            with of_field("user"):
                raise unknown("user", query.user)
    user_of = {user.name: user for user in call.operator.visible_users(*names)}
    return [
        keys.as_json(key, overrides)
        for key in accounts.all_keys(*names)
        if (user := user_of.get(key.user))
        and call.operator.sees_key(key, user)
        and query.team in {None, user.team_name}
    ]


@Action("POST /keys", "keys", body=NewKey, of_team=True, command="keys create")
def create_key(call: Call) -> dict[str, object]:
    """Create a key, and its user if new. The key is shown only once."""
    body, operator, services = call.body, call.operator, current_services()
    if body.name == keys.SIGN_IN:
        sentence = f"{body.name!r} is reserved for keys that people get by signing in."
        raise FieldError("name", f"{sentence} Choose another name.")
    team = operator.team_of_key(body.user, plan=body.plan, team=body.team)
    operator.check_powers(people=body.people, files=body.files)
    if body.traffic_class is not None:
        operator.check("keys")  # of no team: a higher class may use what is kept from others
    row, is_first = services.accounts.user(body.user), not services.accounts.any_key()
    _check_team(team)
    plan = row.plan if row else body.plan or services.default_plan
    limits = _checked_amounts(call, "key", body.limits, plan) if body.limits else {}
    made = services.accounts.create_key(
        body.user,
        plan=body.plan,
        default_plan=services.default_plan,
        team=team,
        name=body.name,
        expires_at=body.expires,
        limits=limits,
        models=body.models,
        files=body.files,
        traffic_class=body.traffic_class,
        people=body.people and body.people.people(),
        bound_team=operator.team,
    )
    callers.note("create-key", made.public_id, **call.why_or(f"of {body.user}"))
    until = "without expiry" if body.expires is None else f"until {body.expires:%Y-%m-%d}"
    done = [f"Key {made.public_id} of {body.user}, {until}. It is shown only once."]
    if is_first:
        done.append("Accounts are on: every request now needs a key.")
    done += _without_effect(body)
    return {**_key(call, made.public_id), "key": made.text, "done": " ".join(done)}


@Action("GET /keys/<key>", "read", of_team=True, command="keys show KEY")
def get_key(call: Call, key: str) -> dict[str, object]:
    """Show a key, by its public id."""
    return _key(call, key)


@Action("PUT /keys/<key>", "keys", body=KeyFields, command="keys set KEY")
def put_key(call: Call, key: str) -> users.Put:
    """Change the fields of a key."""
    body, (before, user) = call.body, _existing_key(key)
    given, done = body.model_fields_set, []
    call.operator.check_key(key, changes=True)
    call.operator.check_powers(people=body.people)
    if "limits" in given:
        limits = _checked_amounts(call, "key", body.limits or {}, user.plan)
        done += users.put_amounts("key", key, before.limits or {}, limits, **call.why)
    fields = {
        "models": body.models or None,
        "traffic_class": body.traffic_class,
        "people": body.people and body.people.people().as_row(),
    }
    if body.files is not None:  # null leaves it as it is
        fields["files"] = body.files
    changed = {name: value for name, value in fields.items() if name in given}
    done += [*keys.set_fields(before, changed, **call.why), *_without_effect(body)]
    return users.Put(is_new=False, done=" ".join(done) or users.NOTHING)


@Action("DELETE /keys/<key>", "keys", of_team=True, command="keys revoke KEY...")
def revoke_key(call: Call, key: str) -> dict[str, object]:
    """Revoke a key for good. Does nothing if it is already revoked."""
    call.operator.check_key(key, changes=True)
    done, is_immediate = keys.revoke_key(key, **call.why)
    return {"done": done, "immediate": is_immediate}


@Action("DELETE /keys", "keys", query=UsersKeys, of_team=True, command="keys revoke-all")
def revoke_keys(call: Call) -> dict[str, object]:
    """Revoke all keys of a user."""
    call.operator.check_user(call.query.user)
    ids = keys.usable_keys(call.query.user)
    for public_id in ids:
        call.operator.check_key(public_id, changes=True)
    done = " ".join(keys.revoke_key(public_id, **call.why)[0] for public_id in ids)
    return {"done": done or "There is no key to revoke.", "revoked": ids}


@Action("POST /keys/<key>/rotate", "keys", body=Rotation, of_team=True, command="keys rotate KEY")
def rotate_key(call: Call, key: str) -> dict[str, object]:
    """Replace a key: create one like it. The old one expires after the overlap."""
    call.operator.check_key(key, shows_secret=True)
    accounts, overlap, team = current_services().accounts, call.body.overlap, call.operator.team
    row, user = _existing_key(key)
    if row.name == keys.SIGN_IN:  # a refresh would let the old one go on
        sentence = f"{user.name} got key {key} by signing in; revoke it instead."
        raise RefusedChangeError("unusable_key", sentence)
    if team is None and not row.is_for(user):
        sentence = f"Key {key} is bound to the team {row.bound_team}, and {user.name} is not in it"
        raise OperatorError("other_team", f"{sentence}; create another key.")
    made, old = accounts.rotate(key, overlap=overlap, bound_team=team)
    until = None if old.expires_at is None else old.expires_at.timestamp()
    why = call.why_or(f"of {old.user}, replaced by {made.public_id}")
    callers.note("rotate-key", key, until=until, **why)
    end = f"is valid until {time_text(until)}"
    if not overlap:
        end = f"has expired; {keys.since_when(is_immediate=blocks.stop_key(key))}"
    done = f"Key {made.public_id} of {old.user} replaces {key}, which {end}. It is shown only once."
    return {**_key(call, made.public_id), "key": made.text, "replaces": key, "done": done}


@Action("POST /accounts/off", "all", body=Change, command="keys off")
def turn_accounts_off(call: Call) -> dict[str, object]:
    """Serve without keys again, after the database was replaced by one without keys."""
    keys.turn_accounts_off(**call.why)
    return {"done": "Accounts are off; no request needs a key."}


def _key(call: Call, key: str) -> dict[str, object]:
    call.operator.check_key(key)
    return {**keys.as_json(_existing_key(key)[0], OwnersAmounts()), **blocks.shown("api_key", key)}


def _without_effect(body: NewKey | KeyFields) -> list[str]:
    services, name = current_services(), body.traffic_class
    is_unread = name and not declared_classes(services.policy, services.catalogue)
    return [f"Warning: {UNREAD.format(name)}."] * bool(is_unread) + [
        f"No model in models.toml matches {pattern!r}. Unless an upstream serves one, the key "
        "cannot use it; if the name is misspelt, set the key's models again."
        for pattern in allowed_models.unknown(body.models or (), services.catalogue)
    ]


def _existing_key(key: str) -> tuple[store.ApiKey, store.User]:
    row = current_services().accounts.find(key)
    if row is None:
        raise UnknownKeyError(key)
    return row


# -- teams and plans -----------------------------------------------------------------------------


@Action(
    "GET /teams",
    "read",
    of_team=True,
    order="team",
    command="teams list",
    empty="There are no teams",
    begin=" yet; `chat teams create NAME` creates one.",
)
def list_teams(call: Call) -> list[dict[str, object]]:
    """List the teams with their budgets and members."""
    accounts, overrides = current_services().accounts, OwnersAmounts()
    mine, members = call.operator.team, defaultdict[str | None, list[str]](list)
    for name, team, _ in accounts.names():
        members[team].append(name)
    teams = [team for team in accounts.teams() if mine in {None, team.name}]
    return [_team(team, overrides, members[team.name]) for team in teams]


@Action("GET /teams/<path:team>", "read", of_team=True, command="teams show TEAM")
def get_team(call: Call, team: str) -> dict[str, object]:
    """Show a team."""
    call.operator.check_team(team)
    row = current_services().accounts.team(team)
    if row is None:
        raise UnknownTeamError(team)
    members = [user.name for user in current_services().accounts.users(team=team)]
    return _team(row, OwnersAmounts(), members)


def _team(team: store.Team, overrides: OwnersAmounts, members: Sequence[str]) -> dict[str, object]:
    """Return a team, with the shares of its members if it divides a budget fairly."""
    limits = overrides.of("team", team.name, team.limits)
    shown: dict[str, object] = {"team": team.name, "limits": limits, "users": members}
    if states := amounts.shares(team.name, members):
        texts = map(amounts.share_text, states)
        shown["shares"] = [{**e.as_json(), "text": t} for e, t in zip(states, texts, strict=True)]
        shown["ahead"] = amounts.ahead_text(states)
    return shown


@Action("PUT /teams/<path:team>", "teams", body=TeamFields, command="teams create|set TEAM")
def put_team(call: Call, team: str) -> users.Put:
    """Create a team, or change its budgets."""
    name, limits = arguments.name(team, most=arguments.TEAM), call.body.limits
    _check_spaces(team)
    if limits is not None:
        limits = _checked_amounts(call, "team", limits, None)
    accounts = current_services().accounts
    before = accounts.team(name)
    if before is None:
        accounts.create_team(name, limits=limits or {})
        callers.note("create-team", amounts.identity_of("team", name), **call.why)
        with_what = f"with {amounts.listed(limits)}" if limits else "without budgets"
        return users.Put(is_new=True, done=f"Team {name} is created {with_what}.")
    had = before.limits or {}
    done = users.put_amounts("team", name, had, had if limits is None else limits, **call.why)
    return users.Put(is_new=False, done=" ".join(done) or users.NOTHING)


@Action("GET /plans", "read", order="plan", command="plans list", columns="plan defined users")
def list_plans(_call: Call) -> list[dict[str, Any]]:
    """List the plans, each with its users."""
    services = current_services()
    everyone, defined = services.accounts.users(), services.plans
    return [
        {
            "plan": plan,
            "defined": plan in defined,
            "users": [user.name for user in everyone if user.plan == plan],
        }
        for plan in (*defined, *sorted({user.plan for user in everyone} - set(defined)))
    ]


# -- amounts -----------------------------------------------------------------------------------

AMOUNT: Final = "/amounts/<any(user, key, team):owner>/<limit>/<path:name>"
SET: Final = "amounts set OWNER NAME LIMIT AMOUNT"


@Action(f"PUT {AMOUNT}", "limits", body=AmountFields, of_team=True, command=SET)
def put_amount(call: Call, owner: Owner, limit: str, name: str) -> dict[str, object]:
    """Set a limit's amount for a user, key or team: for good, or until a time."""
    name, body = amounts.named(owner, name), call.body
    call.operator.check_owner(owner, name)
    plan = amounts.plan_of(owner, name)
    _checked_amounts(call, owner, {limit: body.amount}, plan, field="amount")
    done = amounts.set_amount(owner, name, limit, body.amount, until=body.until, **call.why)
    return {"done": done}


@Action(f"DELETE {AMOUNT}", "limits", of_team=True, command="amounts clear OWNER NAME LIMIT")
def clear_amount(call: Call, owner: Owner, limit: str, name: str) -> dict[str, object]:
    """Remove an amount, so that the policy's applies again."""
    name = amounts.named(owner, name)
    call.operator.check_owner(owner, name)
    amounts.plan_of(owner, name)  # raises if there is no such owner
    services, identity = current_services(), amounts.identity_of(owner, name)
    operators = services.limiter.operators
    cleared = services.accounts.set_amount(owner, name, limit, None)
    if cleared:
        callers.note("clear-amount", identity, limit=limit, **call.why)
    if operators.is_shared:
        cleared = operators.clear_override(limit, identity, **call.why) is not None or cleared
    if not cleared:
        raise OperatorError("no_amount", f"{name} has no amount of {limit!r}.")
    return {"done": f"{name} has the policy's {limit} again; all workers apply it within 5 s."}


def _checked_amounts(
    call: Call, owner: Owner, limits: Amounts, plan: str | None, *, field: str = "limits"
) -> Amounts:
    if owner != "team":  # PUT teams needs no other scope than teams
        call.operator.check("limits", of_team=True)
    with of_field(field):
        amounts_by_name = checked(owner, limits.items(), plan=plan)
        call.operator.check_amounts(owner, limits.items(), plan=plan)
    return amounts_by_name


# -- management keys -----------------------------------------------------------------------------


@Action(
    "GET /admin-keys",
    "all",
    order="name id",
    command="admin-keys list",
    empty="There are no management keys",
    begin=" yet, only the server's token; `chat admin-keys create` creates one.",
)
def list_admin_keys(_call: Call) -> list[dict[str, object]]:
    """List the management keys, without their secrets."""
    return [key.as_json() for key in current_services().admin_keys.all()]


@Action("POST /admin-keys", "all", body=NewAdminKey, command="admin-keys create NAME")
def create_admin_key(call: Call) -> dict[str, object]:
    """Create a management key. It is shown only once."""
    body = call.body
    _check_team(body.team)
    scopes = sorted(set(body.scopes))
    made = current_services().admin_keys.create(
        body.name, scopes, team=body.team, expires_at=body.expires
    )
    rights = ", ".join([*scopes, *([f"team {body.team}"] if body.team else [])])
    callers.note("create-admin-key", made.public_id, amount=rights, **call.why_or(body.name))
    done = f"Key {made.public_id} of {body.name}. It is shown only once."
    return {"id": made.public_id, "key": made.text, "done": done}


@Action("DELETE /admin-keys/<key>", "all", command="admin-keys revoke KEY")
def revoke_admin_key(call: Call, key: str) -> dict[str, object]:
    """Revoke a management key for good. Does nothing if it is already revoked."""
    name = current_services().admin_keys.revoke(key).name
    callers.note("revoke-admin-key", key, **call.why_or(name))
    return {"done": f"Key {key} of {name} is revoked."}


@Action("POST /admin-keys/<key>/rotate", "all", body=Rotation, command="admin-keys rotate KEY")
def rotate_admin_key(call: Call, key: str) -> dict[str, object]:
    """Replace a management key: create one like it. The old one expires after the overlap."""
    made, old = current_services().admin_keys.rotate(key, overlap=call.body.overlap)
    assert old.expires_at is not None
    why = call.why_or(f"{old.name}, replaced by {made.public_id}")
    until = old.expires_at.timestamp()
    callers.note("rotate-admin-key", key, until=until, **why)
    end = f"is valid until {time_text(until)}"
    done = f"Key {made.public_id} replaces {key}, which {end}. It is shown only once."
    facts = {"id": made.public_id, "key": made.text, "replaces": key, "expires": old.expires_at}
    return {**facts, "done": done}
