"""Which host is which node: one key on two hosts must not make two of one node.

A node is bound to the machine that joined. Its streams cost nothing here; one from another machine is let
through when the node is nowhere connected, and the node is bound to that machine from then on. Otherwise
it is a copy: quarantined, and named wherever the node is.

    the node's own host ──► its stream
    another host ──┬─ the node is connected, here or at another controller ──► a copy: no map, no packets
                   ├─ it was a copy a moment ago                            ──► still one
                   └─ else                                                  ──► bound anew, in a transaction

Two that come at once, to two controllers, compete in that transaction. Who is bound stays; a stream of
the other that was open already ends as soon as its controller hears of it.
"""

import hashlib
import logging
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace

from overmesh.controller.audit import Deed
from overmesh.controller.members.names import checked_host_id
from overmesh.controller.mirror import Change, Mirror
from overmesh.controller.serving.caller import caller
from overmesh.controller.store import keys
from overmesh.controller.store.base import MAX_OPS, Delete, KeyValue, Put, absent, unchanged
from overmesh.controller.trust import Identity, MeshRoot, authentic
from overmesh.errors import CloneError, StoreCorruptError
from overmesh.proto import admin_pb2, mesh_pb2

# Seconds after which a copy takes over from a host that has gone: longer than a restart or a lease.
TAKES_OVER_AFTER = 120.0
# Seconds for which a copy that does not come any more is still told of.
TOLD_FOR = 300.0
_NOTED_EVERY = 30.0
MAX_COPIES = 8

_log = logging.getLogger("overmesh.controller")


@dataclass(frozen=True, slots=True)
class Host:
    """The machine that a node is bound to. since: unix seconds; claimed: not by joining, but by coming."""

    host_id: str
    origin: str
    since: int
    claimed: bool = False


@dataclass(frozen=True, slots=True)
class Copy:
    """Another machine with the node's keys. since, last_seen: unix seconds, with the node's own there."""

    host_id: str
    origin: str
    since: int
    last_seen: int


class Clones:
    """Knows the hosts of all nodes.

    Args:
        mirror, root: the parts of this controller.
        live_host: (network, node id) -> host id of the agent that is connected here as that node, or "".
        clock: unix seconds.

    """

    def __init__(
        self,
        mirror: Mirror,
        root: MeshRoot,
        live_host: Callable[[str, str], str],
        clock: Callable[[], float],
    ) -> None:
        self._mirror = mirror
        self._root = root
        self._live_host = live_host
        self._clock = clock
        self._movers: list[Callable[[str, str, str], None]] = []
        mirror.on_kind("hosts", self._changed)

    def on_move(self, listener: Callable[[str, str, str], None]) -> None:
        """Have `listener(network, node id, host id)` called when a node that is here is bound to a host."""
        self._movers.append(listener)

    def _changed(self, network: str, node_id: str) -> None:
        if not self._live_host(network, node_id):
            return
        _, host = self._host(network, node_id)
        if host:
            for listener in self._movers:
                listener(network, node_id, host.host_id)

    # Letting through.

    async def check(self, identity: Identity, host_id: str) -> None:
        """Raise CloneError unless this host is, or now becomes, the node.

        Raises:
            InvalidError: that is no host id.
            StoreUnavailableError: that can't be found out now; for the node's own host it is known.

        """
        network, node_id = identity.network, identity.node_id
        checked_host_id(host_id)
        if self._is_bound_to(network, node_id, host_id):
            return
        result = await self._mirror.change(lambda: self._plan(network, node_id, host_id))
        if self._is_bound_to(network, node_id, host_id):
            return
        error = self._quarantined(network, node_id, host_id)
        if result.succeeded:  # it was noted, which happens rarely enough for the log
            extra = {"network": network, "id": node_id, "host": host_id, "reason": error.cause}
            _log.warning("a copy of a node is quarantined", extra=extra)
        raise error

    def _is_bound_to(self, network: str, node_id: str, host_id: str) -> bool:
        _, host = self._host(network, node_id)
        return host is not None and host.host_id == host_id

    def _plan(self, network: str, node_id: str, host_id: str) -> Change | None:
        kv, host = self._host(network, node_id)
        if host and host.host_id == host_id:
            return None
        copy_kv, copy = self._copy(network, node_id, host_id)
        if host and self._is_there(network, node_id, host):
            return self._noted(network, node_id, host_id, copy_kv, copy)
        if copy and 0 <= self._clock() - copy.last_seen < TAKES_OVER_AFTER:
            return None
        return Change(
            [
                unchanged(kv) if kv else absent(keys.host(network, node_id)),
                absent(keys.presence(network, node_id)),
            ],
            [
                self.bound(network, node_id, host_id, claimed=True),
                Delete(_copy_key(network, node_id, host_id)),
            ],
            self._deed("node bound to a host", network, node_id, host_id) if host else None,
        )

    def _is_there(self, network: str, node_id: str, host: Host) -> bool:
        connected = self._live_host(network, node_id) == host.host_id or self._mirror.key(
            keys.presence(network, node_id)
        )
        # Who has just been taken for the node is not yet told of as connected.
        fresh = host.claimed and 0 <= self._clock() - host.since < TAKES_OVER_AFTER
        return bool(connected) or fresh

    def _noted(
        self, network: str, node_id: str, host_id: str, kv: KeyValue | None, copy: Copy | None
    ) -> Change | None:
        """Return the change that makes a copy known, or says that it is still there."""
        now = int(self._clock())
        key = _copy_key(network, node_id, host_id)
        if copy and 0 <= now - copy.last_seen < _NOTED_EVERY:
            return None
        if copy is None and len(list(self._copies(network, node_id))) >= MAX_COPIES:
            return None
        seen = copy or Copy(host_id, "", now, now)
        seen = replace(seen, origin=caller().origin, last_seen=now)
        deed = None if copy else self._deed("copy quarantined", network, node_id, host_id)
        guard = unchanged(kv) if kv else absent(key)
        return Change([guard], [Put(key, authentic.encode(self._root, key, asdict(seen)))], deed)

    def _deed(self, what: str, network: str, node_id: str, host_id: str) -> Deed:
        node = self._mirror.view(network).node(node_id)
        _, host = self._host(network, node_id)
        details = {"host": host_id, "before": host.host_id if host else ""}
        return Deed(what, network, node_id, node.name if node else "", details=details)

    def _quarantined(self, network: str, node_id: str, host_id: str) -> CloneError:
        _, host = self._host(network, node_id)
        here = f"this one, {_short(host_id)} from {caller().origin or 'here'}"
        other = f"{_short(host.host_id)} from {host.origin or 'elsewhere'}" if host else "not known"
        return CloneError(
            f"another host is connected as this node ({node_id}): {other}; {here}, holds a copy of its keys "
            "and is quarantined",
            "on the copy, remove the state directory and join with a new token; if the other host is to go, "
            f"end its agent: this one takes over within {TAKES_OVER_AFTER / 60:.0f} to 3 minutes",
        )

    # Joining.

    def bound(self, network: str, node_id: str, host_id: str, *, claimed: bool = False) -> Put:
        """Return the operation that binds a node to a host."""
        key = keys.host(network, node_id)
        host = Host(host_id, caller().origin, int(self._clock()), claimed)
        return Put(key, authentic.encode(self._root, key, asdict(host)))

    def bound_elsewhere(self, network: str, node_id: str, host_id: str) -> bool:
        """Tell whether another host than this one is there as the node."""
        _, host = self._host(network, node_id)
        if host is None or host.host_id == host_id:
            return False
        return self._is_there(network, node_id, host)

    def check_own(self, identity: Identity, host_id: str) -> None:
        """Raise CloneError when another host is there as the node; a host that says no id is believed."""
        if host_id and self.bound_elsewhere(identity.network, identity.node_id, host_id):
            raise self._quarantined(identity.network, identity.node_id, host_id)

    # Telling.

    def _host(self, network: str, node_id: str) -> tuple[KeyValue | None, Host | None]:
        kv = self._mirror.held("hosts", network).get(node_id)
        try:
            return kv, Host(**authentic.decode(self._root, kv, "a node's host")) if kv else None
        except StoreCorruptError as error:
            _log.warning("a node's host in the store can't be read", extra={"reason": error.cause})
            return kv, None

    def _copy(self, network: str, node_id: str, host_id: str) -> tuple[KeyValue | None, Copy | None]:
        kv = self._mirror.key(_copy_key(network, node_id, host_id))
        return kv, self._read_copy(kv) if kv else None

    def _read_copy(self, kv: KeyValue) -> Copy | None:
        try:
            return Copy(**authentic.decode(self._root, kv, "a copy of a node"))
        except StoreCorruptError as error:
            _log.warning("a copy of a node in the store can't be read", extra={"reason": error.cause})
            return None

    def _copies(self, network: str, node_id: str) -> Iterator[Copy]:
        for item, kv in self._mirror.held("copies", network).items():
            if item.partition(".")[0] == node_id and (copy := self._read_copy(kv)):
                yield copy

    def message(self, network: str, node_id: str) -> admin_pb2.Node:
        """Return what is known of a node's hosts, as a part of what meshctl gets."""
        _, host = self._host(network, node_id)
        message = admin_pb2.Node()
        if host:
            message.host_id, message.connected_from = host.host_id, host.origin
            message.connected_since = host.since
        now = self._clock()
        for copy in self._copies(network, node_id):
            if now - copy.last_seen < TOLD_FOR:
                message.copies.append(_copy_message(copy))
                message.problems.append(_problem(copy, host))
        return message

    # Forgetting.

    async def sweep(self) -> None:
        """Forget copies that have not come for a while."""
        await self._mirror.change(self._forgetting)

    def _forgetting(self) -> Change | None:
        horizon = self._clock() - TOLD_FOR
        kvs = [kv for view in self._mirror.networks for kv in self._mirror.held("copies", view.name).values()]
        old = [kv for kv in kvs if (copy := self._read_copy(kv)) is None or copy.last_seen < horizon]
        old = old[: MAX_OPS // 2]
        return Change([unchanged(kv) for kv in old], [Delete(kv.key) for kv in old]) if old else None


def _copy_key(network: str, node_id: str, host_id: str) -> str:
    tag = hashlib.sha256(host_id.encode()).hexdigest()[:16]
    return keys.copy(network, node_id, tag)


def _copy_message(copy: Copy) -> admin_pb2.Copy:
    return admin_pb2.Copy(
        host_id=copy.host_id, since=copy.since, last_seen=copy.last_seen, **{"from": copy.origin}
    )


def _problem(copy: Copy, host: Host | None) -> mesh_pb2.Problem:
    own = f"its own is {_short(host.host_id)} from {host.origin or 'elsewhere'}" if host else ""
    reason = (
        f"host {_short(copy.host_id)} from {copy.origin} holds a copy of its keys and is quarantined; {own}"
    )
    return mesh_pb2.Problem(subject="host", reason=reason)


def _short(host_id: str) -> str:
    """Return a host id as people compare it: the end of a hash says no more than its beginning."""
    return host_id[:12] if host_id else "(no host id)"
