"""What a sealed fastpath makes of hostile datagrams: each is counted under its name, and hurts nobody."""

import base64
import contextlib
import os
import socket
import struct
import time
from collections.abc import Callable, Iterator

import pytest

from tests.interop.sealed import Ours, Remote, missing_programs
from tests.interop.wireguard import (
    DATA,
    REJECT_AFTER_MESSAGES,
    RESPONSE,
    Initiator,
    Session,
    junk,
    signed,
    socket_in,
)
from tests.netns.lab import Lab, missing, until

pytestmark = pytest.mark.skipif(
    bool(missing() or missing_programs()) or os.geteuid() != 0,
    reason=f"needs root; {missing_programs()} {missing()}",
)

ECHO_REPLY, ECHO_REQUEST = 0, 8
WINDOW = 8192
INITIATION_INTERVAL = 0.025  # seconds: of a peer's, one in 20 ms is answered


class Attacker:
    """A peer of our fastpath that says whatever a test wants, from a socket in its own host."""

    def __init__(self, lab: Lab) -> None:
        self.ours = Ours(lab["ours"], 1, lab.directory)
        self.end = Ours(lab["theirs"], 2, lab.directory)
        self.ours.start([Remote(self.end)], lanes=2)
        self.socket, self.elsewhere = socket_in(lab["theirs"]), socket_in(lab["elsewhere"])
        self.socket.connect(("192.0.2.1", 51820))
        self.socket.settimeout(5)
        self.elsewhere.settimeout(1)
        self.remote = base64.b64decode(self.ours.public_key)
        self.initiator = Initiator(base64.b64decode(self.end.private_key), self.remote)
        self.connect()

    def connect(self) -> bytes:
        """Make a session; return the initiation that did."""
        time.sleep(INITIATION_INTERVAL)
        initiation = self.initiator.initiation()
        self.socket.send(initiation)
        self.session: Session = self.initiator.finish(self.received(RESPONSE))
        self.counter = 0
        assert self.is_answered()
        return initiation

    def received(self, kind: int) -> bytes:
        """Return the next message of a kind."""
        while True:
            message = self.socket.recv(2048)
            if message[0] == kind:
                return message

    def sealed(self, counter: int | None = None, source: str = "10.77.0.2") -> bytes:
        """Return an echo request in a data message, with the next counter if none is given."""
        if counter is None:
            counter, self.counter = self.counter, self.counter + 1
        return self.session.seal(counter, echo_request(source, "10.77.0.1"))

    def is_answered(self, counter: int | None = None) -> bool:
        """Whether the session carries a packet and brings its answer."""
        self.socket.send(self.sealed(counter))
        return self.gets(ECHO_REPLY)

    def gets(self, icmp: int) -> bool:
        """Whether an ICMP packet of this type comes; others may come before it."""
        with contextlib.suppress(TimeoutError):
            while True:
                packet = self.session.open(self.received(DATA))
                if packet[:1] == b"\x45" and packet[20] == icmp:
                    return True
        return False


@pytest.fixture(scope="module")
def attacker() -> Iterator[Attacker]:
    with Lab("ours", "theirs", "elsewhere") as lab:
        attacker = Attacker(lab)
        yield attacker
        attacker.socket.close()
        attacker.elsewhere.close()


def flipped(message: bytes, at: int) -> bytes:
    """Return a message with one bit changed."""
    changed = bytearray(message)
    changed[at] ^= 1
    return bytes(changed)


def stranger(attacker: Attacker) -> bytes:
    """Return an initiation by somebody who is no peer."""
    return Initiator(os.urandom(32), attacker.remote).initiation()


HOSTILE: dict[str, tuple[str, Callable[[Attacker], bytes]]] = {
    "a header cut short": ("sealed_malformed", lambda it: it.sealed()[:31]),
    "garbage": ("sealed_malformed", lambda _: b"\x04\x00\x00\x01" + os.urandom(96)),
    "nothing": ("sealed_malformed", lambda _: b"\x00"),
    "truncated": ("forged", lambda it: it.sealed()[:-1]),
    "a bit of the packet flipped": ("forged", lambda it: flipped(it.sealed(), 20)),
    "a bit of the tag flipped": ("forged", lambda it: flipped(it.sealed(), -1)),
    "a bit of the counter flipped": ("forged", lambda it: flipped(it.sealed(), 15)),
    "another index": ("index_unknown", lambda it: flipped(it.sealed(), 5)),
    "another source address inside": ("source_mismatch", lambda it: it.sealed(source="10.77.0.9")),
    "a counter used up": ("session_expired", lambda it: it.sealed(REJECT_AFTER_MESSAGES)),
    "mac1 forged": ("mac1_invalid", lambda it: flipped(it.initiator.initiation(), 116)),
    "junk, signed": ("handshake_invalid", lambda it: junk(it.remote)),
    "an initiation cut short": ("sealed_malformed", lambda it: it.initiator.initiation()[:-1]),
    "a public key that no peer has": ("key_unknown", stranger),
    "a response to nothing": (
        "index_unknown",
        lambda it: signed(struct.pack("<III", RESPONSE, 7, 7) + os.urandom(48), it.remote),
    ),
    "a cookie for nothing": ("index_unknown", lambda _: b"\x03\x00\x00\x00" + os.urandom(60)),
}


@pytest.mark.parametrize("hostile", HOSTILE)
def test_counted_under_its_name(attacker: Attacker, hostile: str) -> None:
    reason, message = HOSTILE[hostile]
    before = attacker.ours.drops(reason)
    attacker.socket.send(message(attacker))
    until(lambda: attacker.ours.drops(reason) == before + 1, reason)
    assert attacker.is_answered()


def test_replayed(attacker: Attacker) -> None:
    before = attacker.ours.drops("replayed")
    message = attacker.sealed()
    for _ in range(3):
        attacker.socket.send(message)
    until(lambda: attacker.ours.drops("replayed") == before + 2, "replayed")
    assert attacker.gets(ECHO_REPLY)
    assert attacker.is_answered()


def test_reordered_within_the_window_and_beyond(attacker: Attacker) -> None:
    attacker.connect()
    before = attacker.ours.drops("replayed")
    assert attacker.is_answered(20_000)
    assert attacker.is_answered(20_001 - WINDOW)
    attacker.socket.send(attacker.sealed(20_000 - WINDOW))
    until(lambda: attacker.ours.drops("replayed") == before + 1, "replayed")
    assert attacker.is_answered(20_001)


def test_a_counter_of_days_and_one_near_the_end(attacker: Attacker) -> None:
    attacker.connect()
    before = attacker.ours.drops("replayed")
    for counter in (2**32 - 1, 2**32, 2**32 + 1, 86_400_000_000, 2**63, REJECT_AFTER_MESSAGES - 1):
        assert attacker.is_answered(counter), counter
        attacker.socket.send(attacker.sealed(counter))
    until(lambda: attacker.ours.drops("replayed") == before + 6, "replayed")
    attacker.connect()


def test_an_initiation_replayed(attacker: Attacker) -> None:
    before = attacker.ours.drops("handshake_replayed")
    attacker.socket.send(attacker.connect())
    until(lambda: attacker.ours.drops("handshake_replayed") == before + 1, "handshake_replayed")
    assert attacker.is_answered()


def test_an_initiation_played_to_another_lane(attacker: Attacker) -> None:
    before = attacker.ours.drops("handshake_replayed")
    attacker.elsewhere.sendto(attacker.connect(), ("192.0.2.1", 51821))
    until(lambda: attacker.ours.drops("handshake_replayed") == before + 1, "handshake_replayed")
    with pytest.raises(TimeoutError):
        attacker.elsewhere.recv(2048)
    assert attacker.is_answered()


def test_an_initiation_that_did_not_arrive_played_from_elsewhere(attacker: Attacker) -> None:
    """It is answered where it came from, and packets go to where the peer was last heard."""
    kept = attacker.initiator.initiation()
    attacker.connect()
    later = attacker.initiator.initiation()
    for initiation in (kept, later):
        time.sleep(INITIATION_INTERVAL)
        attacker.elsewhere.sendto(initiation, ("192.0.2.1", 51820))
    assert attacker.elsewhere.recv(2048)[0] == RESPONSE, "the later one"
    attacker.ours.host.run("ping -c 1 -W 1 10.77.0.2", check=False)
    assert attacker.gets(ECHO_REQUEST)
    with pytest.raises(TimeoutError):
        attacker.elsewhere.recv(2048)
    assert attacker.is_answered()


@pytest.mark.parametrize("kind", ["junk, signed", "garbage", "mac1 forged"])
def test_a_flood_does_not_touch_a_session(attacker: Attacker, kind: str) -> None:
    """Bursts of 200, well beyond what is served in a second, with an echo after each."""
    reason, message = HOSTILE[kind]
    if kind == "junk, signed":
        reason = "cookie_required"
    before = attacker.ours.drops(reason)
    flood = [message(attacker) for _ in range(200)]
    for _ in range(10):
        for one in flood:
            attacker.socket.send(one)
        assert attacker.is_answered()
    assert attacker.ours.drops(reason) - before > 1000


def echo_request(source: str, destination: str) -> bytes:
    """Return an ICMP echo request in an IPv4 packet."""
    icmp = struct.pack(">BBHHH", 8, 0, 0xF7FD, 1, 1)
    addresses = socket.inet_aton(source) + socket.inet_aton(destination)
    header = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(icmp), 0, 0, 64, socket.IPPROTO_ICMP, 0) + addresses
    return header[:10] + internet_checksum(header) + header[12:] + icmp


def internet_checksum(header: bytes) -> bytes:
    """Return the checksum of a header whose checksum is zero: RFC 1071."""
    total = sum(struct.unpack(f">{len(header) // 2}H", header))
    total = (total & 0xFFFF) + (total >> 16)
    return struct.pack(">H", ~total & 0xFFFF)
