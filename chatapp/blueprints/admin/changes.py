"""What /admin changes, and the log of all changes by operators. Each change is in that log, and in
the server's."""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import timedelta
from typing import Any, Final

from flask import Response, after_this_request, g, redirect, request, url_for
from flask.typing import ResponseReturnValue

from chatapp.accounts.api_key import PresentedKey
from chatapp.accounts.store import Owner
from chatapp.blueprints.admin.access import ADDRESSES, RIGHTS, bp, query, reported, sessions
from chatapp.blueprints.admin.formats import page_of, shown
from chatapp.operators import amounts, arguments, blocks, callers, keys, users
from chatapp.settings import Scope
from ratelimit_ext import OperatorError, client_ip
from ratelimit_ext.operators import instant_s, with_times

log = logging.getLogger(__name__)
#: How long a key stays valid that is replaced, as by the command.
OVERLAP: Final = timedelta(hours=24)


@bp.get("/changes")
def changes() -> ResponseReturnValue:
    """Return what operators have changed, here and by commands."""
    entries: list[Any] = []
    searched = query("q").strip()
    with reported() as problems:
        entries = callers.shared_operators().log()
    found = [each for each in entries if searched.lower() in _words(each).lower()]
    return shown(
        "admin/changes.html",
        {"changes": map(with_times, found)},
        entries=page_of(found),
        searched=searched,
        problem="".join(problems),
    )


def change(
    path: str, *scopes: Scope, of_team: bool = False
) -> Callable[[Callable[[], tuple[str, str]]], Callable[[], ResponseReturnValue]]:
    """A form's address. Its function returns the view to show next, and what the server logs."""

    def add(function: Callable[[], tuple[str, str]]) -> Callable[[], ResponseReturnValue]:
        def view() -> ResponseReturnValue:
            address, sentence = function()
            log.warning("%s, from %s: %s", g.admin.operator.by, client_ip(), sentence)
            joint = "&" if "?" in address else "?"
            return redirect(f"{address}{joint}done={sessions().sealed(sentence)}", 303)

        endpoint = f"{bp.name}.{function.__name__}"
        RIGHTS[endpoint] = scopes, of_team
        ADDRESSES[f"{bp.url_prefix}{path}"] = endpoint
        bp.add_url_rule(path, function.__name__, view, methods=["POST"])
        return view

    return add


@change("/keys/create", "keys", of_team=True)
def new_key() -> tuple[str, str]:
    expires = request.form.get("expires", "").strip()
    name = arguments.new_user(_field("user"))
    plan, team = (request.form.get(each) or None for each in ("plan", "team"))
    made = keys.create_key(
        name,
        plan=plan,
        team=g.admin.operator.team_of_key(name, plan=plan, team=team),
        name=arguments.name(_field("name"), most=arguments.KEY_NAME),
        expires_at=arguments.end(expires) if expires else None,
        bound_team=g.admin.operator.team,
        **_why(),
    )
    _hand_over(made, of=name)
    return _address(name), f"Key {made.public_id} of {name} is created."


@change("/keys/rotate", "keys", of_team=True)
def rotate_key() -> tuple[str, str]:
    operator, key = g.admin.operator, _field("key")
    operator.check_key(key, shows_secret=True)
    made, old, end = keys.rotate_key(key, overlap=OVERLAP, bound_team=operator.team, **_why())
    _hand_over(made, of=old.user)
    done = f"Key {made.public_id} of {old.user} replaces {old.public_id}, which {end}."
    return _address(old.user), done


@change("/keys/revoke", "keys", of_team=True)
def revoke_key() -> tuple[str, str]:
    """One key, or all of a user."""
    if "key" in request.form:
        key = _field("key")
        g.admin.operator.check_key(key, changes=True)
        done = keys.revoke_key(key, **_why())
        return _address(done.key.user), done.sentence
    name = _field("user")
    g.admin.operator.check_user(name)
    found = keys.usable_keys(name)
    for key in found:
        g.admin.operator.check_key(key, changes=True)
    ended = [keys.revoke_key(each, **_why()) for each in found]
    return _address(name), " ".join(each.sentence for each in ended) or "There is no key to revoke."


@change("/users/deactivate", "users")
def deactivate() -> tuple[str, str]:
    name = _field("user")
    return _address(name), users.deactivate(name, **_why())


@change("/users/activate", "users")
def activate() -> tuple[str, str]:
    name = _field("user")
    return _address(name), users.activate(name, **_why())


@change("/users/delete", "users")
def delete() -> tuple[str, str]:
    done = users.delete(_field("user"), **_why())
    return url_for("admin.users"), done


@change("/plan", "users")
def set_plan() -> tuple[str, str]:
    name = _field("user")
    return _address(name), users.set_plan(name, _field("plan"), **_why())


@change("/team", "users")
def set_team() -> tuple[str, str]:
    """Also from the page of the team."""
    name, team, of = _field("user"), request.form.get("team") or None, request.form.get("of_team")
    address = _address(of, "team") if of else _address(name)
    return address, users.set_team(name, team, **_why())


@change("/teams/create", "teams")
def new_team() -> tuple[str, str]:
    name = arguments.name(_field("team"), most=arguments.TEAM)
    done = users.create_team(name, amounts={}, **_why())
    return _address(name, "team"), done


@change("/amount", "limits", of_team=True)
def set_amount() -> tuple[str, str]:
    owner, name = _owner()
    until = request.form.get("until", "").strip()
    end = instant_s(until) if until else None
    limit, amount = _field("limit"), _field("amount")
    plan = amounts.plan_of(owner, name)
    amounts.checked(owner, [(limit, amount)], plan=plan)
    g.admin.operator.check_amounts(owner, [(limit, amount)], plan=plan)
    done = amounts.set_amount(owner, name, limit, amount, until=end, **_why())
    return _address(name, owner), done


@change("/amount/clear", "limits", of_team=True)
def clear_amount() -> tuple[str, str]:
    owner, name = _owner()
    return _address(name, owner), amounts.clear_amount(owner, name, _field("limit"), **_why())


@change("/session", "limits")
def raise_session() -> tuple[str, str]:
    """Give a session another amount, which it has for a week if no end is written."""
    session, limit, amount = _field("session"), _field("limit"), _field("amount")
    end = instant_s(request.form.get("until", "").strip() or "7d")
    g.admin.operator.check_limits(session, limit)
    amounts.override(limit, session, amount, until=end, **_why(), as_written=True)
    done = f"{session} has {limit}={amount} until {amounts.time_text(end)}"
    return url_for("admin.limits"), f"{done}; all workers apply it within 5 s."


@change("/block", "limits", "providers")
def block() -> tuple[str, str]:
    kind, name = _target()
    text = request.form.get("for", "").strip()
    length = arguments.duration(text) if text else None
    return _back(), blocks.block(blocks.target_of(kind, name), length=length, **_why()).sentence


@change("/unblock", "limits", "providers")
def unblock() -> tuple[str, str]:
    kind, name = _target()
    done = blocks.unblock(kind, blocks.target_of(kind, name), **_why())
    return _back(), done.sentence


def _hand_over(made: PresentedKey, *, of: str) -> None:
    """Have the page of the user show the new key, once."""

    @after_this_request
    def hand_over(response: Response) -> Response:
        sessions().hand_over(made.text, of=of, to=g.admin, response=response)
        return response


def _words(entry: Any) -> str:
    """Return where a change is searched."""
    words = (entry.by, entry.action, entry.identity, entry.limit, entry.amount, entry.reason)
    return " ".join(filter(None, words))


def _field(name: str) -> str:
    """Return the value in the form. OperatorError without one."""
    value = request.form.get(name, "").strip()
    if not value:
        raise OperatorError("empty_field", f"The field {name!r} is empty.")
    return value


def _owner() -> tuple[Owner, str]:
    owner: Owner = "team" if "team" in request.form else "user"
    g.admin.operator.check_owner(owner, _field(owner))
    return owner, _field(owner)


def _why() -> dict[str, Any]:
    """Return what the log of changes has: the reason, and who."""
    return {"reason": request.form.get("reason", "").strip(), "by": g.admin.operator.by}


def _target() -> tuple[blocks.Kind, str | None]:
    kind = _field("kind")
    if kind not in blocks.KINDS:
        raise OperatorError(
            "unknown_kind", f"{kind!r} cannot be blocked; choose {', '.join(blocks.KINDS)}."
        )
    g.admin.operator.check_kind(kind)
    return kind, request.form.get("name", "").strip() or None


def _address(name: str, owner: Owner = "user") -> str:
    return url_for(f"admin.{owner}", name=name)


def _back() -> str:
    """Return the view of the form: of a user, or of the limits."""
    user = request.form.get("of")
    return _address(user) if user else url_for("admin.limits")
