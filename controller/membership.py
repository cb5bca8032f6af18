"""Networks and their members: what there is, and how it changes while a node is in.

join.py lets it in, members/revocations.py takes it out. Every change is one transaction. Records are signed
where they change, and only carried everywhere else.
"""

import base64
import hashlib
import ipaddress
import logging
import secrets
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import replace

from overmesh.config import DEFAULT_IPV4_RANGE, DEFAULT_NETWORK
from overmesh.controller.audit import Deed
from overmesh.controller.members.names import checked_label
from overmesh.controller.mirror import Change, Mirror
from overmesh.controller.store import keys
from overmesh.controller.store.base import Compare, Op, Put, Target, absent, as_read, unchanged
from overmesh.controller.trust import MeshRoot
from overmesh.controller.trust.fresh import FreshSignatures
from overmesh.controller.view import NetworkView
from overmesh.errors import ExistsError, InvalidError, NotFoundError, RemovedError, RevokedError
from overmesh.model import Endpoint, Mode, Network, NodeEndpoints, Range, Record, Revocation
from overmesh.proto.codec import MAX_NETWORK_NUMBER

MAX_ENDPOINTS = 16
# What IPv6 needs at least (RFC 8200, 5), and what an IP packet can be.
MTU_RANGE = range(1280, 1 << 16)

AGENT_ENDPOINTS = "set `endpoints` in the agent's configuration"

RandomBits = Callable[[int], int]

_log = logging.getLogger("overmesh.controller")


def node_id(public_key: bytes) -> str:
    """Return the id that follows from a node's X25519 public key: 16 characters of base32."""
    return base64.b32encode(hashlib.sha256(public_key).digest()[:10]).decode().lower()


class Signer:
    """Signs records, each with a higher serial than all before it.

    Args:
        root: the mesh root.
        clock: unix seconds; serials are unix milliseconds as far as they grow.
        fresh: is told what is signed.

    """

    def __init__(
        self, root: MeshRoot, clock: Callable[[], float], fresh: FreshSignatures | None = None
    ) -> None:
        self._root = root
        self._clock = clock
        self._fresh = fresh or FreshSignatures()
        self._last = 0

    def sign(self, record: Record) -> bytes:
        """Return the record under the next serial, as an encoded Signed.

        Its own serial is that of the version before; agents never go back.
        """
        self._last = max(self._last + 1, record.serial + 1, int(self._clock() * 1000))
        signed = self._root.sign(replace(record, serial=self._last))
        self._fresh.add(signed, self._root.fingerprint)
        return signed


class Membership:
    """Who and what is in the mesh.

    Args:
        mirror: of the store.
        signer: for what changes.
        random_bits: `secrets.randbits`, or what a test puts in its place.

    """

    def __init__(self, mirror: Mirror, signer: Signer, random_bits: RandomBits = secrets.randbits) -> None:
        self._mirror = mirror
        self._signer = signer
        self._random_bits = random_bits

    # Networks.

    async def ensure_network(self, ranges: Sequence[str]) -> None:
        """Make the default network when there is none at all, as on the first start."""
        if not self._mirror.networks:
            # Another controller that starts for the first time may be faster.
            with suppress(ExistsError):
                await self.create_network(DEFAULT_NETWORK, ranges)

    async def create_network(
        self, name: str, ranges: Sequence[str] = (), mode: Mode = Mode.SEALED, mtu: int = 0
    ) -> NetworkView:
        """Make a network and return it.

        Args:
            name: a DNS label.
            ranges: overlay CIDRs, at most one of each family; empty: the next free 10.x.0.0/16 from
                10.77 on, and a random ULA /64 (RFC 4193).
            mode: how packets travel.
            mtu: inside the overlay; 0: each host derives it from its underlay.

        Raises:
            ExistsError: the name is taken.
            InvalidError: names the value and what it should be.

        """
        name = checked_label("network name", name)
        if mtu and mtu not in MTU_RANGE:
            raise InvalidError(
                f"an MTU of {mtu} can't be", f"say {MTU_RANGE[0]} to {MTU_RANGE[-1]}, or 0 to derive it"
            )
        given = _ranges(ranges)
        await self._mirror.change(lambda: self._new_network(Network(name, 0, given, mode, mtu)))
        _log.info("network created", extra={"network": name})
        return self._mirror.view(name)

    def _new_network(self, network: Network) -> Change:
        key = keys.network(network.name)
        if self._mirror.key(key):
            raise ExistsError(f"network {network.name} exists", "choose another name")
        others = [view.network for view in self._mirror.networks]
        ranges = network.ranges or self._default_ranges(others)
        _refuse_overlap(ranges, others)
        numbers = {other.number for other in others}
        number = next(number for number in range(1, MAX_NETWORK_NUMBER) if number not in numbers)
        guard = self._mirror.key(keys.NETWORKS)
        return Change(
            [absent(key), unchanged(guard) if guard else absent(keys.NETWORKS)],
            [
                Put(key, self._signer.sign(replace(network, number=number, ranges=ranges))),
                Put(keys.NETWORKS, network.name.encode()),
            ],
            Deed("network created", network.name, network.name, details={"mode": network.mode.name.lower()}),
        )

    def _default_ranges(self, others: Iterable[Network]) -> tuple[Range, ...]:
        first = ipaddress.IPv4Network(DEFAULT_IPV4_RANGE)
        taken = [cidr for other in others for cidr in other.ranges]
        candidates = (
            ipaddress.IPv4Network((int(first.network_address) + (step << 16), 16))
            for step in range(256 - first.network_address.packed[1])
        )
        free = (cidr for cidr in candidates if not any(cidr.overlaps(other) for other in taken))
        ula = ipaddress.IPv6Network(((0xFD << 120) | (self._random_bits(40) << 80), 64))
        ipv4 = next(free, None)
        return (ipv4, ula) if ipv4 else (ula,)

    # Nodes.

    async def find(self, network: str, node: str) -> str:
        """Return the id of the node that goes by this id or name, whichever controller let it in.

        Raises:
            NotFoundError: no such network or node.
            StoreUnavailableError: it can't say.

        """
        self._mirror.view(network)
        if await self._mirror.look_up(keys.node(network, node)):
            return node
        named = await self._mirror.look_up(keys.name(network, node.lower()))
        if named:
            return named.value.decode(errors="replace")
        raise NotFoundError(f"network {network} has no node {node!r}", "see `meshctl node list`")

    # Endpoints.

    async def report(self, network: str, node: str, endpoints: Sequence[Endpoint], lanes: int = 1) -> int:
        """Take note of where a node is and how many lanes it has there; return the revision.

        Nothing is signed when nothing changed.

        Raises:
            InvalidError: an endpoint that others could never reach.
            RemovedError: the node is no member.

        """
        self.check_endpoints(endpoints)
        result = await self._mirror.change(lambda: self._moved(network, node, tuple(endpoints), lanes))
        return result.revision

    def _moved(self, network: str, node: str, endpoints: tuple[Endpoint, ...], lanes: int) -> Change | None:
        # It goes with the node; only a node that runs an agent has one.
        kv = self._mirror.held("credentials", network).get(node)
        if kv is None:
            raise removed(network)
        ops = self.endpoints_ops(network, node, endpoints, lanes)
        member = Compare(kv.key, Target.CREATE, kv.create_revision)
        return Change([member, self.endpoints_as_read(network, node)], ops) if ops else None

    def endpoints_ops(
        self, network: str, node: str, endpoints: tuple[Endpoint, ...], lanes: int = 0
    ) -> list[Op]:
        """Return what to write so that a node is at these endpoints: nothing when it is known to be.

        No lanes: as many as before.
        """
        view = self._mirror.view(network)
        before = view.endpoints(node)
        known = before or NodeEndpoints(node, network, (), serial=view.revoked_serial(node))
        record = replace(known, endpoints=endpoints, lanes=lanes or known.lanes)
        if record == before:
            return []
        return [Put(keys.endpoints(network, node), self._signer.sign(record))]

    def endpoints_as_read(self, network: str, node: str) -> Compare:
        """Return what `endpoints_ops` relies on: what etcd carries out late must not undo what is newer."""
        key = keys.endpoints(network, node)
        return as_read(key, self._mirror.key(key))

    def check_endpoints(self, endpoints: Sequence[Endpoint], fix: str = AGENT_ENDPOINTS) -> None:
        """Raise InvalidError, with this fix, for an endpoint that no other host could reach."""
        if len(endpoints) > MAX_ENDPOINTS:
            raise InvalidError(f"{len(endpoints)} endpoints are too many", f"offer at most {MAX_ENDPOINTS}")
        overlays = [
            (view.name, cidr) for view in self._mirror.networks if view.usable for cidr in view.network.ranges
        ]
        for endpoint in endpoints:
            why = _unreachable(endpoint)
            inside = next((name for name, cidr in overlays if endpoint.address in cidr), None)
            if inside:
                why = f"inside the overlay network {inside}"
            if why:
                raise InvalidError(f"endpoint {endpoint} can't be reached from other hosts: {why}", fix)


def removed(network: str) -> RemovedError:
    """Return what a caller hears who is not a member."""
    return RemovedError(
        f"this host is no longer a member of network {network}", "join again with a new token"
    )


def revoked(revocation: Revocation) -> RevokedError:
    """Return what a caller hears whose key was revoked for good."""
    named = f" ({revocation.name})" if revocation.name else ""
    return RevokedError(
        f"the key of this host{named} was revoked for good in network {revocation.network}",
        "`meshctl leave --force` on the host, then join with a new token: that makes new keys",
    )


def _unreachable(endpoint: Endpoint) -> str:
    """Return why no other host can reach an address, or an empty string."""
    address = endpoint.address
    if address.version == 6 and (address.ipv4_mapped or address.scope_id):
        return "an IPv4-mapped or scoped address"
    kinds = {
        "loopback": address.is_loopback,
        "multicast": address.is_multicast,
        "unspecified": address.is_unspecified,
        "link-local": address.is_link_local,
        "broadcast": str(address) == "255.255.255.255",
    }
    return next((kind for kind, true in kinds.items() if true), "")


def _ranges(texts: Sequence[str]) -> tuple[Range, ...]:
    ranges = tuple(sorted((_range(text) for text in texts), key=lambda cidr: cidr.version))
    if len({cidr.version for cidr in ranges}) < len(ranges):
        raise InvalidError("two ranges of the same family", "give at most one IPv4 and one IPv6 range")
    return ranges


def _range(text: str) -> Range:
    try:
        cidr = ipaddress.ip_network(text)
    except ValueError as error:
        raise InvalidError(f"{text!r} is not a range: {error}", "write it like 10.77.0.0/16") from None
    if isinstance(cidr, ipaddress.IPv4Network) and not 8 <= cidr.prefixlen <= 30:
        raise InvalidError(f"{cidr} is not of a size that can be used", "take an IPv4 range from /8 to /30")
    if isinstance(cidr, ipaddress.IPv6Network) and not 8 <= cidr.prefixlen <= 64:
        raise InvalidError(f"{cidr} is not of a size that can be used", "take an IPv6 range of /64 or larger")
    if cidr.is_loopback or cidr.is_multicast or cidr.is_link_local or cidr.network_address.is_unspecified:
        raise InvalidError(f"{cidr} is set aside for other uses", "take a private range")
    return cidr


def _refuse_overlap(ranges: Iterable[Range], others: Iterable[Network]) -> None:
    for cidr in ranges:
        for other in others:
            for taken in other.ranges:
                if cidr.version == taken.version and cidr.overlaps(taken):
                    raise InvalidError(
                        f"{cidr} overlaps {taken} of network {other.name}", "choose a range that is free"
                    )
