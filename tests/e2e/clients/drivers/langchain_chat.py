"""LangChain with langchain-openai or langchain-anthropic."""

from __future__ import annotations

import pydantic
from driver import Request, run
from driver import weather as weather_of
from langchain_core.messages import HumanMessage
from langchain_core.tools import tool


class Report(pydantic.BaseModel):
    """A weather report."""

    city: str
    degrees: int


@tool
def weather(city: str) -> str:
    """The weather in a city."""
    return weather_of(city)


def chat(request: Request) -> object:
    if request.is_anthropic:
        from langchain_anthropic import ChatAnthropic as Chat
    else:
        from langchain_openai import ChatOpenAI as Chat
    return Chat(model=request.model)


def plain(request: Request) -> str:
    return chat(request).invoke(request.prompt).text


def stream(request: Request) -> str:
    return "".join(chunk.text for chunk in chat(request).stream(request.prompt))


def tools(request: Request) -> str:
    bound = chat(request).bind_tools([weather])
    said = [HumanMessage(request.prompt)]
    said.append(bound.invoke(said))
    said += [weather.invoke(call) for call in said[-1].tool_calls]
    return bound.invoke(said).text


def structured(request: Request) -> str:
    report = chat(request).with_structured_output(Report).invoke(request.prompt)
    return report.model_dump_json()


if __name__ == "__main__":
    run("langchain-core", plain, stream, tools, structured)
