"""What this host is, and whether it can carry an overlay: asked before anything changes."""

import errno
import hashlib
import socket
from pathlib import Path

from overmesh.agent.fastpath import answers, find_binary
from overmesh.agent.netlink import open_tun
from overmesh.config import AgentConfig
from overmesh.errors import PermissionMissingError, PortInUseError


def check_host(config: AgentConfig) -> None:
    """Raise when something that every agent needs is missing.

    Raises:
        TunMissingError: no TUN device.
        PermissionMissingError: interfaces may not be made.
        PortInUseError: somebody else has the tunnel's UDP port.
        FastpathError: the fastpath is not installed.

    """
    find_binary(config.fastpath)
    with open_tun("omcheck%d"):
        pass
    if not answers(config.fastpath_socket):
        _check_port(config.port)


def _check_port(port: int) -> None:
    for family, anywhere in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):  # noqa: S104
        try:
            with socket.socket(family, socket.SOCK_DGRAM) as probe:
                if family == socket.AF_INET6:
                    probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                probe.bind((anywhere, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise PortInUseError(
                    f"UDP port {port} is in use by another program",
                    "end that program (`ss -ulpn` shows it), or name another port: --port",
                ) from None
            if error.errno == errno.EACCES:
                raise PermissionMissingError(f"UDP port {port} may not be used", "run as root") from None
            # Anything else, such as no IPv6 at all, is the fastpath's to judge.


def host_id(config: AgentConfig) -> str:
    """Return what tells this machine from a copy of its disk: configured, or a hash of the machine id.

    The machine id itself is not to be sent over a network: machine-id(5).
    """
    if config.host_id:
        return config.host_id
    try:
        machine = Path("/etc/machine-id").read_bytes().strip()
    except OSError:
        machine = socket.gethostname().encode()
    return hashlib.sha256(b"overmesh host " + machine).hexdigest()
