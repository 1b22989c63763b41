"""Claude Code, not interactive, in the current folder."""

from __future__ import annotations

import json
from pathlib import Path

from driver import SCHEMA, Request, command, run


def claude(request: Request, *options: str) -> str:
    return command(
        *("claude", "-p", request.prompt, "--model", request.model, *options),
        CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC="1",
    )


def stream(request: Request) -> str:
    return claude(request)


def tools(request: Request) -> str:
    """It writes a file, reads it, and ends."""
    text = claude(request, "--permission-mode", "acceptEdits")
    assert Path("note.txt").read_text() == "7 degrees", text
    return text


def structured(request: Request) -> str:
    options = ("--output-format", "json", "--json-schema", json.dumps(SCHEMA))
    answer = json.loads(claude(request, *options))
    return json.dumps(answer["structured_output"])


if __name__ == "__main__":
    run(command("claude", "--version").split()[0], stream, tools, structured)
