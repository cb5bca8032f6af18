"""Settings: one dataclass per daemon, filled from defaults, a TOML file, OVERMESH_* variables and flags.

The later one in that order wins. A key that no daemon has is an error, so a typo can't pass for a
setting. `deploy/examples/` holds both files with every key explained.
"""

import os
import tomllib
import typing
from collections.abc import Mapping
from dataclasses import dataclass, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

from overmesh.errors import ConfigError
from overmesh.model import Mode

JOIN_PORT = 7442
MESH_PORT = 7443
CONTROLLER_METRICS_PORT = 7444
AGENT_METRICS_PORT = 7445
SEALED_PORT = 51820
PLAIN_PORT = 6081
# The UDP port for packets between hosts, unless a host is told another.
DEFAULT_PORTS = {Mode.SEALED: SEALED_PORT, Mode.PLAIN: PLAIN_PORT}
MAX_LANES = 64  # what the fastpath takes (fastpath/core/src/peers.rs)
# Seconds for which a node's or a controller's certificate is good; each is renewed at about half of it.
CERTIFICATE_LIFETIME = 86400
DEFAULT_NETWORK = "mesh"
DEFAULT_IPV4_RANGE = "10.77.0.0/16"

LogFormat = Literal["text", "json"]
Offload = Literal["tso", "uso", "gso", "gro", "avx512"]  # fastpath/io/src/offloads.rs


@dataclass(frozen=True, slots=True)
class ControllerConfig:
    """What `meshctl controller run` can be told."""

    file: ClassVar[Path] = Path("/etc/overmesh/controller.toml")

    state_dir: Path = Path("/var/lib/overmesh/controller")
    runtime_dir: Path = Path("/run/overmesh")
    store: str = ""
    listen: str = ""
    join_port: int = JOIN_PORT
    mesh_port: int = MESH_PORT
    advertise: tuple[str, ...] = ()
    ranges: tuple[str, ...] = ()
    certificate_lifetime: int = CERTIFICATE_LIFETIME
    metrics: str = f"127.0.0.1:{CONTROLLER_METRICS_PORT}"
    trace: str = ""
    log_format: LogFormat = "text"

    @property
    def store_target(self) -> str:
        """Where the truth is kept: what `store` says, else a file in the state directory."""
        return self.store or f"sqlite:{self.state_dir / 'store.db'}"

    @property
    def socket(self) -> Path:
        """The unix socket of the admin service."""
        return self.runtime_dir / "controller.sock"


@dataclass(frozen=True, slots=True)
class AgentConfig:
    """What `meshctl agent run` and `meshctl join` can be told. port, mtu, lanes: 0 leaves it to the agent."""

    file: ClassVar[Path] = Path("/etc/overmesh/agent.toml")

    state_dir: Path = Path("/var/lib/overmesh/agent")
    runtime_dir: Path = Path("/run/overmesh")
    interface: str = "om0"
    port: int = 0
    lanes: int = 0
    mtu: int = 0
    endpoints: tuple[str, ...] = ()
    fastpath: str = ""
    no_offload: tuple[Offload, ...] = ()
    host_id: str = ""
    metrics: str = f"127.0.0.1:{AGENT_METRICS_PORT}"
    trace: str = ""
    log_format: LogFormat = "text"

    def port_in(self, mode: Mode) -> int:
        """Return the UDP port for packets between the hosts of a network."""
        return self.port or DEFAULT_PORTS[mode]

    @property
    def socket(self) -> Path:
        """The unix socket on which the agent answers meshctl."""
        return self.runtime_dir / "agent.sock"

    @property
    def fastpath_socket(self) -> Path:
        """The unix socket on which the fastpath answers the agent."""
        return self.runtime_dir / "fastpath.sock"


Config = TypeVar("Config", ControllerConfig, AgentConfig)


def load(
    cls: type[Config],
    flags: Mapping[str, Any],
    *,
    file: Path | None = None,
    environ: Mapping[str, str] = os.environ,
) -> Config:
    """Return the settings in force.

    Args:
        cls: which daemon's.
        flags: what the command line says; None means not said.
        file: a file the user named; it has to exist. Otherwise the default one is read if it is there.
        environ: where OVERMESH_<KEY> is looked up.

    Raises:
        ConfigError: names the key, where it was set, and what it should be.

    """
    said = {key: value for key, value in flags.items() if value is not None}
    return cls(**{**_from_file(cls, file), **_from_environ(cls, environ), **said})


def _from_file(cls: type[Config], file: Path | None) -> dict[str, Any]:
    path = file or cls.file
    if file is None and not path.exists():
        return {}
    try:
        table = tomllib.loads(path.read_text())
    except OSError as error:
        raise ConfigError(f"{path} can't be read: {error.strerror}", "name a file that exists") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not TOML: {error}", "correct that line") from None
    return {key: _checked(cls, key, value, str(path)) for key, value in table.items()}


def _from_environ(cls: type[Config], environ: Mapping[str, str]) -> dict[str, Any]:
    # A variable may be meant for the other daemon: unlike in a file, unknown ones are let be.
    names = {f"OVERMESH_{item.name.upper()}": item.name for item in fields(cls)}
    return {
        key: _checked(cls, key, _parsed(cls, key, environ[name]), name)
        for name, key in names.items()
        if environ.get(name)
    }


def _checked(cls: type[Config], key: str, value: Any, where: str) -> Any:
    """Return a value from TOML as the type its field has."""
    hints = _hints(cls)
    if key not in hints:
        near = get_close_matches(key, hints, n=1)
        fix = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(hints)}"
        raise ConfigError(f"{where}: unknown key {key!r}", fix)
    hint = hints[key]
    if hint is Path and isinstance(value, str):
        return Path(value)
    if _is_list(hint) and isinstance(value, list) and all(_is_one(part, _item(hint)) for part in value):
        return tuple(value)
    if _is_one(value, hint):
        return value
    raise ConfigError(f"{where}: {key} = {value!r} is not right", f"it takes {_wanted(hint)}")


def _is_one(value: Any, hint: Any) -> bool:
    """Tell whether a value from TOML is what a hint for a single one says."""
    if typing.get_origin(hint) is Literal:
        return value in typing.get_args(hint)
    return hint in (str, int) and type(value) is hint


def _wanted(hint: Any) -> str:
    if _is_list(hint):
        item = _item(hint)
        return "a list of strings" if item is str else f"a list of {_wanted(item)}"
    return " or ".join(map(repr, typing.get_args(hint))) or _WANTED[hint]


_WANTED: dict[Any, str] = {Path: "a path", str: "a string", int: "a whole number"}


def _is_list(hint: Any) -> bool:
    return typing.get_origin(hint) is tuple


def _item(hint: Any) -> Any:
    """Return what a list is of."""
    return typing.get_args(hint)[0]


def _parsed(cls: type[Config], key: str, text: str) -> Any:
    """Return an environment variable as TOML would have given it; lists are separated by commas."""
    hint = _hints(cls)[key]
    if hint is int and text.isdecimal():
        return int(text)
    if _is_list(hint):
        return [part.strip() for part in text.split(",") if part.strip()]
    return text


def _hints(cls: type[Config]) -> dict[str, Any]:
    return {key: hint for key, hint in typing.get_type_hints(cls).items() if key != "file"}
