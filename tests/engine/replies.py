"""How a bad network carries the replies of a server: what `Relay.deliver` may be."""

import socket
import struct
import time

from tests.engine.relay import Deliver, Relay

RESET_AT_CLOSE = struct.pack("ii", 1, 0)


def late(delay_s: float) -> Deliver:
    """Each reply after a pause."""

    def deliver(client: socket.socket, reply: bytes) -> None:
        time.sleep(delay_s)
        client.sendall(reply)

    return deliver


def dripping(relay: Relay, pause_s: float) -> Deliver:
    """A byte at a time, with a pause after each, until the relay is to deliver in another way."""

    def deliver(client: socket.socket, reply: bytes) -> None:
        for position in range(len(reply)):
            if relay.deliver is not deliver:
                client.sendall(reply[position:])
                return
            client.sendall(reply[position : position + 1])
            time.sleep(pause_s)

    return deliver


def cut(client: socket.socket, reply: bytes) -> None:
    """The first half, then a reset of the connection."""
    client.sendall(reply[: len(reply) // 2])
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_AT_CLOSE)
    client.shutdown(socket.SHUT_RD)  # wakes the thread that reads it, so that close() takes effect
    client.close()
    raise ConnectionResetError
