"""Real clients in front of this server, unchanged except for its address. Opt-in, because each gets
an environment from a package index: RATELIMIT_CLIENT_MATRIX=1, or =write to put the table into
docs/benchmarks/clients.md."""

import dataclasses
import datetime as dt
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.clients.client_matrix import (
    CACHE,
    CLIENTS,
    REPORT,
    SAID,
    SCENARIOS,
    Client,
    Outcome,
    Scenario,
    play,
)

pytestmark = [
    pytest.mark.sdk_matrix,
    pytest.mark.slow,
    pytest.mark.skipif(
        not os.environ.get("RATELIMIT_CLIENT_MATRIX"),
        reason="RATELIMIT_CLIENT_MATRIX=1 makes an environment for each client",
    ),
]

FILE = "tests/e2e/clients/test_client_matrix.py"
PAGE = Path(__file__).resolve().parents[3] / "docs" / "benchmarks" / "clients.md"
TABLE = re.compile(r"(?<=<!-- matrix -->\n).*(?=<!-- /matrix -->)", re.DOTALL)
CELLS = [
    pytest.param(client, scenario, id=f"{client.name}-{scenario.name}")
    for client in CLIENTS
    for scenario in SCENARIOS
    if client.meets(scenario)
]


OUTCOMES = CACHE / "outcomes"


@pytest.fixture(scope="module", autouse=True)
def page() -> Iterator[None]:
    """Write the table into the page at the end: cells of this run and of earlier ones."""
    OUTCOMES.mkdir(parents=True, exist_ok=True)
    yield
    if os.environ["RATELIMIT_CLIENT_MATRIX"] == "write":
        PAGE.write_text(TABLE.sub(lambda _: table(), PAGE.read_text()))


@pytest.mark.parametrize(("client", "scenario"), CELLS)
def test_the_client_works(
    client: Client, scenario: Scenario, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It gets its answer, or shows why not; the provider is called no more than necessary, and
    the ledger is the provider's bill."""
    outcome = play(client, scenario, tmp_path, monkeypatch)
    file_of(client, scenario).write_text(json.dumps(dataclasses.asdict(outcome)))
    assert is_paid(scenario, outcome), outcome
    assert bool(wrong(client, scenario, outcome)) == (scenario.name in client.habits), outcome


def file_of(client: Client, scenario: Scenario) -> Path:
    return OUTCOMES / f"{client.name} {scenario.name}.json".replace("/", "-")


def wrong(client: Client, scenario: Scenario, outcome: Outcome) -> list[str]:
    """What is not as it should be."""
    most = 1 if scenario.shows is None else client.retries + 1
    checks = {
        "answer": is_answered(client, scenario, outcome),
        "attempts": outcome.attempts <= scenario.attempts * most,
        "requests": outcome.requests <= scenario.requests * most,
        "ledger": is_paid(scenario, outcome),
    }
    return [name for name, is_right in checks.items() if not is_right]


def is_answered(client: Client, scenario: Scenario, outcome: Outcome) -> bool:
    """Whether the client showed the answer, or the reason of its failure."""
    if scenario.is_interrupted:
        return outcome.is_over
    if scenario.shows is not None:
        shown = " ".join(f"{outcome.text} {outcome.error}".split())
        return bool(re.search(client.shows.get(scenario.name, scenario.shows), shown))
    if outcome.text is None:
        return False
    if scenario.way == "structured" or client.ways[0] == "structured":
        return bool(json.loads(outcome.text) == REPORT)
    return SAID in outcome.text


def is_paid(scenario: Scenario, outcome: Outcome) -> bool:
    """Each call is rounded up to a micro-dollar. Without a usage, the ledger is an estimate, which
    includes output that the provider may have hidden."""
    if scenario.is_estimated:
        return outcome.ledger >= outcome.billed * 0.9
    return 0 <= outcome.ledger - outcome.billed <= outcome.calls


def table() -> str:
    """The table of the page, and the habits below it."""
    today = dt.datetime.now(dt.UTC).date()
    lines = [
        f"Generated on {today} by `RATELIMIT_CLIENT_MATRIX=write python -m pytest {FILE}`.\n",
        f"| client | version | {' | '.join(scenario.name for scenario in SCENARIOS)} |",
        "| --- " * (len(SCENARIOS) + 2) + "|",
    ]
    notes: list[str] = []
    for client in CLIENTS:
        marks, version = [], "–"
        for scenario in SCENARIOS:
            file = file_of(client, scenario)
            outcome = Outcome(**json.loads(file.read_text())) if file.exists() else None
            version = (outcome and outcome.version) or version
            marks.append(mark(client, scenario, outcome, notes))
        lines.append(f"| {client.name} | {version} | {' | '.join(marks)} |")
    numbered = (f"{number}. {note}" for number, note in enumerate(notes, 1))
    return "\n".join([*lines, "", *numbered, ""])


def mark(client: Client, scenario: Scenario, outcome: Outcome | None, notes: list[str]) -> str:
    """A cell; a habit is added to the notes."""
    if outcome is None:
        return "–"
    requests = f" {outcome.requests}" if outcome.requests > 1 else ""
    if scenario.name not in client.habits:
        problems = wrong(client, scenario, outcome)
        return f"✗ {', '.join(problems)}" if problems else f"✓{requests}"
    note = f"The client {client.habits[scenario.name]}."
    if note not in notes:
        notes.append(note)
    return f"({notes.index(note) + 1}){requests}"
