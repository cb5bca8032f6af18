"""How a host should be. Pure: its verified map, its settings and what it has in, one value out.

    PeerMap + settings + underlay + Own --desire--> Desired

Keys and suites come from signed records alone, so nobody on the path, and nobody who writes to the
store, has a say in how packets are sealed.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Network, IPv6Network

from overmesh.agent.host import Underlay
from overmesh.config import AgentConfig
from overmesh.model import (
    Address,
    Endpoint,
    FastpathPeer,
    FastpathState,
    Kind,
    Mode,
    Network,
    Node,
    Peer,
    PeerMap,
    Range,
    Suite,
)

# Room for what the tunnel adds: IPv6 (40), UDP (8) and WireGuard (32), or Geneve (8) and options.
OVERHEAD = 80
DEFAULT_UNDERLAY_MTU = 1500
IPV6_MINIMUM_MTU = 1280  # RFC 8200 section 5

# Seconds between two messages to a sealed peer. It keeps sessions and what is on the way (NAT, firewalls)
# open, tells who is there, and has a fastpath that comes back from a crash shake hands at once.
KEEPALIVE = 25
# With more peers than that, sessions are made when there are packets for them: a host that came back would
# be under load from handshakes alone (fastpath/core/src/noise/admission.rs).
KEEPALIVE_PEERS = 250


@dataclass(frozen=True, slots=True)
class Own:
    """What this host brings along: where it is, its X25519 keys, on how many lanes it carries packets.

    other_private_key: while it changes its key, see rekeying.py.
    """

    endpoints: tuple[Endpoint, ...]
    private_key: bytes = field(repr=False)
    other_private_key: bytes = field(default=b"", repr=False)
    lanes: int = 1


@dataclass(frozen=True, slots=True)
class Desired:
    """How this host should be. routes: prefix -> our address that packets to it leave from."""

    interface: str
    mtu: int
    mtu_reason: str
    addresses: tuple[Address, ...]
    routes: tuple[tuple[Range, Address | None], ...]
    fastpath: FastpathState


@dataclass(slots=True)
class Made:
    """The fastpath peers that were made last: where nothing has changed, they are used again."""

    _seen_from: tuple[Network, Node, set[int], bool] | None = None
    _peers: dict[str, tuple[Peer, FastpathPeer]] = field(default_factory=dict)

    def of(self, peer_map: PeerMap, families: set[int]) -> tuple[FastpathPeer, ...]:
        """Return the peers of a map as the fastpath of a host with these IP versions needs them."""
        seen_from = (peer_map.network, peer_map.me, families, len(peer_map.peers) > KEEPALIVE_PEERS)
        before = self._peers if seen_from == self._seen_from else {}
        self._seen_from, self._peers = seen_from, {}
        for peer in peer_map.peers:
            known = before.get(peer.node.id)
            made = known[1] if known and known[0] is peer else _fastpath_peer(peer, peer_map, families)
            self._peers[peer.node.id] = peer, made
        return tuple(made for _, made in self._peers.values())


def desire(
    peer_map: PeerMap, config: AgentConfig, underlay: Underlay, own: Own, made: Made | None = None
) -> Desired:
    """Return how a host should be.

    Args:
        peer_map: verified.
        config: this host's settings.
        underlay: its interfaces and addresses.
        own: what else it has.
        made: what the call before this one left there.

    """
    network = peer_map.network
    mtu, reason = _mtu(network, config, underlay, own.endpoints)
    families = _families(underlay, config.interface)
    return Desired(
        interface=config.interface,
        mtu=mtu,
        mtu_reason=reason,
        addresses=peer_map.me.addresses,
        routes=tuple((prefix, _source(prefix, peer_map.me.addresses)) for prefix in _prefixes(peer_map)),
        fastpath=FastpathState(
            revision=peer_map.revision,
            tun=config.interface,
            mtu=mtu,
            network_number=network.number,
            port=config.port_in(network.mode),
            peers=(made or Made()).of(peer_map, families),
            private_key=own.private_key if network.mode is Mode.SEALED else b"",
            other_private_key=own.other_private_key if network.mode is Mode.SEALED else b"",
            lanes=own.lanes,
        ),
    )


def _mtu(
    network: Network, config: AgentConfig, underlay: Underlay, own: Iterable[Endpoint]
) -> tuple[int, str]:
    if config.mtu:
        return config.mtu, "set in this host's configuration"
    if network.mtu:
        return network.mtu, f"set for network {network.name}"
    links = [link for link in (underlay.holder(endpoint.address) for endpoint in own) if link]
    if not links:
        return (
            DEFAULT_UNDERLAY_MTU - OVERHEAD,
            f"no underlay interface known: {DEFAULT_UNDERLAY_MTU} less {OVERHEAD}",
        )
    narrowest = min(links, key=lambda link: link.mtu)
    reason = f"{narrowest.name} has {narrowest.mtu}, less {OVERHEAD} for the tunnel"
    if narrowest.mtu - OVERHEAD < IPV6_MINIMUM_MTU:
        return IPV6_MINIMUM_MTU, f"{reason}, but IPv6 needs {IPV6_MINIMUM_MTU}"
    return narrowest.mtu - OVERHEAD, reason


def _families(underlay: Underlay, overlay: str) -> set[int]:
    """Return the IP versions in which this host can send on its underlay."""
    without = {link.index for link in underlay.links if link.loopback or link.name == overlay}
    return {
        entry.address.version
        for entry in underlay.addresses
        if entry.link not in without and not entry.address.is_link_local
    }


def _fastpath_peer(peer: Peer, peer_map: PeerMap, families: set[int]) -> FastpathPeer:
    # An endpoint inside the overlay would send packets in circles. Those of the wrong family go last:
    # the peer may still be heard from there.
    node, network = peer.node, peer_map.network
    outside = [one for one in peer.endpoints if not any(one.address in cidr for cidr in network.ranges)]
    found = FastpathPeer(
        id=node.id,
        name=node.name,
        prefixes=(*map(_host_prefix, node.addresses), *node.routes),
        endpoints=tuple(sorted(outside, key=lambda one: one.address.version not in families)),
        mode=network.mode,
        lanes=peer.lanes,
        stock=node.kind is Kind.WIREGUARD,
    )
    return _sealed(found, node, peer_map) if network.mode is Mode.SEALED else found


def _sealed(found: FastpathPeer, node: Node, peer_map: PeerMap) -> FastpathPeer:
    # Whether a phone is to be woken is for the phone's own configuration to say.
    silent = found.stock or len(peer_map.peers) > KEEPALIVE_PEERS
    return replace(
        found,
        public_key=node.public_key,
        previous_public_key=node.previous_public_key,
        suite=agreed_suite(peer_map.me, node),
        keepalive_s=0 if silent else KEEPALIVE,
    )


def agreed_suite(one: Node, other: Node) -> Suite:
    """Return the best suite that both records offer; every WireGuard knows ChaCha.

    Both ends compute it from the same two records, and the suite is part of the Noise protocol name: ends
    that see different records do not complete a handshake, rather than use the weaker suite.
    """
    return max(set(one.suites) & set(other.suites), default=Suite.CHACHA)


def _host_prefix(address: Address) -> Range:
    return IPv4Network(address) if address.version == 4 else IPv6Network(address)


def _prefixes(peer_map: PeerMap) -> Iterator[Range]:
    """Yield what goes into the overlay: the network's ranges, and the subnets behind peers."""
    yield from peer_map.network.ranges
    yield from sorted({route for peer in peer_map.peers for route in peer.node.routes}, key=str)


def _source(prefix: Range, addresses: Iterable[Address]) -> Address | None:
    return next((address for address in addresses if address.version == prefix.version), None)
