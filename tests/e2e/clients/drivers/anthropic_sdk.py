"""Anthropic's SDK for Python."""

from __future__ import annotations

import json
from functools import cache

import anthropic
from driver import Request, run, weather

CITY = {"type": "object", "properties": {"city": {"type": "string"}}}
REPORT = {"city": {"type": "string"}, "degrees": {"type": "integer"}}


@cache
def messages() -> anthropic.resources.Messages:
    return anthropic.Anthropic().messages


def said(request: Request) -> dict:
    message = {"role": "user", "content": request.prompt}
    return {"model": request.model, "max_tokens": 1000, "messages": [message]}


def plain(request: Request) -> str:
    return messages().create(**said(request)).content[0].text


def stream(request: Request) -> str:
    with messages().stream(**said(request)) as events:
        return "".join(events.text_stream)


def tools(request: Request) -> str:
    fields = said(request) | {"tools": [{"name": "weather", "input_schema": CITY}]}
    answer = messages().create(**fields)
    (use,) = answer.content
    result = {"type": "tool_result", "tool_use_id": use.id, "content": weather(**use.input)}
    fields["messages"] += [
        {"role": "assistant", "content": answer.content},
        {"role": "user", "content": [result]},
    ]
    return messages().create(**fields).content[0].text


def structured(request: Request) -> str:
    """By a forced tool, which all versions have."""
    tool = {"name": "report", "input_schema": {"type": "object", "properties": REPORT}}
    choice = {"type": "tool", "name": "report"}
    answer = messages().create(**said(request), tools=[tool], tool_choice=choice)
    return json.dumps(answer.content[0].input)


if __name__ == "__main__":
    run("anthropic", plain, stream, tools, structured)
