"""Signed records: what the mesh root vouches for, as bytes that pass through everything unchanged.

The controller signs; agents verify against the root that they pinned when they joined. The store
and the stream in between only carry the bytes, so whoever can write there can remove or withhold,
but not invent.
"""

from typing import Protocol

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ec import (
    ECDSA,
    EllipticCurvePrivateKey,
)
from cryptography.hazmat.primitives.hashes import SHA256
from google.protobuf.message import DecodeError

from overmesh.errors import RecordError
from overmesh.model import (
    NETWORK_KEY,
    Controller,
    Network,
    Node,
    NodeEndpoints,
    Record,
    Revocation,
    Root,
    controller_key,
    endpoints_key,
    node_key,
    revoked_key,
    root_key,
)
from overmesh.proto import mesh_pb2
from overmesh.proto.codec import decode_record, encode_record


def map_key(record: Record) -> str:
    """Return the peer map key under which a record belongs."""
    match record:
        case Network():
            return NETWORK_KEY
        case Node():
            return node_key(record.id)
        case NodeEndpoints():
            return endpoints_key(record.node_id)
        case Controller():
            return controller_key(record.id)
        case Revocation():
            return revoked_key(record.node_id)
        case Root():
            return root_key(record.fingerprint)


def sign(record: Record, root: EllipticCurvePrivateKey) -> bytes:
    """Return an encoded Signed that holds the record and the root's signature."""
    body = encode_record(record)
    # Without chance (RFC 6979): a record that says the same as before is the same bytes, and no change of the map.
    signature = root.sign(_context(map_key(record)) + body, ECDSA(SHA256(), deterministic_signing=True))
    return mesh_pb2.Signed(body=body, signature=signature).SerializeToString(deterministic=True)


class Verifier(Protocol):
    """What a signature is checked with: one root's public key, or `roots.Roots`, all that are trusted."""

    def verify(self, signature: bytes, data: bytes, signature_algorithm: ECDSA, /) -> None:
        """Raise InvalidSignature unless it is right."""


def verify(key: str, signed: bytes, root: Verifier) -> Record:
    """Return the record in an encoded Signed, once it is certain that the root signed it for this key.

    Raises:
        RecordError: forged, unreadable, or signed for another key.

    """
    message = _parse(signed)
    try:
        root.verify(message.signature, _context(key) + message.body, ECDSA(SHA256()))
    except InvalidSignature:
        raise RecordError("not signed by this mesh's root") from None
    return _record(key, message.body)


def read(key: str, signed: bytes) -> Record:
    """Return the record in an encoded Signed without asking who signed it: for what one signed oneself.

    Raises:
        RecordError: unreadable, or made for another key.

    """
    return _record(key, _parse(signed).body)


def _parse(signed: bytes) -> mesh_pb2.Signed:
    try:
        return mesh_pb2.Signed.FromString(signed)
    except DecodeError:
        raise RecordError("not a signed record") from None


def _record(key: str, body: bytes) -> Record:
    record = decode_record(_kind(key), body)
    if map_key(record) != key:
        raise RecordError(f"is the record of {map_key(record)}, not of {key}")
    return record


def _kind(key: str) -> str:
    return key.partition("/")[0]


def _context(key: str) -> bytes:
    # The kind is signed too, so that no record can pass for one of another kind.
    return f"overmesh {_kind(key)} v1\n".encode()
