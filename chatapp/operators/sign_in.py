"""From what an operator presents to who they are."""

from __future__ import annotations

import hmac
from typing import Final

from chatapp.operators.rights import Operator
from chatapp.services import current_services

#: Who makes a change by the token alone, in the log of operators.
NAMELESS: Final = "admin token"


def operator_with(text: str) -> Operator | None:
    """Return the operator with that key; None for any other text. The shared token, the first key,
    is compared in constant time."""
    token = current_services().settings.admin_token
    if token is not None and hmac.compare_digest(text.encode("utf-8", "replace"), token.encode()):
        return Operator(NAMELESS)
    return None
