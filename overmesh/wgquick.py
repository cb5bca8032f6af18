"""The configuration of a stock WireGuard peer, as wg-quick(8) and the WireGuard apps read it. Pure.

    [Interface]   who the peer is
    [Peer]        each member it can talk to

Every member's addresses stand under its key (AllowedIPs), and wg-quick makes routes of them: so the
peer needs no address range of the mesh on its interface, only addresses of its own.
"""

import base64
from collections.abc import Iterable, Iterator

from overmesh.model import Endpoint, Peer

# What WireGuard leaves of an underlay of 1500 bytes.
USUAL_MTU = 1420
KEY_LENGTH = 32


def key_text(key: bytes) -> str:
    """Return a key as WireGuard's tools write it."""
    return base64.b64encode(key).decode()


def key_value(text: str) -> bytes:
    """Return the 32 bytes of a key that WireGuard's tools wrote.

    Raises:
        ValueError: not 44 characters of base64, or not as WireGuard would write them.

    """
    try:
        key = base64.b64decode(text, validate=True)
    except ValueError:
        key = b""
    if len(key) != KEY_LENGTH or key_text(key) != text:
        raise ValueError("not a WireGuard key: 32 bytes in base64")
    return key


def safe_mtu(network_mtu: int, reported: Iterable[int]) -> int:
    """Return an MTU that every member takes.

    Args:
        network_mtu: what is set for the network; 0: nothing.
        reported: what the members say that they have; 0: nothing yet.

    """
    return network_mtu or min([USUAL_MTU, *filter(None, reported)])


def render(me: Peer, others: Iterable[Peer], *, mtu: int, private_key: bytes, keepalive_s: int) -> str:
    """Return the file for a peer.

    Args:
        me: whose it is.
        others: the other members.
        mtu: of its interface.
        private_key: of `me`; empty: a comment says what to put there.
        keepalive_s: how often it is to be heard of, if others can't begin to talk to it; 0: never.

    """
    everyone = list(others)
    met = [other for other in everyone if other.endpoints or me.endpoints]
    silent = [other.node.name for other in everyone if not (other.endpoints or me.endpoints)]
    sections = [
        _interface(me, mtu, private_key),
        *(_peer(other, _nearest(me, other), 0 if me.endpoints else keepalive_s) for other in met),
        *(
            [f"# Without an endpoint, as this peer is, and so left out: {', '.join(silent)}\n"]
            if silent
            else []
        ),
    ]
    return "\n".join(sections)


def _interface(me: Peer, mtu: int, private_key: bytes) -> str:
    public = key_text(me.node.public_key)
    lines = [
        f"# {me.node.name} in network {me.node.network}",
        "[Interface]",
        f"PrivateKey = {key_text(private_key)}"
        if private_key
        else f"# PrivateKey = put the one here whose public key is {public}",
        "Address = " + ", ".join(f"{address}/{address.max_prefixlen}" for address in me.node.addresses),
        f"MTU = {mtu}",
        *(f"ListenPort = {endpoint.port}" for endpoint in me.endpoints[:1]),
    ]
    return "\n".join(lines) + "\n"


def _peer(other: Peer, endpoint: Endpoint | None, keepalive_s: int) -> str:
    lines = [
        f"# {other.node.name}",
        "[Peer]",
        f"PublicKey = {key_text(other.node.public_key)}",
        f"AllowedIPs = {', '.join(_allowed(other))}",
        *([f"Endpoint = {endpoint}"] if endpoint else []),
        *([f"PersistentKeepalive = {keepalive_s}"] if keepalive_s else []),
    ]
    return "\n".join(lines) + "\n"


def _allowed(other: Peer) -> Iterator[str]:
    yield from (f"{address}/{address.max_prefixlen}" for address in other.node.addresses)
    yield from map(str, other.node.routes)


def _nearest(me: Peer, other: Peer) -> Endpoint | None:
    """Return the best endpoint of a family that the peer is known to have, else the best one."""
    families = {endpoint.address.version for endpoint in me.endpoints}
    of_family = (endpoint for endpoint in other.endpoints if endpoint.address.version in families)
    return next(of_family, next(iter(other.endpoints), None))
