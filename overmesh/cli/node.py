"""`meshctl node`: the members of a network, as its controller sees them."""

import time
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from overmesh.cli import options, output, rekeying, revoked
from overmesh.config import ControllerConfig, load
from overmesh.wgquick import key_text

if TYPE_CHECKING:
    from overmesh.proto import admin_pb2

app = typer.Typer(help="List, show, remove and revoke the members of a network.")

Node = Annotated[str, typer.Argument(metavar="NODE", help="A name or node id.")]


@app.command(
    "list",
    epilog=options.examples(
        "meshctl node list", "meshctl node list --network lab --json", "meshctl node list --revoked"
    ),
)
def list_(
    *,
    only_revoked: Annotated[
        bool, typer.Option("--revoked", metavar="", help="Instead, the nodes that were taken out.")
    ] = False,
    network: options.Network = options.DEFAULT,
    config: options.Config = None,
    runtime_dir: options.RuntimeDir = None,
    as_json: options.Json = False,
) -> None:
    """List nodes: who is in, where, and whether each has applied the newest map."""
    settings = load(ControllerConfig, {"runtime_dir": runtime_dir}, file=config)
    if only_revoked:
        revoked.show(settings, network, as_json=as_json)
        return
    reply = found(settings, network, "")
    if as_json:
        output.show_json(
            {
                "revision": reply.revision,
                "nodes": [to_json(node) for node in reply.nodes],
                "problems": output.problems_json(reply.problems),
            }
        )
        return
    columns = ("name", "addresses", "endpoint", "state", "map", "fastpath", "version")
    output.show(output.table(columns, map(_row, reply.nodes)), *_problems(reply))
    output.show(Text(f"{output.counted(len(reply.nodes), 'node')} at revision {reply.revision}", output.DIM))


@app.command(epilog=options.examples("meshctl node show web1", "meshctl node show web1 --json"))
def show(
    node: Node,
    *,
    network: options.Network = options.DEFAULT,
    config: options.Config = None,
    runtime_dir: options.RuntimeDir = None,
    as_json: options.Json = False,
) -> None:
    """Show all that the controller knows about one node."""
    settings = load(ControllerConfig, {"runtime_dir": runtime_dir}, file=config)
    reply = found(settings, network, node)
    one = reply.nodes[0]
    if as_json:
        output.show_json(to_json(one) | {"problems": output.problems_json([*one.problems, *reply.problems])})
    else:
        output.show(output.facts(_facts(one, reply.revision)), *_problems(reply))


@app.command(
    epilog=options.examples("meshctl node remove web1", "meshctl node remove web1 --network lab --json")
)
def remove(
    node: Node,
    *,
    network: options.Network = options.DEFAULT,
    config: options.Config = None,
    runtime_dir: options.RuntimeDir = None,
    as_json: options.Json = False,
) -> None:
    """Remove a node: every other agent cuts it off, its name and addresses are free again."""
    settings = load(ControllerConfig, {"runtime_dir": runtime_dir}, file=config)
    reply = removed(settings, network, node)
    if as_json:
        output.show_json(removal_as_json(reply))
    else:
        output.show(*removal(reply))


rekeying.register(app)


def removed(settings: ControllerConfig, network: str, node: str) -> "admin_pb2.RemoveNodeReply":
    """Return what the controller answers once it has removed a node, by name or id."""
    from overmesh.cli import client
    from overmesh.proto import admin_pb2

    request = admin_pb2.RemoveNodeRequest(network=network, node=node)
    reply: admin_pb2.RemoveNodeReply = client.ask_controller(
        settings, lambda admin: admin.RemoveNode(request), shown_by="meshctl node list"
    )
    return reply


def removal(reply: "admin_pb2.RemoveNodeReply") -> tuple[str, str]:
    """Return that answer in words."""
    addresses = ", ".join(reply.node.addresses)
    return (
        f"Removed {reply.node.name} ({addresses}) at revision {reply.revision}.",
        f"See that all agents know: meshctl wait --revision {reply.revision}",
    )


def removal_as_json(reply: "admin_pb2.RemoveNodeReply") -> dict[str, object]:
    """Return it for machines."""
    return {"node": to_json(reply.node), "revision": reply.revision}


def found(settings: ControllerConfig, network: str, node: str) -> "admin_pb2.ListNodesReply":
    """Return what the controller knows of a node, by name or id, or of all when it is empty.

    Raises:
        NotFoundError: there is no such node.

    """
    from overmesh.cli import client
    from overmesh.errors import NotFoundError
    from overmesh.proto import admin_pb2

    request = admin_pb2.ListNodesRequest(network=network, node=node)
    reply: admin_pb2.ListNodesReply = client.ask_controller(settings, lambda admin: admin.ListNodes(request))
    if node and not reply.nodes:
        raise NotFoundError(f"no node {node!r} in network {network}", "see meshctl node list")
    return reply


def to_json(node: "admin_pb2.Node") -> dict[str, object]:
    """Return a node for machines."""
    return {
        "id": node.id,
        "name": node.name,
        "network": node.network,
        "kind": output.kind(node.kind),
        "public_key": key_text(node.public_key),
        "addresses": list(node.addresses),
        "routes": list(node.routes),
        "tags": list(node.tags),
        "endpoints": [{"address": end.address, "port": end.port} for end in node.endpoints],
        "lanes": node.lanes or None,
        "suites": [output.suite(suite) for suite in node.suites],
        "online": node.online,
        "last_seen": node.last_seen or None,
        "in_step": node.in_step,
        "acked_revision": node.acked_revision,
        "backend": node.backend,
        "backend_reason": node.backend_reason,
        "mtu": node.mtu,
        "version": node.version,
        "serial": node.serial,
        "not_after": node.not_after or None,
        "host": {
            "id": node.host_id,
            "from": node.connected_from,
            "since": node.connected_since or None,
        },
        "copies": [
            {
                "host_id": copy.host_id,
                "instance": copy.instance,
                "from": getattr(copy, "from"),
                "since": copy.since,
                "last_seen": copy.last_seen,
            }
            for copy in node.copies
        ],
        "problems": output.problems_json(node.problems),
    }


def _row(node: "admin_pb2.Node") -> tuple[output.Cell, ...]:
    return (
        node.name,
        "\n".join(node.addresses),
        output.endpoint(node.endpoints[0]) if node.endpoints else "",
        _presence(node),
        ""
        if _stock(node)
        else output.state(good=node.in_step, yes="in step", no=f"at {node.acked_revision}"),
        node.backend,
        node.version,
    )


def _stock(node: "admin_pb2.Node") -> bool:
    """Tell whether a node runs no agent: then nothing is known but its record."""
    return output.kind(node.kind) == "wireguard"


def _facts(node: "admin_pb2.Node", revision: int) -> list[tuple[str, output.Cell]]:
    return [*_record_facts(node), *([] if _stock(node) else _agent_facts(node, revision))]


def _record_facts(node: "admin_pb2.Node") -> list[tuple[str, output.Cell]]:
    return [
        ("name", node.name),
        ("id", node.id),
        ("network", node.network),
        ("state", _presence(node)),
        ("addresses", "\n".join(node.addresses)),
        ("routes", "\n".join(node.routes) or "none"),
        ("tags", ", ".join(node.tags) or "none"),
        ("endpoints", "\n".join(map(output.endpoint, node.endpoints)) or "none"),
        ("seals with", ", ".join(map(output.suite, node.suites)) or "not known"),
        ("public key", key_text(node.public_key)),
        ("record", _record(node)),
    ]


def _agent_facts(node: "admin_pb2.Node", revision: int) -> list[tuple[str, output.Cell]]:
    in_step = output.state(
        good=node.in_step, yes=f"in step at {revision}", no=f"at {node.acked_revision} of {revision}"
    )
    return [
        ("map", in_step),
        ("fastpath", f"{node.backend}: {node.backend_reason}" if node.backend else "not reported"),
        ("lanes", str(node.lanes or "not reported")),
        ("mtu", str(node.mtu or "not reported")),
        ("version", node.version),
        ("host", _host(node)),
        *(("copy", _copy(copy)) for copy in node.copies),
    ]


def _host(node: "admin_pb2.Node") -> str:
    """Return which machine is the node; ids are hashes, and their beginning tells them apart."""
    if not node.host_id:
        return "not reported"
    bound = output.ago(time.time() - node.connected_since)
    return f"{node.host_id[:12]}, bound {bound} from {node.connected_from or 'elsewhere'}"


def _copy(copy: "admin_pb2.Copy") -> Text:
    first, last = (output.ago(time.time() - moment) for moment in (copy.since, copy.last_seen))
    origin = getattr(copy, "from") or "elsewhere"
    twin = " with the same machine id" if copy.instance else ""
    said = f"{copy.host_id[:12]} from {origin}{twin}, first {first}, last {last}: quarantined"
    return Text(said, output.BAD)


def _presence(node: "admin_pb2.Node") -> Text:
    if _stock(node):
        return Text("WireGuard peer", output.DIM)
    if node.online:
        return Text("online", output.GOOD)
    seen = f", seen {output.ago(time.time() - node.last_seen)}" if node.last_seen else ""
    return Text(f"offline{seen}", output.BAD)


def _record(node: "admin_pb2.Node") -> str:
    until = f", valid for {output.span(node.not_after - time.time())}" if node.not_after else ""
    return f"serial {node.serial}{until}"


def _problems(reply: "admin_pb2.ListNodesReply") -> list[Text]:
    of_nodes = (line for node in reply.nodes for line in output.problems(node.problems, node.name))
    return [*of_nodes, *output.problems(reply.problems)]
