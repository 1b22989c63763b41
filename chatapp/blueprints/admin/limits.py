"""Who is near a limit, what is blocked, and how the providers are."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, Final

from flask.typing import ResponseReturnValue

from chatapp.blueprints.admin.access import bp, reported
from chatapp.blueprints.admin.formats import MOST, choice, shown
from chatapp.operators import blocks, callers, reports
from chatapp.services import current_services
from chatapp.web.call_limits import COOL_DOWN, QUOTAS, SURGE
from ratelimit_ext.operators import Block, State

NEAR: Final = (50, 80, 95)
#: How many names of the storage a view reads; a command reads more.
MOST_NAMES: Final = 20_000
#: What an operator unblocks, by the limit that blocks it.
BLOCKED: Final[dict[str, blocks.Kind]] = {f"blocked-{kind}": kind for kind in blocks.KINDS}


@bp.get("/limits")
def limits() -> ResponseReturnValue:
    at = int(choice("at", [str(share) for share in NEAR], "80"))
    near: list[State] = []
    blocked: list[Block] = []
    upstreams: list[dict[str, Any]] = []
    quotas = [quota.removeprefix("provider-") for quota in QUOTAS]
    is_cut = False
    an_hour_ago = datetime.now(UTC) - timedelta(hours=1)
    outcomes = current_services().reports.outcomes(since=an_hour_ago, top=MOST)
    with reported() as problems:
        operators = callers.shared_operators()
        near, is_cut = operators.used(least=at / 100, scan=MOST_NAMES)
        blocked = operators.blocks(scan=MOST_NAMES)
        upstreams = reports.upstreams()
    policy = current_services().policy
    of_session = policy.adjustable(key="session") if policy else {}
    return shown(
        "admin/limits.html",
        {
            "near": (state.as_json() for state in near),
            "blocked": (block.as_json() for block in blocked),
            "providers": (
                {
                    "upstream": row["name"],
                    "pause": row["pause"],
                    **{quota: row["left"].get(quota) for quota in quotas},
                }
                for row in upstreams
            ),
            "calls": outcomes,
        },
        at=at,
        shares=[(share, f"{share} %") for share in NEAR],
        near=near[:MOST],
        near_count=len(near),
        is_cut=is_cut,
        scan=MOST_NAMES,
        blocks=[(block, _lifted_by(block)) for block in blocked[:MOST]],
        block_count=len(blocked),
        upstreams=[row for row in upstreams if row["pause"] or row["left"]],
        silent=sum(not (row["pause"] or row["left"]) for row in upstreams),
        quotas={quota: f"#{quota.replace('-', ' ').capitalize()}" for quota in quotas},
        outcomes=outcomes,
        sessions={name: rule.text for name, rule in of_session.items()},
        provider_names=[*dict.fromkeys(current_services().router.available_models.values())],
        problem="".join(problems),
    )


def _lifted_by(block: Block) -> tuple[str, dict[str, str]] | None:
    """Return the act by which an operator lifts it, and its fields; None if that is impossible."""
    if block.limit in BLOCKED:
        kind = BLOCKED[block.limit]
        if kind == "all":
            return "unblock_all", {}
        if kind == "model":
            return "unblock_model", {"name": block.identity}
        return "unblock", {"kind": kind, "name": block.identity}
    if block.limit == SURGE:
        kind = "user" if callers.public_id(block.identity) is None else "key"
        return "unblock", {"kind": kind, "name": block.identity}
    slug = callers.slugs_by_upstream().get(block.identity) if block.limit == COOL_DOWN else None
    return None if slug is None else ("unblock_model", {"name": slug})
