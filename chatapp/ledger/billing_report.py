"""What a provider reports of an organisation: the tokens and dollars of each day, by model and key.

An admin key of the environment reads it. No log, error or representation has the key.

https://developers.openai.com/api/reference/resources/admin/subresources/organization
https://platform.claude.com/docs/en/manage-claude/usage-cost-api
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Final

from chatapp.catalogue.key import VARIABLE, Key
from chatapp.catalogue.usage import Usage

#: Where providers report. An admin key is sent nowhere else.
ADDRESSES: Final = {
    "openai": "https://api.openai.com/v1/organization",
    "anthropic": "https://api.anthropic.com/v1/organizations",
}
TIME: Final = "%Y-%m-%dT%H:%M:%SZ"
#: The most days of a page; and more pages than there are.
PAGE_DAYS: Final = 31
MOST_PAGES: Final = 100
#: What reading something else raises than a report.
MALFORMED: Final = (ValueError, ArithmeticError, LookupError, AttributeError, TypeError)
#: Stands for the model of a tool, of storage, and of others without a model.
NO_MODEL: Final = "tools and others"
CENT: Final = 10_000

#: What a row of a report has: a model, its usage, or what it cost in micro-dollars.
Amounts = tuple[str, Usage, int]
#: The same of a day, by UTC, and of a key; None for use on the provider's own pages.
Line = tuple[str, str | None, str, Usage, int]


class ReportError(Exception):
    """A report cannot be read. The message says why, without the key."""


def variable(provider: str) -> str:
    return f"{provider.upper()}_ADMIN_KEY"


def admin_key(provider: str) -> str | None:
    return Key(f"{VARIABLE}{variable(provider)}").secret


def read(
    provider: str, since: datetime, until: datetime, *, project: str | None = None
) -> Iterator[Line]:
    """Yield the lines of all reports of these days, or of one project (a workspace of Anthropic).
    Raises ReportError."""
    import httpx2  # noqa: PLC0415 - takes long to load, and only this command needs it

    if (key := admin_key(provider)) is None:
        names = [provider] if any(map(admin_key, ADDRESSES)) else ADDRESSES
        listed = " or ".join(map(variable, names))
        raise ReportError(f"Set {listed} to an admin key that may read usage and costs")
    until = min(until, datetime.now(UTC))
    headers = {"x-api-key": key, "anthropic-version": "2023-06-01"}
    span: dict[str, Any] = {"starting_at": f"{since:{TIME}}", "ending_at": f"{until:{TIME}}"}
    if provider == "openai":
        headers = {"authorization": f"Bearer {key}"}
        span = {"start_time": int(since.timestamp()), "end_time": int(until.timestamp())}
    query = {**span, "bucket_width": "1d", "limit": PAGE_DAYS}
    url = ""
    try:
        with httpx2.Client(headers=headers, timeout=60.0) as client:
            for path, (groups, amounts) in REPORTS[provider].items():
                url = f"{ADDRESSES[provider]}/{path}"
                for day, row in _rows(client, url, {**query, "group_by[]": groups}):
                    of = row.get("project_id") or row.get("workspace_id") or "default"
                    if project in {None, of}:
                        yield day, row.get("api_key_id"), *amounts(row)
    except (httpx2.HTTPError, OSError, *MALFORMED) as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise ReportError(f"{url} cannot be read with {variable(provider)}: {reason}") from error


def _rows(client: Any, url: str, query: dict[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the days and rows of all pages of a report."""
    for _ in range(MOST_PAGES):
        answer = client.get(url, params=query)
        answer.raise_for_status()
        report = answer.json(parse_float=Decimal)
        for bucket in report["data"]:
            began = bucket.get("starting_at") or datetime.fromtimestamp(bucket["start_time"], UTC)
            for row in bucket["results"]:
                yield str(began)[:10], row
        if not report["has_more"]:
            return
        query = {**query, "page": report["next_page"]}
    raise ValueError("too many pages")


def _openai_usage(row: Mapping[str, Any]) -> Amounts:
    cached, written = (row.get(f"input_{kind}_tokens") or 0 for kind in ("cached", "cache_write"))
    return row["model"], Usage(row["input_tokens"], row.get("output_tokens", 0), cached, written), 0


def _openai_cost(row: Mapping[str, Any]) -> Amounts:
    """Read the dollars of an item such as "priority | gpt-6.2-sol, cached input, long context"."""
    name, comma, _ = (row["line_item"] or "").rpartition("| ")[2].partition(",")
    words = name.split()
    model = words[0] if words and (comma or len(words) == 1) else NO_MODEL
    return model, Usage(0, 0), round(Decimal(str(row["amount"]["value"])) * 1_000_000)


def _anthropic_usage(row: Mapping[str, Any]) -> Amounts:
    cached, written = row["cache_read_input_tokens"], row["cache_creation"]
    for_an_hour = written["ephemeral_1h_input_tokens"]
    written = written["ephemeral_5m_input_tokens"] + for_an_hour
    read = row["uncached_input_tokens"] + cached + written
    used = Usage(read, row["output_tokens"], cached, written, cache_write_1h_tokens=for_an_hour)
    return row["model"], used, 0


def _anthropic_cost(row: Mapping[str, Any]) -> Amounts:
    return row["model"] or NO_MODEL, Usage(0, 0), round(Decimal(row["amount"]) * CENT)


#: The reports of each provider: by what they are grouped, and what reads a row.
REPORTS: Final[Mapping[str, Mapping[str, tuple[Sequence[str], Callable[[Any], Amounts]]]]] = {
    "openai": {
        "usage/completions": (("model", "api_key_id", "project_id"), _openai_usage),
        "usage/embeddings": (("model", "api_key_id", "project_id"), _openai_usage),
        "costs": (("line_item", "project_id"), _openai_cost),
    },
    "anthropic": {
        "usage_report/messages": (("model", "api_key_id", "workspace_id"), _anthropic_usage),
        "cost_report": (("description", "workspace_id"), _anthropic_cost),
    },
}
