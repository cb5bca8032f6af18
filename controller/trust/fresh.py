"""What this controller has just signed: when it comes back through the store, it need not be verified."""

from overmesh.proto.roots import Roots

# So many may be on their way; of those that never come back the oldest are forgotten.
_LIMIT = 1000


class FreshSignatures:
    """Encoded Signed, byte for byte as they were made here, each until it has come back once."""

    def __init__(self) -> None:
        self._signers: dict[bytes, str] = {}

    def add(self, signed: bytes, signer: str) -> None:
        """Remember what the root with this fingerprint has signed."""
        self._signers[signed] = signer
        if len(self._signers) > _LIMIT:
            del self._signers[next(iter(self._signers))]

    def take(self, signed: bytes, trusted: Roots) -> bool:
        """Tell whether it was signed here, by a root that is trusted; the next time it is not known."""
        return self._signers.pop(signed, None) in trusted.fingerprints
