"""A small service on FastAPI with slowapi; slowapi_after.py is the same on Flask."""

from __future__ import annotations

from fastapi import FastAPI, Request, Response
from slowapi import Limiter, _rate_limit_exceeded_handler
from slowapi.errors import RateLimitExceeded
from slowapi.util import get_remote_address

limiter = Limiter(key_func=get_remote_address, headers_enabled=True)
app = FastAPI()
app.state.limiter = limiter
app.add_exception_handler(RateLimitExceeded, _rate_limit_exceeded_handler)


@app.get("/search")
@limiter.limit("5/minute")
async def search(request: Request, response: Response) -> dict[str, list[str]]:
    return {"found": []}


@app.post("/summaries")
@limiter.limit("3/minute;10/hour")
async def summarise(request: Request, response: Response) -> dict[str, str]:
    return {"summary": "short"}


@app.get("/healthz")
async def healthz() -> str:
    return "ok"
