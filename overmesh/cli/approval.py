"""`meshctl node pending | approve | deny`: the hosts that an operator has to let in."""

import time
from typing import TYPE_CHECKING, Annotated

import typer

from overmesh.cli import options, output
from overmesh.config import ControllerConfig, load
from overmesh.wgquick import key_text

if TYPE_CHECKING:
    from overmesh.proto import admin_pb2

Host = Annotated[str, typer.Argument(metavar="NODE", help="The name or id that `node pending` shows.")]


def register(app: typer.Typer) -> None:
    """Add the verbs to `meshctl node`."""
    app.command(epilog=options.examples("meshctl node pending", "meshctl node pending --json"))(pending)
    app.command(
        epilog=options.examples("meshctl node approve web1", "meshctl node approve 6xkq2jzv4wpa7ydn --json")
    )(approve)
    app.command(epilog=options.examples("meshctl node deny web1", "meshctl node deny web1 --json"))(deny)


def pending(
    *,
    network: options.Network = options.DEFAULT,
    config: options.Config = None,
    runtime_dir: options.RuntimeDir = None,
    as_json: options.Json = False,
) -> None:
    """List hosts that wait to be let in, having come with a token that asks for approval.

    A node's id is the fingerprint of its key: compare it with what `meshctl join` shows on the host.
    """
    settings = load(ControllerConfig, {"runtime_dir": runtime_dir}, file=config)
    from overmesh.cli import client
    from overmesh.proto import admin_pb2

    request = admin_pb2.ListPendingRequest(network=network)
    reply = client.ask_controller(settings, lambda admin: admin.ListPending(request))
    if as_json:
        output.show_json({"pending": [to_json(host) for host in reply.pending]})
    elif not reply.pending:
        output.show("No host waits for approval.")
    else:
        columns = ("name", "id", "state", "asked", "from", "token", "tags")
        output.show(output.table(columns, map(_row, reply.pending)))


def approve(
    node: Host,
    *,
    network: options.Network = options.DEFAULT,
    config: options.Config = None,
    runtime_dir: options.RuntimeDir = None,
    as_json: options.Json = False,
) -> None:
    """Let a host in: it joins at once if it is there, or when it asks again within a day."""
    settings = load(ControllerConfig, {"runtime_dir": runtime_dir}, file=config)
    _decide("ApproveNode", settings, network, node, as_json=as_json)


def deny(
    node: Host,
    *,
    network: options.Network = options.DEFAULT,
    config: options.Config = None,
    runtime_dir: options.RuntimeDir = None,
    as_json: options.Json = False,
) -> None:
    """Refuse a host: with this token it does not get in any more, unless it is approved after all."""
    settings = load(ControllerConfig, {"runtime_dir": runtime_dir}, file=config)
    _decide("DenyNode", settings, network, node, as_json=as_json)


def _decide(method: str, settings: ControllerConfig, network: str, node: str, *, as_json: bool) -> None:
    from overmesh.cli import client
    from overmesh.proto import admin_pb2

    request = admin_pb2.DecideRequest(network=network, node=node)
    reply: admin_pb2.DecideReply = client.ask_controller(
        settings, lambda admin: getattr(admin, method)(request), shown_by="meshctl node pending"
    )
    host = reply.pending
    if as_json:
        output.show_json({"pending": to_json(host), "revision": reply.revision})
    else:
        output.show(f"{host.state.capitalize()} {host.name} ({host.id}).")


def to_json(host: "admin_pb2.Pending") -> dict[str, object]:
    """Return a host that waits for machines."""
    return {
        "id": host.id,
        "name": host.name,
        "network": host.network,
        "state": host.state,
        "public_key": key_text(host.public_key),
        "tls_fingerprint": host.fingerprint.hex(),
        "host_id": host.host_id,
        "from": getattr(host, "from"),
        "token": host.token,
        "tags": list(host.tags),
        "asked": host.asked,
        "expires": host.expires,
        "decided_by": host.decided_by or None,
    }


def _row(host: "admin_pb2.Pending") -> tuple[output.Cell, ...]:
    by = f" by {host.decided_by}" if host.decided_by and host.state != "waiting" else ""
    return (
        host.name,
        host.id,
        output.state(good=host.state != "denied", yes=f"{host.state}{by}", no=f"{host.state}{by}"),
        output.ago(time.time() - host.asked),
        getattr(host, "from"),
        host.token,
        ", ".join(host.tags),
    )
