"""chatapp over a mock provider, beside a view that calls the provider's official SDK."""

from __future__ import annotations

import json
import os
import random
import re
import statistics
import string
import subprocess
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import islice, product
from pathlib import Path
from typing import NamedTuple

from benchmarks.harness import Plot, Result, Row, Session, alternate, columns
from benchmarks.load import drive, get, post_request
from benchmarks.mock_upstream import DELAY_MS, MODEL, mock_upstream
from benchmarks.servers import ROOT, end, free_port, gunicorn, wait_for

PATH = "/v1/chat/completions"
MODES = ("plain", "streamed")
ROOM = 1_000_000
UPSTREAM, SDK = "upstream alone", "official SDK in a view, no limits"
UNLIMITED, CHATAPP = "chatapp, limits disabled", "chatapp, all limits"
LITELLM = "LiteLLM proxy, no limits, no keys"
PORTKEY = "Portkey gateway, no limits, no keys"
AT_ONCE = "Say something kind about rate limits, at once."
ANSWERS = 3  # per connection and round, of a provider that takes its time
#: One letter in six is a space. Seeded once, so that no cell repeats another's prompts.
LETTERS, CHANCE = string.ascii_lowercase + " " * 5, random.Random(0)


class Target(NamedTuple):
    port: int
    workers: int  # that share its connections; 1 if it does not tell them apart
    process: int = 0  # of which it and its workers descend; 0 if that is not measured
    headers: Mapping[str, str] = {}  # of each call, beside those of all gateways
    modes: Collection[str] = MODES  # the answers that it gives


class Case(NamedTuple):
    """A load; ``delay_ms`` is the provider's."""

    delay_ms: int
    mode: str
    connections: int

    def cell(self, gateway: str) -> str:
        # Earlier revisions had no delay: --against finds their cells by these names.
        delay = f" | {self.delay_ms} ms" if self.delay_ms else ""
        return f"{gateway} | {self.mode} | {self.connections}{delay}"


def run(session: Session) -> Result:
    scale = session.scale
    lone, several, many = scale.connections
    # Of slow streams only the most at once: few of them show nothing that plain answers do not.
    cases = [Case(DELAY_MS, "plain", n) for n in scale.connections]
    cases.append(Case(DELAY_MS, "streamed", many))
    cases += [Case(0, *each) for each in product(MODES, (lone, several))]
    cells: dict[str, Callable[[], tuple[float, ...]]] = {}
    with targets(session) as (running, key):
        rows_of = [
            (case, name)
            for case, name in product(cases, running)
            if name != UPSTREAM or case.connections != many  # the queue hides what is added
            if case.mode in running[name].modes
        ]
        for case, name in rows_of:
            calls = max(ANSWERS * case.connections, 0 if case.delay_ms else scale.calls)
            cells[case.cell(name)] = partial(load, running[name], key, case, calls, scale.seconds)
        warm_up = [
            Case(0, mode, several).cell(name) for name in running for mode in running[name].modes
        ]
        found = alternate(cells, scale.rounds, within_s=scale.gateway_s, warm_up=warm_up)
    rates, cpus, p50s, p99s, firsts, refused = columns(found, "higher", *["lower"] * 5)

    def row(case: Case, name: str) -> Row:
        own, upstream, sdk = (case.cell(each) for each in (name, UPSTREAM, SDK))
        is_gateway, has_floor = name != UPSTREAM, upstream in found
        return {
            "gateway": name,
            "provider's ms": str(case.delay_ms or "at once"),
            "answer": case.mode,
            "connections": case.connections,
            "requests/s": rates.best(own),
            "of the SDK view": rates.ratio(own, sdk)[0] if is_gateway else None,
            "CPU ms": cpus.best(own) if is_gateway else None,
            "CPU of the SDK view": cpus.ratio(own, sdk)[0] if is_gateway else None,
            "p50 ms": p50s.best(own),
            "added": p50s.best(own) - p50s.best(upstream) if has_floor else None,
            "p99 ms": p99s.median(own),
            "first byte ms": firsts.best(own),
            "added first byte": firsts.best(own) - firsts.best(upstream) if has_floor else None,
            "refused": refused.median(own),
        }

    figures = []
    for delay_ms, n in ((DELAY_MS, many), (0, several)):
        provider = f"provider's {delay_ms} ms" if delay_ms else "provider at once"
        busy, idle = Case(delay_ms, "plain", n), Case(delay_ms, "plain", lone)
        rate = f"chatapp, {provider}, {n} connections: requests/s, relative to the SDK view's"
        added = (
            f"chatapp, {provider}, {lone} connection: p50 added to the upstream's, relative to the "
            "SDK view's"
        )
        figures += [
            rates.figure(rate, busy.cell(CHATAPP), busy.cell(SDK), "at least", 0.9),
            p50s.figure(
                *(added, idle.cell(CHATAPP), idle.cell(SDK), "at most", 1), over=idle.cell(UPSTREAM)
            ),
        ]
    return Result(
        title="chatapp as a gateway",
        notes=(
            "gunicorn with gunicorn.conf.py, 2 workers, over a mock provider that answers after "
            f"{DELAY_MS} ms, each time another prompt of the same length; or at once, always the "
            f"same prompt. With {DELAY_MS} ms, {several} connections carry at most "
            f"{several * 1000 / DELAY_MS:.0f} requests/s: compare their CPU. CPU is that of the "
            "gateway's processes, per answered request. 'Added' is over the upstream at the same "
            f"number of connections, in ms; with {many}, time is spent in the queue. Client, "
            "gateway, provider and storage share the machine. Rounds in the time allowed: "
            f"{len(rates.values[cases[0].cell(SDK)])}."
        ),
        rows=[row(*each) for each in rows_of],
        figures=figures,
        plot=Plot(
            f"CPU per request, plain answers after {DELAY_MS} ms",
            "ms",
            lines={
                name: {
                    n: cpus.best(Case(DELAY_MS, "plain", n).cell(name)) for n in scale.connections
                }
                for name in running
                if name != UPSTREAM
            },
            x="connections",
        ),
        rounds={
            "requests/s": rates.values,
            "CPU ms": cpus.values,
            "p50 ms": p50s.values,
            "first byte ms": firsts.values,
        },
    )


def load(
    target: Target, key: str, case: Case, calls: int, seconds: float
) -> tuple[float, float, float, float, float, float]:
    """Requests per second; the gateway's CPU ms per request; in ms the median, the 99th percentile
    and the median first byte; refused requests."""
    body = {"stream": case.mode == "streamed"}
    sent = requests(key, target.headers, at_once=not case.delay_ms, **body)
    found = drive(
        target.port,
        islice(sent, calls),
        connections=case.connections,
        seconds=seconds,
        refusal=503,  # chatapp's if a worker falls behind
        workers=min(target.workers, case.connections),
        process=target.process,
    )
    if not found.times:
        raise RuntimeError(f"all {found.refused} calls were refused")
    times = sorted(found.times)
    return (
        found.per_second,
        found.cpu_s / len(times) * 1e3,
        statistics.median(times) * 1e3,
        times[int(len(times) * 0.99)] * 1e3,
        statistics.median(found.first_bytes) * 1e3,
        found.refused,
    )


def requests(
    key: str, headers: Mapping[str, str] = {}, *, at_once: bool = False, **options: object
) -> Iterator[bytes]:
    """Calls without end, with different prompts of random letters, so that no cache of texts or
    words helps; ``at_once``: always the same prompt, which the provider answers at once."""
    while True:
        prompt = AT_ONCE if at_once else "".join(CHANCE.choices(LETTERS, k=len(AT_ONCE)))
        body = json.dumps({**call_body(prompt), **options}).encode()
        yield post_request(PATH, body, **{"Authorization": f"Bearer {key}", **headers})


def call_body(prompt: str) -> dict[str, object]:
    message = {"role": "user", "content": prompt}
    return {"model": MODEL, "messages": [message], "max_completion_tokens": 100}


# -- what runs -------------------------------------------------------------------------------------


@contextmanager
def targets(session: Session, *, paced: bool = False) -> Iterator[tuple[dict[str, Target], str]]:
    """The running gateways by name, and chatapp's API key. ``paced``: streams are slow."""
    with ExitStack() as stack:
        upstream = stack.enter_context(mock_upstream(paced=paced))
        base_url = f"http://127.0.0.1:{upstream}/v1"
        environment = chatapp_environment(session, base_url)
        key = new_key(environment, session.folder)
        applications = {
            SDK: ("sdk_gateway", environment),
            UNLIMITED: ("chatapp_gateway", {**environment, "RATELIMIT_ENABLED": "false"}),
            CHATAPP: ("chatapp_gateway", environment),
        }
        running = {UPSTREAM: Target(upstream, 1)}
        for name, (application, variables) in applications.items():
            server = gunicorn(
                application, variables, session.folder, "--config", str(ROOT / "gunicorn.conf.py")
            )
            port, process = stack.enter_context(server)
            running[name] = Target(port, 2, process)
        for name, start in ((LITELLM, litellm), (PORTKEY, portkey)):
            option = start.__name__
            if command := session.gateways.get(option):
                server = start(command, base_url, session.folder)
                running[name] = stack.enter_context(server)
            else:
                session.skipped.append(f"{name}: give its command with --{option}")
        yield running, key


def chatapp_environment(session: Session, base_url: str) -> dict[str, str]:
    policy = session.folder / "policy.toml"
    policy.write_text(roomy((ROOT / "chatapp" / "policy.toml").read_text()))
    return {
        "OPENAI_API_KEY": "sk-mock",
        "OPENAI_BASE_URL": base_url,
        "RATELIMIT_STORAGE_URI": session.uri,
        "RATELIMIT_POLICY_FILE": str(policy),
        "RATELIMIT_SETTLEMENTS_DIR": str(session.folder / "settlements"),
        "GUNICORN_VALID_FILES": str(session.folder / "valid-files"),
        "DATABASE_URL": f"sqlite:///{session.folder / 'chatapp.db'}",
        "WEB_CONCURRENCY": "2",
        "PYTHONPATH": str(ROOT),
    }


def roomy(policy: str) -> str:
    """The same limits with amounts that no benchmark exhausts."""
    return re.sub(r'^(limit = "|burst = )\d+', rf"\g<1>{ROOM}", policy, flags=re.MULTILINE)


def new_key(environment: dict[str, str], folder: Path) -> str:
    """An API key of chatapp; the first one turns accounts on."""
    command = [sys.executable, "-m", "flask", "--app", "wsgi", "chat", "keys", "create"]
    made = subprocess.run(
        [*command, "--user", "benchmark"],
        cwd=folder,
        env={"PATH": os.environ.get("PATH", os.defpath), **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    if made.returncode != 0:
        raise SystemExit(made.stderr)
    return made.stdout.strip()


@contextmanager
def litellm(command: str, base_url: str, folder: Path) -> Iterator[Target]:
    """LiteLLM's proxy with two workers; it is installed apart, since it needs another `openai`."""
    port = free_port()
    model = {"model": f"openai/{MODEL}", "api_base": base_url, "api_key": "sk-mock"}
    settings = {
        "model_list": [{"model_name": MODEL, "litellm_params": model}],
        # It takes every key, so that only the gateway is measured.
        "general_settings": {"dangerously_permit_weak_or_unset_master_key": True},
    }
    config = folder / "litellm.yaml"
    config.write_text(json.dumps(settings))  # JSON is YAML
    options = ["--config", str(config), "--host", "127.0.0.1", "--port", str(port)]
    # Its start takes longer than its supervisor allows a busy machine.
    options += ["--num_workers", "2", "--timeout_worker_healthcheck", "120"]
    environment = {"LITELLM_LOCAL_MODEL_COST_MAP": "True"}  # fetches nothing
    with program([command, *options], folder, environment) as process:
        wait_for(lambda: get(port, "/health/liveliness"), process, "litellm")
        yield Target(port, 1, process.pid)


@contextmanager
def portkey(command: str, base_url: str, folder: Path) -> Iterator[Target]:
    """Portkey's gateway, which is one process of Node.js. Version 1.15.2 on Node.js 20 answers a
    streamed call with a 500."""
    port = free_port()
    with program([command, f"--port={port}", "--headless"], folder, {}) as process:
        wait_for(lambda: get(port, "/"), process, "portkey")
        headers = {"x-portkey-provider": "openai", "x-portkey-custom-host": base_url}
        yield Target(port, 1, process.pid, headers, modes=("plain",))


@contextmanager
def program(
    command: list[str], folder: Path, environment: Mapping[str, str]
) -> Iterator[subprocess.Popen[bytes]]:
    """A gateway of others, ended at the end."""
    process = subprocess.Popen(
        command, cwd=folder, env={**os.environ, **environment}, stdout=subprocess.DEVNULL
    )
    try:
        yield process
    finally:
        end(process)
