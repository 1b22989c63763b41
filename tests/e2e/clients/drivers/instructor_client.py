"""Instructor, whose answers are always structured."""

from __future__ import annotations

import anthropic
import instructor
import openai
import pydantic
from driver import Request, run


class Report(pydantic.BaseModel):
    city: str
    degrees: int


def client(request: Request) -> instructor.Instructor:
    if request.is_anthropic:
        return instructor.from_anthropic(anthropic.Anthropic())
    return instructor.from_openai(openai.OpenAI())


def said(request: Request) -> dict:
    message = {"role": "user", "content": request.prompt}
    return {"model": request.model, "max_tokens": 1000, "messages": [message]}


def structured(request: Request) -> str:
    return client(request).create(response_model=Report, **said(request)).model_dump_json()


def stream(request: Request) -> str:
    reports = client(request).create_partial(response_model=Report, **said(request))
    return list(reports)[-1].model_dump_json()


if __name__ == "__main__":
    run("instructor", structured, stream)
