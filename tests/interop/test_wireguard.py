"""wireguard-go, the reference in user space, is the other end of a sealed network."""

import base64
import os
import re
from collections.abc import Iterator

import pytest

from tests.interop.sealed import End, Ours, Remote, WireguardGo, missing_programs, ping
from tests.interop.wireguard import COOKIE_REPLY, INITIATION, Flood, Handshakes
from tests.netns.lab import ROOT, CommandError, Lab, Process, missing, until

pytestmark = pytest.mark.skipif(
    bool(missing() or missing_programs()), reason=f"needs {missing_programs()} {missing()}"
)
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="packet sockets in a host need root")

PSK = base64.b64encode(bytes(range(32))).decode()
# Keys are renewed after 120 seconds; both ends have the real timers.
RENEWED_AFTER = 135


class Pair:
    """Our fastpath on host `ours` and wireguard-go on host `theirs`, in one segment."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.ours = Ours(lab["ours"], 1, lab.directory)
        self.theirs = WireguardGo(lab["theirs"], 2, lab.directory)

    def start(self, initiator: str, *, ours_psk: str = "", theirs_psk: str = "") -> None:
        """Run both; who is not the initiator has no endpoint, so it can only answer."""
        of_theirs = self.theirs.endpoint if initiator == "ours" else ""
        of_ours = self.ours.endpoint if initiator == "theirs" else ""
        self.theirs.start([Remote(self.ours, of_ours, theirs_psk)])
        self.ours.start([Remote(self.theirs, of_theirs, ours_psk)])

    def in_turn(self, initiator: str) -> list[tuple[End, End]]:
        """Return both directions, the initiator's first."""
        both: list[tuple[End, End]] = [(self.ours, self.theirs), (self.theirs, self.ours)]
        return both if initiator == "ours" else both[::-1]


@pytest.fixture
def pair() -> Iterator[Pair]:
    """Two hosts with keys, nothing running, and a third that has none."""
    with Lab("ours", "theirs", "flooder") as lab:
        yield Pair(lab)


class Aging:
    """Sessions that grow old while the other tests run: one that we began, one that we answered."""

    def __init__(self, lab: Lab) -> None:
        self.ours = Ours(lab["ours"], 1, lab.directory)
        self.answers, self.asks = (
            WireguardGo(lab[name], number, lab.directory) for number, name in ((2, "answers"), (3, "asks"))
        )
        self.ours.start([Remote(self.answers, self.answers.endpoint), Remote(self.asks)])
        self.answers.start([Remote(self.ours)])
        self.asks.start([Remote(self.ours, self.ours.endpoint)])
        ping(self.ours, self.answers.addresses[0])
        ping(self.asks, self.ours.addresses[0])
        self.first = [end.latest_handshake() for end in (self.answers, self.asks)]
        self.pings = [
            self._pings(self.ours, self.answers.addresses[0]),
            self._pings(self.asks, self.ours.addresses[1]),
        ]

    def _pings(self, end: End, target: str) -> Process:
        return end.host.start(f"ping -q -i 0.1 -c {10 * RENEWED_AFTER} -W 5 {target}")


@pytest.fixture(scope="module", autouse=True)
def aging() -> Iterator[Aging]:
    """Begins with the first test of this file, so that the last one need not wait for long."""
    with Lab("ours", "answers", "asks") as lab:
        yield Aging(lab)


@pytest.mark.parametrize("psk", ["", PSK], ids=["no psk", "psk"])
@pytest.mark.parametrize("initiator", ["ours", "theirs"])
def test_ping(pair: Pair, initiator: str, psk: str) -> None:
    pair.start(initiator, ours_psk=psk, theirs_psk=psk)
    for source, target in pair.in_turn(initiator):
        ping(source, target.addresses[0])
        ping(source, target.addresses[1])
        ping(source, target.addresses[0], size=1420 - 28)


@pytest.mark.parametrize("initiator", ["ours", "theirs"])
def test_over_ipv6(pair: Pair, initiator: str) -> None:
    for end in (pair.ours, pair.theirs):
        end.host.run("ip -4 address flush dev eth0")
    of_theirs, of_ours = ("[2001:db8::2]:51820", "") if initiator == "ours" else ("", "[2001:db8::1]:51820")
    pair.theirs.start([Remote(pair.ours, of_ours)])
    pair.ours.start([Remote(pair.theirs, of_theirs)])
    for source, target in pair.in_turn(initiator):
        ping(source, target.addresses[0], size=1420 - 28)
        ping(source, target.addresses[1])
    assert "endpoint: [2001:db8::1]:51820" in pair.theirs.host.run("wg show").stdout


def test_other_preshared_key(pair: Pair) -> None:
    pair.start("ours", ours_psk=base64.b64encode(bytes(32 * [7])).decode(), theirs_psk=PSK)
    with pytest.raises(CommandError):
        ping(pair.ours, pair.theirs.addresses[0], count=1)
    assert pair.theirs.latest_handshake() == 0


def test_roaming(pair: Pair) -> None:
    """wireguard-go changes its port, then we our address: each finds the other by what it sends."""
    pair.start("ours")
    ping(pair.ours, pair.theirs.addresses[0])
    pair.theirs.host.run("wg set wg0 listen-port 51999")
    ping(pair.theirs, pair.ours.addresses[0])
    ping(pair.ours, pair.theirs.addresses[0])
    pair.ours.host.run("ip address delete 192.0.2.1/24 dev eth0")
    pair.ours.host.run("ip address add 192.0.2.99/24 dev eth0")
    ping(pair.ours, pair.theirs.addresses[0])
    assert "endpoint: 192.0.2.99:51820" in pair.theirs.host.run("wg show").stdout


def test_restart(pair: Pair) -> None:
    """Who comes back with no session makes a new one; nobody has to wait for old keys to expire."""
    pair.start("ours")
    ping(pair.ours, pair.theirs.addresses[0])
    pair.ours.stop()
    pair.ours.start([Remote(pair.theirs, pair.theirs.endpoint)])
    ping(pair.ours, pair.theirs.addresses[0])


@needs_root
@pytest.mark.parametrize("initiator", ["ours", "theirs"])
def test_cookie_under_load(pair: Pair, initiator: str) -> None:
    """Who is under load asks for a cookie, and lets the initiator in once it has brought one."""
    pair.start(initiator)
    [(source, target), _] = pair.in_turn(initiator)
    handshakes = Handshakes(source.host)
    flood = Flood(
        pair.lab["flooder"], (f"192.0.2.{target.number}", 51820), base64.b64decode(target.public_key)
    )
    try:
        until(flood.is_answered, "load")
        source.host.run(f"ping -c 1 -w 40 -i 0.5 {target.addresses[0]}", timeout=50)
    finally:
        flood.stop()
        handshakes.stop()
    from_source = [(kind, cookie) for at, kind, cookie in handshakes.seen if at.endswith(f".{source.number}")]
    assert (INITIATION, False) in from_source
    assert (INITIATION, True) in from_source
    assert any(kind == COOKIE_REPLY for _, kind, _ in handshakes.seen)


@pytest.mark.timeout(600)  # it may have to be compiled
def test_a_day_old_counter(pair: Pair) -> None:
    """Our core seals with counters that take days and ages; wireguard-go's replay filter follows."""
    pair.theirs.start([Remote(pair.ours)])
    manifest = str(ROOT / "fastpath/Cargo.toml")
    late = ["cargo", "run", "--locked", "--quiet", "--manifest-path", manifest]
    late += ["-p", "overmesh-core", "--example", "late", "--"]
    keys = [base64.b64decode(key).hex() for key in (pair.ours.private_key, pair.theirs.public_key)]
    ends = [pair.theirs.endpoint, pair.ours.addresses[0], pair.theirs.addresses[0]]
    counters = [str(counter) for counter in (2**32 - 1, 2**32, 86_400_000_000, 2**63, 2**64 - 2**13 - 2)]
    done = pair.ours.host.run([*late, *keys, *ends, *counters], timeout=600)
    assert done.stdout.split() == counters


@pytest.mark.timeout(3 * RENEWED_AFTER)
def test_keys_are_renewed_without_loss(aging: Aging) -> None:
    for process in aging.pings:
        process.wait(RENEWED_AFTER + 60)
        sent, received = map(int, re.findall(r"(\d+) (?:packets transmitted|received)", process.output))
        assert sent == received == 10 * RENEWED_AFTER, process.output
    for end, first in zip((aging.answers, aging.asks), aging.first, strict=True):
        assert 115 < end.latest_handshake() - first < RENEWED_AFTER + 60
