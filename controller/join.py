"""Joining: a token and a host's own keys become a membership.

1. token      known, the secret is right, not revoked
2. keys       the request for a certificate is signed by its key, the X25519 key is well-formed;
              the host's port for this network is free, and fills in where an endpoint names none
3. who        the node id follows from the X25519 key: a member already, or a new one?
4a. new       the token lets one more in; name and addresses are free; records are signed
              (members/newcomers.py); then one transaction takes token use, name, addresses and node,
              or nothing. A token may ask for an operator's approval first (members/pending.py)
4b. member    the same TLS key and name as before; it keeps its addresses and uses up nothing
5. answer     a certificate for the TLS key, and the records as every member sees them

A member that asks again is let in even when its token has expired or is used up since: it proves by
its TLS key that it is the one who joined, so it gets nothing that it does not have. That also makes
asking again safe when an answer was lost on the way.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace

from overmesh.config import DEFAULT_PORTS
from overmesh.controller.audit import Deed
from overmesh.controller.members.clones import Clones
from overmesh.controller.members.names import checked_host_id, checked_label
from overmesh.controller.members.newcomers import Newcomers, checked_public_key
from overmesh.controller.members.pending import Pending, Pendings
from overmesh.controller.members.tokens import Token, Tokens
from overmesh.controller.membership import Membership
from overmesh.controller.mirror import Change, Mirror
from overmesh.controller.serving.caller import caller
from overmesh.controller.store import keys
from overmesh.controller.store.base import KeyValue, unchanged
from overmesh.controller.trust import CertificateRequest, Identity, MeshRoot, credentials
from overmesh.controller.view import NetworkView
from overmesh.errors import CloneError, InvalidError, PortInUseError, StoreCorruptError
from overmesh.model import NETWORK_KEY, Endpoint, Kind, Mode, Node, Suite, node_key

_log = logging.getLogger("overmesh.controller")


@dataclass(frozen=True, slots=True)
class Application:
    """What a host that wants to join says (mesh.proto, JoinRequest).

    lanes: that it has; 0: as before, or one.
    wait: how many seconds the answer may take when an operator has yet to let it in.
    """

    token_id: str
    token_secret: str
    name: str
    csr: bytes
    public_key: bytes
    endpoints: tuple[Endpoint, ...]
    host_id: str
    suites: tuple[Suite, ...]
    modes: tuple[Mode, ...]
    lanes: int = 0
    wait: float = 0


@dataclass(frozen=True, slots=True)
class Admission:
    """What it is answered; network and node are encoded Signed records."""

    node_id: str
    certificate: bytes
    network: bytes
    node: bytes
    revision: int
    already_member: bool


@dataclass(frozen=True, slots=True)
class _Applicant:
    """An application whose keys and name are in order."""

    id: str
    network: str
    name: str
    public_key: bytes
    request: CertificateRequest
    endpoints: tuple[Endpoint, ...]
    host_id: str
    suites: tuple[Suite, ...]
    lanes: int


class Joins:
    """Lets hosts in.

    Args:
        mirror, membership, newcomers, tokens, pending, root, clones: the parts of this controller.
        clock: unix seconds.

    """

    def __init__(
        self,
        mirror: Mirror,
        membership: Membership,
        newcomers: Newcomers,
        tokens: Tokens,
        pending: Pendings,
        root: MeshRoot,
        clones: Clones,
        clock: Callable[[], float],
    ) -> None:
        self._mirror = mirror
        self._membership = membership
        self._newcomers = newcomers
        self._tokens = tokens
        self._pending = pending
        self._root = root
        self._clones = clones
        self._clock = clock

    async def join(self, application: Application) -> Admission:
        """Make the host a member, or find that it is one.

        Raises:
            TokenError, InvalidError, NameTakenError, PoolExhaustedError
            PortInUseError: on the host, of the port that its packets in this network need.
            CloneError: its key is in use on another host, or with another TLS key.
            ApprovalPendingError: an operator has yet to let it in; asking again goes on waiting.
            StoreUnavailableError: it may have joined or not; asking again tells.

        """
        await self._mirror.look_up(keys.token(application.token_id))
        token, _ = self._tokens.authenticated(application.token_id, application.token_secret)
        applicant = self._checked(application, token.network)
        result = await self._mirror.change(lambda: self._plan(application, applicant))
        if applicant.id not in self._mirror.held("nodes", applicant.network):
            await self._pending.decided(applicant.network, applicant.id, application.wait)
            result = await self._mirror.change(lambda: self._plan(application, applicant))
        kv = self._mirror.held("nodes", applicant.network).get(applicant.id)
        items = self._mirror.view(applicant.network).map.items
        if kv is None or node_key(applicant.id) not in items:
            raise StoreCorruptError("the node was removed while it joined", "join again")
        new = result.succeeded and kv.create_revision == result.revision
        if new:
            _log.info("node joined", extra=_event(applicant, token))
        return Admission(
            node_id=applicant.id,
            certificate=self._root.issue_node(applicant.request, Identity(applicant.network, applicant.id)),
            network=items[NETWORK_KEY],
            node=items[node_key(applicant.id)],
            revision=self._mirror.view(applicant.network).map.head.revision,
            already_member=not new,
        )

    def _checked(self, application: Application, network: str) -> _Applicant:
        key = checked_public_key(application.public_key)
        port = DEFAULT_PORTS[_possible_mode(application, self._mirror.view(network))]
        endpoints = tuple(end if end.port else replace(end, port=port) for end in application.endpoints)
        self._membership.check_endpoints(endpoints)
        return _Applicant(
            id=self._newcomers.id_of(network, key),
            network=network,
            name=checked_label("node name", application.name),
            public_key=key,
            request=CertificateRequest.parse(application.csr),
            endpoints=endpoints,
            host_id=checked_host_id(application.host_id),
            suites=application.suites,
            lanes=application.lanes,
        )

    def _plan(self, application: Application, applicant: _Applicant) -> Change | None:
        token, kv = self._tokens.authenticated(application.token_id, application.token_secret)
        view = self._mirror.view(applicant.network)
        found = self._newcomers.member(view, applicant.id)
        if found:
            record, member = found
            self._check_same(view, member, applicant)
            return self._newcomers.readmit(
                view, record, member, applicant.endpoints, applicant.lanes, applicant.suites
            )
        # First of all what would stop it: a host should not wait for an approval that is worth nothing.
        admitted = self._admitted(view, token, applicant)
        ticket = self._ticket(token, kv, applicant)
        if ticket is None:
            return self._pending.wait(token, kv, _pending(applicant, token))
        return replace(
            admitted, compares=[*ticket.compares, *admitted.compares], ops=[*ticket.ops, *admitted.ops]
        )

    def _ticket(self, token: Token, token_kv: KeyValue, applicant: _Applicant) -> Change | None:
        """Return what the token takes to let the applicant in; None when it has to wait."""
        if token.approval:
            return self._pending.ticket(token_kv, _pending(applicant, token))
        token.check_lets_in(self._clock())
        used = [token.once_more().put(self._root)] if token.uses else []
        return Change([unchanged(token_kv)], [*used, *self._pending.end(applicant.network, applicant.id)])

    def _admitted(self, view: NetworkView, token: Token, applicant: _Applicant) -> Change:
        node = Node(
            id=applicant.id,
            network=view.name,
            name=applicant.name,
            public_key=applicant.public_key,
            addresses=(),
            tags=token.tags,
            suites=applicant.suites,
        )
        admitted = self._newcomers.admit(view, node, applicant.endpoints, applicant.lanes)
        return Change(
            admitted.compares,
            [
                self._clones.bound(view.name, applicant.id, applicant.host_id),
                credentials.put(self._root, view.name, applicant.id, applicant.request.fingerprint),
                *admitted.ops,
            ],
            Deed("node joined", view.name, node.id, node.name, f"token {token.id}"),
        )

    def _check_same(self, view: NetworkView, member: Node, applicant: _Applicant) -> None:
        """Raise unless the applicant is the host that joined as this member."""
        if member.kind is not Kind.AGENT:
            raise CloneError(
                f"this host's X25519 key is that of {member.name}, a stock WireGuard peer",
                f"give this host a key of its own, or remove that peer: `meshctl peer remove {member.name}`",
            )
        if self._clones.bound_elsewhere(view.name, member.id, applicant.host_id):
            raise CloneError(
                f"this host's key is in use: node {member.name} is connected with it from another host",
                "remove this host's copy of the state directory and join with a new token",
            )
        credential = self._mirror.held("credentials", view.name).get(member.id)
        if credential is None or not credentials.allows(
            self._root, credential, applicant.request.fingerprint
        ):
            raise CloneError(
                f"this host's X25519 key is that of node {member.name}, which joined with another TLS key",
                f"remove that node first: `meshctl node remove {member.name}`",
            )
        if member.name != applicant.name:
            raise InvalidError(
                f"this host has already joined network {view.name} as {member.name}, not as {applicant.name}",
                f"join as {member.name}, or leave first: `meshctl leave`",
            )


def _pending(applicant: _Applicant, token: Token) -> Pending:
    """Return an applicant as an operator gets to see it."""
    return Pending(
        id=applicant.id,
        network=applicant.network,
        name=applicant.name,
        public_key=applicant.public_key.hex(),
        fingerprint=applicant.request.fingerprint.hex(),
        host_id=applicant.host_id,
        origin=caller().origin,
        token=token.id,
        tags=token.tags,
    )


def _possible_mode(application: Application, view: NetworkView) -> Mode:
    """Return the network's mode; raise unless the host can carry packets in it."""
    mode = view.network.mode
    if application.modes and mode not in application.modes:
        raise PortInUseError(
            f"network {view.name} is {mode.name.lower()}, and UDP port {DEFAULT_PORTS[mode]} "
            "is in use by another program on this host",
            "end that program (`ss -ulpn` shows it), or name another port: --port",
        )
    return mode


def _event(applicant: _Applicant, token: Token) -> dict[str, str]:
    return {
        "network": applicant.network,
        "node": applicant.name,
        "id": applicant.id,
        "token": token.id,
    }
