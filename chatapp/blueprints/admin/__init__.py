"""/admin: a page for operators, with a token of its own.

It reads and changes what the commands do, by the same acts. Each change is written to the log of
`flask ratelimit log`, and to the server's.
"""

from __future__ import annotations

from chatapp.blueprints.admin import denials, forms, limits, live, operators, spending, users
from chatapp.blueprints.admin.access import bp, unrouted

__all__ = ["bp", "denials", "forms", "limits", "live", "operators", "spending", "unrouted", "users"]
