"""A TCP transfer between two hosts, with the standard library alone.

python -m tests.netns.transfer receive             waits for one sender on port 5001
python -m tests.netns.transfer send HOST SECONDS   prints what arrived there, in Gbit/s
"""

import socket
import sys
import time

PORT = 5001
_BLOCK = 1 << 20


def receive() -> None:
    """Count what one sender sends, and tell it."""
    with socket.create_server(("::", PORT), family=socket.AF_INET6, dualstack_ipv6=True) as server:
        connection, _ = server.accept()
    buffer = bytearray(_BLOCK)
    count = 0
    with connection:
        while got := connection.recv_into(buffer):
            count += got
        connection.sendall(str(count).encode())


def send(host: str, seconds: float) -> float:
    """Send for so long and return the throughput in Gbit/s, until the last byte was counted."""
    block = bytes(_BLOCK)
    with socket.create_connection((host, PORT), timeout=10) as connection:
        start = time.monotonic()
        while time.monotonic() - start < seconds:
            connection.sendall(block)
        connection.shutdown(socket.SHUT_WR)
        count = int(connection.recv(64))
        return count * 8 / (time.monotonic() - start) / 1e9


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["receive"]:
            receive()
        case ["send", host, seconds]:
            print(f"{send(host, float(seconds)):.2f} Gbit/s")
        case _:
            sys.exit(__doc__)
