"""``flask ratelimit simulate`` and ``suggest``: from an application's policy to simulated rules.

The rules are resolved as for requests: nested blueprints, groups, plans, defaults and decorators.
What only a request knows is left to the traffic: identities, costs, and which limits are exempt.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Final

import click
import flask
from flask.cli import with_appcontext
from flask_limiter.util import get_qualified_name
from werkzeug.exceptions import HTTPException

from ratelimit_ext.operators.api import Operators, all_operators
from ratelimit_ext.simulate import report
from ratelimit_ext.simulate.demand import suggestions
from ratelimit_ext.simulate.replay import EVERYONE, Rule
from ratelimit_ext.simulate.traffic import (
    DAY_S,
    SHAPES,
    EndpointOf,
    Mixture,
    Traffic,
    made_up,
    read_lines,
)
from ratelimit_ext.terminal import echo_json, progress_bar, with_json
from ratelimit_ext.web.bound_limit import BoundLimit
from ratelimit_ext.web.commands import application
from ratelimit_ext.web.declarations.manager import Route
from ratelimit_ext.web.identities import kinds_of

_COUNT: Final = click.IntRange(min=1)
PAGE: Final = click.Path(dir_okay=False, writable=True)


class SimulatedPolicy:
    """The rules of an application, by endpoint and plan. ``left_out`` has the names of limits that
    are not simulated, each with the reason."""

    def __init__(self, operators: Operators, file: str | None) -> None:
        self._app = application()
        self._resolver = operators.resolver(file)
        self._decider = operators.decider
        self._identities = operators.identities
        #: Returns the rules of an endpoint for callers on a plan.
        self.rules = lru_cache(maxsize=None)(self._rules)
        self.left_out: dict[str, str] = {}

    def _rules(self, endpoint: str, plan: str) -> tuple[Rule, ...]:
        """Return the rules; of POST if the endpoint has this method."""
        view = self._app.view_functions.get(endpoint)
        return () if view is None else tuple(self._compiled(endpoint, view, plan))

    def _compiled(self, endpoint: str, view: Callable[..., Any], plan: str) -> Iterator[Rule]:
        [*methods] = {
            method
            for rule in self._app.url_map.iter_rules(endpoint)
            for method in rule.methods or ()
        } - {"HEAD", "OPTIONS"}
        method = "POST" if "POST" in methods else min(methods, default="GET")
        blueprint = endpoint.rpartition(".")[0] or None
        # A class may have its limits at a method. Another policy may limit the view itself.
        name = self._decider(endpoint, view, blueprint, method) or get_qualified_name(view)
        route = Route(self._app, endpoint, blueprint, method, name)
        for bound in self._resolver.limits_on_plan(route, plan).limits:
            traits = bound.limit.traits
            if traits.external or not (traits.form is None or traits.form.has_amount):
                self.left_out[bound.name] = "it follows something outside the traffic"
            else:
                yield self._rule(bound)

    def _rule(self, bound: BoundLimit) -> Rule:
        limit, function = bound.limit, bound.runtime.key_func
        named = partial(kinds_of, named=self._identities, form="{}")  # as traffic names them
        key = ",".join(named(function))
        counts_calls = limit.unit == "requests" or limit.traits.one_per_call
        if counts_calls and bound.fixed_cost is None:
            self.left_out[f"{bound.name}, cost"] = "a function of a request; each call counts as 1"
        return Rule(
            name=bound.name,
            limit=limit,
            key=EVERYONE if key == "everyone" else key,
            bucket=bound.bucket_prefix,
            cost=(1 if bound.fixed_cost is None else bound.fixed_cost) if counts_calls else None,
            optional=bound.optional,
            covers=None if bound.condition is None else bound.condition.covers,
            priority=named(limit.priority)[0] if limit.keep else "",
            member=named(bound.member)[0] if bound.member else "",
        )


def endpoint_finder(app: flask.Flask) -> EndpointOf:
    """Return a function that finds the endpoint of a method and a path of the application."""
    adapter = app.url_map.bind("localhost")

    @lru_cache(maxsize=4096)
    def find(method: str, path: str) -> str | None:
        try:
            return str(adapter.match(path.partition("?")[0], method=method)[0])
        except HTTPException:
            return None

    return find


# -- commands --------------------------------------------------------------------------------


#: What made-up traffic is made of, each with its type, its default and its meaning.
_MADE_UP: Final = (
    ("endpoint", str, None, "the endpoint that is called"),
    ("plan", str, "", "the plan of all callers"),
    ("model", str, "any", "the model of all calls"),
    ("users", _COUNT, 50, "how many users; default 50"),
    ("calls", _COUNT, 10_000, "how many calls; default 10,000"),
    ("days", click.FloatRange(0, 366, min_open=True), 1.0, "over how many days; default 1"),
    ("tokens", _COUNT, 2_000, "the average tokens of a call; default 2,000"),
    ("usd", click.FloatRange(0, 1000), 0.01, "the average dollars of a call; default 0.01"),
    ("seconds", click.FloatRange(0, DAY_S), 8.0, "the average seconds of a call; default 8"),
    ("seed", int, 1, "the seed of its random numbers; default 1"),
)


def _traffic_options(command: Callable[..., None]) -> Callable[..., None]:
    exempt = "Leave out the limit of this name; may be repeated."
    command = click.option("--exempt", multiple=True, help=exempt)(command)
    for name, kind, default, meaning in reversed(_MADE_UP):
        text = f"Made-up traffic: {meaning}."
        command = click.option(f"--{name}", type=kind, default=default, help=text)(command)
    source = f"A file of JSONL or a common log, - for the input, or {', '.join(SHAPES)}."
    return click.option("--traffic", "source", required=True, help=source)(command)


@click.command()
@click.option(
    "--policy",
    "files",
    multiple=True,
    type=click.Path(exists=True, dir_okay=False),
    help="A policy file; repeat it to compare. Without it: the application's policy.",
)
@_traffic_options
@click.option("--html", "page", type=PAGE, help="Also write the report to this HTML file.")
@with_json
@with_appcontext
def simulate(files: tuple[str, ...], page: str | None, *, as_json: bool, **asked: Any) -> None:
    """Replay traffic under one or more policies, in virtual time.

    Shows what would be admitted and denied, to whom, what it would cost, and which denials would be
    false positives. Nothing is charged.
    """
    traffic, operators = _traffic(**asked), all_operators()
    policies = {name: SimulatedPolicy(operators, name) for name in files} or {
        "the current policy": SimulatedPolicy(operators, None)
    }
    length = traffic.length
    label = "Simulating" if len(policies) == 1 else f"Simulating {len(policies)} policies"
    with progress_bar(label, length and length * len(policies)) as bar:
        rules = {name: policy.rules for name, policy in policies.items()}
        results = report.simulate(traffic, rules, partial(bar, 1))
    total = results[0].outcome.total
    if not total.admitted + total.denied:
        _report_broken(traffic)
        raise click.ClickException("The traffic has no calls.")
    left_out = {name: why for policy in policies.values() for name, why in policy.left_out.items()}
    remarks = report.notes(results, traffic, left_out)
    if page:
        try:
            Path(page).write_text(report.as_page(results, remarks), "utf-8")
        except OSError as error:
            raise click.ClickException(f"--html: cannot write {page}: {error.strerror}.") from None
    if as_json:
        echo_json({"policies": report.as_data(results), "notes": remarks})
    else:
        click.echo("\n\n".join(map(report.as_text, report.tables(results))))
        click.echo("\n" + "\n".join(remarks))
    _report_broken(traffic)


@click.command()
@_traffic_options
@click.option(
    "--share",
    type=click.FloatRange(0, 100, min_open=True),
    default=99.0,
    show_default=True,
    help="The percentage of callers who should never be refused.",
)
@with_json
@with_appcontext
def suggest(share: float, *, as_json: bool, **asked: Any) -> None:
    """Propose amounts for the limits of the current policy, from traffic.

    For each limit: the smallest amount at which --share of its identities would have had no
    refusal, by the limit's strategy. For a token bucket: the largest use in any period, with the
    burst that allows it.
    """
    traffic, policy = _traffic(**asked), SimulatedPolicy(all_operators(), None)
    suggested = suggestions(traffic, policy.rules, share=share / 100)
    if not suggested:
        _report_broken(traffic)
        raise click.ClickException("The traffic has no calls that a limit counts.")
    if as_json:
        echo_json(report.suggestion_data(suggested))
    else:
        click.echo(report.as_text(report.suggestion_table(suggested)))
    _report_broken(traffic)


def _traffic(source: str, **made_up_of: Any) -> Traffic:
    app = application()
    if source in SHAPES:
        endpoint = made_up_of["endpoint"]
        endpoints = sorted(app.view_functions.keys() - {"static"})
        if endpoint not in endpoints:
            problem = "--endpoint is missing" if endpoint is None else f"no endpoint {endpoint!r}"
            raise click.UsageError(f"{problem}; choose one of {', '.join(endpoints)}.")
        return made_up(source, Mixture(**made_up_of))
    if source == "-":
        lines = sys.stdin.readlines()
        return read_lines(lambda: lines, endpoint_finder(app))
    path = Path(source)
    if not path.is_file():
        raise click.UsageError(
            f"--traffic: found {source!r}; allowed: a file, - or one of {', '.join(SHAPES)}."
        )
    return read_lines(lambda: path.open(encoding="utf-8", errors="replace"), endpoint_finder(app))


def _report_broken(traffic: Traffic) -> None:
    """Exit with 1 if lines were skipped, so that a script sees it."""
    if traffic.skipped:
        raise click.ClickException(
            f"lines skipped: {traffic.skipped:,} ({'; '.join(traffic.reasons)})."
        )
