"""Ids of what a provider keeps for all clients of this server: files, stores, containers.

Every field with the name of an id is one, in every place of a body, unless it is listed here. So a
field that a later version of a protocol adds needs the right to files until it is known.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

_ID: Final = re.compile(r"(?:^|_)ids?$")
#: One of these is in every body with such a field: the end of its name, or an escape in it.
_POSSIBLE: Final = (b'id"', b'ids"', b'container"', b"\\u")
#: What the client and the model have made, or what is checked as a stored answer (`forwarded.py`).
#: Two compare a prompt's cache with an earlier call's, and show nothing of that but a reason.
OF_CONVERSATIONS: Final = frozenset(
    {
        *("id", "call_id", "caller_id", "tool_call_id", "tool_use_id", "tool_id"),
        *("approval_request_id", "previous_response_id", "tab_id", "download_id", "connector_id"),
        *("continuation_id", "comparison_response_id", "previous_message_id"),
    }
)
#: What clients add about themselves. No protocol has them.
OF_CLIENTS: Final = frozenset(
    f"{word}_id"
    for word in (
        *("user", "session", "chat", "thread", "conversation", "request", "trace", "message"),
        *("turn", "run", "agent", "parent_agent", "installation", "device", "client"),
    )
)
#: Objects that a plain ``id`` names, and the last one also a text in its place.
CONTAINER: Final = "container"
BY_ID: Final = frozenset({"audio", "voice", CONTAINER})
#: Fields with any names in them (schemas, the arguments and settings of tools), and what a provider
#: has said of its files before, which is not read again.
NOT_READ: Final = frozenset(
    {
        *("parameters", "schema", "input_schema", "output_schema", "input_examples", "configs"),
        *("arguments", "input", "env", "headers", "metadata", "client_metadata", "logit_bias"),
        *("annotations", "results"),
    }
)


def shared_id(fields: Mapping[str, object], raw: bytes) -> str | None:
    """Return the name of a field of a body that names what a provider keeps; None without one.

    >>> shared_id({"vector_store_ids": ["vs_1"]}, b'{"vector_store_ids": ["vs_1"]}')
    'vector_store_ids'
    >>> shared_id({"input": [{"id": "fc_1"}]}, b'{"input": [{"id": "fc_1"}]}')
    """
    if not any(map(raw.__contains__, _POSSIBLE)):
        return None
    root = {name: value for name, value in fields.items() if name != "input"}
    pending: list[tuple[str, object]] = [("", root), ("", fields.get("input"))]
    while pending:
        name, container = pending.pop()
        if isinstance(container, list):
            pending += [(name, item) for item in container if isinstance(item, dict | list)]
        elif isinstance(container, dict):
            for key, value in container.items():
                if not value or key in NOT_READ:
                    continue
                if _is_shared(name, key, value):
                    return str(key)
                if isinstance(value, dict | list):
                    pending.append((key, value))
    return None


def _is_shared(parent: str, key: str, value: object) -> bool:
    if key == "id":
        return parent in BY_ID
    if key == CONTAINER:
        return isinstance(value, str)
    is_known = key in OF_CONVERSATIONS or key in OF_CLIENTS
    return key.endswith(("id", "ids")) and not is_known and _ID.search(key) is not None
