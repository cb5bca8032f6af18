"""Which controller to follow, and which one next. Pure.

    the map's controllers (verified) + remembered addresses --targets--> host:port after host:port

Every node has an order of its own (rendezvous hashing: Thaler, Ravishankar, "Using Name-Based Mappings to
Increase Hit Rates", 1998), so nodes spread evenly, and those of a controller that dies spread over all
that are left. A controller that left the map is tried last: it may be the only one that answers.
"""

import hashlib
from collections.abc import Iterable, Sequence
from itertools import zip_longest

from overmesh.model import Controller

# Addresses that are kept on disk.
REMEMBERED = 32

# After a controller's death the others can take in so many agents a second each (measured), and no agent
# waits longer than the second.
RATE = 250.0
LONGEST_SPREAD = 30.0


def in_order(node_id: str, controllers: Iterable[Controller]) -> Sequence[Controller]:
    """Return controllers in the order in which a node prefers them."""
    return sorted(controllers, key=lambda one: hashlib.sha256(f"{node_id} {one.id}".encode()).digest())


def targets(node_id: str, controllers: Iterable[Controller], remembered: Iterable[str]) -> Sequence[str]:
    """Return host:port of every mesh port to try.

    The best address of each controller comes before the second best of any: most of the time another
    address of a controller that does not answer is one of the same dead host.
    """
    ranks = zip_longest(*(one.mesh for one in in_order(node_id, controllers)))
    known = (target for rank in ranks for target in rank if target)
    return tuple(dict.fromkeys((*known, *remembered)))


def better(node_id: str, controllers: Iterable[Controller], here: str) -> Controller | None:
    """Return the controller that a node prefers to the one at the address `here`; None: there is none."""
    first = next(iter(in_order(node_id, controllers)), None)
    return None if first is None or here in first.mesh else first


def spread(members: int) -> float:
    """Return over how many seconds the agents of a lost controller come to the others."""
    return min(LONGEST_SPREAD, members / RATE)
