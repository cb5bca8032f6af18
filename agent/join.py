"""Joining: how a host becomes a member, told as it happens.

    host     can this host carry an overlay at all? (TUN, permission, fastpath, a free port)
    reach    a TCP connection to the controller's join port
    tls      the certificate in its chain that the token's pin names becomes the only root we trust
    token    over a new connection, verified against that root: the secret, our public keys, our endpoints,
             what we can seal with. Whether the network is sealed is not known before the answer: endpoints
             without a port get the usual one there, and a network whose port is taken here refuses us
             (waiting, approval: only when an operator has to let this host in, see `meshctl node approve`)
    address  the answer verifies, fits our keys, and no route of this host is in its way
    state    all of it is on disk

The private keys are made here and stay here. Joining again with the same keys gives the same node.
On failure nothing is left behind: not here, and, once the token was redeemed, not there either. Only
when nobody can know whether the controller took the token, or an operator has yet to decide, do the
keys stay, for the next attempt.
"""

import asyncio
import os
import re
import socket
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from ipaddress import ip_address
from typing import Any

import grpc
import grpc.aio
from cryptography import x509

from overmesh import __version__, rpc, trace
from overmesh.agent.calls import leave
from overmesh.agent.endpoints import candidates, configured
from overmesh.agent.joinport import Target, certificate_request, check_clock, unverified_chain
from overmesh.agent.netlink import Netlink
from overmesh.agent.plan import refuse_collisions
from overmesh.agent.preflight import check_host, host_id, possible_modes, suites
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
from overmesh.proto.roots import Roots, fingerprint
from overmesh.proto.signed import verify
from overmesh.token import JoinToken

REACH_TIMEOUT = 10.0
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
    if token.pin.hex() not in identity.roots.fingerprints:
        raise _other_mesh(identity)
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
    opened = await _reach(target)
    source = ip_address(opened.get_extra_info("sockname")[0].partition("%")[0])
    step("reach", f"{target} answers")

    roots = await _pinned_root(target, token.pin, opened)
    if before and not set(roots.fingerprints) <= set(before.roots.fingerprints):
        raise _other_mesh(before)
    step("tls", f"it holds the mesh root that the token pins ({token.pin.hex()[:16]}…)")

    keys = state.keys() or Keys.new()
    state.save_keys(keys)
    underlay = await netlink.underlay()
    endpoints = configured(config.endpoints, config.port) or candidates(underlay, config.port, [source])

    def redeem(held: int) -> Awaitable[mesh_pb2.JoinReply]:
        return _redeem(target, roots, _request(wanted, keys, endpoints, held))

    reply = await _let_in(redeem, step, wait=wanted.wait)
    step("token", "accepted; this host was a member before" if reply.already_member else "accepted")

    since = before.membership.keys_since if before else int(time.time())
    identity, network, node = _admitted(
        reply, keys, since, before.roots if before else roots, target, host_id(config)
    )
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


def _other_mesh(identity: Identity) -> StateError:
    mine = identity.membership
    return StateError(
        f"this host is in another mesh: in network {mine.network_name}, as {mine.name}",
        "leave that one first: meshctl leave",
    )


# Where to.


async def _reach(target: Target) -> asyncio.StreamWriter:
    """Return a connection to whoever listens there."""
    fix = "check the address, the controller and what filters packets in between"
    try:
        opening = asyncio.open_connection(target.host, target.port)
        _, opened = await asyncio.wait_for(opening, REACH_TIMEOUT)
    except TimeoutError:
        raise UnreachableError(f"{target} does not answer within {REACH_TIMEOUT:.0f} s", fix) from None
    except socket.gaierror:
        raise UnreachableError(
            f"the name {target.host} is not known", "check the name, or use an address"
        ) from None
    except OSError as error:
        raise UnreachableError(f"{target} can't be reached: {os.strerror(error.errno or 0)}", fix) from None
    return opened


# Whom to trust.


async def _pinned_root(target: Target, pin: bytes, opened: asyncio.StreamWriter) -> Roots:
    """Return the root with this hash from the chain that the server shows.

    Nothing is believed on this connection: it only brings the certificate, and the hash says which.

    Raises:
        PinMismatchError: it is not in the chain.
        UnreachableError: no TLS is spoken there, or the clocks are too far apart for it.

    """
    chain = await unverified_chain(target, opened)
    for certificate in chain:
        if fingerprint(certificate) == pin.hex():
            check_clock(chain[0], target, time.time())
            return Roots((certificate,))
    raise PinMismatchError(
        f"{target} does not hold the mesh root that the token pins",
        "check that the token is from this controller, and from after the last rotation of its root; "
        "if it is, somebody answers in its place",
    )


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


async def _redeem(target: Target, roots: Roots, request: mesh_pb2.JoinRequest) -> mesh_pb2.JoinReply:
    """Send the secret, over a connection that is verified against the pinned root and nothing else."""
    credentials = grpc.ssl_channel_credentials(roots.pem)
    options = [("grpc.ssl_target_name_override", rpc.CONTROLLER_NAME), ("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.secure_channel(str(target), credentials, options=options) as channel:
        stub: Any = mesh_pb2_grpc.JoinStub(channel)  # type: ignore[no-untyped-call]
        try:
            reply: mesh_pb2.JoinReply = await stub.Join(
                request, timeout=REDEEM_TIMEOUT, metadata=trace.metadata()
            )
        except grpc.aio.AioRpcError as error:
            raise _refusal(error, target) from None
    return reply


def _refusal(error: grpc.aio.AioRpcError, target: Target) -> Exception:
    if re.search("CERTIFICATE_VERIFY_FAILED|Hostname Verification", error.details() or ""):
        return PinMismatchError(
            f"{target} shows the mesh root that the token pins, but holds no certificate of it",
            "somebody answers in the controller's place",
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
