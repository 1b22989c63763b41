"""OpenAI's SDK for Python: chat completions."""

from __future__ import annotations

import json
from functools import cache

import openai
from driver import SCHEMA, TOOL, Request, run, weather


@cache
def chat() -> openai.resources.chat.Completions:
    return openai.OpenAI().chat.completions


def said(request: Request) -> dict:
    return {"model": request.model, "messages": [{"role": "user", "content": request.prompt}]}


def plain(request: Request) -> str:
    return chat().create(**said(request)).choices[0].message.content


def stream(request: Request) -> str:
    chunks = chat().create(stream=True, **said(request))
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)


def tools(request: Request) -> str:
    fields = said(request) | {"tools": [TOOL]}
    message = chat().create(**fields).choices[0].message
    (call,) = message.tool_calls
    result = weather(**json.loads(call.function.arguments))
    fields["messages"] += [
        message.model_dump(exclude_none=True),
        {"role": "tool", "tool_call_id": call.id, "content": result},
    ]
    return chat().create(**fields).choices[0].message.content


def structured(request: Request) -> str:
    schema = {"name": "weather", "strict": True, "schema": SCHEMA}
    form = {"type": "json_schema", "json_schema": schema}
    return chat().create(**said(request), response_format=form).choices[0].message.content


if __name__ == "__main__":
    run("openai", plain, stream, tools, structured)
