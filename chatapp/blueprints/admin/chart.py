"""Spending by day, as stacked bars in SVG: no script, and no style that the policy of the page's
contents forbids."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Final

from markupsafe import Markup, escape

from chatapp.ledger.reports import MICRO, DayTotal

WIDTH: Final = 960
HEIGHT: Final = 220
LEFT: Final = 64
TOP: Final = 12
BASE: Final = HEIGHT - 28
#: How many subjects have a colour of their own (admin.css); all others share the last one.
MOST: Final = 6
OTHERS: Final = "all others"
#: How many days are named below the bars, at most.
NAMED_DAYS: Final = 6


@dataclass(frozen=True, slots=True)
class Chart:
    """The drawing, and its subjects in the order of their colours."""

    svg: Markup
    subjects: Sequence[str]


def chart(totals: Iterable[DayTotal], *, first: date, last: date, by: str) -> Chart:
    """The spending of each day from the first to the last; the dearest subject is at the bottom."""
    spent: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for each in totals:
        spent[each.subject or f"(no {by})"][each.day] += each.cost_micro_usd
    ranked = sorted(spent, key=lambda subject: (-sum(spent[subject].values()), subject))
    shown = {subject: spent[subject] for subject in ranked[:MOST]}
    for subject in ranked[MOST:]:
        others = shown.setdefault(OTHERS, defaultdict(int))
        for day, cost in spent[subject].items():
            others[day] += cost
    days = [str(first + timedelta(days=each)) for each in range((last - first).days + 1)]
    top = _round(max((sum(part[day] for part in shown.values()) for day in days), default=0))
    total = sum(sum(part.values()) for part in spent.values())
    title = f"Spending from {first} to {last} by {by}: {dollars(total)} in total"
    return Chart(
        Markup(  # noqa: S704 - every text in it is escaped
            f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
            f'aria-label="{escape(title)}">{_axes(days, top)}{_bars(shown, days, top)}</svg>'
        ),
        list(shown),
    )


def dollars(micro_usd: int) -> str:
    """The amount, with more digits if it is below a dollar."""
    usd = micro_usd / MICRO
    return f"${usd:,.2f}" if usd >= 1 or not usd else f"${usd:.4f}"


def _round(micro_usd: int) -> int:
    """The least of 1, 2, 5, 10 … that is not less."""
    step = 1
    while True:
        for factor in (1, 2, 5):
            if step * factor >= micro_usd:
                return step * factor
        step *= 10


def _axes(days: Sequence[str], top: int) -> str:
    drawn = [f'<path class="axis" d="M{LEFT} {BASE}H{WIDTH}"/>']
    for part in (1, 2):
        y = BASE - (BASE - TOP) * part // 2
        drawn.append(
            f'<path class="grid" d="M{LEFT} {y}H{WIDTH}"/>'
            f'<text x="{LEFT - 8}" y="{y + 5}" text-anchor="end">{dollars(top * part // 2)}</text>'
        )
    step = -(-len(days) // NAMED_DAYS)
    for place in range(0, len(days), step):
        named = f"{date.fromisoformat(days[place]):%d %b}"
        x = LEFT + (place + 0.5) * _width(days)
        drawn.append(f'<text x="{x:.1f}" y="{BASE + 20}" text-anchor="middle">{named}</text>')
    return "".join(drawn)


def _bars(shown: dict[str, dict[str, int]], days: Sequence[str], top: int) -> str:
    width = _width(days)
    drawn = []
    for place, day in enumerate(days):
        y = float(BASE)
        for colour, (subject, costs) in enumerate(shown.items()):
            if not costs[day]:
                continue
            tall = costs[day] / top * (BASE - TOP)
            y -= tall
            drawn.append(
                f'<rect class="c{colour}" x="{LEFT + place * width + width * 0.1:.1f}" '
                f'y="{y:.1f}" width="{width * 0.8:.1f}" height="{tall:.1f}">'
                f"<title>{escape(subject)}, {day}: {dollars(costs[day])}</title></rect>"
            )
    return "".join(drawn)


def _width(days: Sequence[str]) -> float:
    return (WIDTH - LEFT) / len(days)
