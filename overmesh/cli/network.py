"""`meshctl network`: the overlays that this controller runs."""

from enum import Enum
from typing import TYPE_CHECKING, Annotated

import typer

from overmesh.cli import options, output
from overmesh.config import ControllerConfig, load

if TYPE_CHECKING:
    from overmesh.proto import admin_pb2

app = typer.Typer(help="Make and list networks: each has its own ranges and members.")


class Mode(Enum):
    """How packets travel."""

    SEALED = "sealed"
    PLAIN = "plain"


@app.command(
    epilog=options.examples(
        "meshctl network create lab",
        "meshctl network create lab --range 10.90.0.0/16 --range fd12:3456:789a::/64 --mtu 1400",
        "meshctl network create rack --mode plain",
    )
)
def create(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A DNS label: letters, digits, hyphens.")],
    *,
    range_: Annotated[
        list[str] | None,
        typer.Option(
            "--range", metavar="CIDR", help="Addresses for its hosts: one IPv4, one IPv6. Default: free ones."
        ),
    ] = None,
    mode: Annotated[
        Mode,
        typer.Option(
            metavar="MODE", help="sealed: encrypted, WireGuard. plain: Geneve, where you trust the network."
        ),
    ] = Mode.SEALED,
    mtu: Annotated[
        int, typer.Option(min=0, metavar="BYTES", help="Inside the overlay; 0: each host derives it.")
    ] = 0,
    config: options.Config = None,
    runtime_dir: options.RuntimeDir = None,
    as_json: options.Json = False,
) -> None:
    """Make a network. Its packets are encrypted unless you ask for plain ones."""
    settings = load(ControllerConfig, {"runtime_dir": runtime_dir}, file=config)
    from overmesh.cli import client
    from overmesh.proto import admin_pb2

    request = admin_pb2.CreateNetworkRequest(
        name=name, ranges=range_ or (), mode=f"MODE_{mode.name}", mtu=mtu
    )
    reply = client.ask_controller(
        settings, lambda admin: admin.CreateNetwork(request), shown_by="meshctl network list"
    )
    if as_json:
        output.show_json(_as_json(reply.network))
    else:
        ranges = " and ".join(reply.network.ranges)
        output.show(
            f"Made {name}: {output.mode(reply.network.mode)}, {ranges}. "
            f"Let hosts in: meshctl token create --network {name}"
        )


@app.command("list", epilog=options.examples("meshctl network list", "meshctl network list --json"))
def list_(
    *,
    config: options.Config = None,
    runtime_dir: options.RuntimeDir = None,
    as_json: options.Json = False,
) -> None:
    """List networks."""
    settings = load(ControllerConfig, {"runtime_dir": runtime_dir}, file=config)
    from overmesh.cli import client
    from overmesh.proto import admin_pb2

    reply = client.ask_controller(settings, lambda admin: admin.ListNetworks(admin_pb2.ListNetworksRequest()))
    if as_json:
        output.show_json({"networks": [_as_json(network) for network in reply.networks]})
    else:
        columns = ("name", "number", "ranges", "mode", "mtu", "nodes", "revision")
        numbers = ("number", "nodes", "revision")
        output.show(output.table(columns, map(_row, reply.networks), right=numbers))


def _as_json(network: "admin_pb2.Network") -> dict[str, object]:
    return {
        "name": network.name,
        "number": network.number,
        "ranges": list(network.ranges),
        "mode": output.mode(network.mode),
        "mtu": network.mtu or None,
        "nodes": network.nodes,
        "revision": network.revision,
    }


def _row(network: "admin_pb2.Network") -> tuple[output.Cell, ...]:
    return (
        network.name,
        str(network.number),
        "\n".join(network.ranges),
        output.mode(network.mode),
        str(network.mtu or "by host"),
        str(network.nodes),
        str(network.revision),
    )
