"""When to ask again, and when to answer: rules, with the clock and the dice of whoever asks."""

from collections.abc import Callable
from random import SystemRandom

FIRST_DELAY, LONGEST_DELAY = 0.5, 30.0

_RANDOM = SystemRandom()


class AckLimiter:
    """At most one ack a second under load, a few at once after a quiet time (a token bucket)."""

    def __init__(self, rate: float = 1.0, burst: int = 5) -> None:
        self._rate = rate
        self._burst = burst
        self._tokens = float(burst)
        self._at = 0.0

    def take(self, now: float) -> float:
        """Take the right to send one, and return how many seconds from now it may be sent."""
        self._tokens = min(self._burst, self._tokens + (now - self._at) * self._rate)
        self._at = now
        self._tokens -= 1
        return max(0.0, -self._tokens / self._rate)


class Backoff:
    """Full jitter: a random time up to a limit that doubles (AWS, "Exponential Backoff And Jitter")."""

    def __init__(self, random: Callable[[], float] = _RANDOM.random) -> None:
        self._random = random
        self._failures = 0

    def delay(self) -> float:
        """Return how many seconds to wait before the next attempt."""
        limit: float = min(LONGEST_DELAY, FIRST_DELAY * 2**self._failures)
        return limit * self._random()

    def grow(self) -> None:
        """Wait longer from now on: every controller was tried in vain."""
        self._failures = min(self._failures + 1, 16)

    def reset(self) -> None:
        """Begin anew: it worked."""
        self._failures = 0
