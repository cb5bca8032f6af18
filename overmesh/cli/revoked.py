"""`meshctl node revoke` and `node list --revoked`: who was taken out, for now or for good."""

import time
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from overmesh.cli import options, output
from overmesh.config import ControllerConfig, load

if TYPE_CHECKING:
    from overmesh.proto import admin_pb2

Node = Annotated[
    str, typer.Argument(metavar="NODE", help="A name or node id; of one that is no member any more, too.")
]


def register(app: typer.Typer) -> None:
    """Add the verb to `meshctl node`."""
    app.command(
        epilog=options.examples(
            "meshctl node revoke web1 --reason 'laptop stolen'", "meshctl node revoke 6xkq2jzv4wpa7ydn --json"
        )
    )(revoke)


def revoke(
    node: Node,
    *,
    reason: Annotated[
        str,
        typer.Option(metavar="TEXT", show_default=False, help="For people: `node list --revoked` shows it."),
    ] = "",
    unknown: Annotated[
        bool,
        typer.Option("--unknown", metavar="", help="NODE may be an id that nobody here ever had."),
    ] = False,
    network: options.Network = options.DEFAULT,
    config: options.Config = None,
    runtime_dir: options.RuntimeDir = None,
    as_json: options.Json = False,
) -> None:
    """Remove a node and ban its key for good, as after a theft; there is no way back for that key.

    The host itself can join again once it has new keys: `meshctl leave --force`, then a new token.
    """
    settings = load(ControllerConfig, {"runtime_dir": runtime_dir}, file=config)
    from overmesh.cli import client
    from overmesh.proto import admin_pb2

    request = admin_pb2.RevokeNodeRequest(network=network, node=node, reason=reason, unknown=unknown)
    reply = client.ask_controller(
        settings, lambda admin: admin.RevokeNode(request), shown_by="meshctl node list --revoked"
    )
    if as_json:
        output.show_json(
            {
                "revocation": _to_json(reply.revocation),
                "revision": reply.revision,
                "was_member": reply.was_member,
            }
        )
        return
    out = "It is out" if reply.was_member else "It was no member"
    output.show(
        f"Revoked {_named(reply.revocation)} at revision {reply.revision}.",
        f"{out}, and its key never comes back.",
        f"See that all agents know: meshctl wait --revision {reply.revision}",
    )


def show(settings: ControllerConfig, network: str, *, as_json: bool) -> None:
    """Print who was taken out of a network."""
    from overmesh.cli import client
    from overmesh.proto import admin_pb2

    request = admin_pb2.ListRevocationsRequest(network=network)
    reply = client.ask_controller(settings, lambda admin: admin.ListRevocations(request))
    if as_json:
        revocations = [_to_json(revocation) for revocation in reply.revocations]
        output.show_json({"revision": reply.revision, "revoked": revocations})
    elif not reply.revocations:
        output.show("No node was taken out.")
    else:
        columns = ("name", "id", "since", "for", "reason")
        output.show(output.table(columns, map(_row, reply.revocations)))


def _row(revocation: "admin_pb2.Revocation") -> tuple[output.Cell, ...]:
    remaining = output.span(revocation.not_after - time.time())
    return (
        revocation.name,
        revocation.node_id,
        output.ago(time.time() - revocation.at),
        Text("ever", output.BAD) if revocation.banned else f"{remaining}, or a new token",
        revocation.reason,
    )


def _named(revocation: "admin_pb2.Revocation") -> str:
    return f"{revocation.name} ({revocation.node_id})" if revocation.name else revocation.node_id


def _to_json(revocation: "admin_pb2.Revocation") -> dict[str, object]:
    return {
        "id": revocation.node_id,
        "name": revocation.name,
        "network": revocation.network,
        "banned": revocation.banned,
        "revoked_serial": revocation.revoked_serial,
        "at": revocation.at,
        "not_after": revocation.not_after or None,
        "reason": revocation.reason,
    }
