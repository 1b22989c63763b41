"""The call of the current request."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Final

from flask import g, request

from chatapp.calls.disconnect import Disconnect
from chatapp.calls.provider_call import CallRequest, Demand, ProviderCall
from chatapp.ledger.call import Call, new_call_id
from chatapp.services import current_services
from chatapp.web.call_limits import RequestLimits
from chatapp.web.request_estimate import (
    current_estimate,
    current_quota_use,
    current_tiers,
    may_hide_output,
)
from chatapp.web.request_fallback import requested_model, switch_to_fallback

#: Where servers put the connection of a request.
CONNECTIONS: Final = ("gunicorn.socket", "werkzeug.socket")


def begin_call() -> ProviderCall:
    """Begin the call of the current request; its provider is called next."""
    services = current_services()
    demand = _demand()
    connections = filter(None, map(request.environ.get, CONNECTIONS))
    record = Call(
        id=new_call_id(),
        started_at=datetime.now(UTC),
        user=services.limiter.identities["user"](),
        key_id=g.get("key_id"),
        plan=services.limiter.present_plan(),
        endpoint=request.endpoint or "",
        model=requested_model(demand.model),
        slug=demand.model.slug,
        provider=demand.model.provider,
        estimated_input_tokens=0,  # ProviderCall knows what is held
        estimated_output_tokens=0,
        cost_micro_usd=0,
    )
    return ProviderCall(
        record,
        CallRequest(
            demand,
            RequestLimits(services.limiter, shares_pauses=not current_tiers()),
            Disconnect(next(connections, None)),
            lambda: _demand() if switch_to_fallback() else None,
        ),
        catalogue=services.catalogue,
        ledger=services.ledger,
        estimator=services.estimator,
        most_attempts=services.settings.provider_attempts,
    )


def _demand() -> Demand:
    """What the current request asks of its model."""
    estimate, longest = current_estimate(), g.chat_request.most_output_tokens
    return Demand(
        model=g.chat_request.turn.model,
        estimate=estimate,
        bound=longest and longest // estimate.choices,
        may_hide_output=may_hide_output(),
        quota_use=current_quota_use(),
    )
