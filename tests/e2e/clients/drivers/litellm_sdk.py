"""LiteLLM as a library."""

from __future__ import annotations

import json
import os

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # else it downloads prices at the import

import litellm
from driver import SCHEMA, TOOL, Request, run, weather

litellm.telemetry = False


def completion(request: Request, messages: list | None = None, **fields: object) -> object:
    protocol = "anthropic" if request.is_anthropic else "openai"
    return litellm.completion(
        model=f"{protocol}/{request.model}",
        messages=messages or [{"role": "user", "content": request.prompt}],
        api_base=request.upstream_url,
        api_key=request.key,
        **fields,
    )


def plain(request: Request) -> str:
    return completion(request).choices[0].message.content


def stream(request: Request) -> str:
    chunks = completion(request, stream=True)
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)


def tools(request: Request) -> str:
    message = completion(request, tools=[TOOL]).choices[0].message
    (call,) = message.tool_calls
    result = weather(**json.loads(call.function.arguments))
    answers = [
        {"role": "user", "content": request.prompt},
        message.model_dump(),
        {"role": "tool", "tool_call_id": call.id, "content": result},
    ]
    return completion(request, answers, tools=[TOOL]).choices[0].message.content


def structured(request: Request) -> str:
    schema = {"name": "weather", "strict": True, "schema": SCHEMA}
    form = {"type": "json_schema", "json_schema": schema}
    return completion(request, response_format=form).choices[0].message.content


if __name__ == "__main__":
    run("litellm", plain, stream, tools, structured)
