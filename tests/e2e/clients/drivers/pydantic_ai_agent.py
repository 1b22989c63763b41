"""pydantic-ai with "openai:…", which is the Responses API, and "anthropic:…"."""

from __future__ import annotations

import asyncio

import pydantic
import pydantic_ai
from driver import Request, run, weather


class Report(pydantic.BaseModel):
    city: str
    degrees: int


def agent(request: Request, **options: object) -> pydantic_ai.Agent:
    protocol = "anthropic" if request.is_anthropic else "openai"
    return pydantic_ai.Agent(f"{protocol}:{request.model}", **options)


def plain(request: Request) -> str:
    return agent(request).run_sync(request.prompt).output


def stream(request: Request) -> str:
    async def read() -> str:
        async with agent(request).run_stream(request.prompt) as result:
            return "".join([text async for text in result.stream_text(delta=True)])

    return asyncio.run(read())


def tools(request: Request) -> str:
    return agent(request, tools=[weather]).run_sync(request.prompt).output


def structured(request: Request) -> str:
    return agent(request, output_type=Report).run_sync(request.prompt).output.model_dump_json()


if __name__ == "__main__":
    run("pydantic-ai-slim", plain, stream, tools, structured)
