"""Every error that a user or another process can meet.

    OvermeshError                    cause, fix, exit code 1
    ├── UsageError                   exit code 2
    │   └── ConfigError              a flag, variable or file that can't be right
    ├── NotYetError                  exit code 3: asked for, not (yet) true
    │   └── ApprovalPendingError     a host that an operator has to let in
    ├── StateError                   this host's own files
    │   ├── NotJoinedError
    │   └── CorruptStateError
    ├── HostError                    this host can't do it
    │   ├── PermissionMissingError
    │   ├── TunMissingError
    │   ├── PortInUseError
    │   └── RangeCollisionError      overlay range against a route the host has
    ├── FastpathError                the fastpath process refuses or is gone
    ├── RecordError                  a signed record that must not be used
    ├── StoreError
    │   ├── StoreUnavailableError
    │   │   └── UnconfirmedError     a change that may or may not have happened
    │   ├── StoreCorruptError
    │   ├── StoreBusyError           another controller has the file
    │   ├── CompactedError           the asked-for revision is no longer kept
    │   ├── FutureRevisionError
    │   └── LeaseNotFoundError
    └── MeshError                    the controller says no, or can't be reached
        ├── UnreachableError
        │   └── ReplacedError        another agent has come as this node
        ├── PinMismatchError
        ├── TokenError
        ├── NameTakenError
        ├── PoolExhaustedError
        ├── CloneError               one identity on two machines
        ├── RemovedError             this node was removed
        │   └── RevokedError         and its key for good
        ├── NotFoundError
        ├── ExistsError
        └── InvalidError             a value the controller can't accept

Over gRPC they travel by class name (overmesh/rpc.py), so both ends raise the same class.
"""

from typing import ClassVar


class OvermeshError(Exception):
    """One cause, one fix.

    Args:
        cause: what is wrong, one line, without a full stop.
        fix: what the user can do about it, one line; empty when there is nothing to add.

    """

    exit_code: ClassVar[int] = 1

    def __init__(self, cause: str, fix: str = "") -> None:
        super().__init__(cause)
        self.cause = cause
        self.fix = fix


class UsageError(OvermeshError):
    """The command was asked for in a way it does not have."""

    exit_code = 2


class ConfigError(UsageError):
    """A setting that can't be right; names where it was set."""


class NotYetError(OvermeshError):
    """What was asked about is not true (yet)."""

    exit_code = 3


class ApprovalPendingError(NotYetError):
    """The host waits until an operator lets it in."""


class StateError(OvermeshError):
    """Something about this host's own files."""


class NotJoinedError(StateError):
    """The host has no membership on disk."""


class CorruptStateError(StateError):
    """A state file that can't be read as what it should be."""


class HostError(OvermeshError):
    """The host can't do what is needed."""


class PermissionMissingError(HostError):
    """A capability or file permission is missing."""


class TunMissingError(HostError):
    """The host has no usable /dev/net/tun."""


class PortInUseError(HostError):
    """Another process listens there."""


class RangeCollisionError(HostError):
    """The overlay's range overlaps a route that the host already has."""


class FastpathError(OvermeshError):
    """The fastpath process refused, or does not answer."""


class RecordError(OvermeshError):
    """A signed record that must not be used: forged, expired, older than the one held."""


class StoreError(OvermeshError):
    """The store of record."""


class StoreUnavailableError(StoreError):
    """The store can't be reached or has been closed."""


class UnconfirmedError(StoreUnavailableError):
    """A change was sent, and its answer never came: it may or may not have happened."""


class StoreCorruptError(StoreError):
    """The store's content is not what it must be."""


class StoreBusyError(StoreError):
    """Another controller has the embedded store open."""


class CompactedError(StoreError):
    """The asked-for revision is older than the store keeps."""

    def __init__(self, cause: str, fix: str = "", *, oldest: int = 0) -> None:
        super().__init__(cause, fix)
        self.oldest = oldest


class FutureRevisionError(StoreError):
    """The asked-for revision has not happened."""


class LeaseNotFoundError(StoreError):
    """The lease has expired or never was."""


class MeshError(OvermeshError):
    """The controller says no, or can't be reached."""


class UnreachableError(MeshError):
    """No controller answers."""


class ReplacedError(UnreachableError):
    """The stream ends, another one of this node has come: this agent's next run, or a copy of its host."""


class PinMismatchError(MeshError):
    """Whoever answers does not hold the mesh root that the token pins."""


class TokenError(MeshError):
    """Unknown, expired, used up or revoked token."""


class NameTakenError(MeshError):
    """Another node has the name."""


class PoolExhaustedError(MeshError):
    """The network has no free address."""


class CloneError(MeshError):
    """One identity on two machines."""


class RemovedError(MeshError):
    """The calling node is not (or no longer) a member."""


class RevokedError(RemovedError):
    """The key of this node was revoked: it never comes back."""


class NotFoundError(MeshError):
    """No such network, node or token."""


class ExistsError(MeshError):
    """Already there, with other content."""


class InvalidError(MeshError):
    """A value that the controller can't accept."""
