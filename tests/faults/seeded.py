"""A controller with a bug, to see that a run finds it.

python -m tests.faults.seeded BUG controller run ...
"""

import asyncio
import sys
from collections.abc import Callable, Container, Mapping, Sequence
from typing import Any

from overmesh.cli.main import main
from overmesh.controller import addressing
from overmesh.controller.membership import Membership
from overmesh.controller.mirror import Mirror
from overmesh.controller.peermap import NetworkMap
from overmesh.controller.store.base import Compare, Op, TxnResult, WatchBatch
from overmesh.controller.store.etcd import EtcdStore
from overmesh.model import Address, Network

# Seconds between an answer and what it was about.
_LATE = 2.0
# Seconds in which another controller may plan on the same.
_RACE = 0.3


def unconditional() -> None:
    """Carry out every transaction, late and whatever was planned on; take the lowest free address."""
    txn = EtcdStore.txn

    async def always(self: EtcdStore, _compares: Sequence[Compare], ops: Sequence[Op]) -> TxnResult:
        await asyncio.sleep(_RACE)
        return await txn(self, (), ops)

    def lowest(network: Network, _node_id: str, taken: Container[str]) -> tuple[Address, ...]:
        free = (next(host for host in cidr.hosts() if str(host) not in taken) for cidr in network.ranges)
        return tuple(free)

    _replace(EtcdStore, "txn", always)
    _replace(addressing, "choose", lowest)


def early() -> None:
    """Confirm what a node says of where it is before it is in the store."""
    report = Membership.report
    later: set[asyncio.Task[None]] = set()

    async def write(*said: Any) -> None:
        await asyncio.sleep(_LATE)
        await report(*said)

    async def confirm(self: Membership, *said: Any) -> int:
        task = asyncio.create_task(write(self, *said))
        later.add(task)
        task.add_done_callback(later.discard)
        return self._mirror.revision

    _replace(Membership, "report", confirm)


def deaf() -> None:
    """Miss every second revision in which something was deleted."""
    take, deletes = Mirror._take, [0]

    def miss(self: Mirror, batch: WatchBatch) -> None:
        if any(event.kv is None for event in batch.events):
            deletes[0] += 1
            if deletes[0] % 2:
                return
        take(self, batch)

    _replace(Mirror, "_take", miss)


def stale() -> None:
    """Serve an old map as a new one: every third move of a node changes the revision and nothing else."""
    apply, moves = NetworkMap.apply, [0]

    def forget(self: NetworkMap, revision: int, changed: Mapping[str, bytes | None], *more: Any) -> None:
        if all(key.startswith("endpoints/") for key in changed):
            moves[0] += 1
            changed = changed if moves[0] % 3 else {}
        apply(self, revision, changed, *more)

    _replace(NetworkMap, "apply", forget)


def _replace(owner: Any, name: str, other: Any) -> None:
    setattr(owner, name, other)


BUGS: Mapping[str, Callable[[], None]] = {bug.__name__: bug for bug in (unconditional, early, deaf, stale)}

if __name__ == "__main__":
    BUGS[sys.argv.pop(1)]()
    main()
