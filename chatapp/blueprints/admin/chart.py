"""Spending by day and decisions by minute, as stacked bars in SVG: no script, and no style that the
policy of the page's contents forbids."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
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
SMALL_HEIGHT: Final = 24
#: How many subjects have a colour of their own (admin.css); all others share the last one.
MOST: Final = 6
OTHERS: Final = "all others"
#: How many days or minutes are named below the bars, at most.
NAMED: Final = 6


@dataclass(frozen=True, slots=True)
class Chart:
    """The drawing, and its subjects in the order of their colours."""

    svg: Markup
    subjects: Sequence[str]


def chart(totals: Iterable[DayTotal], *, first: date, last: date, by: str) -> Chart:
    """Return the spending of each day from the first to the last; the dearest subject is at the
    bottom."""
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
    total = sum(sum(part.values()) for part in spent.values())
    title = f"Spending from {first} to {last} by {by}: {dollars(total)} in total"
    drawn = _drawn(
        shown, days, title, text=dollars, name=lambda d: f"{date.fromisoformat(d):%d %b}"
    )
    return Chart(drawn, list(shown))


def decisions(counts: Mapping[str, Mapping[str, int]], minutes: Sequence[str]) -> Chart:
    """Return the admitted and denied requests of each minute."""
    sums = (f"{sum(part.values()):,} {outcome}" for outcome, part in counts.items())
    title = f"Decisions from {minutes[0]} to {minutes[-1]}: {', '.join(sums)}"
    drawn = _drawn(counts, minutes, title, text=lambda count: f"{count:,}", name=str)
    return Chart(drawn, list(counts))


def small(counts: Mapping[str, Mapping[str, int]], minutes: Sequence[str], title: str) -> Markup:
    """Return the same without axes, for a line of a table: one path for each outcome."""
    top = max((sum(part[each] for part in counts.values()) for each in minutes), default=0) or 1
    bases = dict.fromkeys(minutes, SMALL_HEIGHT)
    drawn = []
    for colour, part in enumerate(counts.values()):
        path = []
        for place, minute in enumerate(minutes):
            if part[minute]:
                base = bases[minute]
                bases[minute] = base - max(1, round(part[minute] / top * SMALL_HEIGHT))
                path.append(f"M{3 * place} {base}V{bases[minute]}h2V{base}z")
        drawn.append(f'<path class="c{colour}" d="{"".join(path)}"/>')
    return Markup(  # noqa: S704 - every text in it is escaped
        f'<svg class="small" viewBox="0 0 {3 * len(minutes)} {SMALL_HEIGHT}" role="img" '
        f'aria-label="{escape(title)}">{"".join(drawn)}</svg>'
    )


def dollars(micro_usd: int) -> str:
    """Return the amount, with more digits if it is below a dollar."""
    usd = micro_usd / MICRO
    return f"${usd:,.2f}" if usd >= 1 or not usd else f"${usd:.4f}"


def _round(micro_usd: int) -> int:
    """Return the least of 1, 2, 5, 10 … that is not less."""
    step = 1
    while True:
        for factor in (1, 2, 5):
            if step * factor >= micro_usd:
                return step * factor
        step *= 10


def _drawn(
    shown: Mapping[str, Mapping[str, int]],
    slots: Sequence[str],
    title: str,
    *,
    text: Callable[[int], str],
    name: Callable[[str], str],
) -> Markup:
    """Return the parts of each slot as a bar. ``text`` writes an amount, ``name`` a slot on the
    axis."""
    top = _round(max((sum(p.get(slot, 0) for p in shown.values()) for slot in slots), default=0))
    return Markup(  # noqa: S704 - every text in it is escaped
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{escape(title)}">{_axes(slots, top, text, name)}'
        f"{_bars(shown, slots, top, text)}</svg>"
    )


def _axes(
    slots: Sequence[str], top: int, text: Callable[[int], str], name: Callable[[str], str]
) -> str:
    drawn = [f'<path class="axis" d="M{LEFT} {BASE}H{WIDTH}"/>']
    for part in (1, 2) if top > 1 else (2,):
        y = BASE - (BASE - TOP) * part // 2
        drawn.append(
            f'<path class="grid" d="M{LEFT} {y}H{WIDTH}"/>'
            f'<text x="{LEFT - 8}" y="{y + 5}" text-anchor="end">{text(top * part // 2)}</text>'
        )
    step = -(-len(slots) // NAMED)
    for place in range(0, len(slots), step):
        x = LEFT + (place + 0.5) * (WIDTH - LEFT) / len(slots)
        drawn.append(
            f'<text x="{x:.1f}" y="{BASE + 20}" text-anchor="middle">{escape(name(slots[place]))}'
            "</text>"
        )
    return "".join(drawn)


def _bars(
    shown: Mapping[str, Mapping[str, int]],
    slots: Sequence[str],
    top: int,
    text: Callable[[int], str],
) -> str:
    width = (WIDTH - LEFT) / len(slots)
    drawn = []
    for place, slot in enumerate(slots):
        y = float(BASE)
        for colour, (subject, amounts) in enumerate(shown.items()):
            amount = amounts.get(slot, 0)
            if not amount:
                continue
            tall = amount / top * (BASE - TOP)
            y -= tall
            drawn.append(
                f'<rect class="c{colour}" x="{LEFT + place * width + width * 0.1:.1f}" '
                f'y="{y:.1f}" width="{width * 0.8:.1f}" height="{tall:.1f}">'
                f"<title>{escape(subject)}, {escape(slot)}: {text(amount)}</title></rect>"
            )
    return "".join(drawn)
