"""What a WSGI server is pointed at: `gunicorn wsgi:app`, or `flask --app wsgi run`."""

from __future__ import annotations

from chatapp import create_app

app = create_app()
