"""What a controller is made of, put together: each part knows some of those above it and none below.

Servers and background duties stand on these parts (daemon.py), and so do the tests of single ones.
"""

import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

from overmesh.controller.agents import Agents
from overmesh.controller.audit import Audit
from overmesh.controller.fleet.contact import Contact
from overmesh.controller.fleet.lease import Lease
from overmesh.controller.fleet.presence import Presence
from overmesh.controller.join import Joins
from overmesh.controller.members.clones import Clones
from overmesh.controller.members.newcomers import Newcomers
from overmesh.controller.members.peers import Peers
from overmesh.controller.members.pending import Pendings
from overmesh.controller.members.rekeying import Rekeying
from overmesh.controller.members.renewal import Renewals
from overmesh.controller.members.revocations import Revocations
from overmesh.controller.members.tokens import Tokens
from overmesh.controller.membership import Membership, RandomBits, Signer
from overmesh.controller.mirror import Mirror
from overmesh.controller.store.base import Store
from overmesh.controller.trust import MeshRoot
from overmesh.controller.trust.fresh import FreshSignatures


@dataclass(frozen=True, slots=True)
class Parts:
    """One controller without its servers. clock: unix seconds."""

    store: Store
    root: MeshRoot
    clock: Callable[[], float]
    audit: Audit
    mirror: Mirror
    signer: Signer
    membership: Membership
    revocations: Revocations
    tokens: Tokens
    pending: Pendings
    lease: Lease
    contact: Contact
    presence: Presence
    agents: Agents
    clones: Clones
    newcomers: Newcomers
    joins: Joins
    renewals: Renewals
    rekeying: Rekeying
    peers: Peers

    @classmethod
    def of(
        cls,
        store: Store,
        root: MeshRoot,
        clock: Callable[[], float],
        name: str,
        random_bits: RandomBits = secrets.randbits,
    ) -> Self:
        """Return the parts of a controller; the mirror is empty until it is loaded.

        Args:
            store: of record.
            root: of the mesh.
            clock: unix seconds.
            name: of this controller, for the audit.
            random_bits: see `Membership`.

        """
        audit = Audit(store, root, clock, name)
        fresh = FreshSignatures()
        mirror = Mirror(store, root.anchor, audit, clock, fresh)
        signer = Signer(root, clock, fresh)
        membership = Membership(mirror, signer, random_bits)
        tokens = Tokens(mirror, root, clock)
        pending = Pendings(mirror, root, clock)
        lease = Lease(store)
        presence = Presence(mirror, lease)
        agents = Agents(mirror, presence.seen, clock)
        presence.on_elsewhere(agents.replaced)
        clones = Clones(mirror, root, agents.live, presence.instance, clock)
        clones.on_quarantine(agents.quarantined)
        newcomers = Newcomers(mirror, membership, signer, clock)
        return cls(
            store=store,
            root=root,
            clock=clock,
            audit=audit,
            mirror=mirror,
            signer=signer,
            membership=membership,
            revocations=Revocations(mirror, membership, signer, clock),
            tokens=tokens,
            pending=pending,
            lease=lease,
            contact=Contact(store, mirror, lease),
            presence=presence,
            agents=agents,
            clones=clones,
            newcomers=newcomers,
            joins=Joins(mirror, membership, newcomers, tokens, pending, root, clones, clock),
            renewals=Renewals(mirror, newcomers, root, clock),
            rekeying=Rekeying(mirror, newcomers, signer, root),
            peers=Peers(mirror, membership, newcomers),
        )
