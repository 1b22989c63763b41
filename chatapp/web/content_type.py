"""Browsers must use the Content-Type of every response: a reply is never run as a script."""

from __future__ import annotations

from flask import Flask, Response


def install(app: Flask) -> None:
    """Add the header to every response, also to errors, files and streams. Install it before the
    limiter: hooks after a request run in reverse order, and the limiter's may replace the
    response."""

    @app.after_request
    def forbid_sniffing(response: Response) -> Response:
        response.headers["X-Content-Type-Options"] = "nosniff"
        return response
