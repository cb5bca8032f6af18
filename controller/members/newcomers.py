"""What every new member takes, whichever way it comes in: hosts by join.py, WireGuard peers by peers.py.

A membership lasts MEMBERSHIP_DAYS; who asks again in its second half gets it renewed.
"""

from collections.abc import Callable
from dataclasses import replace

from overmesh.controller import addressing
from overmesh.controller.audit import Deed
from overmesh.controller.membership import Membership, Signer, node_id, revoked
from overmesh.controller.mirror import Change, Mirror
from overmesh.controller.store import keys
from overmesh.controller.store.base import KeyValue, Put, absent, as_read, unchanged
from overmesh.controller.trust import MEMBERSHIP_DAYS
from overmesh.controller.view import NetworkView
from overmesh.errors import ExistsError, InvalidError, NameTakenError, StoreCorruptError
from overmesh.model import Endpoint, Node, Suite
from overmesh.proto.codec import PUBLIC_KEY_LENGTH

_VALIDITY = MEMBERSHIP_DAYS * 86400
_FIELD_PRIME = (1 << 255) - 19
# The points of Curve25519 and its twist whose order divides 8 (D. J. Bernstein, https://cr.yp.to/ecdh.html).
_SMALL_ORDER = {
    0,
    1,
    0x00B8495F16056286FDB1329CEB8D09DA6AC49FF1FAE35616AEB8413B7C7AEBE0,
    0x57119FD0DD4E22D8868E1C58C45C44045BEF839C55B1D0B1248C50A3BC959C5F,
    _FIELD_PRIME - 1,
}


class Newcomers:
    """Plans the transactions that make members; whoever lets one in carries them out.

    Args:
        mirror, membership, signer: the parts of this controller.
        clock: unix seconds.

    """

    def __init__(
        self, mirror: Mirror, membership: Membership, signer: Signer, clock: Callable[[], float]
    ) -> None:
        self._mirror = mirror
        self._membership = membership
        self._signer = signer
        self._clock = clock

    def admit(self, view: NetworkView, node: Node, endpoints: tuple[Endpoint, ...], lanes: int = 1) -> Change:
        """Return the change by which a node takes its name, addresses, record and endpoints, or nothing.

        Args:
            view: of the network that it comes into.
            node: who it is; its addresses and the end of its membership are chosen here.
            endpoints: where it is, checked.
            lanes: that it has there.

        Raises:
            NameTakenError, PoolExhaustedError
            ExistsError: its key is another member's.
            RevokedError: its key was revoked for good.

        """
        check_not_banned(view, node.id)
        alias = keys.alias(view.name, node.id)
        if self._mirror.key(alias):
            raise ExistsError("this X25519 key is or was that of another member", "make a new one")
        self._check_name(view, node.name)
        addresses = addressing.choose(view.network, node.id, self._mirror.held("addresses", view.name))
        claims = [
            keys.name(view.name, node.name),
            *(keys.address(view.name, address) for address in addresses),
        ]
        record, revocation = keys.node(view.name, node.id), keys.revoked(view.name, node.id)
        member = replace(
            node,
            addresses=addresses,
            serial=view.revoked_serial(node.id),
            not_after=int(self._clock()) + _VALIDITY,
        )
        return Change(
            [
                absent(record),
                absent(alias),
                *map(absent, claims),
                # That the key was not revoked meanwhile.
                as_read(revocation, self._mirror.key(revocation)),
            ],
            [
                Put(record, self._signer.sign(member)),
                *self._membership.endpoints_ops(view.name, node.id, endpoints, lanes),
                *(Put(claim, node.id.encode()) for claim in claims),
            ],
        )

    def _check_name(self, view: NetworkView, name: str) -> None:
        holder = self._mirror.held("names", view.name).get(name)
        if holder:
            raise NameTakenError(
                f"the name {name} is taken in network {view.name} by {holder.value.decode(errors='replace')}",
                f"take another name, or remove that node: `meshctl node remove {name}`",
            )

    def id_of(self, network: str, public_key: bytes) -> str:
        """Return the id of who has this X25519 key: it follows from it, unless a member changed to it."""
        found = node_id(public_key)
        alias = self._mirror.key(keys.alias(network, found))
        return alias.value.decode(errors="replace") if alias else found

    def member(self, view: NetworkView, node_id: str) -> tuple[KeyValue, Node] | None:
        """Return the record of who is a member already, in the store and as it reads.

        Raises:
            RevokedError: its key was revoked for good.
            StoreCorruptError: it does not read.

        """
        check_not_banned(view, node_id)
        kv = self._mirror.held("nodes", view.name).get(node_id)
        if kv is None:
            return None
        node = view.node(node_id)
        if node is None:
            raise StoreCorruptError(
                f"the record of node {node_id} in the store can't be used",
                f"remove it (`meshctl node remove {node_id}`) and let it in again",
            )
        return kv, node

    def readmit(
        self,
        view: NetworkView,
        kv: KeyValue,
        member: Node,
        endpoints: tuple[Endpoint, ...],
        lanes: int = 0,
        suites: tuple[Suite, ...] = (),
    ) -> Change | None:
        """Return what changes when a member asks again: where it is, how long it stays, what it seals with.

        No lanes, no suites: as before.
        """
        ops = self._membership.endpoints_ops(view.name, member.id, endpoints, lanes)
        renewed = replace(member, suites=suites or member.suites)
        if member.not_after - self._clock() < _VALIDITY / 2:
            renewed = replace(renewed, not_after=int(self._clock()) + _VALIDITY)
        deed = None
        if renewed != member:
            ops.append(Put(kv.key, self._signer.sign(renewed)))
            deed = Deed("node renewed", view.name, member.id, member.name)
        same = [unchanged(kv), self._membership.endpoints_as_read(view.name, member.id)]
        return Change(same, ops, deed) if ops else None


def check_not_banned(view: NetworkView, node_id: str) -> None:
    """Raise RevokedError for a node whose key never comes back."""
    known = view.revocation(node_id)
    if known and known.banned:
        raise revoked(known)


def checked_public_key(key: bytes) -> bytes:
    """Return a key with which a member can be talked to.

    Raises:
        InvalidError: not 32 bytes, not the one way to write it (RFC 7748, 5), or of small order: whoever
            names such a key knows every secret agreed with it.

    """
    number = int.from_bytes(key, "little")
    if len(key) == PUBLIC_KEY_LENGTH and number < _FIELD_PRIME and number not in _SMALL_ORDER:
        return key
    raise InvalidError(
        "the public key is not an X25519 key of 32 bytes",
        "take what `wg pubkey` prints, or let meshctl make one",
    )
