"""Which record may follow which: none that is older, none that a revocation voids.

Signatures say that a record was true once. These rules, the same on controllers and agents, keep what
was true once from coming back.
"""

from overmesh.model import Record, Revocation


def step_back(
    record: Record, *, held: Record | None = None, revocation: Revocation | None = None, floor: int = 0
) -> str:
    """Return why a record would be a step back, or an empty string.

    Args:
        record: verified.
        held: what is in use under its key.
        revocation: of the node that it is about.
        floor: the serial of the last record under its key, when that one went away.

    """
    if revocation and revocation.voids(record):
        return refusal(revocation, record)
    if held and _rank(record) < _rank(held):
        if isinstance(held, Revocation) and held.banned:
            return "this key was revoked for good, and that is final"
        return f"serial {record.serial} is older than {held.serial}, which is in use"
    if record.serial < floor:
        return f"serial {record.serial} is older than {floor}, which was in use"
    return ""


def refusal(revocation: Revocation, record: Record) -> str:
    """Return in words that a record is void."""
    if revocation.banned:
        return "the key of this node was revoked for good"
    return f"serial {record.serial} was revoked; only {revocation.revoked_serial + 1} or later comes back"


def _rank(record: Record) -> tuple[bool, int]:
    # Whatever is signed later: a ban stays.
    return isinstance(record, Revocation) and record.banned, record.serial
