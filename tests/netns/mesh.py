"""A mesh in a lab: what the tests do again and again, in the words of a user."""

import itertools
import json
import re
import signal
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from tests.netns.lab import Host, Lab, Process, until

CONTROLLER = "ctl"
# Of a lab's first host.
IPV4, IPV6 = "192.0.2.1", "2001:db8::1"


@dataclass
class Member:
    """A host that has joined, and the agent that runs on it."""

    host: Host
    agent: Process

    def status(self) -> dict[str, Any]:
        """Return what `meshctl status --json` says."""
        status: dict[str, Any] = json.loads(
            self.host.run("meshctl status --json", check=False).stdout or "{}"
        )
        return status

    @property
    def addresses(self) -> list[str]:
        """The overlay addresses, IPv4 first."""
        addresses: list[str] = self.status()["addresses"]
        return addresses

    def kill_agent(self) -> None:
        """End the agent as a crash does."""
        self.agent.kill(signal.SIGKILL)
        self.agent.wait()

    def kill_fastpath(self) -> int:
        """End the fastpath as a crash does; return the process id it had."""
        pid: int = self.status()["fastpath"]["pid"]
        self.host.kill(pid, signal.SIGKILL)
        return pid

    def start_agent(self, command: str = "agent run") -> None:
        """Start the agent again."""
        self.agent = self.host.start(f"meshctl {command}")

    def until_working(self) -> None:
        """Wait until the agent says that all is well."""
        until(lambda: self.status().get("working"), f"{self.host.name} works")

    def reaches(self, address: str) -> bool:
        """Tell whether one of two pings is answered within a second."""
        ping = self.host.run(["ping", "-c", "2", "-i", "0.2", "-W", "1", address], check=False)
        return ping.returncode == 0


@dataclass
class Mesh:
    """A lab with a controller, and the hosts that have joined: the default network, or a plain one."""

    lab: Lab
    mode: str = "sealed"
    members: dict[str, Member] = field(default_factory=dict)
    network: str = "mesh"
    # Of the controller, besides its own.
    environ: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.start_controller()
        if self.mode == "plain":
            self.network = "rack"
            self.ctl("network create rack --mode plain")

    def __getitem__(self, name: str) -> Member:
        return self.members[name]

    # The controller.

    def start_controller(self) -> None:
        """Run the controller and wait until it answers."""
        self.controller = self.lab[CONTROLLER].start(
            f"meshctl controller run --advertise {IPV4} --advertise {IPV6}", environ=self.environ
        )
        until(
            lambda: not self.controller.running or "controller ready" in self.controller.log,
            "the controller is ready",
        )
        assert self.controller.running, self.controller.log

    def stop_controller(self, number: signal.Signals = signal.SIGTERM) -> None:
        """End the controller."""
        self.controller.kill(number)
        self.controller.wait()

    def ctl(self, command: str) -> Any:
        """Return what a command says on the controller's host, with --json."""
        return json.loads(self.lab[CONTROLLER].run(f"meshctl {command} --json").stdout)

    def token(self, options: str = "") -> str:
        """Return a fresh token."""
        token: str = self.ctl(f"token create --network {self.network} {options}")["secret_token"]
        return token

    def nodes(self) -> dict[str, Any]:
        """Return the nodes that the controller knows, by name."""
        return {node["name"]: node for node in self.ctl(f"node list --network {self.network}")["nodes"]}

    def until_in_step(self) -> None:
        """Wait until all agents are connected and have the same map."""
        until(
            lambda: all(node["in_step"] for node in self.nodes().values() if node["kind"] == "agent"),
            "all agents are in step",
        )

    # Hosts.

    def host(self, name: str) -> Host:
        """Return a host that has not joined, made now if need be."""
        return next((host for host in self.lab if host.name == name), None) or self.lab.add(name)

    def join(self, *names: str, via: str = IPV4) -> None:
        """Let those hosts in that are not, and wait until they work."""
        fresh = [name for name in names if name not in self.members]
        for name in fresh:
            line = f"meshctl join {via} --token {self.token()} --foreground"
            host = self.host(name)
            self.members[name] = Member(host, host.start(line))
        for name in fresh:
            self.members[name].until_working()
        self.until_in_step()


@dataclass(frozen=True)
class Loss:
    """What a ping in the background has seen. gap: seconds, the longest between two answers."""

    answered: int
    lost: int
    gap: float


class Pinging:
    """A ping every 10 ms, from one member to an address."""

    def __init__(self, member: Member, address: str) -> None:
        self._process = member.host.start(["ping", "-D", "-i", "0.01", address])
        until(lambda: "bytes from" in self._process.output, f"the first answer of {address}")

    def stop(self) -> Loss:
        """End it, a second later, and return what it has seen."""
        time.sleep(1)
        self._process.kill(signal.SIGINT)
        self._process.wait()
        return lost_in(self._process.output)


def lost_in(said: str) -> Loss:
    """Return what ping(8) has seen by what it said (-D, and its summary)."""
    sent = re.search(r"(\d+) packets transmitted", said)
    assert sent, said
    answers = re.findall(r"^\[([\d.]+)\] .* bytes from .* icmp_seq=(\d+)", said, re.MULTILINE)
    times = [float(at) for at, _ in answers]
    seen = set(_unwrapped(int(number) for _, number in answers))
    # Those of the last half second may be under way when ping ends.
    lost = set(range(1, int(sent[1]) - 50)) - seen
    gap = max(after - before for before, after in itertools.pairwise(times))
    return Loss(len(seen), len(lost), gap)


def _unwrapped(numbers: Iterable[int]) -> Iterator[int]:
    """Yield sequence numbers, of which ICMP has 16 bits, as if it had more; nearly in order."""
    last = 0
    for number in numbers:
        last += (number - last + 0x8000) % 0x10000 - 0x8000
        yield last
