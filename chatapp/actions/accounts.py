"""Users, keys, teams, plans, and the amounts of them; management keys, which an operator with the
scope ``all`` makes."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any, Final

from pydantic import AfterValidator, Field

from chatapp.accounts.people import HEADERS, MOST_NEW, People
from chatapp.accounts.store import Owner, UnknownKeyError, UnknownTeamError, UnknownUserError
from chatapp.actions.action import Call, Change, FieldError, Fields, Listed, action, of_field
from chatapp.operators import admin_keys, amounts, arguments, keys, user_file, users
from chatapp.operators.amounts import OwnersAmounts, checked
from chatapp.operators.callers import name_of
from chatapp.operators.errors import unknown
from chatapp.services import current_services
from chatapp.settings import Scope
from ratelimit_ext import OperatorError
from ratelimit_ext.operators import instant_s

Name = partial(arguments.name, most=arguments.USER)
User = Annotated[str, AfterValidator(lambda text: name_of(Name(text)))]
NewUser = Annotated[str, AfterValidator(arguments.new_user)]
Team = Annotated[str, AfterValidator(partial(arguments.name, most=arguments.TEAM))]
Plan = Annotated[str, AfterValidator(arguments.plan)]
KeyName = Annotated[str, AfterValidator(partial(arguments.name, most=arguments.KEY_NAME))]
Models = list[Annotated[str, AfterValidator(arguments.models)]]
Class = Annotated[str, AfterValidator(arguments.traffic_class)]
End = Annotated[str, AfterValidator(arguments.end)]
Until = Annotated[str, AfterValidator(instant_s)]
Overlap = Annotated[str, AfterValidator(partial(arguments.duration, least_s=0))]
Amounts = dict[str, str]


class UserQuery(Listed):
    q: str = ""
    team: str | None = None
    plan: str | None = None
    key: str | None = None


class UserFields(Change):
    """What a user is to have. A field that is left out stays; of a new user, the default."""

    plan: Plan | None = None
    team: Team | None = None
    limits: Amounts | None = None
    active: bool | None = None


class ImportFields(Change):
    csv: str
    dry_run: bool = False
    keys: bool = False


class KeyQuery(Listed):
    user: User | None = None
    team: str | None = None


class UsersKeys(Change):
    user: User


class PeopleFields(Fields):
    """The users for whom a key acts: the headers that name them, or none for the body's user."""

    headers: list[Annotated[str, AfterValidator(arguments.header)]] = Field(list(HEADERS))
    plan: Plan | None = None
    most_new: int = Field(MOST_NEW, ge=1, le=100_000)

    def people(self) -> People:
        return People(tuple(self.headers), self.plan, self.most_new)


class NewKey(Change):
    user: NewUser
    plan: Plan | None = None
    team: Team | None = None
    name: KeyName = "key"
    expires: End | None = None
    limits: Amounts = Field(default_factory=dict)
    models: Models = Field(default_factory=list)
    people: PeopleFields | None = None


class KeyFields(Change):
    """What a key is to have. A field that is left out stays; a null ``class`` is the plan's, and
    with null ``people`` it acts for its own user alone."""

    limits: Amounts | None = None
    models: Models | None = None
    files: bool | None = None
    traffic_class: Class | None = Field(None, alias="class")
    people: PeopleFields | None = None


class Rotation(Change):
    overlap: Overlap = Field("24h", validate_default=True)


class TeamFields(Change):
    """What a team is to have: budgets that are left out stay."""

    limits: Amounts | None = None


class AmountFields(Change):
    amount: str
    until: Until | None = None


class NewAdminKey(Change):
    name: KeyName
    scopes: list[Scope] = Field(min_length=1)
    team: Team | None = None
    expires: End | None = None


# -- users -------------------------------------------------------------------------------------


@action("GET /users", "read", query=UserQuery, of_team=True, order="user")
def list_users(call: Call) -> list[dict[str, object]]:
    """The users with their plans, teams and amounts."""
    query, own = call.query, OwnersAmounts()
    return [
        users.as_json(each, own)
        for each in call.operator.own(current_services().accounts.users())
        if query.q.lower() in each.name.lower()
        and query.team in {None, each.team_name}
        and query.plan in {None, each.plan}
        and query.key in {None, each.brought_by}
    ]


@action("GET /users/<path:user>", "read", of_team=True)
def get_user(call: Call, user: str) -> dict[str, object]:
    """One user."""
    name = name_of(user)
    call.operator.check_user(name)
    found = current_services().accounts.user(name)
    if found is None:
        raise UnknownUserError(name)
    return users.as_json(found, OwnersAmounts())


@action("PUT /users/<path:user>", "users", body=UserFields, of_team=True)
def put_user(call: Call, user: str) -> bool:
    """Create a user, or change one, to have these fields."""
    body, operator, services = call.body, call.operator, current_services()
    name = arguments.new_user(name_of(user))
    _check_spaces(name_of(user))
    operator.check_user(name, may_be_new=True)
    given = body.model_fields_set
    known = services.accounts.user(name)
    if operator.team is not None:
        _check_members_fields(call)
    values: dict[str, Any] = {}
    if body.plan is not None:
        values["plan"] = body.plan
    if "team" in given or (operator.team is not None and known is None):
        values["team_name"] = team = body.team if "team" in given else operator.team
        _check_team(team)
    if "limits" in given:
        plan = body.plan or (known.plan if known else services.default_plan)
        values["limits"] = _checked_amounts(call, "user", body.limits or {}, plan) or None
    return users.put(name, values, active=body.active, **call.why)


def _check_members_fields(call: Call) -> None:
    """A team's administrator makes members and changes amounts, nothing else."""
    given = call.body.model_fields_set
    for field in ("plan", "active"):
        if field in given:
            call.operator.check("users")
    if "team" in given:
        call.operator.check_team(call.body.team or "")


def _check_spaces(name: str) -> None:
    """A name of that address is looked up as it is written."""
    if name != name.strip():
        raise OperatorError("invalid_name", f"{name!r} begins or ends with a space; leave it out")


def _check_team(team: str | None) -> None:
    if team is not None and current_services().accounts.team(team) is None:
        with of_field("team"):
            raise unknown("team", team)


@action("DELETE /users/<path:user>", "users")
def delete_user(call: Call, user: str) -> dict[str, object]:
    """Delete a user with their keys, amounts and overrides, for good."""
    return {"done": users.delete(name_of(user), **call.why)}


@action("POST /users", "users", body=ImportFields)
def import_users(call: Call) -> dict[str, object]:
    """Create and change users by CSV, all or none."""
    body = call.body
    lines = body.csv.splitlines(keepends=True)
    heads = user_file.columns(lines)
    for scope in (*(("keys",) if body.keys else ()), *(("limits",) if "limits" in heads else ())):
        call.operator.check(scope)
    done = user_file.import_users(
        lines, name="csv", dry_run=body.dry_run, with_keys=body.keys, **call.why
    )
    if done.mistakes:
        raise FieldError("csv", f"{done.sentence} {'; '.join(done.mistakes)}.", code="invalid_csv")
    return {**done.facts, "done": done.sentence}


# -- keys --------------------------------------------------------------------------------------


@action("GET /keys", "read", query=KeyQuery, of_team=True, order="user id")
def list_keys(call: Call) -> list[dict[str, object]]:
    """The keys, without their secrets."""
    accounts, own, query = current_services().accounts, OwnersAmounts(), call.query
    user_of = {each.name: each for each in accounts.users()}
    return [
        keys.as_json(each, own)
        for each in accounts.all_keys()
        if call.operator.sees_key(each, user_of[each.user])
        and query.user in {None, each.user}
        and query.team in {None, user_of[each.user].team_name}
    ]


@action("POST /keys", "keys", body=NewKey, of_team=True)
def create_key(call: Call) -> dict[str, object]:
    """Create a key, and its user if new. The answer has the key, this one time."""
    body, operator, services = call.body, call.operator, current_services()
    team = operator.team_of_key(body.user, plan=body.plan, team=body.team)
    operator.check_powers(people=body.people)
    known = services.accounts.user(body.user)
    _check_team(team)
    plan = known.plan if known else body.plan or services.default_plan
    limits = _checked_amounts(call, "key", body.limits, plan) if body.limits else {}
    made = keys.create_key(
        body.user,
        plan=body.plan,
        team=team,
        name=body.name,
        expires_at=body.expires,
        limits=list(limits.items()),
        models=body.models,
        people=body.people and body.people.people(),
        bound_team=operator.team,
        **call.why,
    )
    return {**_key(call, made.public_id), "key": made.text}


@action("GET /keys/<key>", "read", of_team=True)
def get_key(call: Call, key: str) -> dict[str, object]:
    """One key, by its public part."""
    return _key(call, key)


@action("PUT /keys/<key>", "keys", body=KeyFields)
def put_key(call: Call, key: str) -> bool:
    """Change a key to have these fields."""
    body, found = call.body, current_services().accounts.find(key)
    if found is None:
        raise UnknownKeyError(key)
    before, given = found[0], body.model_fields_set
    call.operator.check_key(key, changes=True)
    call.operator.check_powers(people=body.people)
    if "limits" in given:
        limits = _checked_amounts(call, "key", body.limits or {}, found[1].plan)
        users.put_amounts("key", key, before.limits or {}, limits, **call.why)
    if "models" in given and (body.models or []) != list(before.models or ()):
        keys.set_models(key, body.models or [], **call.why)
    if body.files is not None and body.files != bool(before.files):
        keys.set_files(key, allowed=body.files, **call.why)
    if "traffic_class" in given and body.traffic_class != before.traffic_class:
        keys.set_class(key, body.traffic_class, **call.why)
    people = body.people and body.people.people()
    if "people" in given and people != People.from_row(before.people):
        keys.set_people(key, people, **call.why)
    return False


@action("DELETE /keys/<key>", "keys", of_team=True)
def revoke_key(call: Call, key: str) -> dict[str, object]:
    """Revoke a key; a revoked key stays as it is."""
    call.operator.check_key(key, changes=True)
    done = keys.revoke_key(key, **call.why)
    return {"done": done.sentence, "immediate": done.is_immediate}


@action("DELETE /keys", "keys", query=UsersKeys, of_team=True)
def revoke_keys(call: Call) -> dict[str, object]:
    """Revoke all keys of a user."""
    call.operator.check_user(call.query.user)
    found = keys.usable_keys(call.query.user)
    for each in found:
        call.operator.check_key(each, changes=True)
    done = [keys.revoke_key(each, **call.why) for each in found]
    revoked = [each.key.public_id for each in done]
    return {"done": f"{len(done)} keys are revoked.", "revoked": revoked}


@action("POST /keys/<key>/rotate", "keys", body=Rotation, of_team=True)
def rotate_key(call: Call, key: str) -> dict[str, object]:
    """Create a key like this one, which expires after the overlap."""
    call.operator.check_key(key, shows_secret=True)
    overlap, team = call.body.overlap, call.operator.team
    made, _, end = keys.rotate_key(key, overlap=overlap, bound_team=team, **call.why)
    done = f"Key {made.public_id} replaces {key}, which {end}."
    return {**_key(call, made.public_id), "key": made.text, "replaces": key, "done": done}


@action("POST /accounts/off", "all", body=Change)
def turn_accounts_off(call: Call) -> dict[str, object]:
    """Serve without keys again, after the database was replaced by one that has none."""
    keys.turn_accounts_off(**call.why)
    return {"done": "Accounts are off; no request needs a key."}


def _key(call: Call, key: str) -> dict[str, object]:
    call.operator.check_key(key)
    found = current_services().accounts.find(key)
    if found is None:
        raise UnknownKeyError(key)
    return keys.as_json(found[0], OwnersAmounts())


# -- teams and plans -----------------------------------------------------------------------------


@action("GET /teams", "read", of_team=True, order="team")
def list_teams(call: Call) -> list[dict[str, object]]:
    """The teams with their budgets and members."""
    accounts, own = current_services().accounts, OwnersAmounts()
    everyone, mine = accounts.users(), call.operator.team
    return [
        users.team_as_json(each, own, everyone)
        for each in accounts.teams()
        if mine in {None, each.name}
    ]


@action("GET /teams/<path:team>", "read", of_team=True)
def get_team(call: Call, team: str) -> dict[str, object]:
    """One team."""
    call.operator.check_team(team)
    accounts = current_services().accounts
    found, everyone = accounts.team(team), accounts.users()
    if found is None:
        raise UnknownTeamError(team)
    shown = users.team_as_json(found, OwnersAmounts(), everyone)
    members = [each.name for each in everyone if each.team_name == team]
    if states := amounts.shares(team, members):
        shown["shares"] = [each.as_json() for each in states]
        shown["ahead"] = amounts.ahead_text(states)
    return shown


@action("PUT /teams/<path:team>", "teams", body=TeamFields)
def put_team(call: Call, team: str) -> bool:
    """Create a team, or change its budgets."""
    limits = call.body.limits
    name = arguments.name(team, most=arguments.TEAM)
    _check_spaces(team)
    amounts = None if limits is None else _checked_amounts(call, "team", limits, None)
    return users.put_team(name, amounts, **call.why)


@action("GET /plans", "read", order="plan")
def list_plans(_call: Call) -> list[dict[str, Any]]:
    """The plans, each with its users."""
    return users.plans()


# -- amounts -----------------------------------------------------------------------------------

AMOUNT: Final = "/amounts/<any(user, key, team):owner>/<limit>/<path:name>"


@action(f"PUT {AMOUNT}", "limits", body=AmountFields, of_team=True)
def put_amount(call: Call, owner: Owner, limit: str, name: str) -> dict[str, object]:
    """Give a user, key or team an amount of a limit, for good or until then."""
    name, body = amounts.named(owner, name), call.body
    call.operator.check_owner(owner, name)
    plan = amounts.plan_of(owner, name)
    _checked_amounts(call, owner, {limit: body.amount}, plan, field="amount")
    done = amounts.set_amount(owner, name, limit, body.amount, until=body.until, **call.why)
    return {"done": done}


@action(f"DELETE {AMOUNT}", "limits", of_team=True)
def clear_amount(call: Call, owner: Owner, limit: str, name: str) -> dict[str, object]:
    """Remove an amount and its override; the policy's applies again."""
    name = amounts.named(owner, name)
    call.operator.check_owner(owner, name)
    return {"done": amounts.clear_amount(owner, name, limit, **call.why)}


def _checked_amounts(
    call: Call, owner: Owner, given: Amounts, plan: str | None, *, field: str = "limits"
) -> Amounts:
    if owner != "team":  # PUT teams needs no other scope than teams
        call.operator.check("limits", of_team=True)
    with of_field(field):
        found = checked(owner, given.items(), plan=plan)
        call.operator.check_amounts(owner, given.items(), plan=plan)
    return found


# -- management keys -----------------------------------------------------------------------------


@action("GET /admin-keys", "all", order="name id")
def list_admin_keys(_call: Call) -> list[dict[str, object]]:
    """The management keys, without their secrets."""
    return [admin_keys.as_json(each) for each in current_services().admin_keys.all()]


@action("POST /admin-keys", "all", body=NewAdminKey)
def create_admin_key(call: Call) -> dict[str, object]:
    """Create a management key. The answer has it, this one time."""
    body = call.body
    with of_field("team"):
        made = admin_keys.create(
            body.name, body.scopes, team=body.team, expires_at=body.expires, **call.why
        )
    return {"id": made.public_id, "key": made.text}


@action("DELETE /admin-keys/<key>", "all")
def revoke_admin_key(call: Call, key: str) -> dict[str, object]:
    """Revoke a management key; a revoked key stays as it is."""
    return {"done": f"Key {key} of {admin_keys.revoke(key, **call.why).name} is revoked."}


@action("POST /admin-keys/<key>/rotate", "all", body=Rotation)
def rotate_admin_key(call: Call, key: str) -> dict[str, object]:
    """Create a management key like this one, which expires after the overlap."""
    made, old = admin_keys.rotate(key, overlap=call.body.overlap, **call.why)
    return {"id": made.public_id, "key": made.text, "replaces": key, "expires": old.expires_at}
