"""OpenAI's Agents SDK, with its default, the Responses API."""

from __future__ import annotations

import asyncio
import os

os.environ["OPENAI_AGENTS_DISABLE_TRACING"] = "1"  # traces go to OpenAI, whatever the base URL

import agents
import pydantic
from driver import Request, run
from driver import weather as weather_of


class Report(pydantic.BaseModel):
    city: str
    degrees: int


@agents.function_tool
def weather(city: str) -> str:
    """The weather in a city."""
    return weather_of(city)


def agent(request: Request, **options: object) -> agents.Agent:
    return agents.Agent(name="agent", model=request.model, **options)


def plain(request: Request) -> str:
    return agents.Runner.run_sync(agent(request), request.prompt).final_output


def stream(request: Request) -> str:
    async def read() -> str:
        result = agents.Runner.run_streamed(agent(request), request.prompt)
        events = [event async for event in result.stream_events()]
        return "".join(
            event.data.delta
            for event in events
            if event.type == "raw_response_event"
            and event.data.type == "response.output_text.delta"
        )

    return asyncio.run(read())


def tools(request: Request) -> str:
    result = agents.Runner.run_sync(agent(request, tools=[weather]), request.prompt)
    return result.final_output


def structured(request: Request) -> str:
    result = agents.Runner.run_sync(agent(request, output_type=Report), request.prompt)
    return result.final_output.model_dump_json()


if __name__ == "__main__":
    run("openai-agents", plain, stream, tools, structured)
