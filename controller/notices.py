"""What was wrong with the store, for an operator who looks later: `meshctl node list` shows it for a day."""

from collections.abc import Callable, Iterable

from overmesh.model import Problem

KEPT = 86400.0
_MOST = 20


class Notices:
    """The last few of each network. clock: unix seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._noted: dict[tuple[str, str], tuple[float, Problem]] = {}

    def note(self, network: str, subject: str, reason: str) -> None:
        """Keep it in mind; it takes the place of an earlier one on the same subject."""
        self._noted.pop((network, subject), None)
        self._noted[network, subject] = self._clock(), Problem(subject, reason)
        while len(self._noted) > _MOST:
            del self._noted[next(iter(self._noted))]

    def of(self, network: str) -> Iterable[Problem]:
        """Return what is still worth telling of a network, the oldest first."""
        horizon = self._clock() - KEPT
        return [problem for (of, _), (at, problem) in self._noted.items() if of == network and at > horizon]
