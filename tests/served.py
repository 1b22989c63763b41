"""Real servers with threads, on a free port: of an application, or of a handler; and a client that
disconnects."""

import json
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import BaseServer
from urllib.parse import urlsplit

from flask import Flask
from werkzeug.serving import WSGIRequestHandler, make_server


class QuietHandler(WSGIRequestHandler):
    def log(self, type: str, message: str, *args: object) -> None:  # noqa: A002 - werkzeug's name
        pass


@contextmanager
def serving(
    app: Flask, handler: type[WSGIRequestHandler] = QuietHandler, *, port: int = 0
) -> Iterator[str]:
    """Serve the application within the block, at this address; at a free port without one."""
    server = make_server("127.0.0.1", port, app, threaded=True, request_handler=handler)
    with _running(server):
        yield f"http://127.0.0.1:{server.server_port}"


@contextmanager
def disconnecting(url: str, path: str, body: Mapping[str, object]) -> Iterator[socket.socket]:
    """Send a request, and disconnect at the end of the block without reading the answer."""
    address = urlsplit(url)
    raw = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(raw)}\r\n"
    with socket.create_connection((address.hostname or "", address.port or 0), 10) as client:
        client.sendall(f"{head}Content-Type: application/json\r\n\r\n".encode() + raw)
        yield client


@contextmanager
def answering(handler: type[BaseHTTPRequestHandler]) -> Iterator[int]:
    """Have the handler answer within the block, at this port, without a log."""
    quiet = type("Quiet", (handler,), {"log_message": lambda *_: None})
    server = ThreadingHTTPServer(("127.0.0.1", 0), quiet)
    with _running(server):
        yield server.server_port


@contextmanager
def _running(server: BaseServer) -> Iterator[None]:
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
