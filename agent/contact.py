"""How this host stands with its controllers."""

import time
from dataclasses import dataclass, field

# So many attempts in a row that end in the handshake are no accident.
_REJECTIONS = 3


@dataclass(slots=True)
class Contact:
    """How this host stands with its controllers. since: monotonic; confirmed: unix seconds, 0 never.

    copied: another machine is, or was, this node: this one must not draw the node's packets to itself
    before a controller has taken it for the node. advice: what a controller says can be done about that.
    rejected: how many attempts in a row ended where certificates are looked at.
    """

    address: str = ""
    connected: bool = False
    error: str = ""
    since: float = field(default_factory=time.monotonic)
    confirmed: float = 0.0
    removed: bool = False
    copied: bool = False
    advice: str = ""
    rejected: int = 0

    @property
    def untrusted(self) -> bool:
        """Whether controllers and this host seem not to accept each other's certificates."""
        return self.rejected >= _REJECTIONS

    def turn(self, *, connected: bool, error: str = "") -> None:
        """Note a change for better or worse."""
        if connected != self.connected:
            self.since = time.monotonic()
        self.connected, self.error = connected, error
