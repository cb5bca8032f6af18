"""The agent as a service, on hosts that systemd runs."""

import subprocess
import sys
from importlib.resources import files
from pathlib import Path

from overmesh.errors import HostError

UNIT = "overmesh-agent.service"
_INSTALLED = Path("/etc/systemd/system") / UNIT
_AS_PACKAGED = "/usr/bin/meshctl"


def present() -> bool:
    """Tell whether systemd runs this host (sd_booted(3))."""
    return Path("/run/systemd/system").is_dir()


def start() -> None:
    """Start the agent now and at every boot; the unit is written if no package has brought it.

    Raises:
        HostError: systemd refused.

    """
    if _systemctl("cat", UNIT).returncode:
        _INSTALLED.write_text(unit(Path(sys.argv[0]).resolve()))
        _systemctl("daemon-reload")
    done = _systemctl("enable", "--now", UNIT)
    if done.returncode:
        reason = done.stderr.strip().splitlines()[-1:] or ["no reason given"]
        raise HostError(f"systemd could not start {UNIT}: {reason[0]}", f"see journalctl -u {UNIT}")


def stop() -> None:
    """Stop the agent and keep it from starting at the next boot."""
    _systemctl("disable", "--now", UNIT)


def unit(meshctl: Path) -> str:
    """Return the unit for a meshctl that is installed elsewhere than where packages put it."""
    return (files("overmesh.cli") / "units" / UNIT).read_text().replace(_AS_PACKAGED, str(meshctl))


def _systemctl(*args: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(["systemctl", *args], capture_output=True, text=True, check=False)
