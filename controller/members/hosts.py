"""What the store says of machines: which one each node is bound to, and which others hold its keys.

The rules are in clones.py. Both kinds of entries carry a MAC, so whoever can write to the store can
neither bind a node nor quarantine one.
"""

import hashlib
import logging
from collections.abc import Iterator
from dataclasses import asdict, dataclass

from overmesh.controller.mirror import Mirror
from overmesh.controller.store import keys
from overmesh.controller.store.base import KeyValue, Put
from overmesh.controller.trust import MeshRoot, authentic
from overmesh.errors import StoreCorruptError
from overmesh.proto import admin_pb2, mesh_pb2

# Seconds for which a copy that does not come any more is still told of.
TOLD_FOR = 300.0

_log = logging.getLogger("overmesh.controller")


@dataclass(frozen=True, slots=True)
class _Machine:
    """A machine that holds a node's keys. since: unix seconds."""

    host_id: str
    origin: str
    since: int

    def __str__(self) -> str:
        return f"{short(self.host_id)} from {self.origin or 'elsewhere'}"


@dataclass(frozen=True, slots=True)
class Host(_Machine):
    """The one that the node is bound to. claimed: not by joining, but by coming."""

    claimed: bool = False


@dataclass(frozen=True, slots=True)
class Copy(_Machine):
    """Another one. last_seen: unix seconds, with the node's own there.

    instance: of a twin, which has the host id of the node's own; else empty.
    """

    last_seen: int
    instance: str = ""


class Hosts:
    """Reads and words those entries; what can't be read counts as not there, and is logged."""

    def __init__(self, mirror: Mirror, root: MeshRoot) -> None:
        self._mirror = mirror
        self._root = root

    # Reading.

    def host(self, network: str, node_id: str) -> tuple[KeyValue | None, Host | None]:
        """Return the entry of a node's own machine, and what it says."""
        kv = self._mirror.held("hosts", network).get(node_id)
        try:
            return kv, Host(**authentic.decode(self._root, kv, "a node's host")) if kv else None
        except StoreCorruptError as error:
            _log.warning("a node's host in the store can't be read", extra={"reason": error.cause})
            return kv, None

    def copy(
        self, network: str, node_id: str, host_id: str, twin: str
    ) -> tuple[KeyValue | None, Copy | None]:
        """Return the entry of a copy, and what it says. twin: its instance, where it is one; else empty."""
        kv = self._mirror.key(copy_key(network, node_id, host_id, twin))
        return kv, self._read(kv) if kv else None

    def copies(self, network: str, node_id: str) -> Iterator[Copy]:
        """Yield all copies of a node."""
        for item, kv in self._mirror.held("copies", network).items():
            if item.partition(".")[0] == node_id and (copy := self._read(kv)):
                yield copy

    def forgotten(self, now: float) -> Iterator[KeyValue]:
        """Yield the entries of copies that are not told of any more."""
        for view in self._mirror.networks:
            for kv in self._mirror.held("copies", view.name).values():
                copy = self._read(kv)
                if copy is None or copy.last_seen < now - TOLD_FOR:
                    yield kv

    def _read(self, kv: KeyValue) -> Copy | None:
        try:
            return Copy(**authentic.decode(self._root, kv, "a copy of a node"))
        except StoreCorruptError as error:
            _log.warning("a copy of a node in the store can't be read", extra={"reason": error.cause})
            return None

    # Writing.

    def put_host(self, network: str, node_id: str, host: Host) -> Put:
        """Return the operation that binds a node to a machine."""
        key = keys.host(network, node_id)
        return Put(key, authentic.encode(self._root, key, asdict(host)))

    def put_copy(self, network: str, node_id: str, copy: Copy) -> Put:
        """Return the operation that says a machine is a copy."""
        key = copy_key(network, node_id, copy.host_id, copy.instance)
        return Put(key, authentic.encode(self._root, key, asdict(copy)))

    # Telling.

    def message(self, network: str, node_id: str, now: float) -> admin_pb2.Node:
        """Return what is known of a node's hosts, as a part of what meshctl gets."""
        _, host = self.host(network, node_id)
        message = admin_pb2.Node()
        if host:
            message.host_id, message.connected_from = host.host_id, host.origin
            message.connected_since = host.since
        for copy in self.copies(network, node_id):
            if now - copy.last_seen < TOLD_FOR:
                message.copies.append(_message(copy))
                message.problems.append(_problem(copy, host))
        return message


def copy_key(network: str, node_id: str, host_id: str, twin: str) -> str:
    """Return the key of a copy; see `Hosts.copy`."""
    # Neither of the two can have a line end in it.
    told_apart_by = f"{host_id}\n{twin}" if twin else host_id
    return keys.copy(network, node_id, hashlib.sha256(told_apart_by.encode()).hexdigest()[:16])


def _message(copy: Copy) -> admin_pb2.Copy:
    return admin_pb2.Copy(
        host_id=copy.host_id,
        since=copy.since,
        last_seen=copy.last_seen,
        instance=copy.instance,
        **{"from": copy.origin},
    )


def _problem(copy: Copy, host: Host | None) -> mesh_pb2.Problem:
    own = f"its own is {host}" if host else ""
    held = "its keys and of its machine id" if copy.instance else "its keys"
    reason = f"host {copy} holds a copy of {held} and is quarantined; {own}"
    return mesh_pb2.Problem(subject="host", reason=reason)


def short(host_id: str) -> str:
    """Return a host id as people compare it: the end of a hash says no more than its beginning."""
    return host_id[:12] if host_id else "(no host id)"
