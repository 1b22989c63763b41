"""Spending by day and decisions by minute, as the stacked bars that admin/chart.html draws."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from typing import ClassVar, Final

from chatapp.ledger.reports import MICRO, OTHERS, DayTotal

#: How many subjects have a colour of their own (admin.css); all others share the last one.
MOST: Final = 6


@dataclass(frozen=True, slots=True)
class Chart:
    """The amounts of each subject by slot: a day, or a minute. The subjects are in the order of
    their colours. ``text`` writes an amount, ``name`` a slot on the axis."""

    title: str
    amounts: Mapping[str, Mapping[str, int]]
    slots: Sequence[str]
    text: Callable[[int], str] = "{:,}".format
    name: Callable[[str], str] = str

    SMALL_HEIGHT: ClassVar = 24

    @property
    def most(self) -> int:
        sums = (sum(part.get(slot, 0) for part in self.amounts.values()) for slot in self.slots)
        return max(sums, default=0)

    @property
    def paths(self) -> Iterator[str]:
        """The path of each subject in a drawing without axes."""
        most, bases = self.most, dict.fromkeys(self.slots, self.SMALL_HEIGHT)
        for part in self.amounts.values():
            path = ""
            for place, slot in enumerate(self.slots):
                if part[slot]:
                    base = bases[slot]
                    bases[slot] -= max(1, round(part[slot] / most * self.SMALL_HEIGHT))
                    path += f"M{3 * place} {base}V{bases[slot]}h2V{base}z"
            yield path

    @property
    def top(self) -> int:
        """The end of the axis: the least of 1, 2, 5, 10 … that no bar exceeds."""
        most, step = self.most, 1
        while 5 * step < most:
            step *= 10
        return next(step * factor for factor in (1, 2, 5) if step * factor >= most)


def chart(totals: Iterable[DayTotal], *, first: date, last: date, by: str) -> Chart:
    """Return the spending of each day of that time; the dearest subject is at the bottom."""
    spent: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for day_total in totals:
        spent[day_total.subject or f"(no {by})"][day_total.day] += day_total.cost_micro_usd
    sums = {subject: sum(days.values()) for subject, days in spent.items()}
    ranked = sorted(spent, key=lambda subject: (subject == OTHERS, -sums[subject], subject))
    shown = {subject: spent[subject] for subject in ranked[:MOST]}
    for subject in ranked[MOST:]:
        others = shown.setdefault(OTHERS, defaultdict(int))
        for day, cost in spent[subject].items():
            others[day] += cost
    days = [str(first + timedelta(days=number)) for number in range((last - first).days + 1)]
    title = f"Spending from {first} to {last} by {by}: {dollars(sum(sums.values()))} in total"
    # A day with more credit than spending has no bar.
    shown = {s: {day: max(0, part.get(day, 0)) for day in days} for s, part in shown.items()}
    return Chart(title, shown, days, dollars, lambda day: f"{date.fromisoformat(day):%d %b}")


def decisions(counts: Mapping[str, Mapping[str, int]], minutes: Sequence[str]) -> Chart:
    sums = (f"{sum(part.values()):,} {outcome}" for outcome, part in counts.items())
    title = f"Decisions from {minutes[0]} to {minutes[-1]}: {', '.join(sums)}"
    return Chart(title, counts, minutes)


def dollars(micro_usd: int) -> str:
    """Return the amount, with more digits if it is below a dollar."""
    sign, usd = "-" if micro_usd < 0 else "", abs(micro_usd) / MICRO
    digits = 2 if usd >= 1 or not usd else 4 if usd >= 0.00005 else 6
    return f"{sign}${usd:,.{digits}f}"
