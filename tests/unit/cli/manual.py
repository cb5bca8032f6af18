"""docs/meshctl.md, from what meshctl says about itself: `python -m tests.unit.cli.manual` writes it."""

import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer
from rich.markup import render

from overmesh.cli import main

PAGE = Path(__file__).parents[3] / "docs" / "meshctl.md"

HEAD = """\
<!-- Made by `python -m tests.unit.cli.manual` from what `meshctl --help` says; a test holds it current. -->

# meshctl

Every verb that prints takes `--json`. The answer then is on stdout, whole or not at all, with keys that
stay, times as unix seconds and sizes in bytes; an error is an object on stderr:
`{"error": {"type": "TokenError", "cause": "…", "fix": "…", "exit_code": 1}}`.

| exit code | |
|---|---|
| 0 | done |
| 1 | failed: stderr has the cause and the fix, in one line |
| 2 | wrong usage: an option, argument or setting that can't be right |
| 3 | not (yet) true: asked for, and not so |
| 130 | interrupted (Ctrl-C) |

`token`, `node`, `peer`, `network` and `audit` ask the controller of the host they run on; `status`,
`ping` and `leave` the agent. Both listen on unix sockets in `/run/overmesh` that only root may open.
`store` opens the store itself. `OVERMESH_DEBUG=1` shows the traceback of an unexpected error. `meshctl
--install-completion` teaches your shell the verbs.
"""


def page() -> str:
    """Return the whole page."""
    return "\n".join((HEAD, *map(_verb, verbs(typer.main.get_command(main.app)))))


def verbs(command: Any, path: tuple[str, ...] = ("meshctl",)) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield every verb with its full name, as they are listed."""
    below = getattr(command, "commands", None)
    if not below:
        yield path, command
        return
    for name, sub in below.items():
        yield from verbs(sub, (*path, name))


def _verb(verb: tuple[tuple[str, ...], Any]) -> str:
    path, command = verb
    arguments = [one.metavar for one in command.params if one.param_type_name == "argument"]
    rows = [f"| `{_name(one)}` | {_explained(one)} |" for one in command.params]
    examples = re.findall(r"\$ (.*)", render(command.epilog).plain)
    return "\n".join(
        (
            f"## {' '.join(path)}\n",
            f"{inspect.cleandoc(command.help)}\n",
            f"    {' '.join((*path, *arguments))} [OPTIONS]\n",
            "| | |\n|---|---|",
            *rows,
            "\n```sh",
            *examples,
            "```\n",
        )
    )


def _name(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        return str(parameter.metavar)
    return " ".join(filter(None, (", ".join(parameter.opts), parameter.metavar)))


def _explained(parameter: Any) -> str:
    shown = parameter.show_default and parameter.default not in (None, False, "")
    default = f" Default: {getattr(parameter.default, 'value', parameter.default)}." if shown else ""
    return str(parameter.help).replace("|", "\\|") + default


if __name__ == "__main__":
    PAGE.write_text(page())
