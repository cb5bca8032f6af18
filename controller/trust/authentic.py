"""Values in the store that only controllers write and read: a line of JSON and a line with its MAC.

Without the MAC, whoever can write to the store could make a token and join with it.
"""

import json
from collections.abc import Mapping
from typing import Any

from overmesh.controller.store.base import KeyValue
from overmesh.controller.trust import MeshRoot
from overmesh.errors import StoreCorruptError


def encode(root: MeshRoot, key: str, fields: Mapping[str, Any]) -> bytes:
    """Return the value under which fields are kept at a key."""
    value = json.dumps(fields, separators=(",", ":")).encode()
    return value + b"\n" + root.mac(key, value)


def decode(root: MeshRoot, kv: KeyValue, what: str) -> dict[str, Any]:
    """Return the fields of a value.

    Args:
        root: of the mesh.
        kv: as the store has it.
        what: it should be, for the error: "a token".

    Raises:
        StoreCorruptError: this mesh has not written it, or not there.

    """
    value, _, mac = kv.value.partition(b"\n")
    if not root.is_mac(kv.key, value, mac):
        raise StoreCorruptError(f"{kv.key} in the store is not {what} of this mesh")
    fields: dict[str, Any] = json.loads(value)
    return fields
