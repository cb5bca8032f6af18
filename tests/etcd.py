"""Real etcd members, on free ports of the loopback interface, ended by pid."""

import atexit
import json
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import pytest


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Member:
    """One etcd process; it can be killed, frozen, and started again on what it had."""

    name: str
    directory: Path
    options: Sequence[str] = ()
    scheme: str = "http"
    client_port: int = field(default_factory=free_port)
    peer_port: int = field(default_factory=free_port)
    _process: subprocess.Popen[bytes] | None = None

    @property
    def endpoint(self) -> str:
        return f"127.0.0.1:{self.client_port}"

    @property
    def peer(self) -> str:
        return f"http://127.0.0.1:{self.peer_port}"

    def start(self, cluster: str = "") -> None:
        client = f"{self.scheme}://{self.endpoint}"
        arguments = {
            "name": self.name,
            "data-dir": self.directory / self.name,
            "listen-client-urls": client,
            "advertise-client-urls": client,
            "listen-peer-urls": self.peer,
            "initial-advertise-peer-urls": self.peer,
            "initial-cluster": cluster or f"{self.name}={self.peer}",
            "log-level": "error",
            "logger": "zap",
        }
        command = ["setpriv", "--pdeathsig", "KILL", "etcd"]
        command += [f"--{name}={value}" for name, value in arguments.items()]
        with (self.directory / f"{self.name}.log").open("ab") as log:
            self._process = subprocess.Popen([*command, *self.options], stdout=log, stderr=log)

    def signal(self, number: signal.Signals) -> None:
        assert self._process
        self._process.send_signal(number)
        if number == signal.SIGKILL:
            self._process.wait()

    def freeze(self) -> None:
        self.signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self.signal(signal.SIGCONT)

    def kill(self) -> None:
        self.signal(signal.SIGKILL)

    def wait_ready(self) -> None:
        assert self._process
        deadline = time.monotonic() + 20
        while not self._is_healthy():
            assert self._process.poll() is None, (self.directory / f"{self.name}.log").read_text()
            assert time.monotonic() < deadline, "etcd does not get ready"
            time.sleep(0.02)

    def _is_healthy(self) -> bool:
        if self.scheme == "https":  # what it asks of clients is the test's business
            with socket.socket() as probe:
                return probe.connect_ex(("127.0.0.1", self.client_port)) == 0
        try:
            with urllib.request.urlopen(f"http://{self.endpoint}/health", timeout=1) as answer:
                return bool(json.load(answer)["health"] == "true")
        except OSError:
            return False


def needs_etcd() -> None:
    if not shutil.which("etcd"):
        pytest.skip("etcd is not installed (Debian: etcd-server)")


@contextmanager
def cluster(
    directory: Path, size: int = 1, options: Sequence[str] = (), scheme: str = "http"
) -> Iterator[list[Member]]:
    """Run an etcd of so many members for the length of a block."""
    needs_etcd()
    members = [Member(f"m{number}", directory, options, scheme) for number in range(size)]
    together = ",".join(f"{member.name}={member.peer}" for member in members)
    with ExitStack() as undo:
        for member in members:
            member.start(together)
            undo.callback(member.kill)
        for member in members:
            member.wait_ready()
        yield members


@cache
def shared() -> str:
    """Return the endpoint of one etcd that lives, in memory, as long as this process."""
    undo = ExitStack()
    atexit.register(undo.close)
    memory = Path("/dev/shm")
    place = undo.enter_context(
        tempfile.TemporaryDirectory(prefix="overmesh-etcd-", dir=memory if memory.is_dir() else None)
    )
    # A short election, because it sets the shortest lease.
    options = ("--heartbeat-interval=20", "--election-timeout=200")
    (member,) = undo.enter_context(cluster(Path(place), options=options))
    return member.endpoint
