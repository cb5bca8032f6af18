"""Renewal: a member gets another certificate, and while it is at it more time as a member.

Asked for on the join port, where no certificate of the caller's is needed: a host that was off for a month
comes back by itself. What it proves instead is that it holds the TLS key with which it joined; so it gets
nothing that others could use, and a node that was removed gets nothing.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace

from overmesh.controller.members.newcomers import Newcomers
from overmesh.controller.membership import removed
from overmesh.controller.mirror import Change, Mirror
from overmesh.controller.store import keys
from overmesh.controller.store.base import Put, unchanged
from overmesh.controller.trust import CertificateRequest, Identity, MeshRoot, credentials
from overmesh.errors import CloneError
from overmesh.model import NETWORK_KEY, node_key

_log = logging.getLogger("overmesh.controller")


@dataclass(frozen=True, slots=True)
class Renewed:
    """What a member is answered: its certificate (DER), the encoded Signed of its network and of itself.

    time: of this controller's clock, unix seconds.
    """

    certificate: bytes
    network: bytes
    node: bytes
    time: int


class Renewals:
    """Renews what members have.

    Args:
        mirror, newcomers, root: the parts of this controller.
        clock: unix seconds.

    """

    def __init__(
        self, mirror: Mirror, newcomers: Newcomers, root: MeshRoot, clock: Callable[[], float]
    ) -> None:
        self._mirror = mirror
        self._newcomers = newcomers
        self._root = root
        self._clock = clock

    async def renew(self, member: Identity, csr: bytes) -> Renewed:
        """Return a new certificate for the TLS key that signed the request.

        Raises:
            RemovedError: there is no such member.
            InvalidError: the request can't be right.
            CloneError: its key is not the one with which this node joined.
            StoreUnavailableError: asking again tells.

        """
        request = CertificateRequest.parse(csr)
        await self._mirror.look_up(keys.credential(member.network, member.node_id))
        await self._mirror.change(lambda: self._plan(member, request))
        view = self._mirror.view(member.network)
        _log.debug("certificate renewed", extra=view.log_fields(member.node_id))
        items = view.map.items
        if node_key(member.node_id) not in items:
            raise removed(member.network)
        return Renewed(
            certificate=self._root.issue_node(request, member),
            network=items[NETWORK_KEY],
            node=items[node_key(member.node_id)],
            time=int(self._clock()),
        )

    def _plan(self, member: Identity, request: CertificateRequest) -> Change | None:
        credential = self._mirror.held("credentials", member.network).get(member.node_id)
        if credential is None:
            raise removed(member.network)
        if not credentials.allows(self._root, credential, request.fingerprint):
            raise CloneError(
                f"node {member.node_id} joined with another TLS key",
                "on this host, remove the state directory and join with a new token",
            )
        view = self._mirror.view(member.network)
        found = self._newcomers.member(view, member.node_id)
        if found is None:
            raise removed(member.network)
        kv, node = found
        places = view.endpoints(member.node_id)
        change = self._newcomers.readmit(view, kv, node, places.endpoints if places else ())
        marks = self._marks(member, kv.create_revision)
        if not change and not marks:
            return None
        return replace(change, ops=[*change.ops, *marks]) if change else Change([unchanged(kv)], marks)

    def _marks(self, member: Identity, since: int) -> list[Put]:
        """Return what notes that a node from before the present root has a certificate of it now."""
        pin = self._mirror.key(keys.ROOT_PIN)
        key = keys.issuer(member.network, member.node_id)
        known = self._mirror.key(key)
        if pin is None or since > pin.mod_revision or (known and known.value == self._root.pin):
            return []
        return [Put(key, self._root.pin)]
