"""`meshctl token`: what lets hosts in."""

import time
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from overmesh.cli import options, output
from overmesh.config import ControllerConfig, load

if TYPE_CHECKING:
    from overmesh.proto import admin_pb2

app = typer.Typer(help="Make, list and revoke the tokens that let hosts in.")


@app.command(
    epilog=options.examples(
        "meshctl token create",
        "meshctl token create --expires 7d --uses 20 --tag rack:7",
        "meshctl token create --require-approval --uses 20",
        "meshctl token create --json | jq -r .join_line",
    )
)
def create(
    *,
    expires: Annotated[str, typer.Option(metavar="TIME", help="How long it works: 90s, 30m, 1h, 7d.")] = "1h",
    uses: Annotated[
        int, typer.Option(min=0, metavar="N", help="How many hosts may join with it; 0: any number.")
    ] = 1,
    tag: Annotated[
        list[str] | None, typer.Option(metavar="TAG", help="Give hosts that join with it this tag.")
    ] = None,
    require_approval: Annotated[
        bool,
        typer.Option("--require-approval", metavar="", help="Let nobody in before `meshctl node approve`."),
    ] = False,
    network: options.Network = options.DEFAULT,
    config: options.Config = None,
    runtime_dir: options.RuntimeDir = None,
    as_json: options.Json = False,
) -> None:
    """Make a token and print the line to type on the new host. It is shown once."""
    settings = load(ControllerConfig, {"runtime_dir": runtime_dir}, file=config)
    ttl = options.seconds(expires)
    from overmesh.cli import client
    from overmesh.proto import admin_pb2

    request = admin_pb2.CreateTokenRequest(
        network=network, ttl_seconds=ttl, uses=uses, tags=tag or (), approval=require_approval
    )
    reply = client.ask_controller(
        settings, lambda admin: admin.CreateToken(request), shown_by="meshctl token list"
    )
    if as_json:
        secrets = {"secret_token": reply.secret_token, "join_line": reply.join_line}
        output.show_json(_as_json(reply.token) | secrets)
        return
    output.show("Type this on the new host:\n")
    # Not through a table or wrapped: it is there to be copied.
    typer.echo(f"  {reply.join_line}\n")
    waits = " Each waits for: meshctl node approve." if require_approval else ""
    output.show(
        Text(
            f"For {_uses(reply.token)}, within {output.span(ttl)}.{waits} It is not shown again.", output.DIM
        )
    )


@app.command("list", epilog=options.examples("meshctl token list", "meshctl token list --network lab --json"))
def list_(
    *,
    network: Annotated[
        str, typer.Option(metavar="NAME", help="Of this network alone.", show_default=False)
    ] = "",
    config: options.Config = None,
    runtime_dir: options.RuntimeDir = None,
    as_json: options.Json = False,
) -> None:
    """List tokens: never the secrets, the controller holds only a hash of each."""
    settings = load(ControllerConfig, {"runtime_dir": runtime_dir}, file=config)
    from overmesh.cli import client
    from overmesh.proto import admin_pb2

    request = admin_pb2.ListTokensRequest(network=network)
    reply = client.ask_controller(settings, lambda admin: admin.ListTokens(request))
    if as_json:
        output.show_json({"tokens": [_as_json(token) for token in reply.tokens]})
    elif not reply.tokens:
        output.show("No tokens. Make one: meshctl token create")
    else:
        output.show(
            output.table(
                ("id", "network", "state", "expires", "uses left", "approval", "tags"),
                map(_row, reply.tokens),
            )
        )


@app.command(
    epilog=options.examples("meshctl token revoke 3f9a0c27d1", "meshctl token revoke 3f9a0c27d1 --json")
)
def revoke(
    token: Annotated[str, typer.Argument(metavar="ID", help="The id that `token list` shows.")],
    *,
    config: options.Config = None,
    runtime_dir: options.RuntimeDir = None,
    as_json: options.Json = False,
) -> None:
    """End a token now. Hosts that joined with it stay."""
    settings = load(ControllerConfig, {"runtime_dir": runtime_dir}, file=config)
    from overmesh.cli import client
    from overmesh.proto import admin_pb2

    request = admin_pb2.RevokeTokenRequest(id=token)
    reply = client.ask_controller(
        settings, lambda admin: admin.RevokeToken(request), shown_by="meshctl token list"
    )
    if as_json:
        output.show_json({"id": token, "revision": reply.revision})
    else:
        output.show(f"Revoked {token}.")


def _as_json(token: "admin_pb2.Token") -> dict[str, object]:
    return {
        "id": token.id,
        "network": token.network,
        "state": _state(token),
        "created": token.created,
        "expires": token.expires,
        "uses_left": None if token.unlimited else token.uses_left,
        "approval": token.approval,
        "tags": list(token.tags),
    }


def _row(token: "admin_pb2.Token") -> tuple[output.Cell, ...]:
    state = _state(token)
    left = token.expires - time.time()
    return (
        token.id,
        token.network,
        output.state(good=state == "usable", yes=state, no=state),
        f"in {output.span(left)}" if left > 0 else output.ago(-left),
        "any" if token.unlimited else str(token.uses_left),
        "needed" if token.approval else "",
        ", ".join(token.tags),
    )


def _state(token: "admin_pb2.Token") -> str:
    if token.revoked:
        return "revoked"
    if token.expires <= time.time():
        return "expired"
    return "usable" if token.unlimited or token.uses_left else "used up"


def _uses(token: "admin_pb2.Token") -> str:
    if token.unlimited:
        return "any number of hosts"
    return "one host" if token.uses_left == 1 else f"{token.uses_left} hosts"
