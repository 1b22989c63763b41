"""slowapi_before.py on Flask with ratelimit_ext."""

from __future__ import annotations

from flask import Flask

from ratelimit_ext import Limiter, client_ip

app = Flask(__name__)
limiter = Limiter(client_ip, app=app, storage_uri="memory://", headers_enabled=True)


@app.get("/search")
@limiter.limit("5/minute")
def search() -> dict[str, list[str]]:
    return {"found": []}


@app.post("/summaries")
@limiter.limit("3/minute;10/hour")
def summarise() -> dict[str, str]:
    return {"summary": "short"}


@app.get("/healthz")
@limiter.exempt
def healthz() -> str:
    return "ok"
