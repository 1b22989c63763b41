"""Rate limiting for Flask applications that call language models.

``Limiter`` is a ``flask_limiter.Limiter``: change the import, and everything goes on working.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from flask_limiter import ExemptionScope, HeaderNames

from ratelimit_ext.core.charge import Claim, Guess
from ratelimit_ext.core.decision import Share, Verdict
from ratelimit_ext.core.errors import (
    ConfigurationError,
    OperatorError,
    StorageUnavailable,
    wait_text,
)
from ratelimit_ext.core.events import DecisionEvent, Event, SettlementEvent, StorageEvent, WaitEvent
from ratelimit_ext.core.key import separated
from ratelimit_ext.core.limit import Mode, OnFailure
from ratelimit_ext.core.traits import StrategyName, Unit
from ratelimit_ext.extension import Limiter
from ratelimit_ext.records.overrides import LogEntry, Override
from ratelimit_ext.strategies.fixed_window import calendar_window
from ratelimit_ext.strategies.guards.block import BlockReason
from ratelimit_ext.web.commands import COMMANDS, GROUP, LateGroup
from ratelimit_ext.web.declarations.callbacks import Callers, ChangeLog, CheckedPolicy, DecideAgain
from ratelimit_ext.web.declarations.definitions import (
    ApplicationLimit,
    Limit,
    MetaLimit,
    RouteLimit,
)
from ratelimit_ext.web.declarations.settings import SETTINGS, Setting, setting_value
from ratelimit_ext.web.errors import (
    Blocked,
    LimitUnavailable,
    RateLimitExceeded,
    RequestTooLarge,
    TemporarilyUnavailable,
)
from ratelimit_ext.web.identities import JoinedIdentity, address_identity, client_ip
from ratelimit_ext.web.limited_request import LimitedRequest
from ratelimit_ext.web.mcp import mcp_tool
from ratelimit_ext.web.request.request_state import RequestLimit
from ratelimit_ext.web.request.reservation import Reservation
from ratelimit_ext.web.storage import register

if TYPE_CHECKING:
    from ratelimit_ext.embedded.server import embedded_uri
    from ratelimit_ext.policy.policy import Policy, PolicyLimit
    from ratelimit_ext.policy.toml_file import toml_line
    from ratelimit_ext.records.restoration import RestoredUsage

__all__ = [
    "SETTINGS",
    "ApplicationLimit",
    "BlockReason",
    "Blocked",
    "Callers",
    "ChangeLog",
    "CheckedPolicy",
    "Claim",
    "ConfigurationError",
    "DecideAgain",
    "DecisionEvent",
    "Event",
    "ExemptionScope",
    "Guess",
    "HeaderNames",
    "JoinedIdentity",
    "Limit",
    "LimitUnavailable",
    "LimitedRequest",
    "Limiter",
    "LogEntry",
    "MetaLimit",
    "Mode",
    "OnFailure",
    "OperatorError",
    "Override",
    "Policy",
    "PolicyLimit",
    "RateLimitExceeded",
    "RequestLimit",
    "RequestTooLarge",
    "Reservation",
    "RestoredUsage",
    "RouteLimit",
    "Setting",
    "SettlementEvent",
    "Share",
    "StorageEvent",
    "StorageUnavailable",
    "StrategyName",
    "TemporarilyUnavailable",
    "Unit",
    "Verdict",
    "WaitEvent",
    "address_identity",
    "calendar_window",
    "client_ip",
    "embedded_uri",
    "mcp_tool",
    "separated",
    "setting_value",
    "toml_line",
    "wait_text",
]


#: Imported when they are used: few applications do.
_LATE = {
    "Policy": "policy.policy",
    "PolicyLimit": "policy.policy",
    "RestoredUsage": "records.restoration",
    "embedded_uri": "embedded.server",
    "toml_line": "policy.toml_file",
}


def __getattr__(name: str) -> Any:
    if name not in _LATE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_LATE[name]}"), name)


register()
COMMANDS[GROUP] = LateGroup(
    GROUP, "ratelimit_ext.cli:ratelimit", help="See, check and change limits."
)
