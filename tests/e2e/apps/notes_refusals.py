"""The application, which notes each refusal of a call in the file that the variable REFUSALS names:
when it was sent, and for which model."""

import os
import time
from pathlib import Path

from flask import Response, request

from chatapp.web.current_request import current_request
from wsgi import app


def note(response: Response) -> Response:
    if response.status_code >= 400 and request.path.startswith("/v1/"):
        with Path(os.environ["REFUSALS"]).open("a") as notes:
            notes.write(f"{time.monotonic()} {current_request().wanted.turn.model.name}\n")
    return response


app.after_request_funcs.setdefault(None, []).insert(0, note)  # the first is the last that is run
