"""`meshctl store`: save a controller's store, bring it back, move it to another kind."""

from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from overmesh.cli import options, output
from overmesh.config import ControllerConfig, load
from overmesh.errors import PermissionMissingError, UsageError
from overmesh.files import replace_file

if TYPE_CHECKING:
    from overmesh.controller.store.base import Store

app = typer.Typer(help="Save a controller's store, bring it back, move it from SQLite to etcd.")

_File = Annotated[Path, typer.Argument(metavar="FILE", help="The file; only its owner may read it.")]
_Target = Annotated[
    str | None,
    typer.Option("--store", metavar="TARGET", help="The store. Default: the controller's, by its settings."),
]


@app.command(
    epilog=options.examples(
        "meshctl store export backup.json",
        "meshctl store export backup.json --store etcd://a:2379,b:2379,c:2379/mesh",
    )
)
def export(
    file: _File,
    *,
    store: _Target = None,
    state_dir: options.StateDir = None,
    config: options.Config = None,
    as_json: options.Json = False,
) -> None:
    """Write all that a store keeps, as of one moment, to a file.

    etcd may be in use meanwhile; of SQLite the controller has to be stopped. The root's key is not in
    the store: save root.key too.
    """
    from overmesh.controller.store import backup

    source = _target(store, state_dir, config)

    async def work() -> int:
        async with _opened(source, reading=True) as opened:
            content = await backup.read(opened)
        try:
            replace_file(file, backup.encode(content))
        except OSError as error:
            raise PermissionMissingError(
                f"{file} can't be written: {error.strerror}", "name another"
            ) from None
        return len(content)

    _finish(work(), f"to {file}", as_json=as_json)


@app.command(
    "import",
    epilog=options.examples("meshctl store import backup.json --store etcd://a:2379,b:2379,c:2379/mesh"),
)
def import_(
    file: _File,
    *,
    store: _Target = None,
    state_dir: options.StateDir = None,
    config: options.Config = None,
    as_json: options.Json = False,
) -> None:
    """Fill an empty store with what an export has written.

    If it breaks off, no controller starts on that store until the import was run again.
    """
    from overmesh.controller.store import backup

    try:
        content = backup.decode(file.read_bytes(), str(file))
    except OSError as error:
        raise UsageError(f"{file} can't be read: {error.strerror}") from None
    target = _target(store, state_dir, config)

    async def work() -> int:
        async with _opened(target) as opened:
            await backup.fill(opened, content)
        return len(content)

    _finish(work(), f"from {file}", as_json=as_json)


@app.command(
    epilog=options.examples(
        "meshctl store migrate sqlite:/var/lib/overmesh/controller/store.db etcd://a,b,c/mesh",
    )
)
def migrate(
    source: Annotated[str, typer.Argument(metavar="FROM", help="A store; it is left as it is.")],
    target: Annotated[str, typer.Argument(metavar="TO", help="An empty store.")],
    *,
    as_json: options.Json = False,
) -> None:
    """Copy one store into another; stop the controllers first."""
    from overmesh.controller.store import backup

    async def work() -> int:
        async with _opened(source, reading=True) as opened:
            content = await backup.read(opened)
        async with _opened(target) as opened:
            await backup.fill(opened, content)
        return len(content)

    _finish(work(), f"to {target}", as_json=as_json)


def _target(store: str | None, state_dir: Path | None, config: Path | None) -> str:
    return load(ControllerConfig, {"store": store, "state_dir": state_dir}, file=config).store_target


@asynccontextmanager
async def _opened(target: str, *, reading: bool = False) -> "AsyncIterator[Store]":
    from overmesh.controller.store import open_existing, open_store

    store = open_existing(target) if reading else open_store(target)
    try:
        yield store
    finally:
        await store.close()


def _finish(work: "Coroutine[Any, Any, int]", where: str, *, as_json: bool) -> None:
    """Do the work, and say how many keys it was about."""
    import asyncio

    count = asyncio.run(work)
    if as_json:
        output.show_json({"keys": count})
    else:
        output.show(f"{count} keys {where}")
