"""Where everything is in the store: every key is built and taken apart here.

Below /overmesh/v1/:
    root                         pin of the mesh root that signs for this store (32 bytes)
    importing                    there while the store is being filled; see backup.py
    networks                     changes with every new network: two can't be made at once
    networks/<net>               Signed NetworkRecord
    nodes/<net>/<node id>        Signed NodeRecord
    endpoints/<net>/<node id>    Signed EndpointsRecord
    addresses/<net>/<ip>         node id
    names/<net>/<name>           node id
    aliases/<net>/<alias>        node id; the alias follows, as an id would, from a later key of that node's
    revoked/<net>/<node id>      Signed RevocationRecord
    controllers/<controller id>  Signed ControllerRecord; under that controller's lease
    roots/<SHA-256, hex>         Signed RootRecord
    succession/<SHA-256, hex>    the same as its predecessor signed it: how to get there from that one
    issuers/<net>/<node id>      pin of the root that the node's certificate is of, since a rotation
    credentials/<net>/<node id>  JSON, see trust/credentials.py
    tokens/<id>                  JSON, see members/tokens.py
    pending/<net>/<node id>      JSON, see members/pending.py
    hosts/<net>/<node id>        JSON, see members/hosts.py: which machine is the node
    copies/<net>/<node id>.<tag> JSON, see members/hosts.py: another that holds its keys
    presence/<net>/<node id>     JSON, see fleet/presence.py; under the controller's lease
And outside, where no mirror holds it:
    /overmesh/audit/<time and random bits>   JSON, see audit.py
    /overmesh/fence                          written to see it come back; see fleet/contact.py
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from overmesh.model import (
    NETWORK_KEY,
    Address,
    controller_key,
    endpoints_key,
    node_key,
    revoked_key,
    root_key,
)

PREFIX = "/overmesh/v1/"
AUDIT = "/overmesh/audit/"
OURS = "/overmesh/"
FENCE = OURS + "fence"
ROOT_PIN = PREFIX + "root"
IMPORTING = PREFIX + "importing"
NETWORKS = PREFIX + "networks"
_LONGEST = 256
TOKENS = PREFIX + "tokens/"


def network(name: str) -> str:
    """Return the key of a network's record."""
    return f"{PREFIX}networks/{name}"


def node(network_name: str, node_id: str) -> str:
    """Return the key of a node's record."""
    return f"{PREFIX}nodes/{network_name}/{node_id}"


def endpoints(network_name: str, node_id: str) -> str:
    """Return the key of a node's endpoints."""
    return f"{PREFIX}endpoints/{network_name}/{node_id}"


def address(network_name: str, ip: Address | str) -> str:
    """Return the key that whoever has an overlay address holds."""
    return f"{PREFIX}addresses/{network_name}/{ip}"


def name(network_name: str, node_name: str) -> str:
    """Return the key that whoever has a name holds."""
    return f"{PREFIX}names/{network_name}/{node_name}"


def alias(network_name: str, node_id: str) -> str:
    """Return the key that whoever has a key with this id, but another id of its own, holds."""
    return f"{PREFIX}aliases/{network_name}/{node_id}"


def credential(network_name: str, node_id: str) -> str:
    """Return the key that ties a node id to its TLS key."""
    return f"{PREFIX}credentials/{network_name}/{node_id}"


def revoked(network_name: str, node_id: str) -> str:
    """Return the key of a node's revocation."""
    return f"{PREFIX}revoked/{network_name}/{node_id}"


def controller(controller_id: str) -> str:
    """Return the key of a controller that is running."""
    return f"{PREFIX}controllers/{controller_id}"


def root(fingerprint: str) -> str:
    """Return the key of a mesh root's certificate, by its SHA-256 in hex."""
    return f"{PREFIX}roots/{fingerprint}"


def succession(fingerprint: str) -> str:
    """Return the key of what first made a certificate a mesh root, by its SHA-256 in hex."""
    return f"{PREFIX}succession/{fingerprint}"


def issuer(network_name: str, node_id: str) -> str:
    """Return the key that says which root a node's certificate is of."""
    return f"{PREFIX}issuers/{network_name}/{node_id}"


def token(token_id: str) -> str:
    """Return the key of a join token."""
    return TOKENS + token_id


def pending(network_name: str, node_id: str) -> str:
    """Return the key of a host that waits to be let in."""
    return f"{PREFIX}pending/{network_name}/{node_id}"


def audit(entry_id: str) -> str:
    """Return the key of an audit entry."""
    return AUDIT + entry_id


def host(network_name: str, node_id: str) -> str:
    """Return the key that binds a node to a host."""
    return f"{PREFIX}hosts/{network_name}/{node_id}"


def copy(network_name: str, node_id: str, tag: str) -> str:
    """Return the key of another host that holds a node's keys."""
    return f"{PREFIX}copies/{network_name}/{node_id}.{tag}"


def presence(network_name: str, node_id: str) -> str:
    """Return the key that says a node is connected."""
    return f"{PREFIX}presence/{network_name}/{node_id}"


def is_sound(key: str) -> bool:
    """Tell whether a key can be in the store: parts of it may be what a stranger has said."""
    return key.isascii() and len(key) <= _LONGEST and parse(key) is not None


@dataclass(frozen=True, slots=True)
class Place:
    """A key taken apart: what kind of thing, in which network, which one.

    The record of a network has no item. What is the whole mesh's has no network, and neither has a
    token: its own is in its value.
    """

    kind: str
    network: str
    item: str

    @property
    def map_key(self) -> str:
        """The peer map key under which agents get it; empty when they don't."""
        of = _MAP_KEYS.get(self.kind)
        return of(self.item) if of else ""


_MAP_KEYS: Mapping[str, Callable[[str], str]] = {
    "networks": lambda _: NETWORK_KEY,
    "nodes": node_key,
    "endpoints": endpoints_key,
    "revoked": revoked_key,
    "controllers": controller_key,
    "roots": root_key,
}


_KEYS: Mapping[str, Callable[[str, str], str]] = {
    "node": node,
    "endpoints": endpoints,
    "revoked": revoked,
}


def of_item(network_name: str, map_key: str) -> str:
    """Return the key of a record in a network's peer map: of the network, a node, endpoints, a revocation."""
    kind, _, item = map_key.partition("/")
    return network(network_name) if map_key == NETWORK_KEY else _KEYS[kind](network_name, item)


def parse(key: str) -> Place | None:
    """Take a key apart; None when it is not one of many of its kind."""
    match key.removeprefix(PREFIX).split("/"):
        case ["networks", network_name]:
            return Place("networks", network_name, "")
        case ["tokens" | "controllers" | "roots" | "succession" as kind, item]:
            return Place(kind, "", item)
        case [kind, network_name, item]:
            return Place(kind, network_name, item)
        case _:
            return None
