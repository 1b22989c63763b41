"""An alert: a budget that nears its end, or will at this pace, a user who spends far more than
usual, or a provider's key that has reached a spending cap or a quota."""

from __future__ import annotations

import json
import uuid
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final, Literal

from chatapp.accounts import ADDRESS, EVERYONE, TEAM, USER
from chatapp.ledger.forecast import Forecast

Type = Literal[
    "budget.reached",
    "budget.forecast",
    "usage.unusual",
    "key.capped",
    "key.exhausted",
    "ledger.differs",
    "alert.test",
]

CENT: Final = 10_000
#: Slack reads these as mentions and links: https://docs.slack.dev/messaging/formatting-message-text
SLACK: Final = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Alert:
    """What is worth a message. Dollars are in micro-dollars.

    ``identity`` is whose budget or spending it is, as limits name it: ``user:alice``, ``team:red``,
    the public id of a key, or EVERYONE; ``user`` the user of a key. ``amount`` is what the budget
    has, or what the user spends on a usual day. ``since`` is where the window or day begins. A
    budget has a ``name``, a ``threshold`` in percent, and ``resets_at`` unless its window slides.
    ``refuses``: it has denied a call. A provider's key has an ``identity`` of its own, its upstream
    before a slash, and no amounts; its ``resets_at`` is when the cap or quota ends, if that is
    known. ``forecast`` is that of a budget.
    """

    type: Type
    identity: str
    spent: int
    amount: int
    since: datetime
    user: str | None = None
    name: str | None = None
    threshold: int = 0
    resets_at: datetime | None = None
    refuses: bool = False
    forecast: Forecast | None = None
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    at: datetime = field(default_factory=lambda: datetime.now(UTC))

    @property
    def sentence(self) -> str:
        match self.type:
            case "alert.test" | "ledger.differs":
                return _printable(self.name or "This is a test of chatapp's spending alerts.")
            case "key.capped" | "key.exhausted":
                upstream, _, key = self.identity.partition("/")
                at = self.resets_at
                end = f"until {at:%Y-%m-%d %H:%M:%S} UTC" if at else "for now"
                why = "has reached a spending cap or has no credit left"
                if self.type == "key.exhausted":
                    why = f"has used up the {_printable(self.name or 'quota')}"
                who = f"The key {key} of the upstream {upstream}"
                return f"{who} {why}. Its provider refuses it {end}."
            case "usage.unusual":
                return (
                    f"{self._who} has spent {dollars(self.spent)} USD today, "
                    f"{self.spent / max(1, self.amount):.1f} times as much as on a usual day "
                    f"({dollars(self.amount)} USD)."
                )
        if self.forecast is not None:
            return (
                f"{self._who} has spent {dollars(self.spent)} of {dollars(self.amount)} USD of the "
                f"budget {self.name}. {self.forecast.sentence}"
            )
        share = 100 * self.spent // self.amount
        text = (
            f"{self._who} has spent {dollars(self.spent)} of {dollars(self.amount)} USD "
            f"({share} %) of the budget {self.name}"
        )
        text += ", which now refuses calls." if self.refuses else "."
        if self.resets_at is None:
            return text
        return f"{text} It resets at {self.resets_at:%Y-%m-%d %H:%M:%S} UTC."

    @property
    def _who(self) -> str:
        """The subject of the sentence; a name may have any characters."""
        match subject(self.identity):
            case "user", name:
                who = f"User {name}"
            case "team", name:
                who = f"Team {name}"
            case "key", name:
                owner = self.user and subject(self.user)[1]
                who = f"Key {name} of {owner}" if owner else f"Key {name}"
            case _:
                who = "The whole application"
        return _printable(who)

    def body(self) -> str:
        kind, name = subject(self.identity)
        owner = subject(self.user)[1] if self.user and kind == "key" else None
        is_budget, is_unusual = self.type.startswith("budget."), self.type == "usage.unusual"
        return json.dumps(
            {
                "type": self.type,
                "id": self.id,
                "timestamp": _time(self.at),
                "text": self.sentence.translate(SLACK),
                "data": {
                    "identity": self.identity,
                    "user": name if kind == "user" else owner,
                    "key": name if kind == "key" else None,
                    "team": name if kind == "team" else None,
                    "budget": self.name,
                    "threshold": self.threshold or None,
                    "spent_usd": self.spent / 1_000_000,
                    "amount_usd": self.amount / 1_000_000 if is_budget else None,
                    "usual_usd": self.amount / 1_000_000 if is_unusual else None,
                    "since": _time(self.since),
                    "resets_at": self.resets_at and _time(self.resets_at),
                    "forecast": self.forecast and self.forecast.as_json(),
                },
            }
        )


def subject(identity: str) -> tuple[Literal["user", "team", "key", "all"], str]:
    """Return what an identity is, and its name; a caller without a name is a user."""
    if identity.startswith((USER, ADDRESS)):
        return "user", identity.removeprefix(USER)
    if identity.startswith(TEAM):
        return "team", identity.removeprefix(TEAM)
    return ("all", "") if identity == EVERYONE else ("key", identity)


def whose(identity: str) -> dict[Literal["user", "team"], str]:
    """Return by what the ledger has the calls of a user or a team; empty for others."""
    kind, name = subject(identity)
    return {"user": identity} if kind == "user" else {"team": name} if kind == "team" else {}


def dollars(micro_usd: int) -> str:
    """Cents, and for smaller amounts what there is.

    >>> dollars(4_020_000), dollars(65), dollars(0)
    ('4.02', '0.000065', '0.00')
    """
    if not micro_usd or micro_usd >= CENT:
        return f"{micro_usd / 1_000_000:.2f}"
    return f"{micro_usd / 1_000_000:.6f}".rstrip("0")


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _time(at: datetime) -> str:
    return at.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
