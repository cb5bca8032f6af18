"""What this host is, and whether it can carry an overlay: asked before anything changes."""

import errno
import hashlib
import os
import re
import socket
from contextlib import suppress
from pathlib import Path

from overmesh.agent.fastpath import answers, find_binary
from overmesh.agent.netlink import open_tun
from overmesh.config import MAX_LANES, AgentConfig
from overmesh.errors import ConfigError, PermissionMissingError, PortInUseError
from overmesh.model import Mode, Suite

# Where nothing is configured: fewer cores have enough to do with what the packets are for.
_CORES_FOR_LANES = 4
_AUTOMATIC_LANES = 8

_CPU_INFO = Path("/proc/cpuinfo")


def check_host(config: AgentConfig) -> None:
    """Raise when something that every agent needs is missing.

    Raises:
        TunMissingError: no TUN device.
        PermissionMissingError: interfaces may not be made.
        FastpathError: the fastpath is not installed.

    """
    find_binary(config.fastpath)
    with open_tun("omcheck%d"):
        pass


def check_ports(config: AgentConfig, mode: Mode) -> None:
    """Raise when the UDP ports for packets are not free, in a network of that mode.

    Raises:
        PortInUseError: somebody else has one of them.
        PermissionMissingError: this user may not use them.
        ConfigError: ports or a number of lanes that can't be.

    """
    wanted = _ports(config, mode)
    if not answers(config.fastpath_socket):
        for port in wanted:
            _check_port(port)


def possible_modes(config: AgentConfig) -> tuple[Mode, ...]:
    """Return the modes of networks that this host's ports are free for.

    Raises:
        PortInUseError: none; names the port that was asked for, or the usual one.
        PermissionMissingError, ConfigError: as for `check_ports`.

    """
    found = []
    for mode in Mode:
        with suppress(PortInUseError):
            check_ports(config, mode)
            found.append(mode)
    if not found:
        check_ports(config, Mode.SEALED)
    return tuple(found)


def _ports(config: AgentConfig, mode: Mode) -> range:
    """Return the UDP ports of this host's lanes."""
    first, count = config.port_in(mode), lanes(config)
    if first < 1 or first + count > 1 << 16:
        raise ConfigError(
            f"port = {config.port} can't be with lanes = {count}",
            "say 1 to 65535, and leave room for the lanes",
        )
    return range(first, first + count)


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


def suites() -> tuple[Suite, ...]:
    """Return what this host's packets can be sealed with: AES where the processor has instructions for it."""
    try:
        listed = _CPU_INFO.read_text()
    except OSError:
        listed = ""
    # "flags" on x86, "Features" on arm64; without such instructions ChaCha is the faster one.
    aes = re.search(r"^(flags|Features)\s*:.*\baes\b", listed, re.MULTILINE)
    return (Suite.CHACHA, Suite.AES) if aes else (Suite.CHACHA,)


def lanes(config: AgentConfig) -> int:
    """Return on how many lanes this host carries packets: as configured, or half its cores, from 4 on.

    Raises:
        ConfigError: more than there can be.

    """
    if not 0 <= config.lanes <= MAX_LANES:
        raise ConfigError(
            f"lanes = {config.lanes} can't be", f"say 1 to {MAX_LANES}, or 0 for what suits this host"
        )
    cores = len(os.sched_getaffinity(0))
    return config.lanes or (min(cores // 2, _AUTOMATIC_LANES) if cores >= _CORES_FOR_LANES else 1)
