"""A fastpath by hand: one process in a namespace, from a static file, without controller or agent."""

import contextlib
import itertools
import os
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

BINARY = Path(__file__).parents[2] / "fastpath/target/release/overmesh-fastpath"
DEVICE = "om0"
LIMIT = 60.0

_numbers = itertools.count()


@contextlib.contextmanager
def namespace() -> Iterator[str]:
    """Yield the name of a new network namespace."""
    name = f"omi{os.getpid()}-{next(_numbers)}"
    subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        subprocess.run(["ip", "-n", name, "link", "set", "lo", "up"], check=True)
        yield name
    finally:
        subprocess.run(["ip", "netns", "delete", name], check=False)


class StaticFastpath:
    """A running fastpath with one peer; a context manager.

    Args:
        host: the namespace it runs in.
        scratch: an empty folder for its file and log.
        vni: the network number.
        addresses: inner addresses of this host, with prefix length.
        peer: prefixes of the peer.
        endpoint: where the peer is, address:port.

    """

    def __init__(
        self, host: str, scratch: Path, vni: int, addresses: Sequence[str], peer: Sequence[str], endpoint: str
    ) -> None:
        self.host, self.scratch, self.addresses = host, scratch, addresses
        prefixes = ", ".join(f'"{prefix}"' for prefix in peer)
        (scratch / "fastpath.toml").write_text(
            f'interface = "{DEVICE}"\nmtu = 1420\nnetwork_number = {vni}\nport = 6081\n\n'
            f'[[peer]]\nname = "peer"\nprefixes = [{prefixes}]\nendpoints = ["{endpoint}"]\nstock = true\n'
        )

    def __enter__(self) -> Self:
        command = [
            "ip",
            "netns",
            "exec",
            self.host,
            str(BINARY),
            "--config",
            str(self.scratch / "fastpath.toml"),
        ]
        with (self.scratch / "log").open("wb") as out:
            self.process = subprocess.Popen(command, stdout=out, stderr=out)
        self.wait_until(self._has_device, "the interface")
        for address in self.addresses:
            self._ip("address", "add", address, "dev", DEVICE, *(["nodad"] if ":" in address else []))
        self._ip("link", "set", DEVICE, "mtu", "1420", "up")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.terminate()
        self.process.wait(timeout=10)

    def log(self) -> str:
        """Return what the process has printed."""
        return (self.scratch / "log").read_text()

    def wait_until(self, true: Callable[[], bool], what: str) -> None:
        """Wait for something to become true.

        Raises:
            TimeoutError: it did not, or the process ended; with its log.

        """
        deadline = time.monotonic() + LIMIT
        while not true():
            if time.monotonic() > deadline or self.process.poll() is not None:
                raise TimeoutError(f"waited in vain for {what}:\n{self.log()}")
            time.sleep(0.05)

    def _has_device(self) -> bool:
        return not subprocess.run(
            ["ip", "-n", self.host, "link", "show", DEVICE], capture_output=True, check=False
        ).returncode

    def _ip(self, *arguments: str) -> None:
        subprocess.run(["ip", "-n", self.host, *arguments], check=True)
