"""With which TLS key a node proves that it is the one that joined: for joining again and for renewal.

Kept at credentials/<network>/<node id> as authentic.py writes: SHA-256 of each public key that is good,
in hex. There may be two while a node changes its key.
"""

import hmac

from overmesh.controller import authentic, keys
from overmesh.controller.store.base import KeyValue, Put
from overmesh.controller.trust import MeshRoot
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
    try:
        fields = authentic.decode(root, credential, "a credential")
    except StoreCorruptError:
        return False
    return any(hmac.compare_digest(known, fingerprint.hex()) for known in fields["tls"])
