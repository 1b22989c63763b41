"""The ledger beside what a provider reports: what differs on each day, and why.

What differs in tokens is priced by the catalogue. What then differs in dollars is due to the price,
or has no explanation.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import product
from typing import Any, Final

from chatapp.catalogue import OTHER, Catalogue
from chatapp.catalogue.usage import Usage
from chatapp.ledger.billing_report import CENT, NO_MODEL, Line
from chatapp.ledger.table import MICRO, usage_of

#: Causes that are problems. Others are expected: "rounding", "not final", and "estimates", of calls
#: whose usage or day is uncertain.
PROBLEMS: Final = {
    "price": "its price differs, and `chat prices check` may know the new one",
    "unseen": "{unseen} tokens are not in the ledger; key: {keys}",
    "unbilled": "{unbilled} tokens in the ledger are not billed",
    "unexplained": "nothing explains it",
}
NOT_FINAL: Final = "not final"
#: How long after its beginning the reports of a day may change: for a day after its end.
FINAL_AFTER: Final = timedelta(days=2)
#: A provider rounds its amounts somehow, and the ledger each call up to a micro-dollar.
ROUNDED_MICRO_USD: Final = 100
#: What is no problem: less than a cent, and a share of what is billed for the model.
TOLERANCE: Final = 0.005
#: How long a call of an unknown duration may have run, and how much clocks may differ.
LONGEST_MS: Final = 3_600_000
CLOCKS_MS: Final = 1_000
#: A million tokens of each price: input is neither read from the cache nor written to it.
MILLION: Final = {
    "input": Usage(MICRO, 0),
    "cached_input": Usage(MICRO, 0, MICRO),
    "cache_write": Usage(MICRO, 0, 0, MICRO),
    "cache_write_1h": Usage(MICRO, 0, 0, MICRO, 0, MICRO),
    "output": Usage(0, MICRO),
}
AMOUNTS: Final = (*MILLION, "micro_usd")

#: Tokens by kind, "micro_usd" and "calls".
Amounts = Counter[str]
#: What is "reported" of a model on a day, what the "ledger" has, and what of that is "uncertain":
#: calls that were estimated, or that ran at midnight, which are billed on either day.
Cell = defaultdict[str, Amounts]
Row = Mapping[str, Any]


def compare(
    rows: Iterable[Row], lines: Iterable[Line], catalogue: Catalogue, provider: str, since: datetime
) -> Iterator[Row]:
    """Yield each model on each day since then, by the lines of the provider's reports and the
    ledger's calls of its upstreams from a day before on. ``causes`` have the dollars that are
    reported beyond the ledger. ``unseen`` are tokens that the ledger lacks, ``unbilled`` those that
    the report lacks, and ``keys`` the reported tokens by the provider's ids of keys."""
    cells = defaultdict[tuple[str, str], Cell](partial(defaultdict, Counter))
    for row in rows:
        _add(row, cells, catalogue, provider)
    for day, key, model, usage, micro_usd in lines:
        slug = NO_MODEL if model == NO_MODEL else catalogue.model(model, provider).slug
        cell = cells[day, slug]
        cell["reported"].update(_amounts(usage, micro_usd))
        cell["keys"][key or "none"] += usage.input_tokens + usage.output_tokens
    first, final = (f"{at:%Y-%m-%d}" for at in (since, datetime.now(UTC) - FINAL_AFTER))
    for (day, slug), cell in sorted(cells.items()):
        ledger, reported = cell["ledger"], cell["reported"]
        if day < first or not any(of[name] for of in (ledger, reported) for name in AMOUNTS):
            continue
        causes, extra = _why(cell, partial(_price, catalogue, slug))
        if day > final:
            causes = Counter({NOT_FINAL: reported["micro_usd"] - ledger["micro_usd"]})
        yield {
            "day": day,
            "provider": provider,
            "model": slug,
            "ledger_tokens": _tokens(ledger),
            "reported_tokens": _tokens(reported),
            "ledger_usd": ledger["micro_usd"] / MICRO,
            "reported_usd": reported["micro_usd"] / MICRO,
            "unseen": _tokens(+extra),
            "unbilled": _tokens(-extra),
            "causes": {cause: n / MICRO for cause, n in causes.items() if n},
            "keys": dict(+cell["keys"]),
        }


def problems(rows: Sequence[Row]) -> Iterator[str]:
    """Yield a sentence for each cause and model above the tolerance, of one provider."""
    for cause, model in product(PROBLEMS, sorted({row["model"] for row in rows})):
        final = [r for r in rows if r["model"] == model and NOT_FINAL not in r["causes"]]
        of = [row for row in final if cause in row["causes"]]
        most = max(CENT / MICRO, TOLERANCE * sum(row["reported_usd"] for row in final))
        if sum(abs(row["causes"][cause]) for row in of) <= most:
            continue
        # A key with clearly more tokens than the ledger lacks is one of the gateway's.
        keys = Counter[str]()
        for row in of:
            keys.update({k: n for k, n in row["keys"].items() if 0.9 * n <= row["unseen"]})
        why = PROBLEMS[cause].format(
            unseen=sum(row["unseen"] for row in of),
            unbilled=sum(row["unbilled"] for row in of),
            keys=" or ".join(key for key, _ in keys.most_common(3)) or "one of the gateway's",
        )
        days = " to ".join(dict.fromkeys((of[0]["day"], of[-1]["day"])))
        usd = sum(row["causes"][cause] for row in of)
        yield f"{of[0]['provider']} bills {usd:+.2f} USD for {model} on {days}: {why}."


def _add(
    row: Row, cells: Mapping[tuple[str, str], Cell], catalogue: Catalogue, provider: str
) -> None:
    """Add a call of the ledger to its day."""
    of, began = row["provider"], row["started_at"]
    slug = row["slug"].removeprefix(f"{of}/").replace(f"{of}{OTHER}", f"{provider}{OTHER}")
    usage = usage_of(row) or Usage(row["estimated_input_tokens"], row["estimated_output_tokens"])
    tools = catalogue.price(row["slug"], Usage(0, 0, tool_calls=usage.tool_calls))
    ended = began + timedelta(milliseconds=(row["total_ms"] or LONGEST_MS) + CLOCKS_MS)
    days = dict.fromkeys((f"{began:%Y-%m-%d}", f"{ended:%Y-%m-%d}"))
    of_model = _amounts(usage, row["cost_micro_usd"] - tools)
    for name, amounts in ((slug, of_model), (NO_MODEL, Counter(micro_usd=tools))):
        cells[next(iter(days)), name]["ledger"].update(amounts, calls=1)
        for day in days if row["estimated"] or len(days) > 1 else ():
            cells[day, name]["uncertain"].update(amounts, calls=1)


def _why(cell: Cell, price: Callable[[Amounts], int]) -> tuple[Amounts, Amounts]:
    """Return the causes of a difference in micro-dollars, and the tokens that no uncertain call
    explains: of such a one, a provider may have read more or less of the prompt from its cache."""
    ledger, reported, uncertain = cell["ledger"], cell["reported"], cell["uncertain"]
    expected, extra = Amounts(), Amounts()
    for kind in MILLION:
        differs = reported[kind] - ledger[kind]
        most = uncertain[kind] if kind == "output" else _tokens(uncertain) - uncertain["output"]
        expected[kind] = max(-most, min(most, differs))
        extra[kind] = differs - expected[kind]
    causes = Counter(estimates=price(expected), unseen=price(+extra), unbilled=-price(-extra))
    rest = reported["micro_usd"] - ledger["micro_usd"] - causes.total()
    has_tokens = _tokens(ledger) or _tokens(reported)
    # It may have been long, of a tier, or with a tool, and what was to be cached is not kept.
    soft = uncertain["micro_usd"] + abs(causes["estimates"])
    soft = soft * bool(causes["estimates"]) if has_tokens else soft + CENT * uncertain["calls"]
    if abs(rest) <= ROUNDED_MICRO_USD + ledger["calls"]:
        cause = "rounding"
    elif abs(rest) <= soft:
        cause = "estimates"
    elif has_tokens and not (+extra or -extra):
        cause = "price"
    elif abs(rest) <= causes["unseen"] and not causes["unbilled"]:  # long calls, or of a batch
        cause = "unseen"
    else:
        cause = "unexplained"
    causes[cause] += rest
    return causes, extra


def _amounts(usage: Usage, micro_usd: int) -> Amounts:
    cached, written, long = usage[2], usage[3], usage.cache_write_1h_tokens
    fresh = max(0, usage.input_tokens - cached - written)
    parts = (fresh, cached, max(0, written - long), long, usage.output_tokens)
    return Counter({"micro_usd": micro_usd, **dict(zip(MILLION, parts, strict=True))})


def _tokens(amounts: Amounts) -> int:
    return sum(amounts[kind] for kind in MILLION)


def _price(catalogue: Catalogue, slug: str, tokens: Amounts) -> int:
    """Return what tokens of many calls cost, as if no call were long."""
    million = {kind: MILLION[kind]._replace(readings=(1,)) for kind in tokens if tokens[kind]}
    costs = [catalogue.price(slug, used) * tokens[kind] for kind, used in million.items()]
    return round(sum(costs) / MICRO)
