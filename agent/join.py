"""Joining: how a host becomes a member, told as it happens.

    host     can this host carry an overlay at all? (TUN, permission, fastpath, a free port)
    reach    a connection to the controller's join port
    tls      the mesh root whose key the token pins, and no other, has issued what it shows
    token    over that connection: the secret, our public keys, our endpoints, what we can seal with.
             Whether the network is sealed is not known before the answer: endpoints without a port get the
             usual one there, and a network whose port is taken here refuses us
             (waiting, approval: only when an operator has to let this host in, see `meshctl node approve`)
    address  the answer verifies, fits our keys, and no route of this host is in its way
    state    all of it is on disk

The private keys are made here and stay here. Joining again with the same keys gives the same node.
On failure nothing is left behind: not here, and, once the token was redeemed, not there either. Only
when nobody can know whether the controller took the token, or an operator has yet to decide, do the
keys stay, for the next attempt.
"""

import asyncio
import re
import socket
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from ipaddress import ip_address
from typing import Any

import grpc.aio
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey

from overmesh import __version__, rpc, trace
from overmesh.agent.calls import leave
from overmesh.agent.endpoints import candidates, configured
from overmesh.agent.joinport import Target, certificate_request, connected
from overmesh.agent.netlink import Netlink
from overmesh.agent.plan import refuse_collisions
from overmesh.agent.preflight import check_host, host_id, lanes, possible_modes, suites
from overmesh.agent.state import Identity, Keys, Membership, StateDir, issued
from overmesh.config import JOIN_PORT, AgentConfig
from overmesh.errors import (
    ApprovalPendingError,
    MeshError,
    NotJoinedError,
    OvermeshError,
    PinMismatchError,
    RangeCollisionError,
    RecordError,
    StateError,
    UnreachableError,
)
from overmesh.model import NETWORK_KEY, Address, Endpoint, Mode, Network, Node, node_key
from overmesh.proto import mesh_pb2, mesh_pb2_grpc
from overmesh.proto.codec import endpoint_message
from overmesh.proto.roots import Roots
from overmesh.proto.signed import verify
from overmesh.token import JoinToken

REDEEM_TIMEOUT = 30.0
# Seconds that the controller may hold its answer while an operator has yet to decide.
_HELD = 20
# Seconds until it is asked again, also when it is away for a moment.
_PAUSE = 1.0
# The one step that is told before it is done; its detail says what has to happen.
WAITING = "waiting"

# Called after each step with its name, as in the list above, and a detail for people.
Step = Callable[[str, str], None]


@dataclass(frozen=True, slots=True)
class Joined:
    """What this host is now. already_member: it was so before."""

    node_id: str
    name: str
    network: str
    mode: Mode
    addresses: tuple[Address, ...]
    already_member: bool


async def join(
    config: AgentConfig, host: str, token: str, name: str, step: Step, *, wait: bool = True
) -> Joined:
    """Make this host a member of the network that a token is for.

    Args:
        config: this host's settings.
        host: the controller: `name`, `address`, or either with `:port` (IPv6 in brackets then).
        token: as `meshctl token create` printed it.
        name: the wanted node name, a DNS label; empty: the host's.
        step: called after each step.
        wait: whether to wait, for however long, until an operator lets this host in.

    Raises:
        ApprovalPendingError: it is not to wait, and would have to.
        UsageError: host or token can't be right.
        HostError: this host can't carry an overlay, or its routes are in the way.
        UnreachableError: nobody answers there, or not a controller.
        PinMismatchError: whoever answers is not the mesh that the token is for.
        TokenError, NameTakenError, PoolExhaustedError: the controller says no.
        StateError: an agent runs here, or this host is in another mesh.

    """
    target, parsed = Target.parse(host), JoinToken.parse(token)
    state = StateDir(config.state_dir)
    running = _member_with_agent(state, parsed)
    if running:
        step("state", "this host is a member already, and its agent runs")
        return running
    check_host(config)
    modes = possible_modes(config)
    step("host", "TUN device, permission, fastpath and port are there")
    async with Netlink.open() as netlink:
        with state.locked():
            member = _membership(state) is not None
            undecided = state.keys() is not None  # an attempt before this one ended in _Unknown
            try:
                wanted = _Wanted(config, parsed, name or _host_name(), modes, wait)
                return await _join(target, wanted, state, netlink, step)
            except _Unknown as unknown:
                raise unknown.error from None
            except OvermeshError as error:
                undecided &= isinstance(error, UnreachableError | PinMismatchError)
                if not member and not undecided:
                    state.wipe()
                raise


def _member_with_agent(state: StateDir, token: JoinToken) -> Joined | None:
    """Return the membership that a running agent holds, if it is in the mesh of the token."""
    identity = _membership(state) if state.in_use() else None
    if identity is None:
        return None
    _check_same_mesh(identity, token)
    mine = identity.membership
    network, node = _records(identity.roots, mine.network, mine.node_id, mine.node)
    return _joined(network, node, already_member=True)


@dataclass(frozen=True, slots=True)
class _Wanted:
    """What this host wants to be. modes: of the networks that it could be in; wait: for an operator."""

    config: AgentConfig
    token: JoinToken
    name: str
    modes: tuple[Mode, ...]
    wait: bool


async def _join(target: "Target", wanted: _Wanted, state: StateDir, netlink: Netlink, step: Step) -> Joined:
    config, token = wanted.config, wanted.token
    before = _membership(state)
    if before:
        _check_same_mesh(before, token)
    async with connected(target, token.root) as channel:
        step("reach", f"{target} answers")
        step("tls", "it holds the mesh root that the token pins")

        keys = state.keys() or Keys.new()
        state.save_keys(keys)
        underlay = await netlink.underlay()
        endpoints = configured(config.endpoints, config.port) or candidates(
            underlay, config.port, await _sources(target, netlink)
        )

        def redeem(held: int) -> Awaitable[mesh_pb2.JoinReply]:
            return _redeem(channel, target, _request(wanted, keys, endpoints, held))

        reply = await _let_in(redeem, step, wait=wanted.wait)
        step("token", "accepted; this host was a member before" if reply.already_member else "accepted")

    since = before.membership.keys_since if before else int(time.time())
    roots = before.roots if before else _root(reply, token.root)
    identity, network, node = _admitted(reply, keys, since, roots, target, host_id(config))
    try:
        refuse_collisions(network.ranges, await netlink.routes(), underlay, config.interface)
    except RangeCollisionError:
        # The controller made us a member; take that back, as well as it can be done.
        if not reply.already_member:
            with suppress(OvermeshError):
                await leave(identity, host_id(config))
        raise
    step("address", ", ".join(map(str, node.addresses)))

    if before is None or before.membership.node_id != node.id:
        state.forget_map()
        state.forget_key_change()
    state.save_identity(identity)
    step("state", f"kept in {state.path}")
    return _joined(network, node, already_member=reply.already_member)


def _membership(state: StateDir) -> Identity | None:
    try:
        return state.identity()
    except NotJoinedError:
        return None


def _check_same_mesh(identity: Identity, token: JoinToken) -> None:
    mine = identity.membership
    if token.root not in identity.roots.keys:
        raise StateError(
            f"this host is in another mesh: in network {mine.network_name}, as {mine.name}",
            "leave that one first: meshctl leave",
        )


async def _sources(target: Target, netlink: Netlink) -> list[Address]:
    """Return the addresses from which this host reaches a join port, as far as they can be told."""
    try:
        found = await asyncio.get_running_loop().getaddrinfo(
            target.host, target.port, type=socket.SOCK_STREAM
        )
    except socket.gaierror:  # gRPC looks names up by itself, and may know more
        return []
    places = (ip_address(str(place[0]).partition("%")[0]) for *_, place in found)
    return [source for place in places if (source := await netlink.source_toward(place))]


# The token.


class _Unknown(Exception):  # noqa: N818
    """Nobody can know yet whether this host is to be a member: `error` says why."""

    def __init__(self, error: OvermeshError) -> None:
        super().__init__(error.cause)
        self.error = error


async def _let_in(
    redeem: Callable[[int], Awaitable[mesh_pb2.JoinReply]], step: Step, *, wait: bool
) -> mesh_pb2.JoinReply:
    """Return the answer to a request, once an operator has decided if one has to.

    Args:
        redeem: asks; the controller may take so many seconds to answer.
        step: told what has to happen, and when it has.
        wait: whether to wait for an operator at all.

    """
    told = False
    while True:
        try:
            reply = await redeem(_HELD if told else 0)
        except _Unknown as unknown:
            if not wait or not (told or isinstance(unknown.error, ApprovalPendingError)):
                raise
            if not told:
                step(WAITING, f"{unknown.error.cause}; {unknown.error.fix}")
            told = True
            await asyncio.sleep(_PAUSE)
        else:
            if told:
                step("approval", "given")
            return reply


async def _redeem(
    channel: grpc.aio.Channel, target: Target, request: mesh_pb2.JoinRequest
) -> mesh_pb2.JoinReply:
    stub: Any = mesh_pb2_grpc.JoinStub(channel)  # type: ignore[no-untyped-call]
    try:
        reply: mesh_pb2.JoinReply = await stub.Join(
            request, timeout=REDEEM_TIMEOUT, metadata=trace.metadata()
        )
    except grpc.aio.AioRpcError as error:
        raise _refusal(error, target) from None
    return reply


def _refusal(error: grpc.aio.AioRpcError, target: Target) -> Exception:
    if "CERTIFICATE_VERIFY_FAILED" in (error.details() or ""):
        return PinMismatchError(
            f"{target} no longer holds the mesh root that the token pins",
            "ask for a token from after the rotation of the root",
        )
    raised = rpc.raised(error, f"controller {target}")
    if isinstance(raised, ApprovalPendingError):
        return _Unknown(raised)
    if not isinstance(raised, UnreachableError):
        return raised
    fix = f"check that this is the join port ({JOIN_PORT} by default), then run the same line again"
    return _Unknown(UnreachableError(raised.cause, fix))


def _request(wanted: _Wanted, keys: Keys, endpoints: Sequence[Endpoint], held: int) -> mesh_pb2.JoinRequest:
    return mesh_pb2.JoinRequest(
        token_id=wanted.token.id,
        token_secret=wanted.token.secret_text,
        name=wanted.name,
        csr=certificate_request(keys.tls, wanted.name),
        public_key=keys.public,
        endpoints=map(endpoint_message, endpoints),
        host_id=host_id(wanted.config),
        version=__version__,
        suites=[mesh_pb2.Suite.Name(suite) for suite in suites()],
        modes=[mesh_pb2.Mode.Name(mode) for mode in wanted.modes],
        lanes=lanes(wanted.config),
        wait_seconds=held,
    )


def _host_name() -> str:
    """Return this host's name as a DNS label."""
    label = re.sub(r"[^a-z0-9-]+", "-", socket.gethostname().partition(".")[0].lower()).strip("-")
    return label[:63] or "node"


# The answer.


def _controllers(reply: mesh_pb2.JoinReply, target: Target) -> tuple[str, ...]:
    """Return where the mesh ports are, first at the address that has just worked.

    What a controller takes for its own addresses may not lead to it from here.
    """
    ports = {told.rpartition(":")[2] for told in reply.controllers}
    here = [str(replace(target, port=int(port))) for port in ports] if len(ports) == 1 else []
    return tuple(dict.fromkeys((*here, *reply.controllers)))


def _root(reply: mesh_pb2.JoinReply, key: EllipticCurvePublicKey) -> Roots:
    """Return the mesh root: its key is the one that the token pins, and that key has made the certificate."""
    try:
        roots = Roots((x509.load_der_x509_certificate(reply.root),))
        roots.certificates[0].verify_directly_issued_by(roots.certificates[0])
    except (ValueError, TypeError, InvalidSignature):
        roots = None
    if roots is None or roots.keys != (key,):
        raise MeshError(
            "the controller's answer can't be right: it does not hold the mesh root that the token pins",
            "ask for a token from after the last rotation of the root",
        )
    return roots


def _admitted(
    reply: mesh_pb2.JoinReply, keys: Keys, keys_since: int, roots: Roots, target: Target, host: str
) -> tuple[Identity, Network, Node]:
    """Return what the reply makes of this host, once it is certain that all of it is right."""
    try:
        certificate = x509.load_der_x509_certificate(reply.certificate)
        network, node = _records(roots, reply.network, reply.node_id, reply.node)
    except (ValueError, RecordError) as error:
        raise MeshError(f"the controller's answer can't be right: {error}") from None
    membership = Membership(
        node_id=reply.node_id,
        name=node.name,
        network_name=network.name,
        controllers=_controllers(reply, target),
        network=reply.network,
        node=reply.node,
        host_id=host,
        join=(str(target),),
        keys_since=keys_since,
    )
    identity = Identity(keys, membership, roots, certificate)
    own = keys.public in (node.public_key, node.previous_public_key)
    if not issued(identity) or not own or node.network != network.name:
        raise MeshError("the controller's answer can't be right: it is for another host")
    return identity, network, node


def _records(roots: Roots, network: bytes, node_id: str, node: bytes) -> tuple[Network, Node]:
    """Return both records as a root signed them; RecordError when it did not."""
    network_record, node_record = verify(NETWORK_KEY, network, roots), verify(node_key(node_id), node, roots)
    assert isinstance(network_record, Network)
    assert isinstance(node_record, Node)
    return network_record, node_record


def _joined(network: Network, node: Node, *, already_member: bool) -> Joined:
    return Joined(node.id, node.name, network.name, network.mode, node.addresses, already_member)
