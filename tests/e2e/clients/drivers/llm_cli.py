"""The command `llm`, with a model in its extra-openai-models.yaml or with llm-anthropic."""

from __future__ import annotations

import json
import os
from pathlib import Path

from driver import Request, command, run

FUNCTION = """
def weather(city: str) -> str:
    "The weather in a city."
    return "7 degrees"
"""


def llm(request: Request, *options: str) -> str:
    home = Path(os.environ["HOME"])
    if request.is_anthropic:
        model = f"anthropic/{request.model}-20251001"
    else:
        model = "gateway"
        entry = {
            "model_id": model,
            "model_name": request.model,
            "api_base": request.upstream_url,
            "api_key_name": "gateway",
            "supports_schema": True,
            "supports_tools": True,
        }
        (home / "extra-openai-models.yaml").write_text(json.dumps([entry]))  # JSON is YAML
        (home / "keys.json").write_text(json.dumps({"gateway": request.key}))
    return command("llm", "-m", model, *options, request.prompt, LLM_USER_PATH=str(home))


def plain(request: Request) -> str:
    return llm(request, "--no-stream")


def stream(request: Request) -> str:
    return llm(request)


def tools(request: Request) -> str:
    return llm(request, "--functions", FUNCTION)


def structured(request: Request) -> str:
    return llm(request, "--schema", "city, degrees int")


if __name__ == "__main__":
    run("llm", plain, stream, tools, structured)
