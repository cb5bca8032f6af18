"""WireGuard once more, by hand: an initiator that can also say what no honest host says.

Written from the paper, <https://www.wireguard.com/papers/wireguard.pdf>, section 5.4; names are its names.
"""

import contextlib
import hashlib
import hmac
import os
import socket
import struct
import threading
import time
from ctypes import CDLL, get_errno
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from tests.netns.lab import Host

CONSTRUCTION = b"Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s"
IDENTIFIER = b"WireGuard v1 zx2c4 Jason@zx2c4.com"
INITIATION, RESPONSE, COOKIE_REPLY, DATA = 1, 2, 3, 4
REJECT_AFTER_MESSAGES = 2**64 - 2**13 - 1
CLONE_NEWNET = 0x4000_0000
ETH_P_ALL = 3
BURST = 200


class Session:
    """The keys that a handshake yielded, on the initiator's side."""

    def __init__(self, receiver: int, sending: bytes, receiving: bytes) -> None:
        self.receiver = receiver
        self._sending, self._receiving = ChaCha20Poly1305(sending), ChaCha20Poly1305(receiving)

    def seal(self, counter: int, packet: bytes) -> bytes:
        """Return a data message."""
        padded = packet + bytes(-len(packet) % 16)
        header = struct.pack("<IIQ", DATA, self.receiver, counter)
        return header + self._sending.encrypt(_nonce(counter), padded, b"")

    def open(self, message: bytes) -> bytes:
        """Return the padded packet in a data message."""
        kind, _, counter = struct.unpack_from("<IIQ", message)
        assert kind == DATA
        return self._receiving.decrypt(_nonce(counter), message[16:], b"")


class Initiator:
    """Who begins a handshake with a host whose public key it knows.

    Args:
        private: this side's private key.
        remote: the other's public key.

    """

    def __init__(self, private: bytes, remote: bytes) -> None:
        self.private, self.remote = X25519PrivateKey.from_private_bytes(private), remote
        self.index = 0

    def initiation(self, stamp: float | None = None) -> bytes:
        """Return the first message, signed; its stamp is a time since 1970, now if not given."""
        self.index += 1
        ephemeral = self._ephemeral = X25519PrivateKey.generate()
        chain = _hash(CONSTRUCTION)
        seen = _hash(_hash(chain + IDENTIFIER) + self.remote)
        public = ephemeral.public_key().public_bytes_raw()
        seen = _hash(seen + public)
        (chain,) = _kdf(1, chain, public)
        chain, key = _kdf(2, chain, _dh(ephemeral, self.remote))
        static = _seal(key, self.private.public_key().public_bytes_raw(), seen)
        seen = _hash(seen + static)
        chain, key = _kdf(2, chain, _dh(self.private, self.remote))
        sealed_stamp = _seal(key, tai64n(time.time() if stamp is None else stamp), seen)
        self._chain, self._hash = chain, _hash(seen + sealed_stamp)
        message = struct.pack("<II", INITIATION, self.index) + public + static + sealed_stamp
        return signed(message, self.remote)

    def finish(self, response: bytes) -> Session:
        """Return the session that the second message completes; without a preshared key."""
        kind, sender, receiver = struct.unpack_from("<III", response)
        assert (kind, receiver) == (RESPONSE, self.index), (kind, receiver)
        public = response[12:44]
        seen = _hash(self._hash + public)
        (chain,) = _kdf(1, self._chain, public)
        (chain,) = _kdf(1, chain, _dh(self._ephemeral, public))
        (chain,) = _kdf(1, chain, _dh(self.private, public))
        chain, middle, key = _kdf(3, chain, bytes(32))
        ChaCha20Poly1305(key).decrypt(_nonce(0), response[44:60], _hash(seen + middle))
        return Session(sender, *_kdf(2, chain, b""))


def signed(message: bytes, remote: bytes) -> bytes:
    """Return a handshake message, given without its codes, with mac1 and an empty mac2."""
    key = _hash(b"mac1----" + remote)
    return message + hashlib.blake2s(message, digest_size=16, key=key).digest() + bytes(16)


def tai64n(unix: float) -> bytes:
    """Return a time since 1970 as a TAI64N stamp."""
    return struct.pack(">QI", 2**62 + 10 + int(unix), int(unix % 1 * 1e9))


def socket_in(host: Host, family: int = socket.AF_INET, kind: int = socket.SOCK_DGRAM) -> socket.socket:
    """Return a socket of this process in the network of a host.

    Raises:
        OSError: this process may not enter there; it takes root.

    """
    made: list[socket.socket | OSError] = []

    def make() -> None:
        libc = CDLL(None, use_errno=True)
        with Path(f"/proc/{host.pid}/ns/net").open() as namespace:
            if libc.setns(namespace.fileno(), CLONE_NEWNET):
                made.append(OSError(get_errno(), "setns"))
                return
        made.append(socket.socket(family, kind))

    thread = threading.Thread(target=make)  # a thread of its own: it never comes back from there
    thread.start()
    thread.join()
    [one] = made
    if isinstance(one, OSError):
        raise one
    return one


class Handshakes:
    """The handshake messages that pass a host's interface, as (source, kind, has a cookie's code)."""

    def __init__(self, host: Host, device: str = "eth0") -> None:
        self.seen: list[tuple[str, int, bool]] = []
        self._socket = socket_in(host, socket.AF_PACKET, socket.SOCK_RAW)
        self._socket.bind((device, ETH_P_ALL))
        self._socket.settimeout(0.2)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._listen)
        self._thread.start()

    def stop(self) -> None:
        """Listen no more."""
        self._ended.set()
        self._thread.join()
        self._socket.close()

    def _listen(self) -> None:
        while not self._ended.is_set():
            with contextlib.suppress(TimeoutError):
                frame = self._socket.recv(2048)
                if frame[12:14] == b"\x08\x00" and frame[42:43] in (b"\x01", b"\x02", b"\x03"):
                    has_cookie = frame[42] != COOKIE_REPLY and any(frame[-16:])
                    self.seen.append((socket.inet_ntoa(frame[26:30]), frame[42], has_cookie))


class Flood:
    """Signed junk initiations to a host, from another, until it is stopped."""

    def __init__(self, host: Host, target: tuple[str, int], remote: bytes, rate: int = 5000) -> None:
        self._socket = socket_in(host)
        self._socket.connect(target)
        self._messages = [junk(remote) for _ in range(BURST)]
        self._pause = BURST / rate
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._send)
        self._thread.start()

    def stop(self) -> None:
        """Send no more."""
        self._ended.set()
        self._thread.join()
        self._socket.close()

    def is_answered(self) -> bool:
        """Whether the host has asked for a cookie since last asked: it is under load."""
        asked = False
        with contextlib.suppress(BlockingIOError):
            while True:
                asked |= self._socket.recv(2048, socket.MSG_DONTWAIT)[0] == COOKIE_REPLY
        return asked

    def _send(self) -> None:
        while not self._ended.wait(self._pause):
            for message in self._messages:
                with contextlib.suppress(ConnectionRefusedError):
                    self._socket.send(message)


def junk(remote: bytes) -> bytes:
    """Return an initiation with the mac1 of a host around random bytes."""
    return signed(struct.pack("<II", INITIATION, 1) + os.urandom(108), remote)


def _hash(data: bytes) -> bytes:
    return hashlib.blake2s(data).digest()


def _hmac(key: bytes, data: bytes) -> bytes:
    return hmac.digest(key, data, "blake2s")


def _kdf(count: int, key: bytes, data: bytes) -> list[bytes]:
    secret, parts = _hmac(key, data), [b""]
    for number in range(1, count + 1):
        parts.append(_hmac(secret, parts[-1] + bytes([number])))
    return parts[1:]


def _dh(private: X25519PrivateKey, public: bytes) -> bytes:
    return private.exchange(X25519PublicKey.from_public_bytes(public))


def _seal(key: bytes, plain: bytes, seen: bytes) -> bytes:
    return ChaCha20Poly1305(key).encrypt(_nonce(0), plain, seen)


def _nonce(counter: int) -> bytes:
    return bytes(4) + counter.to_bytes(8, "little")
