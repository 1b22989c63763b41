"""/me: what the owner of a key does alone: list and revoke their keys, and lower their limits."""

from __future__ import annotations

from typing import Final

from flask import Blueprint, Response, jsonify, request

from chatapp.accounts.store import ApiKey, Owner, User
from chatapp.actions.action import Fields, checked
from chatapp.operators import amounts, errors, keys
from chatapp.operators.amounts import OwnersAmounts
from chatapp.services import current_services
from chatapp.web.current_request import current_request
from chatapp.web.errors import ApiError, ErrorAnswer, json_answer, unavailable
from chatapp.web.middleware import forbid_caching
from chatapp.web.requests.json_body import read_object
from ratelimit_ext import OperatorError

bp = Blueprint("me", __name__, url_prefix="/me")
bp.after_request(forbid_caching)

EXAMPLE: Final = '{"amount": "2 usd/day"}'


class Lowered(Fields):
    amount: str


def report(cause: OperatorError) -> ErrorAnswer:
    """Answer what the owner has not caused with a 503; anything else is about what they sent."""
    refusal = ApiError(422, cause.code, str(cause))
    if cause.code in errors.DOWN:
        refusal = unavailable(f"{cause.code}_unavailable", "It cannot be done at the moment.")
    return json_answer(refusal)


errors.install(bp, report)


def _owner() -> tuple[ApiKey, User]:
    """Return the key of the request with its owner. A person for whom a key acts is another."""
    principal = current_request().principal
    if principal is None:
        raise ApiError(404, "no_accounts", "This server has no API keys yet. Ask the operator.")
    row = current_services().accounts.find(principal.key_id)
    if row is None or row[0].user != principal.user:
        raise ApiError(403, "not_yours", "This key acts for others. Send the user's own key.")
    return row


def _by(key: ApiKey) -> str:
    return f"{key.user} (key {key.public_id})"


@bp.get("/keys")
def list_keys() -> Response:
    """The caller's keys, without their secrets."""
    overrides, (key, _) = OwnersAmounts(), _owner()
    rows = current_services().accounts.all_keys(key.user)
    return jsonify(keys=[keys.as_json(row, overrides) for row in rows])


@bp.delete("/keys/<key>")
def revoke_key(key: str) -> Response:
    """Revoke one of the caller's keys, by its public id: also that of this request."""
    presented, _ = _owner()
    row = current_services().accounts.find(key)
    if row is None or row[0].user != presented.user:
        raise ApiError(404, "unknown_key", "You have no key with this id: see GET /me/keys.")
    _, is_immediate = keys.revoke_key(key, reason="", by=_by(presented))
    return jsonify(id=key, immediate=is_immediate)


@bp.put("/limits/<limit>")
def lower_limit(limit: str) -> Response:
    """Lower a limit of the caller, or of the key of this request. Only an operator raises it."""
    (key, user), amount = _owner(), checked(Lowered, read_object(request, example=EXAMPLE)).amount
    owner: Owner = "key" if limit in amounts.known_limits("key", plan=user.plan) else "user"
    name, kept = (key.public_id, key.limits) if owner == "key" else (user.name, user.limits)
    amounts.checked(owner, [(limit, amount)], plan=user.plan)
    usual = amounts.known_limits(owner, plan=user.plan)[limit].parsed[0]
    # A temporary raise must not become permanent.
    lasting = (kept or {}).get(limit, usual.text)
    now = OwnersAmounts().of(owner, name, {limit: lasting}, with_ends=False)[limit]
    most, now = min((usual.with_amount(text).amount, text) for text in (lasting, now))
    if (new := usual.with_amount(amount).amount) > most:
        message = f"{limit} is {now}; send less. An operator can raise it."
        raise ApiError(403, "only_lower", message, param="amount")
    if new < most:  # the same would outlast the plan's
        amounts.set_amount(owner, name, limit, amount, until=None, reason="", by=_by(key))
    return jsonify(limit=limit, amount=amount)
