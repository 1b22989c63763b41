"""The Model Context Protocol over HTTP: which tool a request calls, and how it is refused.

The protocol of 2026-07-28 repeats the method and the tool in the headers ``Mcp-Method`` and
``Mcp-Name`` (SEP-2243), and a server runs what the body says. A refusal is a JSON-RPC error of the
code -32023 with HTTP 429, as SEP-3304 proposes it.
"""

from __future__ import annotations

import json
from typing import Any, Final

import flask
from werkzeug.exceptions import HTTPException
from werkzeug.wrappers import Response

#: ``RateLimited`` of SEP-3304.
RATE_LIMITED: Final = -32023
#: JSON-RPC's, for refusals that are no rate limit.
INVALID_REQUEST: Final = -32600
INTERNAL_ERROR: Final = -32603
_HEADERS: Final = ("HTTP_MCP_METHOD", "HTTP_MCP_PROTOCOL_VERSION")


def mcp_tool() -> str:
    """Return the tool that a request calls, such as ``search``; else its method, as ``tools/list``.

    What counts is the body, as the server runs that: a caller cannot name a cheaper tool in the
    header. The headers count if the body cannot be read. ``other`` if there are neither.
    """
    headers = flask.request.headers
    method: Any = headers.get("Mcp-Method")
    name: Any = headers.get("Mcp-Name")
    body = _body()
    if body is not None:  # the headers name no call of a list
        body = body if isinstance(body, dict) else {}
        params = body.get("params")
        method, name = body.get("method"), params.get("name") if isinstance(params, dict) else None
    tool = name if method == "tools/call" else method
    return tool if isinstance(tool, str) and tool else "other"


def is_mcp(environ: dict[str, Any]) -> bool:
    """Return whether a client of the protocol sent the request."""
    return not environ.keys().isdisjoint(_HEADERS)


def refusal(status: int, body: dict[str, Any]) -> Response:
    """Return the error that answers the current request, with the fields of the usual body."""
    sent = _body()
    code = RATE_LIMITED if status == 429 else INVALID_REQUEST if status < 500 else INTERNAL_ERROR
    data = {name: value for name, value in body.items() if name != "error"}
    if "retry_after" in data:
        data["retryAfter"] = -int(-data["retry_after"] // 1)
    answer = {
        "jsonrpc": "2.0",
        "id": sent.get("id") if isinstance(sent, dict) else None,
        "error": {"code": code, "message": str(body["error"]), "data": data},
    }
    return Response(json.dumps(answer, default=str), status, mimetype="application/json")


def _body() -> Any:
    try:
        flask.request.get_data()  # which stays readable
        # Kept, it would answer a view that refuses what is not sent as JSON.
        return flask.request.get_json(force=True, silent=True, cache=False)
    except HTTPException:  # it is too large
        return None
