"""aider, asked one question."""

from __future__ import annotations

from driver import Request, command, run


def aider(request: Request, *options: str) -> str:
    protocol = "anthropic" if request.is_anthropic else "openai"
    return command(
        *("aider", "--model", f"{protocol}/{request.model}", "--chat-mode", "ask", *options),
        *("--no-git", "--no-check-update", "--analytics-disable", "--no-show-model-warnings"),
        *("--no-pretty", "--yes-always", "--no-show-release-notes", "--message", request.prompt),
        OPENAI_API_BASE=f"{request.url}/v1",
        ANTHROPIC_API_BASE=request.url,
        LITELLM_LOCAL_MODEL_COST_MAP="True",
    )


def plain(request: Request) -> str:
    return aider(request, "--no-stream")


def stream(request: Request) -> str:
    return aider(request)


if __name__ == "__main__":
    run("aider-chat", plain, stream)
