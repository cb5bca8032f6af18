"""What this host tells its controller of itself, by as little as makes it known.

    how it carries packets        with Hello, and with every ack
    where it is, what it misses   by Report, when the map says otherwise

A host that has just joined has said where it is then, and one that comes back mostly is where it was.
"""

from dataclasses import dataclass
from itertools import islice

from overmesh.agent.peermap import Replica
from overmesh.model import Endpoint, NodeEndpoints, Problem
from overmesh.proto import mesh_pb2
from overmesh.proto.codec import MAX_WITHHELD, endpoint_message


@dataclass(frozen=True, slots=True)
class Facts:
    """What a host tells of itself. lanes: those that its fastpath has, not those that were asked for."""

    endpoints: tuple[Endpoint, ...]
    backend: str
    backend_reason: str
    mtu: int
    lanes: int


class Reporting:
    """Knows what is true here, and what the controller has been told of it. replica: of the map."""

    def __init__(self, replica: Replica) -> None:
        self._replica = replica
        self._facts: Facts | None = None
        # What the controller of this stream was told, and what its map said then.
        self._told: tuple[Facts, NodeEndpoints | None] | None = None
        self.problems: tuple[Problem, ...] = ()

    def note(self, facts: Facts) -> bool:
        """Take in what is true now; tell whether it is news."""
        before, self._facts = self._facts, facts
        return facts != before

    def begin(self) -> None:
        """Begin a stream, to a controller that was told nothing yet."""
        self._told = None

    @property
    def health(self) -> mesh_pb2.Health | None:
        """How this host carries packets; None while that is not known."""
        facts = self._facts
        if facts is None:
            return None
        return mesh_pb2.Health(backend=facts.backend, backend_reason=facts.backend_reason, mtu=facts.mtu)

    def due(self, host_id: str, instance: str, now: float) -> mesh_pb2.ReportRequest | None:
        """Return what there is to report; None when the map says it, or when it was told and nothing is new.

        Args:
            host_id: of this machine.
            instance: of this run of the agent.
            now: unix seconds.

        """
        facts, place, withheld = self._facts, self._replica.place, self._replica.withheld(now)
        if facts is None:
            return None
        if place and (place.endpoints, place.lanes) == (facts.endpoints, facts.lanes) and not withheld:
            self.problems = ()
            return None
        if (facts, place) == self._told and not withheld:
            return None
        self._told = facts, place
        return mesh_pb2.ReportRequest(
            endpoints=map(endpoint_message, facts.endpoints),
            lanes=facts.lanes,
            host_id=host_id,
            instance=instance,
            withheld=[
                mesh_pb2.Item(key=key, signed=signed)
                for key, signed in islice(withheld.items(), MAX_WITHHELD)
            ],
        )

    def answered(self, refusal: str = "") -> None:
        """Say aloud what the controller does not take, and why; the map is no worse for it."""
        self.problems = (Problem("report", refusal),) if refusal else ()
