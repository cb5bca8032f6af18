"""Taking nodes out, for now or for good, so that nothing the root ever signed for them comes back.

    remove, leave ──► the node's keys go, and in the same transaction comes a Revocation
    revoke        ──► the same; besides, the node's key is banned: nobody joins with it again

A revocation voids all that was signed for the node up to its moment. It is needed only until the last of
that would have expired by itself; a ban for ever.
"""

import logging
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain

from overmesh.controller.audit import Deed
from overmesh.controller.membership import Membership, Signer
from overmesh.controller.membership import node_id as id_from
from overmesh.controller.mirror import Change, Mirror
from overmesh.controller.store import keys
from overmesh.controller.store.base import Compare, Delete, KeyValue, Op, Put, absent, unchanged
from overmesh.controller.trust import MEMBERSHIP_DAYS
from overmesh.controller.view import NetworkView
from overmesh.errors import InvalidError, NotFoundError, StoreCorruptError
from overmesh.model import Node, Revocation

MAX_REASON = 200
# By so much an expired revocation outlives what it voids: no clock is further off for long.
_MARGIN = 86400.0
# With a comparison each.
_AT_ONCE = 50
_NODE_ID = re.compile(r"[a-z2-7]{16}")

_log = logging.getLogger("overmesh.controller")


@dataclass(frozen=True, slots=True)
class Revoked:
    """What became of `revoke`: the revocation, the revision at which it holds, whether this was a member."""

    revocation: Revocation
    revision: int
    was_member: bool


class Revocations:
    """Takes nodes out of the mesh.

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

    # Taking out.

    async def remove(self, network: str, node_id: str) -> int:
        """Take a node out of the mesh; return the revision.

        Its name and addresses are free again. Works for a node whose record can't be read, too.

        Raises:
            NotFoundError: there is no such node.

        """
        result = await self._mirror.change(lambda: self._removal(network, node_id))
        named = self._mirror.view(network).log_fields(node_id)
        _log.info("node removed", extra=named | {"revision": result.revision})
        return result.revision

    def _removal(self, network: str, node_id: str) -> Change:
        view = self._mirror.view(network)
        kv = self._mirror.held("nodes", network).get(node_id)
        if kv is None:
            raise NotFoundError(f"network {network} has no node {node_id!r}", "see `meshctl node list`")
        return self._taking_out(view, kv, self._revocation(view, node_id), "node removed")

    async def leave(self, network: str, node_id: str) -> int:
        """Do the same at the node's own wish; nothing happens when it is gone already."""
        if await self._mirror.look_up(keys.credential(network, node_id)):
            # Not there any more: what an earlier attempt asked for was done while this one went on.
            with suppress(NotFoundError):
                return await self.remove(network, node_id)
        return self._mirror.revision

    async def revoke(self, network: str, node: str, reason: str = "", *, unknown: bool = False) -> Revoked:
        """Take a node out, and its key for good; asking again changes nothing.

        Args:
            network: its name.
            node: name or id of a member, of one that was, or of a host that waits for approval.
            reason: for people; one line.
            unknown: `node` may be any id, to ban a key that was never seen.

        Raises:
            NotFoundError: there is no such node, nor was there one that is still known.
            InvalidError: names that fit several, or no good reason.

        """
        if len(reason) > MAX_REASON or not reason.isprintable():
            raise InvalidError("that reason can't be kept", f"say it in a line of {MAX_REASON} characters")
        node_id = await self._find(network, node, unknown=unknown)
        was_member = node_id in self._mirror.held("nodes", network)
        result = await self._mirror.change(lambda: self._ban(network, node_id, reason))
        view = self._mirror.view(network)
        revocation = view.revocation(node_id)
        if revocation is None:
            raise StoreCorruptError("the revocation was tampered with as it was written", "revoke it again")
        _log.info("node revoked", extra=view.log_fields(node_id) | {"revision": result.revision})
        return Revoked(revocation, result.revision, was_member)

    def _ban(self, network: str, node_id: str, reason: str) -> Change | None:
        view = self._mirror.view(network)
        kv = self._mirror.held("nodes", network).get(node_id)
        known = view.revocation(node_id)
        if kv is None and known and known.banned:
            return None
        revocation = self._revocation(view, node_id, banned=True, reason=reason)
        if kv:
            out = self._taking_out(view, kv, revocation, "node revoked")
            later = list(self._later_keys(view, node_id))
            return replace(
                out,
                compares=[*out.compares, *(guard for guard, _ in later)],
                ops=[*out.ops, *(put for _, put in later)],
            )
        guard, put = self._writing(revocation)
        deed = Deed("key revoked", network, node_id, revocation.name, details={"reason": reason})
        return Change([absent(keys.node(network, node_id)), guard], [put], deed)

    def _later_keys(self, view: NetworkView, node_id: str) -> Iterator[tuple[Compare, Op]]:
        """Ban the ids that would follow from the keys that a node changed to: its own does from the first."""
        node = view.node(node_id)
        if node is None:
            return
        for key in node.public_keys:
            if (alias := id_from(key)) != node_id:
                reason = f"a later key of {node.name} ({node_id})"
                yield self._writing(self._revocation(view, alias, banned=True, reason=reason))

    async def _find(self, network: str, node: str, *, unknown: bool) -> str:
        try:
            return await self._membership.find(network, node)
        except NotFoundError:
            named = {known.node_id for known in self.known(network) if known.name == node.lower()}
        if len(named) > 1:
            raise InvalidError(
                f"{len(named)} nodes that were taken out had the name {node}",
                "name the id: `meshctl node list --revoked`",
            )
        if named:
            return named.pop()
        is_id = _NODE_ID.fullmatch(node) is not None
        waits = node in self._mirror.held("pending", network)
        if is_id and (unknown or waits or self._mirror.view(network).revocation(node)):
            return node
        # A name that was mistyped may pass for an id, and a ban is for ever.
        raise NotFoundError(
            f"network {network} has no node {node!r}, and knows of none that it had",
            "see `meshctl node list`; to ban an id that never joined, add --unknown"
            if is_id
            else "see `meshctl node list`, or name an id",
        )

    def _revocation(
        self, view: NetworkView, node_id: str, *, banned: bool = False, reason: str = ""
    ) -> Revocation:
        """Return what voids all that was signed for a node so far, here or by a controller not yet heard."""
        now = self._clock()
        node, before = view.node(node_id), view.revocation(node_id)
        banned = banned or bool(before and before.banned)
        expiry = node.not_after if node else int(now) + MEMBERSHIP_DAYS * 86400
        return Revocation(
            node_id=node_id,
            network=view.name,
            name=node.name if node else before.name if before else "",
            revoked_serial=max(int(now * 1000), view.highest_serial(node_id)),
            banned=banned,
            not_after=0 if banned else max(expiry, before.not_after if before else 0),
            serial=before.serial if before else 0,
            reason=reason,
        )

    def _taking_out(self, view: NetworkView, kv: KeyValue, revocation: Revocation, what: str) -> Change:
        guard, put = self._writing(revocation)
        node = view.node(revocation.node_id)
        details = {"addresses": " ".join(map(str, node.addresses))} if node else {}
        details |= {"reason": revocation.reason} if revocation.reason else {}
        deed = Deed(what, view.name, revocation.node_id, revocation.name, details=details)
        return Change([unchanged(kv), guard], [*self._deletes(view, revocation), put], deed)

    def _writing(self, revocation: Revocation) -> tuple[Compare, Op]:
        key = keys.revoked(revocation.network, revocation.node_id)
        kv = self._mirror.key(key)
        return unchanged(kv) if kv else absent(key), Put(key, self._signer.sign(revocation))

    def _deletes(self, view: NetworkView, revocation: Revocation) -> Iterator[Op]:
        node_id = revocation.node_id
        for of in (keys.node, keys.endpoints, keys.credential, keys.presence, keys.host, keys.issuer):
            yield Delete(of(view.name, node_id))
        # The aliases of a banned node stay: its later keys are not to come back either.
        kinds = ("names", "addresses") if revocation.banned else ("names", "addresses", "aliases")
        node = view.node(node_id)
        for held in self._claims(node, kinds) if node else self._all(view.name, kinds):
            if held.value == node_id.encode():
                yield Delete(held.key)

    def _claims(self, node: Node, kinds: Sequence[str]) -> Iterator[KeyValue]:
        """Yield the entries of these kinds that follow from a node's record."""
        claims = {
            "names": [keys.name(node.network, node.name)],
            "addresses": [keys.address(node.network, address) for address in node.addresses],
            "aliases": [keys.alias(node.network, id_from(key)) for key in node.public_keys],
        }
        for key in chain.from_iterable(claims[kind] for kind in kinds):
            if kv := self._mirror.key(key):
                yield kv

    def _all(self, network: str, kinds: Sequence[str]) -> Iterator[KeyValue]:
        """Yield every entry of these kinds: which are a node's own can't be told without its record."""
        for kind in kinds:
            yield from self._mirror.held(kind, network).values()

    # What has been revoked.

    def known(self, network: str) -> list[Revocation]:
        """Return the revocations of a network, the newest first."""
        records = self._mirror.view(network).records.values()
        revocations = [record for record in records if isinstance(record, Revocation)]
        return sorted(revocations, key=lambda revocation: -revocation.serial)

    # Background.

    async def sweep(self) -> None:
        """Delete what has expired. All controllers may do this at once."""
        for view in self._mirror.networks:
            while (await self._mirror.change(partial(self._sweeping, view))).succeeded:
                pass

    def _sweeping(self, view: NetworkView) -> Change | None:
        horizon = self._clock() - _MARGIN
        expired = [known for known in self.known(view.name) if not known.in_force(horizon)]
        kvs = list(self._in_store(expired))[:_AT_ONCE]
        deed = Deed("expired revocations swept", view.name, details={"count": str(len(kvs))})
        return Change(list(map(unchanged, kvs)), [Delete(kv.key) for kv in kvs], deed) if kvs else None

    def _in_store(self, revocations: Iterable[Revocation]) -> Iterator[KeyValue]:
        for known in revocations:
            kv = self._mirror.key(keys.revoked(known.network, known.node_id))
            if kv:
                yield kv

    async def clear_void(self) -> None:
        """Delete the records of revoked nodes that somebody has put back, with all that came along."""
        for view in self._mirror.networks:
            for node_id in list(view.void):
                await self._mirror.change(partial(self._clearing, view, node_id))

    def _clearing(self, view: NetworkView, node_id: str) -> Change | None:
        kv = self._mirror.held("nodes", view.name).get(node_id)
        known = view.revocation(node_id)
        if kv is None or known is None or node_id not in view.void:
            return None
        _log.error(
            "somebody has put the record of a revoked node back into the store: it is deleted again",
            extra=view.log_fields(node_id),
        )
        deed = Deed("record of a revoked node deleted", view.name, node_id, known.name)
        return Change([unchanged(kv)], list(self._deletes(view, known)), deed)
