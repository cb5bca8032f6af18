"""What is measured: real etcd, and controllers in processes of their own, as users run them."""

import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc.aio

from overmesh import rpc
from overmesh.proto import admin_pb2, admin_pb2_grpc
from overmesh.token import JoinToken
from tests.etcd import cluster, free_port

_TICK = os.sysconf("SC_CLK_TCK")
_READY_TIMEOUT = 60.0
RANGE = "10.64.0.0/12"


@dataclass(frozen=True, slots=True)
class Used:
    """What a process has used: CPU seconds, and resident memory in KiB."""

    cpu: float
    memory: int


def used(pid: int) -> Used:
    """Return what a process has used so far (proc(5))."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    resident = int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") // 1024
    return Used((int(fields[11]) + int(fields[12])) / _TICK, resident)


class Controller:
    """A controller process."""

    def __init__(self, number: int, place: Path, store: str) -> None:
        self.state = place / f"controller-{number}"
        self._socket = self.state / "run" / "controller.sock"
        self._log = place / f"controller-{number}.log"
        self._store = store
        self._process: subprocess.Popen[bytes] | None = None
        self.join_port, self.mesh_port, self._metrics_port = free_port(), free_port(), free_port()

    @property
    def root(self) -> Path:
        """The certificate of the mesh root."""
        return self.state / "root.pem"

    @property
    def pid(self) -> int:
        """Its process."""
        assert self._process
        return self._process.pid

    def start(self) -> None:
        """Start it and wait until it answers.

        Raises:
            RuntimeError: it ended, with what it said.

        """
        self.state.mkdir(mode=0o700, exist_ok=True)
        options = {
            "listen": "127.0.0.1",
            "join-port": self.join_port,
            "mesh-port": self.mesh_port,
            "advertise": "127.0.0.1",
            "range": RANGE,
            "store": self._store,
            "state-dir": self.state,
            "runtime-dir": self._socket.parent,
            "log-format": "json",
            "metrics": f"127.0.0.1:{self._metrics_port}",
        }
        command = [sys.executable, "-m", "overmesh.cli.main", "controller", "run"]
        flags = [f"--{name}={value}" for name, value in options.items()]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", *command, *flags], stdout=log, stderr=log
            )
        deadline = time.monotonic() + _READY_TIMEOUT
        while time.monotonic() < deadline and self._process.poll() is None:
            if "controller ready" in self._log.read_text():
                return
            time.sleep(0.05)
        raise RuntimeError(f"the controller did not get ready: {self._log.read_text()}")

    @asynccontextmanager
    async def admin(self) -> AsyncIterator[Any]:
        """Talk to it as meshctl does."""
        async with grpc.aio.insecure_channel(f"unix:{self._socket}", rpc.MESSAGE_LIMIT) as channel:
            yield admin_pb2_grpc.AdminStub(channel)  # type: ignore[no-untyped-call]

    async def token(self) -> JoinToken:
        """Return a token that lets in any number of hosts."""
        async with self.admin() as admin:
            reply = await admin.CreateToken(admin_pb2.CreateTokenRequest(ttl_seconds=86400))
        return JoinToken.parse(reply.secret_token)

    async def converged(self, revision: int, timeout: float) -> bool:
        """Tell whether all its agents have acked a revision, at the latest in `timeout` seconds."""
        request = admin_pb2.WaitRequest(revision=revision, timeout_ms=int(timeout * 1000))
        async with self.admin() as admin:
            reply: admin_pb2.WaitReply = await admin.Wait(request)
        return reply.converged

    def counted(self, name: str) -> float:
        """Return one of its metrics, the sum over all labels."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self._metrics_port}/metrics") as reply:
            lines = reply.read().decode().splitlines()
        return sum(
            float(line.rpartition(" ")[2]) for line in lines if line.startswith((f"{name} ", f"{name}{{"))
        )

    def used(self) -> Used:
        """Return what it has used so far."""
        return used(self.pid)

    def kill(self) -> None:
        """End it without a word."""
        if self._process:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()
            self._process = None


@contextmanager
def controllers(place: Path, number: int, store: str) -> Iterator[list[Controller]]:
    """Run so many controllers of one mesh for the length of a block.

    Args:
        place: a directory for all they write.
        number: how many; they share the mesh root.
        store: "etcd": a real one, of one member; "sqlite": for a single controller.

    """
    with ExitStack() as undo:
        target = ""
        if store == "etcd":
            (member,) = undo.enter_context(cluster(place))
            target = f"etcd://{member.endpoint}/bench"
        found = [Controller(one, place, target or f"sqlite:{place / 'store.db'}") for one in range(number)]
        for controller in found:
            if controller is not found[0]:
                shutil.copytree(found[0].state, controller.state, ignore=shutil.ignore_patterns("run"))
            undo.callback(controller.kill)
            controller.start()
        yield found
