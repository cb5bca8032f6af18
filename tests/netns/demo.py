"""`make demo`: a controller and three hosts, joined by the commands a user types.

HOLD=1 leaves them up until Ctrl-C. Any failure names its step, shows the logs and exits with 1.
"""

import contextlib
import itertools
import json
import os
import re
import shlex
import signal
import sys
import textwrap
import time
from typing import Any

from tests.netns.lab import FASTPATH_DIR, CommandError, Lab, Process, missing, until
from tests.netns.wire import LISTENING

CONTROLLER = "ctl"
HOSTS = ("a", "b", "c")
UNDERLAY = "192.0.2.1"  # of a lab's first host, here the controller's
LISTENED = {"a": "192.0.2.2", "b": "192.0.2.3"}
PAYLOAD = "secret"  # of every ping, again and again


def main() -> int:
    """Run the demo and return its exit code."""
    if why_not := _why_not():
        print(f"demo: {why_not}", file=sys.stderr)
        return 1
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        result = _told()
    except CommandError as error:
        print(f"\ndemo failed {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ndemo interrupted", file=sys.stderr)
        return 130
    print(result)
    return 0


def _told() -> str:
    """Tell the story in a lab of its own; return the last line, for when all is cleaned up."""
    with Lab(CONTROLLER, *HOSTS) as lab:
        demo = Demo(lab)
        try:
            result = demo.run()
        except CommandError as error:
            print(f"\n{lab.logs()}", file=sys.stderr)
            raise CommandError(f"at {demo.step!r}: {error}") from None
        if os.environ.get("HOLD"):
            print(f"\n{result}")
            _hold(lab)
    return f"\n{result}"


def _why_not() -> str:
    if not (FASTPATH_DIR / "overmesh-fastpath").exists():
        return "the fastpath is not built; `make demo` builds it first"
    return missing()


class Demo:
    """The story, one step after the other."""

    def __init__(self, lab: Lab) -> None:
        self.step = "start"
        self._lab = lab
        self._addresses: dict[str, list[str]] = {}

    def run(self) -> str:
        """Tell the story and return its last line.

        Raises:
            CommandError: something is not as it has to be; `step` tells when.

        """
        self._begin("A controller, on its embedded store")
        controller = self._start_controller()
        self._begin("Somebody listens to what passes between a and b")
        listening = self._listen()
        self._begin("Three hosts join, with one line each")
        first_ping = self._join()
        self._begin("All agents hold the same map")
        self._type(CONTROLLER, "meshctl wait --converged")
        self._type(CONTROLLER, "meshctl node list")
        self._begin("Every host reaches every other, over IPv4 and IPv6")
        pings = self._ping_all_pairs()
        self._begin("What was there to hear: WireGuard, and nothing else")
        self._hear_nothing(listening)
        self._begin("A TCP transfer through the overlay")
        speed = self._transfer()
        self._begin("The controller stops: traffic goes on")
        self._without(controller)
        self._begin("A node is removed: it is cut off")
        self._remove("c")
        counted = f"{len(HOSTS)} hosts, {pings}/{pings} pings, sealed"
        return f"demo ok: {counted}, {speed:.2f} Gbit/s, join to first ping {first_ping:.1f} s"

    def _start_controller(self) -> Process:
        controller = self._start(CONTROLLER, f"meshctl controller run --advertise {UNDERLAY}")
        self._until_up(controller)
        return controller

    def _until_up(self, controller: Process) -> None:
        host = self._lab[CONTROLLER]
        until(lambda: host.run("meshctl network list", check=False).returncode == 0, "the controller answers")
        _say(controller.log)

    def _join(self) -> float:
        """Let all hosts in; return the seconds from the last one's command to its first answered ping."""
        said = self._type(CONTROLLER, f"meshctl token create --uses {len(HOSTS)}")
        line = re.search(r"meshctl join .*", said)
        if not line:
            raise CommandError(f"no line to type in\n{said}")
        for name in HOSTS:
            first_ping = self._join_one(name, f"{line[0]} --foreground")
        return first_ping

    def _join_one(self, name: str, command: str) -> float:
        start = time.monotonic()
        joining = self._start(name, command)
        if self._addresses:
            self._until_ping(name, self._addresses[HOSTS[0]][0])
        first_ping = time.monotonic() - start
        until(lambda: "\nnext" in joining.output or not joining.running, f"{name} has joined", 30)
        _require(joining.running, f"that {name} joins\n{joining.output}{joining.log}")
        _say(joining.output)
        status = json.loads(self._lab[name].run("meshctl status --json").stdout)
        self._addresses[name] = status["addresses"]
        return first_ping

    def _until_ping(self, name: str, address: str) -> None:
        command = f"ping -c 1 -W 1 {address}"
        until(lambda: self._lab[name].run(command, check=False).returncode == 0, f"{name}$ {command}", 30)

    def _ping_all_pairs(self) -> int:
        pairs = [
            (source, address)
            for source, target in itertools.permutations(HOSTS, 2)
            for address in self._addresses[target]
        ]
        for source, address in pairs:
            self._ping(source, f"ping -c 1 -p {PAYLOAD.encode().hex()} {address}", lost=0)
        return len(pairs)

    def _listen(self) -> Process:
        command = ["python", "-m", "tests.netns.wire", *LISTENED.values(), PAYLOAD]
        listening = self._start("b", shlex.join(command))
        until(lambda: LISTENING in listening.log or not listening.running, "it listens")
        return listening

    def _hear_nothing(self, listening: Process) -> None:
        sealed = self._heard(listening)
        _require(not sealed["others"], "nothing but WireGuard's messages on UDP port 51820")
        _require({"initiation", "response", "data"} <= sealed["messages"].keys(), "handshakes and data")
        _require(not sealed["with_payload"], "no payload in the clear")
        # The same listener does hear what is not sealed.
        listening = self._listen()
        self._ping("a", f"ping -c 1 -p {PAYLOAD.encode().hex()} {LISTENED['b']}", lost=0)
        _require(self._heard(listening)["with_payload"], "the payload of a ping past the overlay")

    def _heard(self, listening: Process) -> dict[str, Any]:
        """End a listener and return what it has seen (wire.py, Seen)."""
        listening.kill(signal.SIGINT)
        _require(listening.wait() == 0, f"that it tells what it heard\n{listening.log}")
        seen: dict[str, Any] = json.loads(listening.output)
        counts = ", ".join(f"{kind} {count}" for kind, count in (seen["messages"] | seen["others"]).items())
        _say(f"packets: {counts or 'none'}; with the pings' payload in the clear: {seen['with_payload']}")
        return seen

    def _transfer(self) -> float:
        receiving = self._start("b", "python -m tests.netns.transfer receive")
        until(
            lambda: self._lab["b"].run("ss -Hltn sport = 5001").stdout or not receiving.running, "b listens"
        )
        speed = self._type("a", f"python -m tests.netns.transfer send {self._addresses['b'][0]} 2")
        return float(speed.split()[0])

    def _without(self, controller: Process) -> None:
        """Stop the controller under a running ping, and start it again."""
        pinging = self._start("a", f"ping -i 0.01 -c 200 -q {self._addresses['b'][0]}")
        _show(CONTROLLER, "Ctrl-C")
        controller.kill(signal.SIGINT)
        _require(controller.wait() in (0, 130), f"an orderly end\n{controller.log}")
        pinging.wait()
        _say(_loss(pinging.output))
        _require(" 0% packet loss" in pinging.output, f"no packet lost\n{pinging.output}")
        self._until_up(self._start(CONTROLLER, f"meshctl controller run --advertise {UNDERLAY}"))
        # An agent that is not connected is not live: `wait` would not wait for it.
        until(self._all_in_step, "all agents are back")
        self._type(CONTROLLER, "meshctl wait --converged")

    def _all_in_step(self) -> bool:
        nodes = json.loads(self._lab[CONTROLLER].run("meshctl node list --json").stdout)["nodes"]
        return all(node["in_step"] for node in nodes)

    def _remove(self, name: str) -> None:
        self._type(CONTROLLER, f"meshctl node remove {name}")
        self._type(CONTROLLER, "meshctl wait --converged")
        self._ping("a", f"ping -c 2 -W 1 {self._addresses[name][0]}", lost=100)
        self._ping(name, f"ping -c 2 -W 1 {self._addresses['a'][0]}", lost=100)
        self._ping("a", f"ping -c 2 -W 1 {self._addresses['b'][0]}", lost=0)

    def _begin(self, step: str) -> None:
        self.step = step
        print(f"\n\033[1m{step}\033[0m" if sys.stdout.isatty() else f"\n{step}", flush=True)

    def _start(self, name: str, command: str) -> Process:
        _show(name, f"{command} &")
        return self._lab[name].start(command)

    def _type(self, name: str, command: str) -> str:
        _show(name, command)
        said = self._lab[name].run(command).stdout
        _say(said)
        return said

    def _ping(self, name: str, command: str, *, lost: int) -> None:
        said = self._lab[name].run(command, check=False).stdout
        answer = re.search(r"time=(\S+ ms)", said)
        _show(name, f"{command:<76} {answer[1] if answer else f'{lost}% lost'}")
        _require(f" {lost}% packet loss" in said, f"{lost}% loss\n{said}")


def _hold(lab: Lab) -> None:
    """Leave the lab up until Ctrl-C or SIGTERM."""
    for host in lab:
        script = lab.directory / host.name
        script.write_text(host.script())
        script.chmod(0o755)
    print(f"\nEnter a host: {lab.directory}/a   Then: meshctl status")
    print(f"End it: Ctrl-C, or kill {os.getpid()}", flush=True)
    with contextlib.suppress(KeyboardInterrupt, SystemExit):
        signal.pause()


def _show(name: str, command: str) -> None:
    prompt = f"{name}$"
    print(
        f"  \033[36m{prompt}\033[0m {command}" if sys.stdout.isatty() else f"  {prompt} {command}", flush=True
    )


def _say(output: str) -> None:
    print(textwrap.indent(output.strip("\n"), "      "), flush=True)


def _loss(output: str) -> str:
    """Return the line of ping's output that counts."""
    return next((line for line in output.splitlines() if "packet loss" in line), output)


def _require(holds: object, what: str) -> None:
    if not holds:
        raise CommandError(f"expected {what}")


if __name__ == "__main__":
    sys.exit(main())
