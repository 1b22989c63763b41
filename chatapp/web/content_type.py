"""A browser takes every answer for what its Content-Type says: a reply is never run as a script."""

from __future__ import annotations

from flask import Flask, Response


def install(app: Flask) -> None:
    """Say so in every answer: errors, files and streams too. Install it before the limiter, whose
    hook may replace an answer: hooks after a request run in reverse."""

    @app.after_request
    def forbid_sniffing(response: Response) -> Response:
        response.headers["X-Content-Type-Options"] = "nosniff"
        return response
