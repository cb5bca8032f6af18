"""Rotation of the mesh root: another key takes its place while everything goes on.

    stage     the next root's key is made, and its certificate becomes a record of every map, signed by the
              present root: agents and controllers trust both
    copy      by hand: root.next.key and root.next.pem to every other controller
    activate  the pin in the store moves: every controller signs with the next root from then on, and all
              that is in the store is signed again; agents renew their certificates
    retire    the next root declares the old one retired: nothing that it signed counts any more, its key
              is gone from every controller

Each step is one transaction, and every controller does what follows from it by itself (rootwatch.py), now or
when it starts again. During the overlap whoever has either key can sign; afterwards the old one is worth
nothing.
"""

import logging
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from cryptography.hazmat.primitives.serialization import Encoding

from overmesh.controller.audit import Deed
from overmesh.controller.fleet import Fleet
from overmesh.controller.fleet.controllers import known
from overmesh.controller.members.tokens import Tokens
from overmesh.controller.membership import Signer
from overmesh.controller.mirror import Change, Mirror
from overmesh.controller.rotation.resigning import Resigning
from overmesh.controller.rotation.rootwatch import RootWatch
from overmesh.controller.store import keys
from overmesh.controller.store.base import KeyValue, Put, absent, unchanged
from overmesh.controller.trust import MeshRoot, rootfiles
from overmesh.controller.trust.rootkey import RootKey
from overmesh.errors import InvalidError, NotFoundError, RecordError, StoreCorruptError
from overmesh.model import Controller, Kind, Node, Root, controller_key, root_key
from overmesh.proto import admin_pb2
from overmesh.proto.roots import fingerprint
from overmesh.proto.signed import verify

# So many are named in an error.
_NAMED = 10

_log = logging.getLogger("overmesh.controller")


@dataclass(frozen=True, slots=True)
class Step:
    """Where the mesh stands: fingerprints of the root that signs and of the newest one that is trusted."""

    signing: str
    newest: str
    overlap: bool

    @property
    def staged(self) -> bool:
        """Whether there is a next root that does not sign yet."""
        return self.overlap and self.signing != self.newest


@dataclass(frozen=True, slots=True)
class Trusted:
    """A root that is trusted. state: "old", "signs" or "next"; not_after: unix seconds."""

    fingerprint: str
    state: str
    not_after: int
    key_here: bool


class Rotation:
    """The steps, and who is how far.

    Args:
        mirror, root, signer, tokens, fleet, resigning, watch: the parts of this controller.
        state_dir: where the root's files are.

    """

    def __init__(
        self,
        mirror: Mirror,
        root: MeshRoot,
        signer: Signer,
        tokens: Tokens,
        fleet: Fleet,
        resigning: Resigning,
        watch: RootWatch,
        state_dir: Path,
    ) -> None:
        self._mirror = mirror
        self._root = root
        self._signer = signer
        self._tokens = tokens
        self._fleet = fleet
        self._resigning = resigning
        self._state_dir = state_dir
        self._watch = watch

    # What an operator asks for.

    @property
    def step(self) -> Step:
        """Where the mesh stands, as the store says."""
        trusted = self._mirror.roots.fingerprints
        return Step(self._pin.value.hex(), trusted[-1], len(trusted) > 1)

    async def stage(self) -> None:
        """Make the next root, have it signed by the present one, and have all trust both.

        Raises:
            InvalidError: a rotation is under way that began elsewhere, or is further.
            StoreUnavailableError: asking again tells.

        """
        step = self.step
        if step.overlap and not step.staged:
            raise InvalidError("the rotation before this one is not finished", "see `meshctl root status`")
        following = rootfiles.make_next_root(self._state_dir)
        if step.staged and following.fingerprint != step.newest:
            raise InvalidError(
                f"another root was staged already ({step.newest[:16]}…)",
                f"remove {self._state_dir}/root.next.*, and copy those of the controller that staged it",
            )
        await self._mirror.change(lambda: self._introduction(following))
        await self._watch.look()

    def _introduction(self, following: RootKey) -> Change | None:
        record, first = keys.root(following.fingerprint), keys.succession(following.fingerprint)
        if self._mirror.key(record):
            return None
        signed = self._signer.sign(Root(following.der))
        deed = Deed("next root staged", subject=following.fingerprint)
        return Change([absent(record), unchanged(self._pin)], [Put(record, signed), Put(first, signed)], deed)

    async def activate(self, *, force: bool) -> None:
        """Have the next root sign from now on.

        Args:
            force: though controllers lack its key, or agents have not heard of it.

        Raises:
            InvalidError: there is none; or, without force, who is not ready.
            StoreUnavailableError: asking again tells.

        """
        step = self.step
        if not step.staged:
            if not step.overlap:
                raise InvalidError("there is no next root", "make one: `meshctl root stage`")
            return
        if step.newest not in {key.fingerprint for key in self._root.keys}:
            raise InvalidError(
                "the next root's key is not on this controller",
                "copy root.next.key and root.next.pem here, or ask a controller that has them",
            )
        if not force:
            _refuse("these controllers lack the next root's key", self.controllers_without())
            names = [behind.name for behind in await self.agents_behind()]
            _refuse("these agents have not heard of the next root", names)
        put = Put(keys.ROOT_PIN, bytes.fromhex(step.newest))
        deed = Deed("next root activated", subject=step.newest)
        await self._mirror.change(
            lambda: Change([unchanged(self._pin)], [put], deed) if self.step.staged else None
        )
        await self._watch.look()

    async def retire(self, *, force: bool) -> None:
        """Have nobody trust the old root any more.

        Args:
            force: though members still have certificates of it; they come back by themselves.

        Raises:
            NotFoundError: there is no old root.
            InvalidError: not yet; without force, who has not come over.
            StoreUnavailableError: asking again tells.

        """
        step = self.step
        if not step.overlap:
            raise NotFoundError("there is no old root", "see `meshctl root status`")
        if step.staged or step.signing != self._root.fingerprint:
            raise InvalidError(
                "the next root does not sign yet", "activate it first: `meshctl root activate`"
            )
        await self._resigning.finish()
        if not force:
            _refuse("these controllers do not sign with the new root yet", self.controllers_without())
            _refuse("these members have not come over yet", (node.name for _, node in self.members_left()))
        await self._mirror.change(self._retirement)
        await self._watch.look()

    def _retirement(self) -> Change | None:
        """Return the change by which the root that signs vouches for itself, and for nobody before it."""
        if not self.step.overlap:
            return None
        records = dict(self._records())
        for certificate in self._mirror.roots.certificates:
            der = certificate.public_bytes(Encoding.DER)
            before = records.get(fingerprint(certificate), Root(der))
            records[before.fingerprint] = replace(before, retired=der != self._root.der)
        known = {key: self._mirror.key(key) for key in map(keys.root, records)}
        return Change(
            [unchanged(self._pin), *(unchanged(kv) if kv else absent(key) for key, kv in known.items())],
            [Put(keys.root(name), self._signer.sign(record)) for name, record in records.items()],
            Deed("old root retired", subject=self._mirror.roots.fingerprints[0]),
        )

    def _records(self) -> Iterator[tuple[str, Root]]:
        """Yield what the store says of roots, as far as one that is trusted has signed it."""
        for name, kv in self._mirror.held("roots").items():
            with suppress(RecordError):
                record = verify(root_key(name), kv.value, self._mirror.roots)
                assert isinstance(record, Root)
                yield name, record

    # Who is how far.

    def known(self) -> Iterator[Trusted]:
        """Yield the roots that are trusted, oldest first."""
        names, held = self._mirror.roots.fingerprints, {key.fingerprint for key in self._root.keys}
        signing = names.index(self.step.signing) if self.step.signing in names else 0
        for place, certificate in enumerate(self._mirror.roots.certificates):
            state = "signs" if place == signing else "old" if place < signing else "next"
            until = int(certificate.not_valid_after_utc.timestamp())
            yield Trusted(names[place], state, until, names[place] in held)

    def controllers_without(self) -> list[str]:
        """Return the ids of the controllers that do not hold the newest root's key, or do not use it yet."""
        step = self.step
        return [one.id for one in known(self._mirror) if not self._is_ready(one, step)]

    def _is_ready(self, controller: Controller, step: Step) -> bool:
        kv = self._mirror.key(keys.controller(controller.id))
        signer = self._mirror.roots.signer(controller_key(controller.id), kv.value) if kv else ""
        return step.newest in controller.roots and (step.staged or signer == step.newest)

    async def agents_behind(self) -> list[admin_pb2.Behind]:
        """Return the agents, connected to any controller, that do not hold the newest root's record yet."""
        record = self._mirror.key(keys.root(self.step.newest))
        if record is None:
            return []
        revision, networks = record.mod_revision, [view.name for view in self._mirror.networks]
        replies = [await self._fleet.wait(network, revision, 0) for network in networks]
        return [behind for reply in replies for behind in reply.behind]

    def members_left(self) -> Iterator[tuple[str, Node]]:
        """Yield the members whose certificate is not of the root that signs, each with its network."""
        pin = self._pin
        for view in self._mirror.networks:
            for node_id, kv in self._mirror.held("nodes", view.name).items():
                mark = self._mirror.key(keys.issuer(view.name, node_id))
                node = view.node(node_id)
                if node is None or node.kind is not Kind.AGENT or kv.create_revision > pin.mod_revision:
                    continue
                if mark is None or mark.value != pin.value:
                    yield view.name, node

    def tokens_void(self) -> list[str]:
        """Return the ids of usable tokens that do not pin the newest root: void once it signs."""
        pin = self._pin
        made = {item: kv.create_revision for item, kv in self._mirror.held("tokens").items()}
        return [
            token.id
            for token in self._tokens.usable()
            if self.step.staged or (self.step.overlap and made[token.id] < pin.mod_revision)
        ]

    @property
    def records_left(self) -> int:
        """How much is in the store that the root that signs has not signed yet."""
        return self._resigning.left if self.step.overlap and not self.step.staged else 0

    @property
    def _pin(self) -> KeyValue:
        kv = self._mirror.key(keys.ROOT_PIN)
        if kv is None:
            raise StoreCorruptError(
                "the store does not say which mesh root it is of", "restore it from a backup"
            )
        return kv


def _refuse(why: str, names: Iterable[str]) -> None:
    """Raise InvalidError when there are any."""
    listed = sorted(names)
    if listed:
        more = f" and {len(listed) - _NAMED} more" if len(listed) > _NAMED else ""
        raise InvalidError(
            f"{why}: {', '.join(listed[:_NAMED])}{more}",
            "wait until they are ready, or go on without: --force",
        )
