"""One call with the installed SDK; test_sdk_matrix runs it in a separate environment. Arguments:
openai or anthropic, the server's address, whole or stream, the model. Prints a line of JSON: the
SDK's version, the outcome, and the time it took."""

from __future__ import annotations

import json
import sys
import time

MESSAGES = [{"role": "user", "content": "ping"}]


def with_openai(url: str, way: str, model: str) -> str:
    import openai

    client = openai.OpenAI(base_url=f"{url}/v1", api_key="mine")
    asked = {"model": model, "messages": MESSAGES}
    if way == "whole":
        return client.chat.completions.create(**asked).choices[0].message.content
    chunks = client.chat.completions.create(stream=True, **asked)
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks)


def with_anthropic(url: str, way: str, model: str) -> str:
    import anthropic

    client = anthropic.Anthropic(base_url=url, api_key="mine")
    asked = {"model": model, "max_tokens": 100, "messages": MESSAGES}
    if way == "whole":
        return client.messages.create(**asked).content[0].text
    with client.messages.stream(**asked) as stream:
        return "".join(stream.text_stream)


def main() -> None:
    protocol, url, way, model = sys.argv[1:]
    call = {"openai": with_openai, "anthropic": with_anthropic}[protocol]
    version = __import__(protocol).__version__
    began = time.monotonic()
    try:
        text, error = call(url, way, model), None
    except Exception as raised:  # noqa: BLE001 - whatever it is, it is the result
        text, error = None, type(raised).__name__
    took_s = time.monotonic() - began
    print(json.dumps({"version": version, "text": text, "error": error, "took_s": took_s}))  # noqa: T201


if __name__ == "__main__":
    main()
