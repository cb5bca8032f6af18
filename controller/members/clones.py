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

A copy of a virtual machine has its machine id too: a twin. So each run of an agent has an id of its own, its
instance, and the newest takes the stream over: most often it is the same agent, restarted. But who was
replaced by its own next run is no more, and does not come back to tell:

    A ──► its stream    B ──► takes it over    A, "I was replaced" ──► B is a twin: quarantined as above
"""

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from itertools import islice
from typing import Protocol

from overmesh.controller.audit import Deed
from overmesh.controller.members.hosts import Copy, Host, Hosts, copy_key, short
from overmesh.controller.members.names import checked_host_id, checked_instance
from overmesh.controller.mirror import Change, Mirror
from overmesh.controller.serving.caller import caller
from overmesh.controller.store import keys
from overmesh.controller.store.base import MAX_OPS, Delete, KeyValue, Put, absent, unchanged
from overmesh.controller.trust import Identity, MeshRoot
from overmesh.errors import CloneError
from overmesh.proto import admin_pb2

# Seconds after which a copy takes over from a host that has gone: longer than a restart or a lease.
TAKES_OVER_AFTER = 120.0
_NOTED_EVERY = 30.0
# Seconds until it is noticed that a host has gone without a word (rpc.KEEPALIVE).
_NOTICED_WITHIN = 20.0
_LOOK_EVERY = 0.1
MAX_COPIES = 8
_NEW_MACHINE_ID = "make a new machine id (`rm /etc/machine-id; systemd-machine-id-setup`), "

_log = logging.getLogger("overmesh.controller")


class Connected(Protocol):
    """An agent that is connected here, as it calls itself, and where it calls from."""

    @property
    def host_id(self) -> str:
        """Of its machine."""

    @property
    def instance(self) -> str:
        """Of this run of it; empty: an older version."""

    @property
    def origin(self) -> str:
        """An address."""


class Clones:
    """Knows the hosts of all nodes.

    Args:
        mirror, root: the parts of this controller.
        live: (network, node id) -> the agent that is connected here as that node, or None.
        elsewhere: (network, node id) -> the instance of it that the store says is connected, or "".
        clock: unix seconds.

    """

    def __init__(
        self,
        mirror: Mirror,
        root: MeshRoot,
        live: Callable[[str, str], Connected | None],
        elsewhere: Callable[[str, str], str],
        clock: Callable[[], float],
    ) -> None:
        self._mirror = mirror
        self._hosts = Hosts(mirror, root)
        self._live = live
        self._elsewhere = elsewhere
        self._clock = clock
        self._listeners: list[Callable[[str, str, CloneError], None]] = []
        mirror.on_kind("hosts", self._changed)
        mirror.on_kind("copies", lambda network, item: self._changed(network, item.partition(".")[0]))

    def on_quarantine(self, listener: Callable[[str, str, CloneError], None]) -> None:
        """Have `listener(network, node id, error)` called when the agent that is here as a node is a copy."""
        self._listeners.append(listener)

    def _changed(self, network: str, node_id: str) -> None:
        agent = self._live(network, node_id)
        if agent is None or self._hosts.host(network, node_id)[1] is None:
            return
        if not self._is_node(network, node_id, agent.host_id, agent.instance):
            error = self._quarantined(network, node_id, agent.host_id, agent.origin)
            for listener in self._listeners:
                listener(network, node_id, error)

    # Letting through.

    async def check(
        self, identity: Identity, host_id: str, instance: str = "", *, replaced: bool = False
    ) -> None:
        """Raise CloneError unless this host is, or now becomes, the node.

        Args:
            identity: of the node.
            host_id: of the machine that asks.
            instance: of the agent that does; empty: of an older version.
            replaced: it says that another took its stream over: that one is a twin.

        Raises:
            InvalidError: that is no host id, or no instance.
            StoreUnavailableError: that can't be found out now; for the node's own host it is known.

        """
        network, node_id = identity.network, identity.node_id
        checked_host_id(host_id)
        checked_instance(instance)
        if self._is_node(network, node_id, host_id, instance):
            if replaced:
                await self._quarantine_twin(network, node_id, host_id, instance)
            return
        result = await self._mirror.change(lambda: self._plan(network, node_id, host_id, instance))
        if self._is_node(network, node_id, host_id, instance):
            return
        error = self._quarantined(network, node_id, host_id, caller().origin)
        if result.succeeded:  # it was noted, which happens rarely enough for the log
            self._log(network, node_id, host_id, error)
        raise error

    def _log(self, network: str, node_id: str, host_id: str, error: CloneError) -> None:
        named = self._mirror.view(network).log_fields(node_id)
        extra = named | {"host": host_id, "reason": error.cause}
        _log.warning("a copy of a node is quarantined", extra=extra)

    def _is_node(self, network: str, node_id: str, host_id: str, instance: str) -> bool:
        _, host = self._hosts.host(network, node_id)
        return (
            host is not None
            and host.host_id == host_id
            and not (instance and self._hosts.copy(network, node_id, host_id, instance)[1])
        )

    def _plan(self, network: str, node_id: str, host_id: str, instance: str) -> Change | None:
        if self._is_node(network, node_id, host_id, instance):
            return None
        kv, host = self._hosts.host(network, node_id)
        twin = instance if host and host.host_id == host_id else ""
        copy_kv, copy = self._hosts.copy(network, node_id, host_id, twin)
        if host and self._is_there(network, node_id, host, twin):
            seen = copy or Copy(host_id, "", int(self._clock()), 0)
            return self._noted(network, node_id, copy_kv, seen)
        if copy and 0 <= self._clock() - copy.last_seen < TAKES_OVER_AFTER:
            return None
        return Change(
            [
                unchanged(kv) if kv else absent(keys.host(network, node_id)),
                absent(keys.presence(network, node_id)),
            ],
            [
                self.bound(network, node_id, host_id, claimed=True),
                Delete(copy_key(network, node_id, host_id, twin)),
            ],
            self._deed("node bound to a host", network, node_id, host_id) if host else None,
        )

    def _is_there(self, network: str, node_id: str, host: Host, twin: str = "") -> bool:
        agent = self._live(network, node_id)
        own = agent and agent.host_id == host.host_id and not (twin and agent.instance == twin)
        connected = own or self._mirror.key(keys.presence(network, node_id))
        # Who has just been taken for the node is not yet told of as connected.
        fresh = host.claimed and 0 <= self._clock() - host.since < TAKES_OVER_AFTER
        return bool(connected) or fresh

    def _noted(self, network: str, node_id: str, kv: KeyValue | None, copy: Copy) -> Change | None:
        """Return the change that makes a copy known, or says that it is still there."""
        now = int(self._clock())
        if kv and 0 <= now - copy.last_seen < _NOTED_EVERY:
            return None
        return self._written(network, node_id, kv, replace(copy, origin=caller().origin, last_seen=now))

    def _written(self, network: str, node_id: str, kv: KeyValue | None, copy: Copy) -> Change | None:
        if kv is None and len(list(self._hosts.copies(network, node_id))) >= MAX_COPIES:
            return None
        put = self._hosts.put_copy(network, node_id, copy)
        deed = None if kv else self._deed("copy quarantined", network, node_id, copy.host_id)
        return Change([unchanged(kv) if kv else absent(put.key)], [put], deed)

    def _deed(self, what: str, network: str, node_id: str, host_id: str) -> Deed:
        node = self._mirror.view(network).node(node_id)
        _, host = self._hosts.host(network, node_id)
        details = {"host": host_id, "before": host.host_id if host else ""}
        return Deed(what, network, node_id, node.name if node else "", details=details)

    def _quarantined(self, network: str, node_id: str, host_id: str, origin: str) -> CloneError:
        _, host = self._hosts.host(network, node_id)
        twin = host is not None and host.host_id == host_id
        here = f"this one, {short(host_id)} from {origin or 'here'}"
        return CloneError(
            f"another host is connected as this node ({node_id}): {host or 'not known'}; {here}, holds "
            f"a copy of its keys {'and of its machine id ' if twin else ''}and is quarantined",
            f"on the copy, {_NEW_MACHINE_ID if twin else ''}meshctl leave, and join with a new token; "
            "if the other host is to go, end its agent: this one takes over within "
            f"{TAKES_OVER_AFTER / 60:.0f} to 3 minutes",
        )

    # Twins.

    async def _quarantine_twin(self, network: str, node_id: str, host_id: str, instance: str) -> None:
        """Have whoever took the stream over from this instance, which is alive, be the copy."""
        twin = self._twin(network, node_id, host_id, instance)
        if twin is None:
            return
        result = await self._mirror.change(lambda: self._twin_noted(network, node_id, twin))
        if result.succeeded:
            error = self._quarantined(network, node_id, host_id, twin.origin or "elsewhere")
            self._log(network, node_id, host_id, error)

    def _twin(self, network: str, node_id: str, host_id: str, instance: str) -> Copy | None:
        """Return the other instance that is connected as the node, here or elsewhere, if there is one."""
        agent = self._live(network, node_id)
        now = int(self._clock())
        if agent and agent.instance not in ("", instance):
            return Copy(host_id, agent.origin, now, now, agent.instance)
        other = self._elsewhere(network, node_id)
        # Where it calls from is noted when it comes next, as that was long ago.
        return Copy(host_id, "", now, now - int(_NOTED_EVERY), other) if other not in ("", instance) else None

    def _twin_noted(self, network: str, node_id: str, twin: Copy) -> Change | None:
        kv = self._mirror.key(copy_key(network, node_id, twin.host_id, twin.instance))
        return None if kv else self._written(network, node_id, None, twin)

    # Joining.

    def bound(self, network: str, node_id: str, host_id: str, *, claimed: bool = False) -> Put:
        """Return the operation that binds a node to a host."""
        host = Host(host_id, caller().origin, int(self._clock()), claimed)
        return self._hosts.put_host(network, node_id, host)

    def bound_elsewhere(self, network: str, node_id: str, host_id: str) -> bool:
        """Tell whether another host than this one is there as the node."""
        _, host = self._hosts.host(network, node_id)
        if host is None or host.host_id == host_id:
            return False
        return self._is_there(network, node_id, host)

    # Acting as the node.

    def check_own(self, identity: Identity, host_id: str, instance: str) -> None:
        """Raise CloneError unless this host is the one that the node is bound to, wherever that one is now.

        A node that is bound to none, and a host that says no id, are believed.
        """
        network, node_id = identity.network, identity.node_id
        _, host = self._hosts.host(network, node_id)
        if host and host_id and not self._is_node(network, node_id, host_id, instance):
            raise self._quarantined(network, node_id, host_id, caller().origin)

    async def check_leaving(self, identity: Identity, host_id: str, instance: str) -> None:
        """Raise CloneError also when another run of an agent is connected as the node.

        It takes a while to find that out: the stream of an agent that has just gone may not have ended yet.

        Args:
            identity: of the node.
            host_id: of the machine that leaves.
            instance: of its agent; empty: that does not run, so whichever is connected is another machine's.

        """
        self.check_own(identity, host_id, instance)
        network, node_id = identity.network, identity.node_id
        with suppress(TimeoutError):
            async with asyncio.timeout(_NOTICED_WITHIN):
                while host_id and self._twin(network, node_id, host_id, instance):  # noqa: ASYNC110
                    await asyncio.sleep(_LOOK_EVERY)
                return
        raise self._quarantined(network, node_id, host_id, caller().origin)

    # Telling.

    def message(self, network: str, node_id: str) -> admin_pb2.Node:
        """Return what is known of a node's hosts, as a part of what meshctl gets."""
        return self._hosts.message(network, node_id, self._clock())

    # Forgetting.

    async def sweep(self) -> None:
        """Forget copies that have not come for a while."""
        await self._mirror.change(self._forgetting)

    def _forgetting(self) -> Change | None:
        old = list(islice(self._hosts.forgotten(self._clock()), MAX_OPS))
        return Change([unchanged(kv) for kv in old], [Delete(kv.key) for kv in old]) if old else None
