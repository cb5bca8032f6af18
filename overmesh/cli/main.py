"""Entry point of meshctl: the tree of verbs, and the one place where errors become exit codes."""

import json
import os
import sys
from collections.abc import Sequence

import typer

from overmesh.cli import (
    agent,
    approval,
    audit,
    controller,
    join,
    network,
    node,
    peer,
    ping,
    revoked,
    root,
    status,
    store,
    token,
    version,
    wait,
)
from overmesh.errors import OvermeshError, UsageError

_CONTEXT = {"help_option_names": ["-h", "--help"]}

app = typer.Typer(
    name="meshctl",
    help="Join hosts into one overlay network, and see what it does.",
    epilog="Exit codes: 0 done, 1 failed, 2 wrong usage, 3 not (yet) true.",
    context_settings=_CONTEXT,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)
for _module in (join, status, ping, wait, audit, version):
    _module.register(app)
approval.register(node.app)
revoked.register(node.app)
for _name, _module in (
    ("node", node),
    ("peer", peer),
    ("token", token),
    ("network", network),
    ("agent", agent),
    ("controller", controller),
    ("root", root),
    ("store", store),
):
    app.add_typer(_module.app, name=_name, no_args_is_help=True, context_settings=_CONTEXT)


def main() -> None:
    """Run meshctl with the arguments of the process, and exit with its code."""
    sys.exit(run(sys.argv[1:]))


def run(args: Sequence[str]) -> int:
    """Run one command.

    Args:
        args: without the program's name.

    Returns:
        The exit code: 0 done, 1 failed, 2 wrong usage, 3 not (yet) true, 130 interrupted.

    """
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")  # type: ignore[union-attr]  # a terminal that is not UTF-8
    # Else gRPC's C core writes lines of its own to stderr: what matters of them is in our errors.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    try:
        return app(args, prog_name="meshctl", standalone_mode=False) or 0
    except OvermeshError as error:
        return _report(error, as_json="--json" in args)
    except typer.TyperException as error:
        if not error.format_message():  # a noun alone: its help is out already
            return UsageError.exit_code
        return _report(_usage(error), as_json="--json" in args)
    except (KeyboardInterrupt, typer.Abort):
        return 130
    except Exception as error:
        if os.environ.get("OVERMESH_DEBUG"):
            raise
        return _report(_first(error) or _unexpected(error), as_json="--json" in args)


def _usage(error: typer.TyperException) -> UsageError:
    context = getattr(error, "ctx", None)
    command = context.command_path if context else "meshctl"
    # What typer says of a word that is none of an option's choices begins with the type of Python's error.
    cause = error.format_message().replace(": Value error, ", ": ").rstrip(".")
    return UsageError(cause, f"see {command} --help")


def _first(error: BaseException) -> OvermeshError | None:
    """Return what one of several tasks ended with."""
    if isinstance(error, BaseExceptionGroup):
        return next(filter(None, map(_first, error.exceptions)), None)
    return error if isinstance(error, OvermeshError) else None


def _unexpected(error: Exception) -> OvermeshError:
    return OvermeshError(
        f"unexpected {type(error).__name__}: {error}",
        "this is a bug: report it with what OVERMESH_DEBUG=1 shows",
    )


def _report(error: OvermeshError, *, as_json: bool) -> int:
    """Print an error to stderr, so that stdout holds a whole answer or nothing."""
    if as_json:
        typer.echo(json.dumps({"error": describe(error)}), err=True)
    else:
        typer.echo(f"meshctl: {_sentences(error)}", err=True)
    return error.exit_code


def describe(error: OvermeshError) -> dict[str, object]:
    """Return an error as --json shows it."""
    return {
        "type": type(error).__name__,
        "cause": error.cause,
        "fix": error.fix,
        "exit_code": error.exit_code,
    }


def _sentences(error: OvermeshError) -> str:
    parts = [error.cause, error.fix[:1].upper() + error.fix[1:]]
    return " ".join(f"{part}." if part[-1] not in ".?!" else part for part in parts if part)


if __name__ == "__main__":
    main()
