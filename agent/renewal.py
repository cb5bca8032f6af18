"""Keeps this host's certificate good, and its trust in the mesh root up to date.

    due? --- half of its time is over, it has run out, or another root signs than issued it
      |
      v
    join port: Renew, proved by the TLS key --> certificate, own records --> disk --> sync.py moves over

The join port asks for no certificate, so a host that was off for a month comes back by itself. One that was
off while the mesh root was rotated does not know the root that its controllers hold now: it asks for how
that one came about, and believes only what leads there from a root that it trusts.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from random import SystemRandom
from typing import Any, TypeVar

import grpc.aio
from cryptography import x509

from overmesh import rpc
from overmesh.agent.joinport import Target, certificate_request, channel, check_clock, unverified_chain
from overmesh.agent.peermap import Replica
from overmesh.agent.state import issued
from overmesh.agent.sync import Sync
from overmesh.config import JOIN_PORT
from overmesh.errors import MeshError, OvermeshError, RemovedError, UnreachableError, UsageError
from overmesh.model import Controller, Problem
from overmesh.proto import mesh_pb2, mesh_pb2_grpc
from overmesh.proto.roots import Roots

CALL_TIMEOUT = 10.0
# Seconds between two looks; less for certificates that live shortly.
_LOOK_EVERY = 30.0
# The share of a certificate's time that is left when it is renewed: another for each, so that hosts which
# joined together do not come back together.
_SHARES = (0.4, 0.5)
# Seconds that a clock may be off before it is worth a word.
_CLOCK_TOLERANCE = 300

_RANDOM = SystemRandom()
_log = logging.getLogger("overmesh.agent.renewal")

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Term:
    """From when to when a certificate is good, in unix seconds, and when to renew it."""

    begin: float
    end: float
    due: float

    @classmethod
    def of(cls, certificate: x509.Certificate, random: Callable[[float, float], float]) -> "Term":
        """Return the term of a certificate, with a moment of its own to be renewed at."""
        begin = certificate.not_valid_before_utc.timestamp()
        end = certificate.not_valid_after_utc.timestamp()
        return cls(begin, end, end - (end - begin) * random(*_SHARES))

    @property
    def pause(self) -> float:
        """Seconds to leave between two attempts, and to spread what all hosts have reason to do at once."""
        return min(2 * _LOOK_EVERY, (self.end - self.begin) / 20)


class Renewal:
    """Renews the certificate with which `sync` connects.

    Args:
        sync: owner of this host's identity.
        replica: of the map; says which root signs, and where controllers are.
        clock: unix seconds.
        random: (least, most) -> a number in between.

    """

    def __init__(
        self,
        sync: Sync,
        replica: Replica,
        clock: Callable[[], float] = time.time,
        random: Callable[[float, float], float] = _RANDOM.uniform,
    ) -> None:
        self._sync = sync
        self._replica = replica
        self._clock = clock
        self._random = random
        self._of = sync.identity.certificate
        self._drawn = Term.of(self._of, random)
        self._failure = ""
        self._skew = 0.0
        # That the map is at odds with this host's roots though a controller was asked: that won't help again.
        self._told = False

    async def run(self) -> None:
        """Renew whenever it is due, until cancelled."""
        while True:
            if self._due():
                # All hosts may have the same reason: another root, or a controller whose clock is off.
                if self._clock() < self._term.end:
                    await asyncio.sleep(self._random(0, self._term.pause))
                self._told = await self.attempt() and self._replica.estranged
                await asyncio.sleep(self._random(0.5, 1) * self._term.pause)
            else:
                self._told &= self._replica.estranged
                await asyncio.sleep(min(_LOOK_EVERY, self._term.pause))

    def _due(self) -> bool:
        identity = self._sync.identity
        return (
            self._clock() >= self._term.due
            or not issued(identity)
            or identity.roots.issuer(identity.certificate) != self._replica.signing
            or (self._replica.estranged and not self._told)
            # The clocks may differ on whether it has run out; what the controller says counts.
            or self._sync.contact.untrusted
        )

    @property
    def _term(self) -> Term:
        # A rotation of this host's keys brings a certificate, too.
        if self._of is not self._sync.identity.certificate:
            self._of = self._sync.identity.certificate
            self._drawn = Term.of(self._of, self._random)
        return self._drawn

    @property
    def until(self) -> float:
        """When the certificate runs out, in unix seconds."""
        return self._term.end

    @property
    def problems(self) -> tuple[Problem, ...]:
        """What the user should know."""
        problems = []
        if self._failure:
            problems.append(Problem("certificate", self._failure))
        if abs(self._skew) > _CLOCK_TOLERANCE:
            way = "behind" if self._skew > 0 else "ahead of"
            minutes = abs(self._skew) / 60
            problems.append(
                Problem("clock", f"this host's clock is {way} the controller's by {minutes:.0f} minutes")
            )
        return tuple(problems)

    async def attempt(self) -> bool:
        """Ask one controller after the other; return whether one has renewed the certificate."""
        failure: OvermeshError = UnreachableError("no controller's join port is known")
        for target in self._targets():
            try:
                reply = await self._renewed(target)
                await self._take(reply)
            except RemovedError:
                await self._sync.removed()
                return False
            except OvermeshError as error:
                failure = error
            else:
                self._failure = ""
                return True
        # Not before it matters: until it has run out the host is as well off as ever.
        matters = self._clock() > self._term.end or self._sync.contact.untrusted
        self._failure = f"can't be renewed: {failure.cause}" if matters else ""
        _log.warning("the certificate can't be renewed", extra={"reason": failure.cause})
        return False

    def _targets(self) -> list[Target]:
        """Return the join ports: of the controllers in the map, and of the one where this host joined."""
        mine = self._sync.identity.membership
        known = [record.join for record in self._replica.records if isinstance(record, Controller)]
        hosts = [target.rpartition(":")[0] for target in mine.controllers]
        usual = [f"{host}:{JOIN_PORT}" for host in hosts]
        texts = [*(text for join in known for text in join), *mine.join, *usual]
        targets = []
        for text in dict.fromkeys(texts):
            with suppress(UsageError):
                targets.append(Target.parse(text))
        return targets

    # Asking.

    async def _renewed(self, target: Target) -> mesh_pb2.RenewReply:
        identity = self._sync.identity
        mine = identity.membership
        request = mesh_pb2.RenewRequest(
            network=mine.network_name,
            node_id=mine.node_id,
            csr=certificate_request(identity.keys.tls, mine.name),
        )
        chain = await unverified_chain(target)
        check_clock(chain[0], target, self._clock())
        if not self._replica.roots.issuer(chain[0]):
            await self._follow_roots(target, chain[-1])
        return await _ask(target, self._replica.roots, lambda stub: stub.Renew(request, timeout=CALL_TIMEOUT))

    async def _follow_roots(self, target: Target, shown: x509.Certificate) -> None:
        """Learn how the root that a controller holds came about, if it did from one that is trusted here.

        The connection trusts what the controller shows of itself: no secret goes over it, and what comes back
        counts only as far as it is signed.
        """
        reply: mesh_pb2.RootsReply = await _ask(
            target, _claimed(shown), lambda stub: stub.Roots(mesh_pb2.RootsRequest(), timeout=CALL_TIMEOUT)
        )
        self._replica.follow_roots((item.key, item.signed) for item in reply.records)
        if not self._replica.roots.issuer(shown):
            raise MeshError(
                f"{target} holds another mesh root, and nothing leads there from the one trusted here",
                "check that it is a controller of this mesh; if it is, join again with a new token",
            )
        _log.warning("the mesh root was rotated", extra={"roots": list(self._replica.roots.fingerprints)})

    async def _take(self, reply: mesh_pb2.RenewReply) -> None:
        try:
            certificate = x509.load_der_x509_certificate(reply.certificate)
        except ValueError:
            raise MeshError("the controller's answer holds no certificate") from None
        after = replace(self._sync.identity, certificate=certificate, roots=self._replica.roots)
        if not issued(after):
            raise MeshError("the certificate in the controller's answer is not for this host")
        self._replica.renew_own(reply.network, reply.node)
        self._skew = reply.time - self._clock()
        await self._sync.use(after)
        _log.info("certificate renewed", extra={"until": int(self._term.end)})


def _claimed(shown: x509.Certificate) -> Roots:
    try:
        return Roots((shown,))
    except ValueError:
        raise UnreachableError("whoever answers there is not a controller") from None


async def _ask(target: Target, roots: Roots, call: Callable[[Any], Awaitable[T]]) -> T:
    """Call a join port whose certificate is of one of these roots."""
    async with channel(target, roots) as opened:
        try:
            return await call(mesh_pb2_grpc.JoinStub(opened))  # type: ignore[no-untyped-call]
        except grpc.aio.AioRpcError as error:
            raise rpc.raised(error, f"controller {target}") from None
