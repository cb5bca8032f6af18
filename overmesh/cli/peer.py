"""`meshctl peer`: members that run stock WireGuard instead of an agent."""

import shutil
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from io import StringIO
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from overmesh import wgquick
from overmesh.cli import node as nodes
from overmesh.cli import options, output
from overmesh.config import SEALED_PORT, ControllerConfig, load
from overmesh.errors import InvalidError, NotFoundError, UsageError
from overmesh.model import Kind, Node, Peer

if TYPE_CHECKING:
    from overmesh.proto import admin_pb2

app = typer.Typer(help="Let stock WireGuard in: phones, routers, hosts without an agent.")

# What a QR code of version 40, error correction L, holds (ISO/IEC 18004).
QR_BYTES = 2953

Name = Annotated[str, typer.Argument(metavar="NAME", help="Of the peer.")]
KeyFile = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Where its private key is. Default: peers/NETWORK/NAME.key in the state directory.",
    ),
]


@app.command(
    epilog=options.examples(
        "meshctl peer add phone --generate",
        'meshctl peer add router --public-key "$(cat router.pub)" --endpoint 192.0.2.7:51820',
    )
)
def add(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A DNS label: letters, digits, hyphens.")],
    *,
    public_key: Annotated[
        str | None, typer.Option(metavar="KEY", help="Its public key, as `wg pubkey` prints it.")
    ] = None,
    generate: Annotated[
        bool, typer.Option("--generate", metavar="", help="Make its key pair here, and keep the private key.")
    ] = False,
    private_key_file: KeyFile = None,
    endpoint: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ADDRESS",
            help="Where others reach it, best first; again for more. Without one it has to begin to talk.",
        ),
    ] = None,
    network: options.Network = options.DEFAULT,
    config: options.Config = None,
    state_dir: options.StateDir = None,
    runtime_dir: options.RuntimeDir = None,
    as_json: options.Json = False,
) -> None:
    """Make a stock WireGuard peer a member: it gets addresses, and every node lets it in.

    The network has to be sealed. Adding a peer again moves it to the endpoints that are given now, and
    renews its membership.
    """
    settings = load(ControllerConfig, {"state_dir": state_dir, "runtime_dir": runtime_dir}, file=config)
    if generate == (public_key is not None):
        raise UsageError("say which key the peer has", "either --public-key KEY or --generate")
    if private_key_file and not generate:
        raise UsageError("--private-key-file is for --generate", "leave it out")
    from overmesh.agent.endpoints import configured
    from overmesh.cli import client, peerkey
    from overmesh.proto import admin_pb2
    from overmesh.proto.codec import endpoint_message

    endpoints = map(endpoint_message, configured(endpoint or (), SEALED_PORT))
    file = (private_key_file or peerkey.place(settings, network, name)) if generate else None
    with peerkey.made(file) if file else nullcontext(_key(public_key or "")) as key:
        request = admin_pb2.AddPeerRequest(network=network, name=name, public_key=key, endpoints=endpoints)
        reply = client.ask_controller(
            settings, lambda admin: admin.AddPeer(request), shown_by="meshctl node list"
        )
    if as_json:
        answer = {"node": nodes.to_json(reply.node), "revision": reply.revision}
        kept = {"private_key_file": str(file) if file else None}
        output.show_json(answer | {"already_member": reply.already_member} | kept)
    else:
        output.show(*_added(reply, file))


def _key(text: str) -> bytes:
    try:
        return wgquick.key_value(text)
    except ValueError as error:
        raise UsageError(f"{text!r} is {error}", "give what `wg pubkey` prints") from None


def _added(reply: "admin_pb2.AddPeerReply", file: Path | None) -> Iterator[str]:
    name, addresses = reply.node.name, ", ".join(reply.node.addresses)
    if reply.already_member:
        yield f"{name} is a member already ({addresses})."
    else:
        yield f"Added {name} ({addresses}) at revision {reply.revision}."
    if file:
        yield f"Its private key is in {file}."
    yield f"Print its configuration: meshctl peer config {name}{_in(reply.node.network)}"


def _in(network: str) -> str:
    return "" if network == options.DEFAULT else f" --network {network}"


@app.command(
    epilog=options.examples(
        "meshctl peer config phone", "umask 077; meshctl peer config router > /etc/wireguard/om0.conf"
    )
)
def config(
    name: Name,
    *,
    private_key_file: KeyFile = None,
    keepalive: Annotated[
        int,
        typer.Option(
            min=0,
            max=65535,
            metavar="SECONDS",
            help="How often a peer without an endpoint is heard of; 0: never.",
        ),
    ] = 25,
    network: options.Network = options.DEFAULT,
    config: options.Config = None,
    state_dir: options.StateDir = None,
    runtime_dir: options.RuntimeDir = None,
    as_json: options.Json = False,
) -> None:
    """Print a stock WireGuard peer's configuration, as wg-quick and the WireGuard apps read it.

    On a terminal, a QR code for the apps follows. The private key is in both when it is kept here: mind
    who looks on. Print it again when nodes have come or gone: a stock peer has no agent that hears of it.
    """
    settings = load(ControllerConfig, {"state_dir": state_dir, "runtime_dir": runtime_dir}, file=config)
    from overmesh.cli import peerkey

    me, others, mtu = _members(settings, network, name)
    file = private_key_file or peerkey.place(settings, network, me.node.name)
    key = peerkey.kept(file, me.node.public_key, optional=private_key_file is None)
    text = wgquick.render(me, others, mtu=mtu, private_key=key, keepalive_s=keepalive)
    if as_json:
        output.show_json({"name": me.node.name, "network": network, "complete": bool(key), "config": text})
        return
    typer.echo(text, nl=False)
    if sys.stdout.isatty():
        _show_qr(text, complete=bool(key))


def _members(settings: ControllerConfig, network: str, name: str) -> tuple[Peer, list[Peer], int]:
    """Return a peer, the other members of its network, and the MTU for it."""
    from overmesh.cli import client
    from overmesh.proto import admin_pb2

    async def both(admin: Any) -> tuple[Any, Any]:
        listed = await admin.ListNodes(admin_pb2.ListNodesRequest(network=network))
        return listed.nodes, (await admin.ListNetworks(admin_pb2.ListNetworksRequest())).networks

    found, networks = client.ask_controller(settings, both)
    me = next((one for one in found if name.lower() in (one.name, one.id)), None)
    if me is None:
        raise NotFoundError(f"network {network} has no peer {name!r}", "see `meshctl node list`")
    _check_stock(me)
    readable = [one for one in found if one.id != me.id and len(one.public_key) == wgquick.KEY_LENGTH]
    set_mtu = next((one.mtu for one in networks if one.name == network), 0)
    mtu = wgquick.safe_mtu(set_mtu, (one.mtu for one in found))
    return _value(me), list(map(_value, readable)), mtu


def _check_stock(node: "admin_pb2.Node") -> None:
    if int(node.kind) != Kind.WIREGUARD:
        raise InvalidError(
            f"{node.name} is no stock WireGuard peer: it runs an agent, which configures its host",
            "see `meshctl node show`",
        )


def _value(message: "admin_pb2.Node") -> Peer:
    from overmesh.proto.codec import endpoint_value

    node = Node(
        id=message.id,
        network=message.network,
        name=message.name,
        public_key=message.public_key,
        addresses=tuple(map(ip_address, message.addresses)),
        routes=tuple(map(ip_network, message.routes)),
    )
    return Peer(node, tuple(map(endpoint_value, message.endpoints)))


def _show_qr(text: str, *, complete: bool) -> None:
    """Draw a file as a QR code; on stderr, why there is none."""
    import segno

    if not complete:
        typer.echo("No QR code: it would lack the private key, which is not kept here.", err=True)
        return
    try:
        code = segno.make_qr(text, error="l", boost_error=False)
    except segno.DataOverflowError:
        typer.echo(f"No QR code: it holds {QR_BYTES} bytes, this is {len(text.encode())}.", err=True)
        return
    needed, columns = code.symbol_size()[0], shutil.get_terminal_size().columns
    if needed > columns:
        typer.echo(f"No QR code: it takes {needed} columns, this terminal has {columns}.", err=True)
        return
    drawn = StringIO()
    code.terminal(drawn, compact=True)
    typer.echo()
    for line in drawn.getvalue().splitlines():
        # Said, for on a light terminal it would be a negative, which not every scanner takes.
        typer.secho(line, fg="bright_white", bg="black")


@app.command(
    epilog=options.examples("meshctl peer remove phone", "meshctl peer remove phone --network lab --json")
)
def remove(
    name: Name,
    *,
    network: options.Network = options.DEFAULT,
    config: options.Config = None,
    state_dir: options.StateDir = None,
    runtime_dir: options.RuntimeDir = None,
    as_json: options.Json = False,
) -> None:
    """Remove a stock WireGuard peer, as `node remove` does, and the private key that is kept here."""
    settings = load(ControllerConfig, {"state_dir": state_dir, "runtime_dir": runtime_dir}, file=config)
    from overmesh.cli import peerkey

    found = nodes.found(settings, network, name).nodes[0]
    _check_stock(found)
    reply = nodes.removed(settings, network, found.id)
    file = peerkey.place(settings, network, found.name)
    forgotten = peerkey.forget(file)
    if as_json:
        gone = str(file) if forgotten else None
        output.show_json(nodes.removal_as_json(reply) | {"removed_private_key_file": gone})
    else:
        output.show(*nodes.removal(reply), *([f"The private key in {file} is gone."] if forgotten else []))
