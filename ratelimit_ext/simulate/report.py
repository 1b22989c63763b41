"""What a simulation found: as data, as text, and as a page that compares policies."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from html import escape
from itertools import repeat
from typing import Any, Final, NamedTuple

from ratelimit_ext.core.limit import Limit
from ratelimit_ext.core.money import MICRO
from ratelimit_ext.simulate.demand import FALSE_POSITIVE, Suggestion, false_positives
from ratelimit_ext.simulate.replay import MINUTE_US, Replay, ReplayOutcome, Rules, Tally
from ratelimit_ext.simulate.traffic import Traffic

MOST_CALLERS: Final = 10
BARS: Final = 120


class Result(NamedTuple):
    """What became of the traffic under one policy."""

    policy: str
    outcome: ReplayOutcome


def simulate(
    traffic: Traffic, policies: Mapping[str, Rules], progress: Callable[[], None] = lambda: None
) -> list[Result]:
    """Replay the traffic under each policy. ``progress`` is called once a call and policy."""
    results = []
    for name, rules in policies.items():
        replay = Replay(rules)
        for call in traffic:
            replay.decide(call)
            progress()
        replay.finish()
        outcome, denied = replay.outcome, replay.denied
        outcome.false_positives, outcome.wronged = false_positives(traffic, rules, denied)
        results.append(Result(name, outcome))
    return results


# -- data ------------------------------------------------------------------------------------


def as_data(results: Iterable[Result]) -> list[dict[str, Any]]:
    """Return the results for programs, dollars as numbers."""
    return [
        {
            "policy": policy,
            **_counts(outcome.total),
            "false_positives": outcome.false_positives.total(),
            "limits": [
                {
                    "name": name,
                    "denied": outcome.denials[name],
                    "would_deny": outcome.would_deny[name],
                    "false_positives": outcome.false_positives[name],
                }
                for name in _limits(outcome)
            ],
            "callers": [
                {"caller": name, **_counts(tally), "false_positives": outcome.wronged[name]}
                for name, tally in _hit(outcome)
            ],
            "waited": len(outcome.waits),
            "longest_wait": max(outcome.waits, default=0) / MICRO,
            "waits_by_class": {
                name: {"waited": len(waits), "longest_wait": max(waits) / MICRO}
                for name, waits in sorted(outcome.class_waits.items())
            },
            "calls_without": dict(outcome.unknown),
            "calls_to_unlimited_endpoints": dict(outcome.unlimited),
        }
        for policy, outcome in results
    ]


def _counts(tally: Tally) -> dict[str, Any]:
    return {
        "admitted": tally.admitted,
        "denied": tally.denied,
        "spent_usd": tally.spent / MICRO,
        "saved_usd": tally.saved / MICRO,
    }


def _limits(outcome: ReplayOutcome) -> list[str]:
    """Return the limits that denied, or would have, the busiest first."""
    return [name for name, _ in (outcome.denials + outcome.would_deny).most_common()]


def _hit(outcome: ReplayOutcome) -> list[tuple[str, Tally]]:
    """Return the callers who were denied most."""
    hit = [(name, tally) for name, tally in outcome.callers.items() if tally.denied]
    hit.sort(key=lambda item: (-outcome.wronged[item[0]], -item[1].denied, item[0]))
    return hit[:MOST_CALLERS]


# -- tables ----------------------------------------------------------------------------------

Table = tuple[str, list[list[str]]]
#: What the columns of tables are called, if not as in the data.
HEADS: Final = {
    "name": "limit",
    "would_deny": "would deny (shadow)",
    "false_positives": "false positives",
    "spent_usd": "spent",
    "saved_usd": "saved",
}
COUNTS: Final = ("admitted", "denied", "false_positives", "spent_usd", "saved_usd")
LIMITS: Final = ("name", "denied", "would_deny", "false_positives")


def tables(results: Iterable[Result]) -> list[Table]:
    """Return the tables of a report with their titles; the first row has the names of columns."""
    data = as_data(results)
    shown = [_table("Policies", data, "policy", *COUNTS)]
    for result in data:
        policy, limits, callers = result["policy"], result["limits"], result["callers"]
        if limits:
            shown.append(_table(f"{policy}: limits that denied", limits, *LIMITS))
        if callers:
            title = f"{policy}: callers who were denied most"
            shown.append(_table(title, callers, "caller", *COUNTS))
    return shown


def _table(title: str, rows: Iterable[Mapping[str, Any]], first: str, *names: str) -> Table:
    head = [HEADS.get(name, name) for name in (first, *names)]
    return title, [
        head,
        *(
            [
                row[first] or "(unknown)",
                *(_usd(row[n]) if n.endswith("_usd") else f"{row[n]:,}" for n in names),
            ]
            for row in rows
        ),
    ]


def suggestion_table(suggestions: Iterable[Suggestion]) -> Table:
    """Amounts that would do, beside the present ones."""
    rows = [["limit", "key", "now", "suggested", "identities", "above now", "largest"]]
    for suggestion in suggestions:
        rule, limit, burst = suggestion.rule, suggestion.rule.limit, suggestion.burst
        now = _amount(limit, limit.amount) + (f", burst {limit.burst:,}" if limit.burst else "")
        then = _amount(limit, suggestion.amount) + (f", burst {burst:,}" if burst else "")
        largest = ", ".join(f"{p.identity} {_amount(limit, p.amount)}" for p in suggestion.peaks)
        name = f"{rule.name} (shadow)" if rule.limit.is_shadow else rule.name
        counts = f"{suggestion.identities:,}", f"{suggestion.denied:,}"
        rows.append([name, rule.key, now, then, *counts, largest])
    return "Suggested amounts", rows


def suggestion_data(suggestions: Iterable[Suggestion]) -> list[dict[str, Any]]:
    """Return the suggestions for programs, in the limits' units (micro-dollars for ``usd``)."""
    return [
        {
            "limit": suggestion.rule.name,
            "key": suggestion.rule.key,
            "unit": suggestion.rule.limit.unit,
            "amount": suggestion.rule.limit.amount,
            "suggested_amount": suggestion.amount,
            "suggested_burst": suggestion.burst,
            "identities": suggestion.identities,
            "above_amount": suggestion.denied,
            "largest": [peak._asdict() for peak in suggestion.peaks],
        }
        for suggestion in suggestions
    ]


def _amount(limit: Limit, amount: int) -> str:
    if limit.unit == "usd":
        return _usd(amount / MICRO)
    return f"{amount:,}" if limit.unit == "requests" else f"{amount:,} {limit.unit}"


def _usd(dollars: float) -> str:
    return f"${dollars:,.2f}"


def notes(results: Iterable[Result], traffic: Traffic, left_out: Mapping[str, str]) -> list[str]:
    """Return what a reader has to know besides the tables, one sentence each."""
    texts = [FALSE_POSITIVE]
    if traffic.skipped:
        texts.append(f"{traffic.skipped:,} broken lines skipped: {'; '.join(traffic.reasons)}.")
    policies: dict[str, list[str]] = {}
    for policy, outcome in results:
        sentences = [
            f"limits by {key!r} did not count {_calls(calls)} whose {key} is not in the traffic."
            for key, calls in outcome.unknown.items()
        ]
        sentences += [
            f"no limit applies to {_calls(calls)} of {endpoint!r}."
            for endpoint, calls in outcome.unlimited.items()
        ]
        sentences += [
            f"limits that keep a part by {name!r} kept nothing from {_calls(calls)} whose "
            f"{name} is not in the traffic."
            for name, calls in outcome.classless.items()
        ]
        for name, waits in [("", outcome.waits), *sorted(outcome.class_waits.items())]:
            if waits:
                of_class = f" of class {name!r}" if name else ""
                longest_s = max(waits) / MICRO
                sentences.append(
                    f"{_calls(len(waits))}{of_class} waited, at most {longest_s:.1f} s."
                )
        for sentence in sentences:
            policies.setdefault(sentence, []).append(policy)
    texts += [f"{', '.join(names)}: {sentence}" for sentence, names in policies.items()]
    reasons: dict[str, list[str]] = {}
    for name, reason in left_out.items():
        reasons.setdefault(reason, []).append(name)
    texts += [f"Not simulated ({reason}): {', '.join(names)}." for reason, names in reasons.items()]
    return list(dict.fromkeys(texts))


def _calls(count: int) -> str:
    return f"{count:,} call" if count == 1 else f"{count:,} calls"


def as_text(table: Table) -> str:
    """Return a table for a terminal: names on the left, figures on the right."""
    title, rows = table
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            cell.ljust(width) if place == 0 else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    return "\n".join([title, *(f"  {line}" for line in lines)])


# -- page ------------------------------------------------------------------------------------

_STYLE: Final = """
:root { color-scheme: light dark } body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem }
svg { width: 100%; height: 10rem; border: solid #8886; border-width: 0 0 1px 1px }
figure { margin: 1rem 0 } pre { overflow-x: auto } .good { fill: #2a9d6f } .bad { fill: #d1495b }
"""


def as_page(results: Sequence[Result], remarks: Iterable[str]) -> str:
    """Return a page with a plot of each result, and the tables: no script, no other file."""
    minutes = [minute for result in results for minute in result.outcome.minutes] or [0]
    begin, end = min(minutes), max(minutes) + 1
    step = -(-(end - begin) // BARS)
    bars = [_bars(result.outcome, begin, step) for result in results]
    most = max((bar.admitted + bar.denied for row in bars for bar in row.values()), default=1)
    span = f"{_clock(begin)} to {_clock(end)}; {step} min and at most {_calls(most)} a bar"
    size = f"0 0 {-(-(end - begin) // step)} {most}"
    plots = "".join(map(_plot, results, bars, repeat(most), repeat(size)))
    shown = "".join(f'<pre tabindex="0">{escape(as_text(part))}</pre>' for part in tables(results))
    listed = "".join(f"<li>{escape(note)}</li>" for note in remarks)
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Simulation of rate limits</title><style>{_STYLE}</style>"
        f"<main><h1>Simulation of rate limits</h1><p>{span}, denied ones on top</p>{plots}{shown}"
        f"<h2>Notes</h2><ul>{listed}</ul></main></html>\n"
    )


def _bars(outcome: ReplayOutcome, begin: int, step: int) -> dict[int, Tally]:
    """Return the calls by parts of ``step`` minutes."""
    bars = defaultdict[int, Tally](Tally)
    for minute, tally in outcome.minutes.items():
        bar = bars[(minute - begin) // step]
        bar.admitted += tally.admitted
        bar.denied += tally.denied
    return bars


def _plot(result: Result, bars: Mapping[int, Tally], most: int, size: str) -> str:
    """Draw admitted calls, and denied ones above them, by time."""
    drawn = "".join(
        f'<path class="good" d="M{x} {most}v-{bar.admitted}h.9v{bar.admitted}z"/>'
        f'<path class="bad" d="M{x} {most - bar.admitted}v-{bar.denied}h.9v{bar.denied}z"/>'
        for x, bar in bars.items()
    )
    total = result.outcome.total
    title = escape(f"{result.policy}: {total.admitted:,} admitted, {total.denied:,} denied")
    return (
        f"<figure><figcaption>{title}</figcaption>"
        f'<svg viewBox="{size}" preserveAspectRatio="none" role="img" aria-label="{title}">'
        f"{drawn}</svg></figure>"
    )


def _clock(minute: int) -> str:
    at = datetime.fromtimestamp(minute * MINUTE_US // 1_000_000, UTC)
    return f"{at:%d %b %H:%M} UTC"
