"""Taking ports and the socket, with one clear error for each way in which that fails."""

import errno
import os
import socket
from pathlib import Path

import grpc
import grpc.aio

from overmesh.errors import ConfigError, PermissionMissingError, PortInUseError

_LONGEST_SOCKET_PATH = 107  # unix(7)


def any_address() -> str:
    """Return the address that stands for all of this host's, of both families where it has both."""
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::", 0))
    except OSError:
        return "0.0.0.0"  # noqa: S104
    return "::"


def take_port(server: grpc.aio.Server, host: str, port: int, credentials: grpc.ServerCredentials) -> int:
    """Have a server listen on a port (0: any that is free) and return the port.

    Raises:
        PortInUseError, PermissionMissingError, ConfigError

    """
    _check_free(host, port)
    target = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        return server.add_secure_port(target, credentials)
    except RuntimeError as error:
        raise PortInUseError(f"port {port}/tcp can't be used: {error}", "choose another port") from None


def _check_free(host: str, port: int) -> None:
    """Bind once ourselves: gRPC does not tell one failure from the other."""
    if not 0 <= port < 1 << 16:
        raise ConfigError(f"there is no port {port}", "choose one from 1 to 65535")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            probe.bind((host, port))
    except PermissionError:
        raise PermissionMissingError(f"port {port}/tcp needs root", "run as root") from None
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise PortInUseError(
                f"port {port}/tcp is in use by another process",
                "stop that process (`ss -ltnp`), or choose another port",
            ) from None
        raise ConfigError(
            f"can't listen on {host!r}: {error.strerror}", "set `listen` to an address of this host"
        ) from None


def take_socket(server: grpc.aio.Server, path: Path) -> Path:
    """Have a server listen on a unix socket that only root may use; a stale one is replaced.

    Raises:
        PortInUseError, PermissionMissingError, ConfigError

    """
    if len(os.fsencode(path)) > _LONGEST_SOCKET_PATH:
        raise ConfigError(f"{path} is too long for a unix socket", "choose a shorter runtime_dir")
    try:
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        _clear_stale(path)
        umask = os.umask(0o177)  # the socket must never be open to others, not even for a moment
        try:
            server.add_insecure_port(f"unix:{path}")
        finally:
            os.umask(umask)
    except OSError as error:
        raise PermissionMissingError(
            f"{path} can't be made: {error.strerror}", "run as root, or name another runtime_dir"
        ) from None
    return path


def _clear_stale(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except FileNotFoundError:
            return
        except ConnectionRefusedError:
            path.unlink()
            return
    raise PortInUseError(
        f"another controller answers on {path}", "stop it first, or choose another runtime_dir"
    )
