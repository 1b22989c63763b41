"""A minimal application that uses the storage: every request adds one to a counter. `/slow` takes a
second first, as a call to a provider would. What the worker does not take is a 503."""

import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any

import redis

VERSION = 1
storage = redis.Redis.from_url(os.environ["RATELIMIT_STORAGE_URI"].replace("redis+unix", "unix"))


def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    if "chatapp.overloaded" in environ:
        start_response("503 Service Unavailable", [("Content-Type", "application/json")])
        return [b"{}"]
    if environ["PATH_INFO"] == "/slow":
        storage.set("slow", "begun")
        time.sleep(1)
    answer = {
        "version": VERSION,
        "count": storage.incr("count"),
        "worker": os.getpid(),
        "body": hashlib.sha256(environ["wsgi.input"].read()).hexdigest(),
        "server": storage.info("server")["process_id"],
        "imported": [name for name in sys.modules if name.startswith("ratelimit_ext")],
    }
    start_response("200 OK", [("Content-Type", "application/json")])
    return [json.dumps(answer).encode()]
