"""What limits count, deny and allow to single callers; blocks, and the log of changes."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from chatapp.accounts import EVERYONE
from chatapp.actions.accounts import AmountFields
from chatapp.actions.action import Action, Call, Change, Duration, Fields, Listed, of_field
from chatapp.operators import amounts, arguments, blocks
from chatapp.operators.callers import note, shared_operators
from chatapp.services import current_services
from chatapp.web.call_limits import COOL_DOWN, SURGE
from ratelimit_ext import OperatorError
from ratelimit_ext.operators import (
    definitions_of,
    instant_s,
    policy_as_json,
    record_as_json,
    span_s,
    time_text,
    with_times,
)

Past = Annotated[str, AfterValidator(lambda text: instant_s(text, past=True))]
Span = Annotated[str, AfterValidator(span_s)]


class OfEndpoint(Listed):
    endpoint: str = ""


class OfLimit(Listed):
    name: str | None = None


class Used(OfLimit):
    at: int = Field(0, ge=0, le=100)
    scan: int = Field(20_000, ge=1, le=1_000_000)


class Denied(Listed):
    identity: str | None = None
    since: Span = Field("1d", validate_default=True)


class Since(Listed):
    since: Past | None = None


class Minutes(Fields):
    minutes: int = Field(60, ge=1, le=60)


class Reset(Change):
    identity: str
    name: str | None = None


class BlockFields(Change):
    """A block without a length lasts until it is removed. A shorter block does not end a longer
    one."""

    length: Duration | None = Field(None, alias="for", description="Such as 2h; default: for good.")


class CallerBlock(BlockFields):
    abnormal: bool = Field(default=False, description="Give abnormal usage as the reason.")


# -- what there is -------------------------------------------------------------------------------


@Action("GET /policy", "read")
def get_policy(_call: Call) -> dict[str, Any]:
    """Show the configured policy, checked: its limits, plans, and warnings."""
    try:
        return policy_as_json(current_services().limiter.operators.checked_policy())
    except ValueError as error:
        raise OperatorError("invalid_policy", str(error)) from error


@Action("GET /limits", "read", query=OfEndpoint, order="endpoint")
def list_limits(call: Call) -> list[dict[str, Any]]:
    """List every endpoint with its limits, and where each is written."""
    with of_field("endpoint"):
        return definitions_of(current_services().limiter.operators, call.query.endpoint)


@Action("GET /states/<path:identity>", "read", order="limit plan identity")
def list_states(_call: Call, identity: str) -> list[dict[str, Any]]:
    """List what every limit has counted of a caller."""
    states = shared_operators().states(identity)
    if not states:
        raise OperatorError("uncounted", f"No limit counts {identity!r}.")
    return [state.as_json() for state in states]


@Action("GET /used", "read", query=Used, order="-share limit identity")
def list_used(call: Call) -> list[dict[str, Any]]:
    """List who has used at least so many percent of a limit, the largest share first."""
    query = call.query
    with of_field("name"):
        states, _ = shared_operators().used(query.name, least=query.at / 100, scan=query.scan)
    return [state.as_json() for state in states]


@Action("GET /denials", "read", query=Denied, order="at")
def list_denials(call: Call) -> Iterable[dict[str, Any]]:
    """List who was denied lately, and when their next call is allowed."""
    identities = [call.query.identity] if call.query.identity else []
    records = shared_operators().denials(*identities, since=call.query.since).records
    return map(record_as_json, sorted(records, key=lambda record: record.at))


@Action("GET /shadow", "read", query=OfLimit, order="limit amount period")
def list_shadow(call: Call) -> list[dict[str, Any]]:
    """List what limits in shadow and candidates would have denied."""
    with of_field("name"):
        return shared_operators().shadow_report(call.query.name)


@Action("GET /decisions", "read", query=Minutes)
def get_decisions(call: Call) -> dict[str, Any]:
    """Show how many decisions each limit made, by the minute since 1970; "" is all requests."""
    counted = shared_operators().counters(call.query.minutes)
    return {str(minute): limits for minute, limits in counted.items()}


@Action("GET /changes", "read", query=Since, order="at")
def list_changes(call: Call) -> Iterable[dict[str, Any]]:
    """List what operators have changed, the oldest first."""
    return map(with_times, reversed(shared_operators().log(since=call.query.since or 0.0)))


# -- overrides, resets and blocks ----------------------------------------------------------------


@Action("GET /overrides", "read", order="limit identity")
def list_overrides(_call: Call) -> list[dict[str, Any]]:
    """List the overrides that apply."""
    return [with_times(row) for row in shared_operators().overrides()]


@Action("PUT /overrides/<limit>/<path:identity>", "limits", body=AmountFields)
def put_override(call: Call, limit: str, identity: str) -> dict[str, Any]:
    """Give a caller another amount of a limit, until a time or until it is removed."""
    body = call.body
    call.operator.check_limits(identity, limit)
    made = amounts.override(
        limit, identity, body.amount, until=body.until, **call.why, as_written=True
    )
    done = amounts.given_text(made.identity, limit, made.amount, made.until)
    return {**with_times(made), "done": done}


@Action("DELETE /overrides/<limit>/<path:identity>", "limits")
def clear_override(call: Call, limit: str, identity: str) -> dict[str, Any]:
    """Remove an override."""
    call.operator.check_limits(identity, limit)
    removed = shared_operators().clear_override(limit, identity, **call.why)
    if removed is None:
        raise OperatorError("no_override", f"{identity} has no override of {limit!r}.")
    return {"identity": removed, "limit": limit}


@Action("POST /reset", "limits", body=Reset)
def reset(call: Call) -> dict[str, Any]:
    """Forget what limits have counted of a caller: one limit by its name, or all but guards."""
    body = call.body
    call.operator.check_limits(body.identity, body.name)
    cleared = shared_operators().reset(body.identity, body.name, **call.why)
    done = f"Reset {', '.join(cleared)} of {body.identity}."
    return {"identity": body.identity, "reset": cleared, "done": done}


@Action("GET /blocks", "read", order="limit identity")
def list_blocks(_call: Call) -> list[dict[str, Any]]:
    """List what is blocked, until when, why, and by whom."""
    return [block.as_json() for block in shared_operators().blocks()]


@Action("PUT /blocks/model/<path:name>", "providers", body=BlockFields, command="block model NAME")
def block_model(call: Call, name: str) -> dict[str, Any]:
    """Block a model."""
    return _block(call, "model", name)


@Action("PUT /blocks/all", "all", body=BlockFields, command="block all")
def block_all(call: Call) -> dict[str, Any]:
    """Block all calls."""
    return _block(call, "all")


@Action(
    "PUT /blocks/<any(user, key):kind>/<path:name>",
    "limits",
    body=CallerBlock,
    command="block {kind} NAME",
)
def block(call: Call, kind: blocks.Kind, name: str) -> dict[str, Any]:
    """Block a user or a key."""
    return _block(call, kind, name)


@Action("DELETE /blocks/model/<path:name>", "providers", command="unblock model NAME")
def unblock_model(call: Call, name: str) -> dict[str, Any]:
    """Remove the block of a model, or the pause of its provider."""
    return _unblock(call, "model", name)


@Action("DELETE /blocks/all", "all", command="unblock all")
def unblock_all(call: Call) -> dict[str, Any]:
    """Remove the block of all calls."""
    return _unblock(call, "all")


@Action("DELETE /blocks/<any(user, key):kind>/<path:name>", "limits", command="unblock {kind} NAME")
def unblock(call: Call, kind: blocks.Kind, name: str) -> dict[str, Any]:
    """Remove the block of a user or a key, or the block of a surge."""
    return _unblock(call, kind, name)


def _block(call: Call, kind: blocks.Kind, name: str = EVERYONE) -> dict[str, Any]:
    with of_field("name"):
        name = arguments.name(name, most=arguments.USER)
    body, target, operators = call.body, blocks.target_of(kind, name), shared_operators()
    if isinstance(body, CallerBlock) and body.abnormal:
        target = target._replace(reason="abnormal-usage")
    for_s = None if body.length is None else body.length.total_seconds()
    is_new = not (for_s is None and blocks.is_endless(operators, target)) and operators.block(
        target.limit, target.identity, for_s=for_s, reason=target.reason
    )
    until = None if body.length is None else datetime.now(UTC) + body.length
    end_s = None if until is None else until.timestamp()
    done = f"{target.label} is already blocked for at least that time."
    if is_new:
        end = blocks.ENDLESS if end_s is None else f"until {time_text(end_s)}"
        done = f"{target.label} is blocked {end}, in all workers."
        note("block", target.identity, limit=target.limit, until=end_s, **call.why)
    return {"done": done, "changed": is_new, "until": until}


def _unblock(call: Call, kind: blocks.Kind, name: str = EVERYONE) -> dict[str, Any]:
    """Remove a block, the pause of a provider, or a surge: then the usual amount of the user or key
    is forgotten."""
    target, operators = blocks.target_of(kind, name), shared_operators()
    services = current_services()
    lifted = operators.unblock(target.limit, target.identity)
    # Unlisted models are blocked together, but each has a pause of its own.
    if kind == "model" and (upstream := services.catalogue.upstreams.get(target.identity)):
        model = services.catalogue.model(target.identity, upstream)
        for identity in services.router.quota_identities(model):
            lifted = blocks.unblocked(operators, COOL_DOWN, identity) or lifted
    forgotten = kind in ("user", "key") and blocks.unblocked(operators, SURGE, target.identity)
    if lifted or forgotten:
        note("unblock", target.identity, limit=target.limit, **call.why)
    if kind == "all":
        done = "The block of all calls is removed" if lifted else "There was no block of all calls"
        done += "; blocks of users, keys and models stay."
    else:
        done = f"{target.label} {'is no longer' if lifted else 'was not'} blocked"
        done += "; its usual amount is forgotten, which ends a surge." if forgotten else "."
    return {"done": done, "changed": lifted or forgotten}
