"""Results for people: tables in Markdown, plots in SVG."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, TypeVar

from benchmarks.harness import Plot, stem

COLOURS = ("#2563eb", "#dc2626", "#059669", "#d97706", "#7c3aed", "#0891b2")
T = TypeVar("T")
Found = dict[str, Any]


def number(value: str | float | None) -> str:
    """Three digits, or all of a larger number."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, int) or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


# -- tables ----------------------------------------------------------------------------------------


def page(folder: Path, names: Sequence[str]) -> str:
    """All results in the folder: the promised figures first, then a section per result."""
    found = [
        json.loads(path.read_text())
        for name in names
        for path in sorted(folder.glob(f"{name}.*.json"))
    ]
    parts = [
        "# Benchmark results",
        "Written by `python -m benchmarks`; see [how to read them](../../benchmarks/README.md).",
        table([row for one in found for row in figures(one)]),
    ]
    for one in found:
        file = stem(one)
        plot, rounds = f"![{one['title']}]({file}.svg)", f"All rounds: [{file}.json]({file}.json)."
        parts += [section(one), plot, f"{context(one)} {rounds}"]
    return "\n\n".join(parts) + "\n"


def section(one: Found) -> str:
    parts = [f"## {one['title']}: {server(one)}", one["notes"], table(one["rows"])]
    if one["skipped"]:
        parts.append(f"Skipped: {'; '.join(one['skipped'])}.")
    return "\n\n".join(parts)


def figures(one: Found) -> list[dict[str, str]]:
    """A row for each promised figure."""
    signs = {"at most": "≤ ", "at least": "≥ ", "exactly": ""}
    return [
        {
            "figure": each["what"] + (" (all on one CPU)" if one.get("pinned") else ""),
            "server": server(one),
            "target": f"{signs[each['relation']]}{each['target']:,} {each['unit']}".strip(),
            "measured": f"{number(each['value'])} {each['unit']}".strip(),
            "median": number(each["median"]),
            "": "reached" if each["reached"] else "missed",
        }
        for each in one["figures"]
    ]


def table(rows: Sequence[Mapping[str, str | float | None]]) -> str:
    """A table in Markdown, aligned so that it can also be read as it is; empty without rows."""
    if not rows:
        return ""
    cells = [list(rows[0]), *([number(value) for value in row.values()] for row in rows)]
    numeric = [not any(isinstance(value, str) for value in row) for row in columns_of(rows)]
    widths = [max(3, *map(len, column)) for column in zip(*cells, strict=True)]
    rule = ["-" * (w - 1) + (":" if n else "-") for w, n in zip(widths, numeric, strict=True)]
    return "\n".join(
        "| "
        + " | ".join(
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(row, widths, numeric, strict=True)
        )
        + " |"
        for row in [cells[0], rule, *cells[1:]]
    )


def columns_of(rows: Sequence[Mapping[str, T]]) -> list[tuple[T, ...]]:
    return list(zip(*(row.values() for row in rows), strict=True))


def server(one: Found) -> str:
    return f"{one['server']['product'].title()} {one['server']['version']}"


def context(one: Found) -> str:
    """When, on what and with what a result was measured."""
    machine = one["machine"]
    packages = ", ".join(f"{name} {version}" for name, version in one["versions"].items())
    return (
        f"Measured {one['date'][:10]} ({one['scale']} run, revision {one['revision']}) on "
        f"{machine['processor']}, {machine['cores']} cores, {machine['system']}, load "
        f"{machine['load']} before; {packages}."
    )


# -- SVG -------------------------------------------------------------------------------------------


def svg(plot: Plot) -> str:
    width, height, body = lines(plot) if plot.lines else bars(plot)
    title = _text(12, 22, f"{plot.title} ({plot.unit})", weight="bold")
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
        f'font-family="sans-serif" font-size="12">\n<rect width="100%" height="100%" '
        f'fill="white"/>\n' + "\n".join([title, *body]) + "\n</svg>\n"
    )


def bars(plot: Plot) -> tuple[int, int, list[str]]:
    left, full, step = 330, 330, 24
    most = max(plot.bars.values()) or 1
    body = []
    for place, (name, value) in enumerate(plot.bars.items()):
        y = 40 + place * step
        colour = COLOURS[0] if "ratelimit_ext" in name else "#9ca3af"
        size = max(1, round(full * max(value, 0) / most))
        body += [
            _text(left - 8, y + 13, name, anchor="end"),
            f'<rect x="{left}" y="{y}" width="{size}" height="17" fill="{colour}"/>',
            _text(left + size + 6, y + 13, number(value)),
        ]
    return 760, 50 + len(plot.bars) * step, body


def lines(plot: Plot) -> tuple[int, int, list[str]]:
    left, top, full, high = 70, 45, 430, 230
    places = sorted({x for series in plot.lines.values() for x in series})
    most = max(y for series in plot.lines.values() for y in series.values()) * 1.1 or 1
    span = math.log(places[-1] / places[0]) or 1

    def at(x: float, y: float) -> tuple[float, float]:
        across = math.log(x / places[0]) / span
        return round(left + full * across, 1), round(top + high * (1 - y / most), 1)

    body = [f'<path d="M{left} {top}V{top + high}H{left + full}" fill="none" stroke="#6b7280"/>']
    for share in (0, 0.5, 1):
        _, y = at(places[0], most * share)
        body.append(_text(left - 8, y + 4, number(most * share), anchor="end"))
    for place in places:
        x, _ = at(place, 0)
        body.append(_text(x, top + high + 18, f"{place:,}", anchor="middle"))
    body.append(_text(left + full / 2, top + high + 36, plot.x, anchor="middle"))
    for place, (name, series) in enumerate(plot.lines.items()):
        colour = COLOURS[place % len(COLOURS)]
        points = [at(x, y) for x, y in sorted(series.items())]
        drawn = " ".join(f"{x},{y}" for x, y in points)
        body.append(f'<polyline points="{drawn}" fill="none" stroke="{colour}" stroke-width="2"/>')
        body += [f'<circle cx="{x}" cy="{y}" r="3" fill="{colour}"/>' for x, y in points]
        body.append(_text(left + full + 20, top + 14 + place * 20, name, fill=colour))
    return 760, top + high + 50, body


def _text(x: float, y: float, content: str, **style: str) -> str:
    names = {"anchor": "text-anchor", "weight": "font-weight", "fill": "fill"}
    attributes = "".join(f' {names[name]}="{value}"' for name, value in style.items())
    return f'<text x="{x}" y="{y}"{attributes}>{escape(content)}</text>'
