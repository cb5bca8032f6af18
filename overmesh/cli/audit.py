"""`meshctl audit`: who changed what, when, from where."""

import time
from contextlib import AbstractAsyncContextManager
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from overmesh.cli import options, output
from overmesh.config import ControllerConfig, load

if TYPE_CHECKING:
    from overmesh.proto import admin_pb2


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command(
        epilog=options.examples(
            "meshctl audit", "meshctl audit --since 1h --node web1", "meshctl audit --follow --json"
        )
    )(audit)


def audit(
    *,
    since: Annotated[
        str, typer.Option(metavar="TIME", help="Only the last 90s, 30m, 1h, 7d.", show_default=False)
    ] = "",
    node: Annotated[
        str, typer.Option(metavar="NODE", help="What was done to or by this name or id.", show_default=False)
    ] = "",
    follow: Annotated[bool, typer.Option("--follow", metavar="", help="Go on as things happen.")] = False,
    config: options.Config = None,
    runtime_dir: options.RuntimeDir = None,
    as_json: options.Json = False,
) -> None:
    """Show every change to who and what is in the mesh; the last 90 days are kept.

    An operator's name is what meshctl was run as: the controller knows only that it was root. JSON is one
    line an entry. Entries that no controller of this mesh has written are marked as forged.
    """
    settings = load(ControllerConfig, {"runtime_dir": runtime_dir}, file=config)
    start = int(time.time()) - options.seconds(since) if since else 0
    from overmesh.cli import client
    from overmesh.proto import admin_pb2

    request = admin_pb2.AuditRequest(since=start, node=node, follow=follow)
    client.run(_show(client.controller(settings), request, as_json=as_json))


async def _show(
    opened: AbstractAsyncContextManager[Any], request: "admin_pb2.AuditRequest", *, as_json: bool
) -> None:
    async with opened as admin:
        async for entry in admin.ListAudit(request):
            if as_json:
                output.show_json(to_json(entry), line=True)
            else:
                output.show(_line(entry))


def to_json(entry: "admin_pb2.AuditEntry") -> dict[str, object]:
    """Return an entry for machines."""
    return {
        "id": entry.id,
        "at": entry.at_ms / 1000,
        "what": entry.what,
        "network": entry.network,
        "subject": entry.subject,
        "name": entry.name,
        "who": entry.who,
        "from": getattr(entry, "from"),
        "controller": entry.controller,
        "details": dict(entry.details),
        "revision": entry.revision,
        "genuine": entry.genuine,
    }


def _line(entry: "admin_pb2.AuditEntry") -> Text:
    moment = datetime.fromtimestamp(entry.at_ms / 1000).astimezone()
    origin = getattr(entry, "from")
    details = " ".join(f"{key}={value}" for key, value in sorted(entry.details.items()))
    return Text.assemble(
        "" if entry.genuine else ("FORGED ", output.BAD),
        (f"{moment:%Y-%m-%d %H:%M:%S}  ", output.DIM),
        f"{entry.what}  {_subject(entry)}  by {entry.who}",
        (f"  from {origin}" if origin else "", output.DIM),
        (f"  at {entry.controller}" if entry.controller else "", output.DIM),
        (f"  {details}" if details else "", output.DIM),
    )


def _subject(entry: "admin_pb2.AuditEntry") -> str:
    named = f"{entry.name} ({entry.subject})" if entry.name else entry.subject
    return f"{named} in {entry.network}" if entry.network not in ("", entry.subject) else named
