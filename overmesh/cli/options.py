"""Options that several verbs share, and how what was typed becomes settings."""

import functools
import inspect
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any, get_args

import typer
from rich.markup import escape

from overmesh.config import (
    AGENT_METRICS_PORT,
    CONTROLLER_METRICS_PORT,
    DEFAULT_NETWORK,
    MAX_LANES,
    PLAIN_PORT,
    SEALED_PORT,
    LogFormat,
    Offload,
)
from overmesh.errors import UsageError

Json = Annotated[
    bool, typer.Option("--json", metavar="", help="Print JSON for machines; errors too, on stderr.")
]
Config = Annotated[
    Path | None,
    typer.Option("--config", metavar="FILE", help="Read settings from this file instead of the default one."),
]
StateDir = Annotated[
    Path | None, typer.Option(metavar="DIR", help="Where keys and state are kept.", show_default=False)
]
RuntimeDir = Annotated[
    Path | None, typer.Option(metavar="DIR", help="Where the unix sockets are.", show_default=False)
]
Network = Annotated[str, typer.Option("--network", metavar="NAME", help="Which network.")]
Log = Annotated[
    LogFormat | None,
    typer.Option("--log-format", metavar="FORMAT", help="text: a line an event; json: for machines."),
]
Metrics = Annotated[
    str | None,
    typer.Option(
        metavar="ADDRESS:PORT",
        help=f"Serve numbers to Prometheus there, or off. Default: 127.0.0.1, port {CONTROLLER_METRICS_PORT} "
        f"for a controller, {AGENT_METRICS_PORT} for an agent.",
    ),
]
Trace = Annotated[
    str | None,
    typer.Option(metavar="URL", help="Send spans to this OpenTelemetry collector (OTLP over HTTP)."),
]
DEFAULT = DEFAULT_NETWORK


def port(what: str) -> Any:
    """Return an option for a port."""
    return typer.Option(min=1, max=65535, metavar="PORT", help=what)


# What AgentConfig can be told on a command line, by field.
_AGENT_SETTINGS: dict[str, Any] = {
    "interface": Annotated[
        str | None, typer.Option(metavar="NAME", help="The overlay's interface. Default: om0.")
    ],
    "port": Annotated[
        int | None,
        port(
            f"UDP, for packets between hosts. Default: {SEALED_PORT} in a sealed network, "
            f"{PLAIN_PORT} in a plain one."
        ),
    ],
    "lanes": Annotated[
        int | None,
        typer.Option(
            min=0,
            max=MAX_LANES,
            metavar="NUMBER",
            help="Cores that carry packets, each on a port of its own, from the first one up. "
            "Default: half of them from 4 on, else 1.",
        ),
    ],
    "mtu": Annotated[
        int | None,
        typer.Option(
            min=0, metavar="BYTES", help="Inside the overlay. Default: what the underlay leaves room for."
        ),
    ],
    "endpoints": Annotated[
        list[str] | None,
        typer.Option(
            "--endpoint",
            metavar="ADDRESS",
            help="Where peers reach this host; again for more. Default: found out.",
        ),
    ],
    "fastpath": Annotated[
        str | None,
        typer.Option(
            metavar="FILE", help="The fastpath binary. Default: overmesh-fastpath, beside Python or in PATH."
        ),
    ],
    "no_offload": Annotated[
        list[str] | None,
        typer.Option(
            metavar="uso,gro",
            help="Do without these offloads: tso, uso (super-packets of the TUN), gso, gro (runs of "
            "datagrams), avx512 (ciphers).",
        ),
    ],
    "host_id": Annotated[
        str | None,
        typer.Option(metavar="ID", help="Tells this machine from a copy of it. Default: /etc/machine-id."),
    ],
    "state_dir": StateDir,
    "runtime_dir": RuntimeDir,
    "metrics": Metrics,
    "trace": Trace,
    "log_format": Log,
}


Given = dict[str, Any]


def with_agent_settings(verb: Callable[..., None]) -> Callable[..., None]:
    """Give a verb the agent's settings as options, in place of its parameter `given`.

    `given` becomes what was typed: settings by name, None where nothing was.
    """

    @functools.wraps(verb)
    def command(**arguments: Any) -> None:
        given = {name: arguments.pop(name) for name in _AGENT_SETTINGS}
        given["endpoints"] = several(given["endpoints"])
        given["no_offload"] = _offloads(given["no_offload"])
        verb(**arguments, given=given)

    option = inspect.Parameter.KEYWORD_ONLY
    settings = [
        inspect.Parameter(name, option, default=None, annotation=hint)
        for name, hint in _AGENT_SETTINGS.items()
    ]
    parameters: list[inspect.Parameter] = []
    for parameter in inspect.signature(verb).parameters.values():
        parameters += settings if parameter.name == "given" else [parameter]
    # What typer goes by, instead of the parameters that `command` has.
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return command


def _offloads(values: Iterable[str] | None) -> tuple[str, ...] | None:
    """Return the names in lists such as "uso,gro"; not given stays None.

    Raises:
        UsageError: there is no such offload.

    """
    names = several(name.strip() for value in values or () for name in value.split(","))
    for name in names or ():
        if name not in get_args(Offload):
            raise UsageError(f"{name!r} is no offload", f"choose from {', '.join(get_args(Offload))}")
    return names


def examples(*commands: str) -> str:
    """Return the end of a verb's --help: commands to copy, each on its line."""
    return "\n".join(("[bold]Examples[/bold]", *(f"  $ {escape(command)}" for command in commands)))


_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_DURATION = re.compile(r"(\d+)([smhdw])")


def seconds(text: str) -> int:
    """Return the seconds in a duration such as 90s, 30m, 1h, 7d or 1h30m.

    Raises:
        UsageError: not a duration, or none at all.

    """
    parts = _DURATION.findall(text)
    total = sum(int(count) * _UNITS[unit] for count, unit in parts)
    if not parts or "".join(count + unit for count, unit in parts) != text:
        raise UsageError(f"{text!r} is not a duration", "write it like 90s, 30m, 1h or 7d")
    if not total:
        raise UsageError(f"{text!r} is no time at all", "it has to be more than 0: 90s, 30m, 1h or 7d")
    return total


def several(values: Iterable[str] | None) -> tuple[str, ...] | None:
    """Return a repeatable option as settings hold it; not given stays None."""
    return tuple(values) if values else None


def as_flags(settings: dict[str, Any]) -> list[str]:
    """Return settings as they would be typed, without those that were not given."""
    flags = []
    for key, value in settings.items():
        # A list is given by its option several times, which is named for one of its values.
        many = isinstance(value, tuple)
        option = f"--{(key.removesuffix('s') if many else key).replace('_', '-')}"
        for one in value if many else (value,):
            if one is not None:
                flags += [option, str(one)]
    return flags
