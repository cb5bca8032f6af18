"""A gRPC client in as few instructions as it takes: thousands of connections in one process.

Real gRPC channels would be the bottleneck: each has threads' worth of machinery. Here a connection is one
asyncio protocol with callbacks, no task and no queue. It speaks HTTP/2 (RFC 9113) as far as a gRPC server
makes use of it: one header block per frame, no server push. What is sent fits the server's first window.
"""

import asyncio
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import cast

from hpack import Decoder

from overmesh.errors import MeshError, UnreachableError

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _RESET, _SETTINGS, _PING, _GOAWAY, _WINDOW = 0, 1, 3, 4, 6, 7, 8
_END_STREAM, _ACK, _END_HEADERS, _PADDED = 0x1, 0x1, 0x4, 0x8
_HEADER_TABLE_SIZE, _INITIAL_WINDOW_SIZE = 1, 4
# So much may come without our ever having to make room again.
_WINDOW_SIZE = (1 << 31) - 1
_DEFAULT_WINDOW = 65_535

OnMessage = Callable[[bytes], None]
OnEnd = Callable[[MeshError | None], None]


def _frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


# No dynamic header table: blocks that nobody reads can then be skipped.
_HELLO = (
    _PREFACE
    + _frame(_SETTINGS, 0, 0, struct.pack(">HIHI", _HEADER_TABLE_SIZE, 0, _INITIAL_WINDOW_SIZE, _WINDOW_SIZE))
    + _frame(_WINDOW, 0, 0, struct.pack(">I", _WINDOW_SIZE - _DEFAULT_WINDOW))
)


def _literal(name: bytes, value: bytes) -> bytes:
    """Return a header field without indexing or Huffman coding (RFC 7541, 6.2.2); both under 127 bytes."""
    return b"\0" + bytes([len(name)]) + name + bytes([len(value)]) + value


def request_headers(method: str, authority: str) -> bytes:
    """Return the header block that calls a gRPC method, `/package.Service/Method`."""
    # Static table (RFC 7541, A): 3 is ":method POST", 7 ":scheme https".
    return (
        b"\x83\x87"
        + _literal(b":path", method.encode())
        + _literal(b":authority", authority.encode())
        + _literal(b"te", b"trailers")
        + _literal(b"content-type", b"application/grpc")
    )


@dataclass(slots=True)
class _Call:
    on_message: OnMessage
    on_end: OnEnd
    received: bytearray = field(default_factory=bytearray)


class Connection(asyncio.Protocol):
    """One connection to a gRPC server, open for calls as soon as it is made."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._received = bytearray()
        self._calls: dict[int, _Call] = {}
        self._next = 1

    # Asked for.

    def call(self, headers: bytes, on_message: OnMessage, on_end: OnEnd) -> int:
        """Begin a call and return its number.

        Args:
            headers: from `request_headers`.
            on_message: gets every message of the server, encoded.
            on_end: gets None when the server ends the call well, else why it ended.

        """
        number, self._next = self._next, self._next + 2
        self._calls[number] = _Call(on_message, on_end)
        self._write(_frame(_HEADERS, _END_HEADERS, number, headers))
        return number

    def send(self, number: int, message: bytes, *, last: bool = False) -> None:
        """Send a message of a call."""
        flags = _END_STREAM if last else 0
        self._write(_frame(_DATA, flags, number, b"\0" + struct.pack(">I", len(message)) + message))

    async def unary(self, headers: bytes, message: bytes) -> bytes:
        """Return the server's answer to one message.

        Raises:
            MeshError: the server's status, in its words.
            UnreachableError: the connection ended.

        """
        answers: list[bytes] = []
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def end(error: MeshError | None) -> None:
            if not done.done():
                done.set_exception(error) if error else done.set_result(None)

        self.send(self.call(headers, answers.append, end), message, last=True)
        await done
        return answers[0]

    def ping(self) -> None:
        """Send what gRPC's keepalive sends."""
        self._write(_frame(_PING, 0, 0, bytes(8)))

    def close(self) -> None:
        """End the connection and every call on it; `on_end` is not called any more."""
        self._calls.clear()
        if self._transport:
            self._transport.abort()

    def _write(self, data: bytes) -> None:
        if self._transport:
            self._transport.write(data)

    # Called by the event loop.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Introduce ourselves."""
        # uvloop's are no instances of asyncio's classes.
        self._transport = cast("asyncio.Transport", transport)
        self._write(_HELLO)

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell every call."""
        self._transport = None
        calls, self._calls = self._calls, {}
        for call in calls.values():
            call.on_end(UnreachableError(f"the connection ended: {exc or 'closed by the server'}"))

    def data_received(self, data: bytes) -> None:
        """Take apart what came into frames."""
        received = self._received
        received += data
        at = 0
        while len(received) - at >= 9:
            length = int.from_bytes(received[at : at + 3])
            if len(received) - at < 9 + length:
                break
            kind, flags, stream = struct.unpack_from(">BBI", received, at + 3)
            self._frame(kind, flags, stream, bytes(received[at + 9 : at + 9 + length]))
            at += 9 + length
        del received[:at]

    def _frame(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind == _DATA:
            self._data(stream, payload[1 : -payload[0]] if flags & _PADDED else payload)
            if flags & _END_STREAM:
                self._end(stream, UnreachableError("the server ended the call without a status"))
        elif kind == _HEADERS and flags & _END_STREAM:
            self._end(stream, _status(payload))
        elif kind == _RESET:
            self._end(stream, UnreachableError(f"the server reset the call ({int.from_bytes(payload)})"))
        elif kind == _SETTINGS and not flags & _ACK:
            self._write(_frame(_SETTINGS, _ACK, 0))
        elif kind == _PING and not flags & _ACK:
            self._write(_frame(_PING, _ACK, 0, payload))
        elif kind == _GOAWAY and self._transport:
            self._transport.close()

    def _data(self, stream: int, payload: bytes) -> None:
        call = self._calls.get(stream)
        if call is None:
            return
        call.received += payload
        while call.received and len(call.received) >= (end := 5 + int.from_bytes(call.received[1:5])):
            message = bytes(call.received[5:end])
            del call.received[:end]
            call.on_message(message)

    def _end(self, stream: int, error: MeshError | None) -> None:
        call = self._calls.pop(stream, None)
        if call:
            call.on_end(error)


def _status(block: bytes) -> MeshError | None:
    """Return what the trailers say: None when all is well."""
    trailers = {str(name): str(value) for name, value in Decoder().decode(block)}
    status = trailers.get("grpc-status", "")
    return None if status == "0" else MeshError(f"status {status}: {trailers.get('grpc-message', '')}")
