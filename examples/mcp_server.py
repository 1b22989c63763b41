"""A server of the Model Context Protocol in Flask, with limits for each tool.

    pip install ratelimit-ext
    flask --app examples.mcp_server:create_app run

``search`` costs five times as much as ``clock`` of a budget for each caller, and it has a pace of
its own. The protocol's part is as small as a client allows; the limits are what this shows.
"""

from __future__ import annotations

import time
from typing import Any

from flask import Flask, jsonify, request

from ratelimit_ext import Limiter, client_ip, mcp_tool

#: What a call of a tool costs; all other requests of the protocol are free.
COSTS = {"search": 5, "clock": 1}
SCHEMA = {"type": "object", "properties": {"query": {"type": "string"}}}
TOOLS = [
    {"name": "search", "description": "Search the archive.", "inputSchema": SCHEMA},
    {"name": "clock", "description": "Tell the time.", "inputSchema": {"type": "object"}},
]


def cost() -> int:
    return COSTS.get(mcp_tool(), 0)


def is_no_search() -> bool:
    return mcp_tool() != "search"


def create_app() -> Flask:
    app = Flask(__name__)
    limiter = Limiter(client_ip, app=app, storage_uri="memory://", headers_enabled=True)

    @app.post("/mcp")
    @limiter.limit("30/minute", name="work", strategy="token-bucket", cost=cost)
    @limiter.limit("2/second", name="search", strategy="token-bucket", exempt_when=is_no_search)
    def serve() -> Any:
        call = request.get_json()
        if "id" not in call:  # a notification
            return "", 202
        params = call.get("params") or {}
        results = {
            "initialize": {
                "protocolVersion": params.get("protocolVersion"),
                "capabilities": {"tools": {}},
                "serverInfo": {"name": "archive", "version": "1"},
            },
            "ping": {},
            "tools/list": {"tools": TOOLS},
            "tools/call": {"content": [{"type": "text", "text": answer(params.get("name"))}]},
        }
        if call["method"] not in results:
            error = {"code": -32601, "message": f"Method not found: {call['method']}"}
            return jsonify(jsonrpc="2.0", id=call["id"], error=error), 404
        return jsonify(jsonrpc="2.0", id=call["id"], result=results[call["method"]])

    return app


def answer(tool: str | None) -> str:
    return time.strftime("%H:%M") if tool == "clock" else "3 documents"
