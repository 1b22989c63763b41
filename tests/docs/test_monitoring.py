"""The dashboard and the alerts ask for figures that exist."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from chatapp.web.metrics import MEASURES as OF_CHATAPP
from ratelimit_ext.metrics.measures import MEASURES, Measure
from tests.docs.test_documents import ROOT, leads_nowhere

DOCS = Path(__file__).resolve().parents[2] / "docs" / "operate"
METRIC = re.compile(r"\b(?:ratelimit|chatapp)_[a-z_]+\b")


def series(measure: Measure, prefix: str) -> set[str]:
    """The names of a measure in queries."""
    name = f"{prefix}_{measure.name}"
    return {
        "counter": {f"{name}_total"},
        "gauge": {name},
        "sum": {name},
        "histogram": {f"{name}_bucket", f"{name}_sum", f"{name}_count"},
    }[measure.kind]


KNOWN = {
    *(name for each in MEASURES for name in series(each, "ratelimit")),
    *(name for each in OF_CHATAPP for name in series(each, "chatapp")),
}


def queries(value: Any) -> list[str]:
    """Every query of a dashboard."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    own = [value["expr"]] if isinstance(value, dict) and "expr" in value else []
    return own + [query for each in inner for query in queries(each)]


def test_the_dashboard_shows_known_figures() -> None:
    """Each panel has a query and a place of its own."""
    dashboard = json.loads((DOCS / "monitoring" / "dashboard.json").read_text())
    places = [(p["gridPos"]["x"], p["gridPos"]["y"]) for p in dashboard["panels"]]
    assert len(set(places)) == len(places) > 10
    assert all(queries(panel) for panel in dashboard["panels"])
    named = {name for query in queries(dashboard) for name in METRIC.findall(query)}
    assert named <= KNOWN


@pytest.mark.parametrize("file", ["monitoring/alerts.yaml", "metrics.md"])
def test_alerts_and_documents_name_known_figures(file: str) -> None:
    """A figure that was renamed is renamed there, too."""
    text = (DOCS / file).read_text()
    allowed = KNOWN | {name.removesuffix("_bucket") for name in KNOWN} | {"ratelimit_ext"}
    assert {*METRIC.findall(text)} <= allowed


def test_each_alert_leads_to_what_to_do() -> None:
    """Who is paged is one click from the command: the heading exists."""
    groups = yaml.safe_load((DOCS / "monitoring" / "alerts.yaml").read_text())["groups"]
    for rule in (rule for group in groups for rule in group["rules"]):
        [target] = re.findall(r"docs/\S+", rule["annotations"]["what_to_do"])
        assert not leads_nowhere(ROOT / "README.md", target), rule["alert"]


def test_every_figure_is_documented() -> None:
    """docs/operate/metrics.md lists all of them."""
    text = (DOCS / "metrics.md").read_text()
    named = {name for name in KNOWN if not name.endswith(("_sum", "_count"))}
    assert not [name for name in named if f"`{name.removesuffix('_bucket')}`" not in text]
