"""Hosts that wait until an operator lets them in: those that come with a token that asks for approval.

    join ──► waiting ──approve──► approved ──join again──► a member
                └─────deny──────► denied

The first join takes a use of the token, so one use is one host that waits. Of the network it takes
nothing: a name or an address kept for a host that may never be let in would be an operator's to free,
and whoever holds such a token could use up the pool. So the name may be taken by the time of approval.

Whom the operator approves is a key (the node id is its hash) that asks for a name from one machine. A host
that comes back with another name or from another machine waits anew.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Self

from overmesh.config import DEFAULT_NETWORK
from overmesh.controller.audit import Deed
from overmesh.controller.members.tokens import Token
from overmesh.controller.mirror import Change, Mirror
from overmesh.controller.serving.caller import caller
from overmesh.controller.store import keys
from overmesh.controller.store.base import MAX_OPS, Delete, KeyValue, Put, absent, unchanged
from overmesh.controller.trust import MeshRoot, authentic
from overmesh.errors import (
    ApprovalPendingError,
    CloneError,
    InvalidError,
    NotFoundError,
    PoolExhaustedError,
    StoreCorruptError,
    TokenError,
)

WAITING, APPROVED, DENIED, EXPIRED = "waiting", "approved", "denied", "expired"
# Seconds that a host waits for an operator, and then that an approval waits for the host.
GOOD_FOR = 86400
KEPT_AFTER_EXPIRY = 7 * 86400
MAX_PENDING = 1000
# Below the time that a host gives a call.
LONGEST_WAIT = 20
_LOOK_EVERY = 0.2

_log = logging.getLogger("overmesh.controller")


@dataclass(frozen=True, slots=True)
class Pending:
    """A host that waits, or waited. public_key, fingerprint (of its TLS key): hex; times: unix seconds."""

    id: str
    network: str
    name: str
    public_key: str
    fingerprint: str
    host_id: str
    origin: str
    token: str
    tags: tuple[str, ...]
    asked: int = 0
    expires: int = 0
    decision: str = WAITING
    decided_by: str = ""

    def state(self, now: float) -> str:
        """Return how it stands; what was denied stays so."""
        return EXPIRED if now >= self.expires and self.decision != DENIED else self.decision

    def is_same_as(self, asking: "Pending") -> bool:
        """Tell whether what was decided holds for who is asking now."""
        return (self.name, self.host_id) == (asking.name, asking.host_id)

    @property
    def key(self) -> str:
        """Where it is in the store."""
        return keys.pending(self.network, self.id)

    def put(self, root: MeshRoot) -> Put:
        """Return the operation that writes it to the store."""
        return Put(self.key, authentic.encode(root, self.key, asdict(self)))

    def deed(self, what: str) -> Deed:
        """Return what happens to it, for the audit."""
        return Deed(what, self.network, self.id, self.name)

    @classmethod
    def read(cls, kv: KeyValue, root: MeshRoot) -> Self:
        """Read a value from the store.

        Raises:
            StoreCorruptError: it is not one that this mesh has written.

        """
        fields = authentic.decode(root, kv, "a waiting host")
        return cls(**{**fields, "tags": tuple(fields["tags"])})


class Pendings:
    """The hosts that wait.

    Args:
        mirror: of the store.
        root: of the mesh.
        clock: unix seconds.

    """

    def __init__(self, mirror: Mirror, root: MeshRoot, clock: Callable[[], float]) -> None:
        self._mirror = mirror
        self._root = root
        self._clock = clock

    # For the host.

    def ticket(self, token_kv: KeyValue, asking: Pending) -> Change | None:
        """Return what a host's admission needs once it is approved; None while it is not.

        Raises:
            TokenError: it was denied, or too much time has passed.
            CloneError: another TLS key waits with this X25519 key.

        """
        kv, known = self._known(asking.network, asking.id)
        if kv is None or known is None:
            return None
        state = known.state(self._clock())
        if state in (DENIED, EXPIRED):
            if known.token == asking.token:
                raise _over(known, state)
            return None
        if known.fingerprint != asking.fingerprint:
            raise CloneError(
                f"this host's X25519 key is that of {known.name}, which waits with another TLS key",
                f"refuse that one first: `meshctl node deny {known.id}`",
            )
        if state != APPROVED or not known.is_same_as(asking):
            return None
        return Change([unchanged(token_kv), unchanged(kv)], [Delete(kv.key)])

    def wait(self, token: Token, token_kv: KeyValue, asking: Pending) -> Change | None:
        """Return what makes a host one that waits; None when it does already.

        Raises:
            TokenError: the token lets no more in.
            PoolExhaustedError: too many wait.

        """
        kv, known = self._known(asking.network, asking.id)
        if known and known.is_same_as(asking) and known.state(self._clock()) == WAITING:
            return None
        used = []
        if known is None or known.token != asking.token:
            token.check_lets_in(self._clock())
            used = [token.once_more().put(self._root)] if token.uses else []
        if kv is None and len(self._mirror.held("pending", asking.network)) >= MAX_PENDING:
            raise PoolExhaustedError(
                f"{MAX_PENDING} hosts wait for approval already", "see `meshctl node pending`"
            )
        now = int(self._clock())
        waiting = replace(asking, asked=now, expires=now + GOOD_FOR)
        deed = replace(waiting.deed("node waits for approval"), who=f"token {token.id}")
        return Change(
            [unchanged(token_kv), unchanged(kv) if kv else absent(waiting.key)],
            [*used, waiting.put(self._root)],
            deed,
        )

    def _known(self, network: str, node_id: str) -> tuple[KeyValue | None, Pending | None]:
        """Return what the store has, and as it reads."""
        kv = self._mirror.held("pending", network).get(node_id)
        return kv, self._read(kv) if kv else None

    def _read(self, kv: KeyValue) -> Pending | None:
        try:
            return Pending.read(kv, self._root)
        except StoreCorruptError as error:
            _log.warning("a waiting host in the store can't be read", extra={"reason": error.cause})
            return None

    def end(self, network: str, node_id: str) -> list[Delete]:
        """Return the ops by which a host that came in another way no longer waits."""
        kv, _ = self._known(network, node_id)
        return [Delete(kv.key)] if kv else []

    async def decided(self, network: str, node_id: str, within: float) -> None:
        """Return once a host no longer waits.

        Raises:
            ApprovalPendingError: after so many seconds it still does.

        """
        until = time.monotonic() + within
        # Hosts are many, and changes too: looking every so often costs less than being told.
        while waiting := self._waiting(network, node_id):
            if time.monotonic() >= until:
                raise ApprovalPendingError(
                    f"{waiting.name} ({node_id}) waits for approval",
                    f"on a controller: meshctl node approve {waiting.name}{_in(network)}",
                )
            await asyncio.sleep(_LOOK_EVERY)

    def _waiting(self, network: str, node_id: str) -> Pending | None:
        _, known = self._known(network, node_id)
        return known if known and known.state(self._clock()) == WAITING else None

    # For the operator.

    def known(self, network: str) -> list[Pending]:
        """Return who waits or waited in a network, by the time of asking."""
        hosts = (self._read(kv) for kv in self._mirror.held("pending", network).values())
        return sorted(filter(None, hosts), key=lambda host: (host.asked, host.id))

    async def decide(self, network: str, node: str, decision: str) -> tuple[Pending, int]:
        """Let a host in, or refuse it; return it and the revision. Deciding again changes the decision.

        Args:
            network: its name.
            node: name or id of the host.
            decision: APPROVED or DENIED.

        Raises:
            NotFoundError: nobody of that name waits.
            InvalidError: several do.
            TokenError: it has waited for too long.

        """
        host = self._find(network, node)
        result = await self._mirror.change(lambda: self._decision(network, host.id, decision))
        _log.info(f"node {decision}", extra={"network": network, "node": host.name, "id": host.id})
        return replace(host, decision=decision, decided_by=caller().who), result.revision

    def _find(self, network: str, node: str) -> Pending:
        self._mirror.view(network)
        hosts = [host for host in self.known(network) if node.lower() in (host.id, host.name)]
        # A name that a host asked for in vain must not be in the way of one that asks for it now.
        hosts = [host for host in hosts if host.state(self._clock()) == WAITING] or hosts[-1:]
        if not hosts:
            raise self._gone(network, node)
        if len(hosts) > 1:
            ids = ", ".join(host.id for host in hosts)
            raise InvalidError(f"several hosts wait as {node}: {ids}", "say which, by its id")
        return hosts[0]

    def _gone(self, network: str, node: str) -> NotFoundError:
        nodes, names = (self._mirror.held(kind, network) for kind in ("nodes", "names"))
        if node in nodes or node.lower() in names:
            fix = f"to take it out: `meshctl node remove {node}{_in(network)}`"
            return NotFoundError(f"{node} does not wait for approval: it is a member", fix)
        return NotFoundError(f"no host {node!r} waits for approval", "see `meshctl node pending`")

    def _decision(self, network: str, node_id: str, decision: str) -> Change | None:
        kv, known = self._known(network, node_id)
        if kv is None or known is None:
            raise self._gone(network, node_id)
        now = self._clock()
        if known.state(now) == EXPIRED:
            raise TokenError(
                f"{known.name} ({node_id}) has waited for too long", "have it join with a new token"
            )
        if known.decision == decision:
            return None
        decided = replace(known, decision=decision, decided_by=caller().who, expires=int(now) + GOOD_FOR)
        return Change([unchanged(kv)], [decided.put(self._root)], decided.deed(f"node {decision}"))

    async def sweep(self) -> None:
        """Forget hosts that have not waited for a while."""
        await self._mirror.change(self._forgetting)

    def _forgetting(self) -> Change | None:
        horizon = self._clock() - KEPT_AFTER_EXPIRY
        hosts = [host for view in self._mirror.networks for host in self.known(view.name)]
        old = [host for host in hosts if host.expires < horizon][:MAX_OPS]
        if not old:
            return None
        return Change(
            [unchanged(kv) for host in old if (kv := self._mirror.key(host.key))],
            [Delete(host.key) for host in old],
            Deed("waiting hosts forgotten", details={"nodes": " ".join(host.id for host in old)}),
        )


def _over(known: Pending, state: str) -> TokenError:
    """Return what a host hears that waits in vain."""
    named = f"{known.name} ({known.id})"
    if state == DENIED:
        cause = f"{known.decided_by} has denied {named}"
    elif known.decision == APPROVED:
        cause = f"the approval of {named} has expired"
    else:
        cause = f"nobody has approved {named} in time"
    return TokenError(cause, "join with a new token: `meshctl token create --require-approval`")


def _in(network: str) -> str:
    return "" if network == DEFAULT_NETWORK else f" --network {network}"
