"""A provider with a bill of its own: it reports what it was asked for, by rules that are written
here once more, in the form of the real reports."""

from __future__ import annotations

import json
import tomllib
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import parse_qs, urlsplit

from chatapp.catalogue import MODELS_FILE
from chatapp.catalogue.usage import Usage
from chatapp.ledger.billing_report import REPORTS, Line
from tests.served import answering

MODELS = tomllib.loads(MODELS_FILE.read_text(), parse_float=Decimal)["models"]
#: What it calls a model, a part of its price, and a tool.
DATED = {"openai": "{}-2026-03-17", "anthropic": "{}-20260317"}
ITEMS = {
    "input": ("input", "uncached_input_tokens"),
    "cached_input": ("cached input", "cache_read_input_tokens"),
    "cache_write": ("cache writes", "cache_creation.ephemeral_5m_input_tokens"),
    "cache_write_1h": ("cache writes", "cache_creation.ephemeral_1h_input_tokens"),
    "output": ("output", "output_tokens"),
}
SEARCH = Decimal("0.01")
SECRET = "sk-admin-0123456789-secret"


def parts_of(usage: Usage) -> dict[str, int]:
    """Tokens by the name of their price."""
    _, output, cached, written, _, for_an_hour, *_ = usage
    fresh = usage.input_tokens - cached - written
    return dict(
        zip(ITEMS, (fresh, cached, written - for_an_hour, for_an_hour, output), strict=True)
    )


@dataclass
class Biller:
    """``raised`` are multiples of prices by model, ``search_usd`` is what a web search costs."""

    name: str
    raised: dict[str, Decimal] = field(default_factory=dict)
    search_usd: Decimal = SEARCH
    page_days: int = 31
    # By day, key and model; and dollars by day and item.
    used: dict[tuple[str, str | None, str], dict[str, int]] = field(
        default_factory=lambda: defaultdict(lambda: defaultdict(int))
    )
    costs: dict[tuple[str, str, str | None], Decimal] = field(
        default_factory=lambda: defaultdict(Decimal)
    )
    projects: dict[str | None, str] = field(default_factory=dict)
    requests: list[Any] = field(default_factory=list)
    status: int = 200
    garbage: bytes = b""

    def bill(
        self,
        slug: str,
        usage: Usage,
        at: datetime,
        *,
        key: str | None = "key_ours",
        times: Decimal = Decimal(1),
        searches: int = 0,
    ) -> Decimal:
        """Bill a call to the day of that instant; returns its dollars."""
        model, day = DATED[self.name].format(slug), f"{at:%Y-%m-%d}"
        prices = MODELS[slug]["price"]
        long = MODELS[slug].get("long_context")
        if long and usage.input_tokens > long["over"]:
            prices = long
        times *= self.raised.get(slug, Decimal(1))
        for tier in usage.tiers or ():
            times *= MODELS[slug]["tiers"][tier]
        dollars = Decimal()
        for kind, tokens in parts_of(usage).items():
            price = prices.get(kind, 2 * prices["input"])
            cost = tokens * price * times / 1_000_000
            self.used[day, key, model][kind] += tokens
            self.charge(day, f"{model}, {ITEMS[kind][0]}", cost, key=key)
            dollars += cost
        if searches:
            self.charge(day, "web search tool calls", searches * self.search_usd, key=key)
        return dollars + searches * self.search_usd

    def charge(self, day: str, item: str, usd: Decimal, *, key: str | None = None) -> None:
        self.costs[day, item, key] += usd

    # -- its reports -----------------------------------------------------------------------------

    def usage_rows(self, day: str) -> list[dict[str, Any]]:
        rows = []
        for (of, key, model), tokens in self.used.items():
            if of != day:
                continue
            row: dict[str, Any] = {"api_key_id": key, "model": model, "output_tokens": 0}
            if self.name == "openai":
                written = tokens["cache_write"] + tokens["cache_write_1h"]
                read = tokens["input"] + tokens["cached_input"] + written
                row |= {"input_tokens": read, "input_cached_tokens": tokens["cached_input"]}
                row |= {"input_cache_write_tokens": written or None, "num_model_requests": 1}
                row |= {"project_id": self.projects.get(key)}
            else:
                row |= {
                    "uncached_input_tokens": tokens["input"],
                    "cache_read_input_tokens": tokens["cached_input"],
                    "cache_creation": {
                        "ephemeral_1h_input_tokens": tokens["cache_write_1h"],
                        "ephemeral_5m_input_tokens": tokens["cache_write"],
                    },
                    "workspace_id": self.projects.get(key),
                }
            rows.append({**row, "output_tokens": tokens["output"]})
        return rows

    def cost_rows(self, day: str) -> list[dict[str, Any]]:
        rows = []
        for (of, item, key), usd in self.costs.items():
            if of != day:
                continue
            project = self.projects.get(key)
            model, is_model, _ = item.partition(", ")
            if self.name == "openai":
                amount = {"value": float(round(usd, 9)), "currency": "usd"}
                rows.append({"amount": amount, "line_item": item, "project_id": project})
            else:
                amount = str(round(100 * usd, 6))
                named = {"model": model if is_model else None, "description": item}
                rows.append({"amount": amount, "currency": "USD", "workspace_id": project, **named})
        return rows

    def rows(self, path: str, day: str) -> list[dict[str, Any]]:
        if "embeddings" in path:
            return []
        return self.cost_rows(day) if "cost" in path else self.usage_rows(day)

    def lines(self) -> Iterator[Line]:
        """Its reports as they are read, of all days."""
        days = {day for day, *_ in (*self.used, *self.costs)}
        by_day: dict[str, Biller] = {day: Biller(self.name) for day in days}
        for place, tokens in self.used.items():
            by_day[place[0]].used[place] = tokens
        for item, usd in self.costs.items():
            by_day[item[0]].costs[item] = usd
        for day in sorted(days):
            for path, (_, amounts) in REPORTS[self.name].items():
                for row in by_day[day].rows(path, day):
                    yield day, row.get("api_key_id"), *amounts(json_of(row))

    def answer(self, path: str, query: dict[str, list[str]]) -> bytes:
        """A page of a report."""
        if self.name == "openai":
            start = datetime.fromtimestamp(int(query["start_time"][0]), UTC)
            ends = [datetime.fromtimestamp(int(text), UTC) for text in query.get("end_time", [])]
        else:
            start = datetime.fromisoformat(query["starting_at"][0])
            ends = [datetime.fromisoformat(text) for text in query.get("ending_at", [])]
        now = datetime.now(UTC)
        end = min([*ends, now])
        first = start + timedelta(days=int(query.get("page", ["0"])[0]))
        count = min(int(query["limit"][0]), self.page_days)
        days = [first + timedelta(days=n) for n in range(count)]
        buckets = [
            {
                **(
                    {"start_time": int(day.timestamp())}
                    if self.name == "openai"
                    else {"starting_at": f"{day:%Y-%m-%dT%H:%M:%SZ}"}
                ),
                "results": self.rows(path, f"{day:%Y-%m-%d}"),
            }
            for day in days
            if day < end
        ]
        following = first + timedelta(days=count)
        more = str((following - start).days) if following < end else None
        return json.dumps({"data": buckets, "has_more": bool(more), "next_page": more}).encode()


def json_of(row: dict[str, Any]) -> dict[str, Any]:
    """What arrives of it."""
    return dict(json.loads(json.dumps(row), parse_float=Decimal))


@contextmanager
def reporting(provider: Biller) -> Iterator[str]:
    """Serve its reports within the block; yields their address."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            url = urlsplit(self.path)
            query = parse_qs(url.query)
            provider.requests.append((url.path, query, dict(self.headers)))
            body = provider.garbage
            if provider.status == 200 and not body:
                body = provider.answer(url.path, query)
            self.send_response(provider.status)
            self.end_headers()
            self.wfile.write(body)

    with answering(Handler) as port:
        yield f"http://127.0.0.1:{port}"
