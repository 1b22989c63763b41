"""Real clients, each in an environment of its own, against this server in front of a provider with
a bill: the clients, the scenarios, and one cell of the matrix."""

import hashlib
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import tempfile
import time
import venv
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from flask import request

from tests.chatapp.upstream_server import ToolCall
from tests.e2e.money.billed_gateway import Gateway, roomy_policy, threaded
from tests.e2e.money.billing_provider import BillingProvider, Script, marker
from tests.servers import eventually

DRIVERS = Path(__file__).parent / "drivers"
#: Where environments are kept between runs.
CACHE = Path(
    os.environ.get("RATELIMIT_CLIENT_MATRIX_CACHE")
    or Path(tempfile.gettempdir()) / "ratelimit-client-matrix"
)
GPT, CLAUDE = "gpt-5.4-mini", "claude-haiku-4-5"
SAID, REPORT, WEATHER = "pong", {"city": "Oslo", "degrees": 7}, "7 degrees"
#: A client that takes longer in a cell is ended.
TIMEOUT_S = 90


@dataclass(frozen=True)
class Scenario:
    """What a client meets. `way` is the driver's function (if it has none of the name, its first),
    `marker` what the provider does, `limits` replace the policy's, `before` is what happens first.
    The client shows the pattern `shows`, or answers; `requests` and `attempts` are the most."""

    name: str
    way: str | None = None
    marker: Mapping[str, object] = field(default_factory=lambda: {"scenario": "normal"})
    limits: Mapping[str, str] = field(default_factory=dict)
    before: str | None = None
    shows: str | None = None
    requests: int = 1
    attempts: int = 1

    @property
    def is_interrupted(self) -> bool:
        return self.marker["scenario"] == "text"

    @property
    def is_estimated(self) -> bool:
        """Whether the provider reports no usage."""
        return self.marker["scenario"] in {"cut", "text", "error_event"}


FAILED = "failed or could not be reached"
SCENARIOS = [
    Scenario("plain", "plain"),
    Scenario("stream", "stream"),
    Scenario("tools", "tools", requests=3, attempts=3),
    Scenario("structured", "structured"),
    Scenario(
        "short 429",
        limits={"plan": "1/4 second"},
        before="one call at the first request",
        requests=3,
    ),
    Scenario(
        "long 429",
        limits={"plan": "1/day"},
        before="one call",
        shows=r"plan allows 1 call a day, and it is used up. Try again in \d",
        attempts=0,
    ),
    Scenario(
        "budget spent",
        limits={"usd_day": "1 usd/day"},
        before="spend",
        shows=r"plan allows \$1.00 a calendar day, and it is used up. Try again in \d",
        attempts=0,
    ),
    Scenario("key revoked", before="revoke", shows="was revoked; ask the operator", attempts=0),
    Scenario("forbidden", before="forbid", shows="does not allow the model", attempts=0),
    Scenario("cut", "stream", {"scenario": "cut", "tokens": 50}, shows=FAILED),
    Scenario("error event", "stream", {"scenario": "error_event", "tokens": 50}, shows=FAILED),
    Scenario("Ctrl-C", "stream", {"scenario": "text", "tokens": 50}),
]


@dataclass(frozen=True)
class Client:
    """A client, and how its driver runs it: `ways` are the driver's functions. `habits` are known
    faults of the client itself, by scenario. `retries`: it repeats what failed, also by a status
    that is final, so many times; `shows` are its own sentences."""

    name: str
    driver: str
    model: str = GPT
    pip: Sequence[str] = ()
    npm: Sequence[str] = ()
    ways: Sequence[str] = ("plain", "stream", "tools", "structured")
    habits: Mapping[str, str] = field(default_factory=dict)
    is_command: bool = False
    retries: int = 0
    shows: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_anthropic(self) -> bool:
        return self.model == CLAUDE

    def meets(self, scenario: Scenario) -> bool:
        """Whether the scenario can happen to the client."""
        if scenario.is_interrupted:
            return self.is_command
        return scenario.way is None or scenario.way in self.ways

    def environment(self) -> Path:
        """The folder with the client's packages, made when first used."""
        words = json.dumps([self.pip, self.npm])
        folder = CACHE / hashlib.sha256(words.encode()).hexdigest()[:12]
        if not (folder / "complete").exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            if self.npm:
                install = ["npm", "install", "--silent", "--no-audit", "--no-fund"]
                subprocess.run([*install, *self.npm], cwd=folder, check=True)
            if self.pip:
                venv.create(folder, with_pip=True, symlinks=True)
                pip = [folder / "bin" / "python", "-m", "pip", "install", "--quiet"]
                subprocess.run([*pip, *self.pip], check=True)
            (folder / "complete").touch()
        return folder

    def command(self, environment: Path) -> list[str]:
        if self.driver.endswith(".mjs"):  # a module of Node finds packages from its own folder
            for script in DRIVERS.glob("*.mjs"):
                shutil.copy(script, environment)
            return ["node", str(environment / self.driver)]
        return ["python", str(DRIVERS / self.driver)]


def _of_both(name: str, driver: str, **options: Any) -> list[Client]:
    """A client with a model of each provider."""
    models = {"openai": GPT, "anthropic": CLAUDE}
    return [
        Client(f"{name}, {protocol}", driver, models[protocol], **options) for protocol in models
    ]


# The packages of Node need a newer Node than Debian's.
NODE = "node@24"
PERSISTENT = "tries twice more, whatever `x-should-retry` says"
ENDLESS = "shows the error and retries for two minutes, whatever `x-should-retry` says"
PERSISTENT_AT = ("long 429", "budget spent")
AIDER: Mapping[str, Any] = {"pip": ["aider-chat"], "ways": ["plain", "stream"], "is_command": True}
AIDER_HABITS = dict.fromkeys([*PERSISTENT_AT, "forbidden", "cut", "error event"], ENDLESS)
CLIENTS = [
    Client("openai 1.109", "openai_sdk.py", pip=["openai==1.109.*"]),
    Client("openai 2", "openai_sdk.py", pip=["openai==2.*"]),
    Client("openai 3", "openai_sdk.py", pip=["openai==3.*"]),
    Client("anthropic 0.60", "anthropic_sdk.py", CLAUDE, pip=["anthropic==0.60.*"]),
    Client("anthropic 1", "anthropic_sdk.py", CLAUDE, pip=["anthropic==1.*"]),
    Client("anthropic 2", "anthropic_sdk.py", CLAUDE, pip=["anthropic==2.*"]),
    Client("openai, Node", "openai_node.mjs", npm=["openai@latest", NODE]),
    Client(
        "@anthropic-ai/sdk", "anthropic_node.mjs", CLAUDE, npm=["@anthropic-ai/sdk@latest", NODE]
    ),
    *_of_both(
        "Vercel ai",
        "vercel_ai.mjs",
        npm=["ai@latest", "@ai-sdk/openai@latest", "@ai-sdk/anthropic@latest", NODE],
        habits=dict.fromkeys(PERSISTENT_AT, PERSISTENT),
    ),
    Client("openai-agents", "openai_agents.py", pip=["openai-agents"]),
    *_of_both("pydantic-ai", "pydantic_ai_agent.py", pip=["pydantic-ai-slim[openai,anthropic]"]),
    Client("langchain-openai", "langchain_chat.py", pip=["langchain-openai"]),
    Client("langchain-anthropic", "langchain_chat.py", CLAUDE, pip=["langchain-anthropic"]),
    Client("litellm, openai", "litellm_sdk.py", pip=["litellm"]),
    Client(
        "litellm, anthropic",
        "litellm_sdk.py",
        CLAUDE,
        pip=["litellm"],
        habits={"short 429": "does not wait, and `num_retries` makes it retry at once"},
    ),
    *_of_both(
        "instructor",
        "instructor_client.py",
        pip=["instructor", "anthropic"],
        ways=["structured", "stream"],
    ),
    *_of_both("llm", "llm_cli.py", pip=["llm", "llm-anthropic"], is_command=True),
    Client("aider, openai", "aider_cli.py", **AIDER, habits=AIDER_HABITS),
    Client(
        "aider, anthropic",
        "aider_cli.py",
        CLAUDE,
        **AIDER,
        habits={**AIDER_HABITS, "short 429": "does not wait as long as it should, and gets there"},
    ),
    Client(
        "Claude Code",
        "claude_code.py",
        CLAUDE,
        npm=["@anthropic-ai/claude-code@latest"],
        ways=["stream", "tools", "structured"],
        habits=dict.fromkeys(
            ["cut", "error event"], "asks again without a stream, for longer than 90 s"
        ),
        is_command=True,
        shows=dict.fromkeys(
            PERSISTENT_AT, r"spend limit reached · resets .*m \(.*\) · The Team plan allows"
        ),
    ),
    Client(
        "Codex",
        "codex_cli.py",
        npm=["@openai/codex@latest"],
        ways=["stream", "tools", "structured"],
        retries=5,
        shows={
            "long 429": "hit your usage limit. Try again at",
            "budget spent": "hit your usage limit. Try again at",
            **dict.fromkeys(["cut", "error event"], "stream disconnected before completion"),
        },
        is_command=True,
    ),
]


@dataclass(frozen=True)
class Outcome:
    """One cell. `requests` are the client's at this server, `attempts` at the provider; `calls`
    includes those of `Scenario.before`, as do the amounts, in micro-dollars. `is_over`: the
    provider's calls have ended."""

    version: str
    text: str | None
    error: str | None
    requests: int
    attempts: int
    calls: int
    billed: int
    ledger: int
    is_over: bool
    took_s: float


def tool_calls(fields: Mapping[str, Any], folder: Path) -> Script:
    """The script of a model that uses the client's tools: an agent writes a file and reads it."""
    note = str(folder / "note.txt")
    scripts = {
        "weather": [ToolCall("weather", {"city": REPORT["city"]})],
        "Write": [
            ToolCall("Write", {"file_path": note, "content": WEATHER}),
            ToolCall("Read", {"file_path": note}),
        ],
        "exec_command": [
            ToolCall("exec_command", {"cmd": f"printf '{WEATHER}' > note.txt"}),
            ToolCall("exec_command", {"cmd": "cat note.txt"}),
        ],
    }
    (calls,) = (scripts[name] for name in map(_name, fields["tools"]) if name in scripts)
    return [*calls, SAID]


def answer(fields: Mapping[str, Any]) -> Script:
    """The script of a model that answers in the form that the request states: a schema is a tool,
    or in a field whose name depends on client and provider."""
    for tool in fields.get("tools") or ():
        if "degrees" in json.dumps(tool):
            return [ToolCall(_name(tool), REPORT), SAID]
    rest = {name: value for name, value in fields.items() if name not in {"messages", "input"}}
    return [json.dumps(REPORT) if "degrees" in json.dumps(rest) else SAID]


def _name(tool: Mapping[str, Any]) -> str:
    return str(tool.get("function", tool).get("name"))


def play(
    client: Client, scenario: Scenario, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> Outcome:
    """Run one cell in an empty folder."""
    home = folder / "home"
    work = folder / "work"
    home.mkdir()
    work.mkdir()
    policy = roomy_policy(folder / "policy.toml", **scenario.limits)
    with BillingProvider.running() as provider:
        for name, value in provider.variables.items():
            monkeypatch.setenv(name, value)
        provider.scripts["answer"] = answer
        provider.scripts["tool_calls"] = lambda fields: tool_calls(fields, work)
        config = {"RATELIMIT_POLICY_FILE": str(policy)}
        with threaded(provider, folder / "chatapp.db", **config) as gateway:
            return _Cell(client, scenario, provider, gateway, home, work).play()


@dataclass
class _Cell:
    client: Client
    scenario: Scenario
    provider: BillingProvider
    gateway: Gateway
    home: Path
    work: Path
    requests: int = 0
    others: int = 0  # calls of the same caller

    def play(self) -> Outcome:
        key = self.gateway.key("client")
        environment = self.client.environment()
        self._prepare(key)
        self.gateway.app.before_request_funcs.setdefault(None, []).insert(0, self._count)
        began = time.monotonic()
        said = self._drive(key, environment)
        took_s = time.monotonic() - began
        rows = self._settled_rows()
        calls = self.provider.calls()
        return Outcome(
            version=said["version"],
            text=said["text"],
            error=said["error"],
            requests=self.requests,
            attempts=len(calls) - self.others,
            calls=len(calls),
            billed=round(sum(map(self.provider.price_of, calls))),
            ledger=sum(row["cost_micro_usd"] for row in rows),
            is_over=all(call.sent or call.hung_up for call in calls),
            took_s=took_s,
        )

    def _prepare(self, key: str) -> None:
        match self.scenario.before:
            case "revoke":
                words = ["chat", "keys", "revoke", key]
                assert self.gateway.app.test_cli_runner().invoke(args=words).exit_code == 0
            case "forbid":
                allowed = ["--model", "gpt-4o", "--model", "claude-opus-5"]
                words = ["chat", "keys", "set", key, *allowed]
                assert self.gateway.app.test_cli_runner().invoke(args=words).exit_code == 0
            case "spend":
                dear = "claude-opus-4-1" if self.client.is_anthropic else "gpt-5.4"
                self._call(marker("normal", tokens="all", input=1), dear)
            case "one call":
                self._call("hello")

    def _count(self) -> None:
        """Count a request; another client may use the limit up just before the first."""
        if not request.path.startswith("/v1/"):
            return
        self.requests += 1
        if self.requests == 1 and self.scenario.before == "one call at the first request":
            self._call("hello")
            self.requests = 1

    def _call(self, prompt: str, model: str | None = None) -> None:
        """A request of the same caller by another client."""
        body = {
            "model": model or self.client.model,
            "max_tokens": 100_000,
            "messages": [{"role": "user", "content": prompt}],
        }
        path = "/v1/messages" if self.client.is_anthropic else "/v1/chat/completions"
        status, _, answer = self.gateway.post("client", path, body)
        assert status == 200, answer
        self.others += 1

    def _drive(self, key: str, environment: Path) -> dict[str, Any]:
        client, scenario = self.client, self.scenario
        options = dict(scenario.marker)
        if options["scenario"] == "normal":
            options["script"] = "tool_calls" if scenario.way == "tools" else "answer"
        way = scenario.way if scenario.way in client.ways else client.ways[0]
        words = [self.gateway.url, key, client.model, way, marker(**options)]
        process = subprocess.Popen(
            [*client.command(environment), *words],
            cwd=self.work,
            env=variables(environment, self.home),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        try:
            if scenario.is_interrupted:
                eventually(lambda: any(call.sent for call in self.provider.calls()), within_s=30)
                os.killpg(process.pid, signal.SIGINT)
            out, err = process.communicate(timeout=TIMEOUT_S)
        except subprocess.TimeoutExpired:
            return {"version": "", "text": None, "error": f"still running after {TIMEOUT_S} s"}
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        assert process.returncode == 0, err
        said: dict[str, Any] = json.loads(out.splitlines()[-1])
        return said

    def _settled_rows(self) -> list[sqlite3.Row]:
        """The caller's rows once no call is in flight and none is written any more."""
        before: list[object] = []

        def is_settled() -> bool:
            rows = self.gateway.rows("client")
            before.append([tuple(row) for row in rows])
            is_over = all(row["status"] != "unfinished" for row in rows)
            time.sleep(0.2)  # the ledger is written in batches
            after = [tuple(row) for row in self.gateway.rows("client")]
            return is_over and before[-1] == after

        eventually(is_settled)
        return list(self.gateway.rows("client"))


def said(client: Client, url: str, model: str, folder: Path, prompt: str, within_s: int) -> str:
    """What the client answers when it is run in an empty folder; "" if it does not."""
    (folder / "home").mkdir(parents=True)
    environment = client.environment()
    words = [*client.command(environment), url, "sk-any", model, client.ways[0], prompt]
    try:
        done = subprocess.run(
            words,
            cwd=folder,
            env=variables(environment, folder / "home"),
            stdout=subprocess.PIPE,
            text=True,
            timeout=within_s,
            check=True,
        )
    except subprocess.TimeoutExpired:
        return ""
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result["text"] or ""


def variables(environment: Path, home: Path) -> dict[str, str]:
    """An environment without the user's, in which no other address can be reached."""
    paths = (environment / "bin", environment / "node_modules" / ".bin")
    nowhere = "http://127.0.0.1:9"
    return {
        "PATH": ":".join([*map(str, paths), os.environ["PATH"]]),
        "HOME": str(home),
        "LANG": "C.UTF-8",
        "PYTHONDONTWRITEBYTECODE": "1",
        "NO_PROXY": "127.0.0.1",
        "HTTP_PROXY": nowhere,
        "HTTPS_PROXY": nowhere,
    }
