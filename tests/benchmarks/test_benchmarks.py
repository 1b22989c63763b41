"""The benchmarks run, with numbers too small to measure anything. No test asserts a time."""

import json
import math
import os
import socketserver
import subprocess
import sys
import threading
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from benchmarks import against, gateway, load, peers, report, streams
from benchmarks.__main__ import NAMES
from benchmarks.gateway import Target
from benchmarks.harness import TINY, Figure, Plot, Rounds, Session, alternate
from benchmarks.mock_upstream import DELAY_MS, mock_upstream

ROOT = Path(__file__).resolve().parents[2]
#: How many figures of the contract each benchmark measures.
FIGURES = {
    "request_cost": 4,
    "throughput": 3,
    "hot_key": 4,
    "server_time": 4,
    "memory": 4,
    "gateway": 4,
    "streams": 1,
    "sizing": 0,
}


def run_benchmarks(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "benchmarks", *arguments],
        cwd=ROOT,
        env={name: value for name, value in os.environ.items() if not name.startswith("RATELIMIT")},
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )


def test_every_benchmark_is_tested() -> None:
    """The table above has all of them."""
    assert FIGURES.keys() == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_it_runs(name: str, tmp_path: Path) -> None:
    """A run writes JSON with rows and figures, a plot that is XML, and the page. It leaves no
    journal in the tree, which a later run would report."""
    before = set(ROOT.glob("instance/settlements/*"))
    ended = run_benchmarks(name, "--scale", "tiny", "--output", str(tmp_path))
    assert ended.returncode == 0, ended.stderr
    assert set(ROOT.glob("instance/settlements/*")) <= before
    found = json.loads((tmp_path / f"{name}.valkey.json").read_text())
    assert len(found["figures"]) == FIGURES[name]
    assert found["rows"]
    assert {"date", "machine", "revision", "server", "skipped", "versions"} <= found.keys()
    ET.parse(tmp_path / f"{name}.valkey.svg")  # noqa: S314 - our own
    assert found["title"] in (tmp_path / "README.md").read_text()


def test_a_pinned_result_stands_beside_the_other(tmp_path: Path) -> None:
    """It has files, figures and a section of its own, which say what it is."""
    for options in ([], ["--pinned"]):
        ended = run_benchmarks(
            "request_cost", "--scale", "tiny", "--output", str(tmp_path), *options
        )
        assert ended.returncode == 0, ended.stderr
    found = json.loads((tmp_path / "request_cost.pinned.valkey.json").read_text())
    assert found["pinned"]
    page = (tmp_path / "README.md").read_text()
    assert "## A request in one process, all on one CPU: Valkey" in page
    assert "## A request in one process: Valkey" in page
    assert "(request_cost.pinned.valkey.svg)" in page
    assert page.count("relative to Flask-Limiter's (all on one CPU)") == 1


ANSWERS = {
    "whole": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n",
    "cut off": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n",
    "refused": b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n",
}


def test_each_stream_is_served_refused_or_lost() -> None:
    """However a server ends its answers, or does not listen."""
    answers = cycle(ANSWERS.values())

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            if b"GET /healthz" not in self.request.recv(65_536):
                self.request.sendall(next(answers))

    class Server(socketserver.TCPServer):
        request_queue_size = 32

    with Server(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever).start()
        port = server.server_address[1]
        found = streams.load(Target(port, 1, os.getpid()), "key", 9, 0.1)
        server.shutdown()
    row = found.row("a server", 9, 0.1)
    assert (row["served"], row["refused"], row["lost"]) == (3, 3, 3)
    gone = streams.load(Target(port, 1, os.getpid()), "key", 2, 0.1)
    assert gone.statuses == {streams.LOST: 2}


def test_against_another_revision() -> None:
    """Both trees measure the same contenders, and nothing is written."""
    ended = run_benchmarks("request_cost", "--scale", "tiny", "--against", "HEAD")
    assert ended.returncode == 0, ended.stderr
    assert "| before |" in ended.stdout
    assert "ratelimit_ext, token bucket" in ended.stdout
    unknown = run_benchmarks("request_cost", "--against", "nothing")
    assert unknown.returncode == 1
    assert unknown.stderr.startswith("--against nothing: ")


def test_a_turn_is_compared_with_its_neighbour() -> None:
    """A machine slower in one turn changes no ratio; what one revision lacks is left out."""
    before = [{"rounds": {"µs": {"a": [slow * 10], "gone": [1]}}} for slow in (1, 3, 1)]
    now = [{"rounds": {"µs": {"a": [slow * 5], "new": [1]}}} for slow in (1, 3, 1)]
    (row,) = against.rows(list(zip(before, now, strict=True)))
    assert (row["contender"], row["before"], row["now"]) == ("a", 10, 5)
    assert (row["now of before"], row["turns"]) == (0.5, "0.50 to 0.50")


def test_a_side_without_a_result(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that fails is named, with its error; the other turns are compared. Without a turn of
    both sides there is no table."""
    failing: set[int] = {0}
    runs: list[Path] = []

    def measured(name: str, tree: Path, arguments: Any) -> dict[str, Any]:
        runs.append(tree)
        if len(runs) - 1 in failing:
            raise against.NoResult("ZeroDivisionError")
        return {"rounds": {"µs": {name: [10.0 if tree == ROOT else 5.0]}}}

    monkeypatch.setattr(against, "measured", measured)
    table, failure = against.compare("a", "HEAD", ()).split("\n\n")
    assert "2.00 to 2.00" in table
    assert failure == "No result in turn 1, before: ZeroDivisionError"
    runs.clear()
    failing |= {3, 4}  # the order changes in each turn
    with pytest.raises(SystemExit, match=r"turn 2, before: .*\n.*turn 3, before: Zero"):
        against.compare("a", "HEAD", ())


def test_a_failed_run_is_no_result(tmp_path: Path) -> None:
    """Its error is kept."""
    with pytest.raises(against.NoResult, match="No module named benchmarks"):
        against.measured("memory", tmp_path, ())


def test_exact_counts() -> None:
    """A count is reached only if it is exact; a bound is reached at its target."""
    assert Figure("", 5, "exactly", 5).reached
    assert not Figure("", 6, "exactly", 5).reached
    assert Figure("", 5, "at most", 5).reached
    assert not Figure("", 4, "at least", 5).reached


def test_contenders_take_turns() -> None:
    """Each round measures all contenders once, after one round that does not count."""
    order: list[str] = []

    def measure(name: str) -> float:
        order.append(name)
        return len(order)

    found = alternate({"a": lambda: measure("a"), "b": lambda: measure("b")}, 2)
    assert order == ["a", "b"] * 3
    assert found == {"a": [3, 5], "b": [4, 6]}


def test_ratios() -> None:
    """A ratio is that of the best rounds, and the median of the rounds' own; with a floor, of what
    both add to it."""
    rounds = Rounds({"floor": [10, 20, 30], "base": [20, 40, 40], "here": [25, 30, 90]}, "lower")
    assert rounds.ratio("here", "base") == (25 / 20, 25 / 20)
    assert rounds.ratio("here", "base", over="floor") == (15 / 10, 15 / 10)


def test_no_ratio_to_nothing() -> None:
    """A figure is missed if what it is compared with has nothing, or adds nothing to the floor."""
    rounds = Rounds({"floor": [10, 10], "base": [9, 20], "here": [12, 12], "none": [0, 0]}, "lower")
    for over, base in (("floor", "base"), (None, "none")):
        figure = rounds.figure("", "here", base, "at most", 1, over=over)
        assert math.isnan(figure.value)
        assert not figure.reached


def test_rounds_end_in_time() -> None:
    """A round that would end too late does not begin; the first one always does."""
    contenders = {"a": lambda: sum(range(1_000))}
    assert len(alternate(contenders, 3, within_s=0)["a"]) == 1
    assert len(alternate(contenders, 3, within_s=60)["a"]) == 3


def test_the_provider_takes_its_time() -> None:
    """Each call has another prompt of the same length, and is answered after the delay; a call that
    asks for an answer at once is always the same."""
    first, second = islice(gateway.requests("key"), 2)
    assert first != second
    assert len(first) == len(second)
    fast, same = islice(gateway.requests("key", at_once=True), 2)
    assert fast == same
    with mock_upstream() as port:
        slow = load.drive(port, iter([first, second, first]), connections=2, seconds=60)
        quick = load.drive(port, iter([fast]), connections=1, seconds=60, process=os.getpid())
    assert len(slow.times) == 3
    assert min(slow.times) >= DELAY_MS / 1e3 > min(quick.times)
    assert quick.cpu_s > 0


def test_refusals_are_counted() -> None:
    """An expected refusal is neither an answer nor an error; an unexpected one is an error."""

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            self.request.recv(65_536)
            self.request.sendall(ANSWERS["refused"])

    with socketserver.TCPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever).start()
        once = partial(load.drive, server.server_address[1], connections=1, seconds=60)
        found = once(iter([b"x"]), refusal=503)
        with pytest.raises(RuntimeError, match="status 503"):
            once(iter([b"x"]))
        server.shutdown()
    assert (found.refused, found.times) == (1, [])


def test_missing_peer(monkeypatch: pytest.MonkeyPatch) -> None:
    """A peer that is not installed is left out, and the result says so."""
    monkeypatch.setitem(peers.MODULES, "throttled-py", "no_such_module")
    session = Session(TINY, "", client=None, folder=Path())  # type: ignore[arg-type]
    found: dict[str, Any] = peers.installed({"limits, x": 1, "throttled-py, y": 2}, session)
    assert found == {"limits, x": 1}
    assert [line.partition(":")[0] for line in session.skipped] == ["throttled-py, y"]


def test_tables() -> None:
    """A table is aligned Markdown with three digits a number."""
    rows = [{"name": "a", "µs": 1234.5}, {"name": "bcde", "µs": None}]
    assert report.table(rows).splitlines() == [
        "| name |    µs |",
        "| ---- | ----: |",
        "| a    | 1,234 |",
        "| bcde |       |",
    ]


@pytest.mark.parametrize(
    "plot",
    [
        Plot("Bars & more", "µs", bars={"a": 0, "<b>": 3}),
        Plot("Lines", "µs", lines={"a": {1: 0.5}}, x="keys"),
    ],
    ids=["bars", "one point"],
)
def test_plots(plot: Plot) -> None:
    """A plot is valid XML that shows every name, whatever the values."""
    drawn = "".join(ET.fromstring(report.svg(plot)).itertext())  # noqa: S314 - our own
    assert all(name in drawn for name in (*plot.bars, *plot.lines, plot.title))
