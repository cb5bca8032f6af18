"""Three members of etcd and three controllers, each on a host of its own, and how to harm each of them.

    with Lab(*HOSTS) as lab, Cluster(lab) as cluster:
        cluster.members[0].kill()

Nothing here decides what is done when: faults.py does.
"""

import json
import os
import signal
import struct
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import grpc

from overmesh.proto import admin_pb2, admin_pb2_grpc
from tests.netns.lab import Host, Lab, Process, until

MEMBERS = ("e1", "e2", "e3")
CONTROLLERS = ("c1", "c2", "c3")
CLIENTS = "clients"
RANGES = ("10.77.0.0/25", "fd77::/64")
# A member's disk: what etcd allots in advance, and what it may use of it, in MiB.
DISK, QUOTA = 420, 48
# Of nobody: what is sent there is lost without a word.
_NOBODY = "02:00:00:00:00:01"
_CLOCK = Path(__file__).with_name("clock.c")
# Seconds that anything may take to come up; the machine may be busy.
_PATIENCE = 60.0


@dataclass
class Machine:
    """A host that runs one process. address: IPv4, on the segment of the lab."""

    host: Host
    address: str
    process: Process | None = None

    @property
    def name(self) -> str:
        """The host's name."""
        return self.host.name

    @property
    def running(self) -> bool:
        """Whether the process is there."""
        return self.process is not None and self.process.running

    def kill(self) -> None:
        """End the process as a crash does."""
        assert self.process
        self.process.kill(signal.SIGKILL)
        self.process.wait()

    def freeze(self) -> None:
        """Let it do nothing until it is thawed; everybody else sees silence."""
        assert self.process
        self.process.kill(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        assert self.process
        self.process.kill(signal.SIGCONT)

    def cut(self, others: Iterable["Machine"]) -> None:
        """Lose all that is sent to others from here; what they send arrives."""
        for other in others:
            self.host.run(f"ip neigh replace {other.address} lladdr {_NOBODY} nud permanent dev eth0")

    def mend(self, others: Iterable["Machine"]) -> None:
        """Undo `cut`."""
        for other in others:
            self.host.run(f"ip neigh del {other.address} dev eth0")

    def start(self) -> None:
        """Start the process, on what it had."""
        raise NotImplementedError

    @property
    def ready(self) -> bool:
        """Whether it does its work."""
        raise NotImplementedError


class EtcdMember(Machine):
    """A member of etcd, on a small disk of its own."""

    def prepare(self, cluster: str) -> None:
        """Make the disk; remember who the others are."""
        self.host.run("mkdir -p /var/lib/etcd")
        self.host.run(f"mount -t tmpfs -o size={DISK}m tmpfs /var/lib/etcd")
        self._cluster = cluster

    @property
    def peer(self) -> str:
        """How the other members reach it."""
        return f"{self.name}=http://{self.address}:2380"

    def start(self) -> None:
        """See Machine."""
        arguments = {
            "name": self.name,
            "data-dir": "/var/lib/etcd/data",
            "listen-client-urls": "http://0.0.0.0:2379",
            "advertise-client-urls": f"http://{self.address}:2379",
            "listen-peer-urls": f"http://{self.address}:2380",
            "initial-advertise-peer-urls": f"http://{self.address}:2380",
            "initial-cluster": self._cluster,
            "quota-backend-bytes": QUOTA << 20,
            "snapshot-count": 5_000,
            "max-wals": 1,
            "max-snapshots": 1,
            "logger": "zap",
            "log-level": "error",
        }
        self.process = self.host.start(["etcd", *(f"--{name}={value}" for name, value in arguments.items())])

    @property
    def ready(self) -> bool:
        """See Machine: it has a leader, and space."""
        health = self.operate("health")
        return bool(health.get("health") == "true")

    def operate(self, what: str, **said: Any) -> dict[str, Any]:
        """Do to etcd what operators do: see operator.py; empty when it does not answer."""
        command = [sys.executable, "-m", "tests.faults.operator", what, json.dumps(said)]
        done = self.host.run(command, check=False)
        answer: dict[str, Any] = json.loads(done.stdout or "{}")
        return answer

    def fill(self) -> None:
        """Leave no space on the disk."""
        self.host.run("dd if=/dev/zero of=/var/lib/etcd/full bs=1M", check=False)

    def clear(self) -> None:
        """Give the space back."""
        self.host.run("rm -f /var/lib/etcd/full")


class ControllerMachine(Machine):
    """A controller with a clock of its own."""

    def prepare(self, directory: Path, store: str, program: list[str]) -> None:
        """Lay its files out.

        Args:
            directory: where everybody in the lab finds its socket.
            store: what it keeps the truth in.
            program: what to run in place of meshctl.

        """
        self.runtime = directory / self.name
        self._clock = directory / f"{self.name}.clock"
        self.turn_clock(0)
        said = [("store", store), ("runtime-dir", self.runtime), ("log-format", "json")]
        said += [("advertise", self.address), *(("range", cidr) for cidr in RANGES)]
        self._command = [*program, "controller", "run", *(f"--{name}={value}" for name, value in said)]
        self._environ = {"LD_PRELOAD": str(directory / "clock.so"), "CLOCK_SHIFT": str(self._clock)}

    def start(self) -> None:
        """See Machine."""
        self.process = self.host.start(self._command, environ=self._environ)

    @property
    def ready(self) -> bool:
        """See Machine."""
        return self.process is not None and '"controller ready"' in self.process.log

    def answer(self, method: str) -> str:
        """Return what an empty request to its admin service is answered, or the error."""
        with grpc.insecure_channel(f"unix:{self.runtime / 'controller.sock'}") as channel:
            stub = admin_pb2_grpc.AdminStub(channel)  # type: ignore[no-untyped-call]
            try:
                return str(getattr(stub, method)(getattr(admin_pb2, f"{method}Request")(), timeout=30))
            except grpc.RpcError as error:
                return f"{error.code().name} {error.details()}"

    def turn_clock(self, seconds: int) -> None:
        """Have its clock be so far ahead of everybody's, from this moment on."""
        mode = "r+b" if self._clock.exists() else "wb"
        with self._clock.open(mode) as file:
            file.write(struct.pack("=q", seconds))


@dataclass
class Cluster:
    """All of them. program: what to run in place of meshctl as the controllers."""

    lab: Lab
    program: list[str] = field(default_factory=lambda: ["meshctl"])

    def __enter__(self) -> Self:
        addresses = {name: f"192.0.2.{number}" for number, name in enumerate(self.lab.names, 1)}
        self.members = [EtcdMember(self.lab[name], addresses[name]) for name in MEMBERS]
        self.controllers = [ControllerMachine(self.lab[name], addresses[name]) for name in CONTROLLERS]
        _compile_clock(self.lab.directory)
        self._start_members()
        self._start_controllers()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for machine in self.machines:
            if machine.running:
                machine.kill()

    @property
    def machines(self) -> list[Machine]:
        """Members and controllers."""
        return [*self.members, *self.controllers]

    @property
    def store(self) -> str:
        """What the controllers keep the truth in."""
        return f"etcd://{','.join(f'{member.address}:2379' for member in self.members)}/mesh"

    def _start_members(self) -> None:
        for member in self.members:
            member.prepare(",".join(one.peer for one in self.members))
            member.start()
        self.until_ready(self.members)

    def _start_controllers(self) -> None:
        for controller in self.controllers:
            controller.prepare(self.lab.directory, self.store, self.program)
            if controller is not self.controllers[0]:
                self._share_root(controller)
            controller.start()
            self.until_ready([controller])

    def _share_root(self, controller: ControllerMachine) -> None:
        directory = "/var/lib/overmesh/controller"
        controller.host.run(f"mkdir -m 700 -p {directory}")
        for name in ("root.key", "root.pem"):
            controller.host.write(f"{directory}/{name}", self.root(name))
            controller.host.run(f"chmod 600 {directory}/{name}")

    def root(self, name: str = "root.pem") -> str:
        """Return a file of the mesh root."""
        return self.controllers[0].host.read(f"/var/lib/overmesh/controller/{name}")

    def until_ready(self, machines: Iterable[Machine] = ()) -> float:
        """Wait until these (or all) do their work; return the seconds that took.

        Raises:
            CommandError: one does not.

        """
        waiting = list(machines) or self.machines
        took = 0.0
        for machine in waiting:
            took += until(lambda: machine.ready or not machine.running, f"{machine.name} is ready", _PATIENCE)  # noqa: B023
            assert machine.running, f"{machine.name} has ended:\n{machine.host.logs()}"
        return took

    def meshctl(self, command: str) -> Any:
        """Return what a command says on the first controller's host, with --json."""
        environ: Mapping[str, str] = {"OVERMESH_RUNTIME_DIR": str(self.controllers[0].runtime)}
        return json.loads(
            self.controllers[0].host.run(f"meshctl {command} --json", environ=environ, timeout=60).stdout
        )


def _compile_clock(directory: Path) -> None:
    compiler = os.environ.get("CC", "cc")
    command = [compiler, "-O2", "-shared", "-fPIC", "-o", str(directory / "clock.so"), str(_CLOCK)]
    subprocess.run(command, check=True, timeout=60)
