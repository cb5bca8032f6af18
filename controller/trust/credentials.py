"""With which TLS key a node proves that it is the one that joined: for joining again and for renewal.

Kept at credentials/<network>/<node id> as authentic.py writes: SHA-256 of each public key that is good,
in hex. There may be two while a node changes its key.
"""

import hashlib
import hmac
from collections.abc import Iterable, Mapping
from functools import lru_cache

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from overmesh.controller.store import keys
from overmesh.controller.store.base import KeyValue, Put
from overmesh.controller.trust import MeshRoot, authentic
from overmesh.errors import StoreCorruptError


def put(root: MeshRoot, network: str, node_id: str, *fingerprints: bytes) -> Put:
    """Return the operation that ties a node to its TLS key.

    Args:
        root: of the mesh.
        network: the node's.
        node_id: whose.
        fingerprints: of the keys, as `CertificateRequest.fingerprint` has them.

    """
    key = keys.credential(network, node_id)
    return Put(key, authentic.encode(root, key, {"tls": [one.hex() for one in fingerprints]}))


def allows(root: MeshRoot, credential: KeyValue, fingerprint: bytes) -> bool:
    """Tell whether a TLS key is one of those that a node was tied to."""
    return _is_among(fingerprint, _known(root, credential))


def is_outdated(root: MeshRoot, credential: KeyValue, fingerprint: bytes) -> bool:
    """Tell whether a node is tied to other TLS keys. No, when the credential can't be read."""
    known = _known(root, credential)
    return bool(known) and not _is_among(fingerprint, known)


def of_caller(auth_context: Mapping[str, Iterable[bytes]]) -> bytes:
    """Return the fingerprint of the TLS key with which a call came (`context.auth_context()`)."""
    (pem,) = auth_context["x509_pem_cert"]
    return _fingerprint(pem)


# Who opens a stream reports right after.
@lru_cache(maxsize=256)
def _fingerprint(pem: bytes) -> bytes:
    public_key = x509.load_pem_x509_certificate(pem).public_key()
    return hashlib.sha256(public_key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).digest()


def _known(root: MeshRoot, credential: KeyValue) -> list[str]:
    try:
        known: list[str] = authentic.decode(root, credential, "a credential")["tls"]
    except StoreCorruptError:
        return []
    return known


def _is_among(fingerprint: bytes, known: Iterable[str]) -> bool:
    return any(hmac.compare_digest(one, fingerprint.hex()) for one in known)
